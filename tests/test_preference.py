"""Which of two answers is better: the loss is DPO's, and the base is what the model is held to."""
# ruff: noqa: F401, F811 (fixtures are imported by their names)

import json
import math
from pathlib import Path

import pytest
import torch

from model import IGNORED
from sample import text_of
from support.checkpoint import load_model
from support.examples import line_of, open_examples
from support.metrics import preference_numbers
from support.preference import Pair, batch_of_pairs, preferring, row_of
from tests.test_finetune import LINES, jsonl, last, made, results, run, small, task_of, tune

PAIR = Pair([1, 2, 3], [4, 5], [6, 7, 8], "a")
OTHER = Pair([9], [10], [11, 12], "b")
OF_BASE = {"a": [-1.0, -2.0], "b": [-3.0, -0.5]}
KITE = [{"role": "user", "content": "谁丢了风筝？"}]
LINE = {"messages": [{"role": "user", "content": "who?"}], "chosen": "me", "rejected": "you"}
ANSWERS = {"chosen": "小梅", "rejected": "小明"}


def messages(content):
    return [{"role": "assistant", "content": content}]


# ------------------------------------------------------------------------------------ the loss


def log_p(model, prompt, answer):
    """The log-probability of an answer, token by token."""
    total, tokens = 0.0, list(prompt)
    for token in answer:
        logits, _ = model(torch.tensor([tokens]))
        total += logits[0, -1].log_softmax(dim=0)[token].item()
        tokens.append(token)
    return total


def test_the_loss_is_that_of_the_paper():
    model = small().eval()
    expected, rewards = [], []
    for pair in (PAIR, OTHER):
        scores = (log_p(model, pair.prompt, answer) for answer in (pair.better, pair.worse))
        both = [0.3 * (mine - theirs) for mine, theirs in zip(scores, OF_BASE[pair.key])]
        rewards.append(both)
        expected.append(-math.log(1 / (1 + math.exp(both[1] - both[0]))))
    preferring(model, beta=0.3)
    found, loss = model(**batch_of_pairs([PAIR, OTHER], OF_BASE))
    torch.testing.assert_close(found, torch.tensor(rewards), atol=1e-4, rtol=0)
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_doubts_about_the_pairs_are_label_smoothing():
    model = small(label_smoothing=0.2)
    preferring(model, beta=0.3)
    batch = batch_of_pairs([PAIR], OF_BASE)
    rewards, loss = model(**batch)
    margin = rewards[0, 0] - rewards[0, 1]
    right, wrong = (-torch.nn.functional.logsigmoid(x) for x in (margin, -margin))
    torch.testing.assert_close(loss, 0.9 * right + 0.1 * wrong)
    torch.testing.assert_close(model.eval()(**batch)[1], right)


def test_a_model_that_prefers_still_computes_everything_else():
    model = small().eval()
    tokens = torch.randint(259, (2, 9))
    expected = model(tokens[:, :-1], tokens[:, 1:])[1]
    preferring(model, beta=0.1)
    assert model(tokens[:, :-1], tokens[:, 1:])[1] == expected


def test_a_batch_has_two_rows_for_each_pair():
    batch = batch_of_pairs([PAIR, OTHER], OF_BASE)
    assert batch["inputs"].tolist() == [
        [1, 2, 3, 4, 0],
        [1, 2, 3, 6, 7],
        [9, 0, 0, 0, 0],
        [9, 11, 0, 0, 0],
    ]
    assert batch["at"].tolist() == [[2, 3, 0], [2, 3, 4], [0, 0, 0], [0, 1, 0]]
    assert batch["answers"].tolist() == [
        [4, 5, IGNORED],
        [6, 7, 8],
        [10, IGNORED, IGNORED],
        [11, 12, IGNORED],
    ]
    assert batch["of_base"].tolist() == [[-1, -2], [-3, -0.5]]
    assert batch["targets"].tolist() == [0, 0]
    better, worse = (row_of(batch, i) for i in (0, 1))
    assert better["inputs"].tolist() == [[1, 2, 3, 4]]
    assert better["targets"].tolist() == [[IGNORED, IGNORED, 4, 5]]
    assert worse["inputs"].tolist() == [[1, 2, 3, 6, 7]]
    assert worse["targets"].tolist() == [[IGNORED, IGNORED, 6, 7, 8]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_both_rows_fit_and_keep_the_end_of_the_same_prompt(size):
    cut = PAIR.end(size)
    assert max(len(row) - 1 for row in cut.rows) == min(size, 5)
    assert cut.prompt and PAIR.prompt[-len(cut.prompt) :] == cut.prompt
    assert PAIR.better[: len(cut.better)] == cut.better
    assert PAIR.worse[: len(cut.worse)] == cut.worse


def test_long_answers_leave_some_of_the_question():
    pair = Pair(list(range(50)), list(range(100)), list(range(200)), "a")
    assert pair.end(64) == Pair(list(range(34, 50)), list(range(49)), list(range(49)), "a")
    assert pair.end(1000) == pair


def test_two_equal_answers_teach_nothing():
    assert Pair([1], [2], [3], "a").targets == [0]
    assert Pair([1], [2], [2], "a").targets == [IGNORED]


def test_ties_count_half():
    answers = [{"gains": pair, "log_probabilities": [-1, -2]} for pair in ([2, 1], [1, 1])]
    expected = {"accuracy": 0.75, "margin": 0.1, "likelier": 1}
    assert preference_numbers(answers, beta=0.2) == expected
    assert preference_numbers([{"gains": [3, 9]}], beta=0.2) == {"accuracy": 0}
    assert preference_numbers([{"gains": [1e-6, 0]}], beta=100) == {"accuracy": 0.5}


# ---------------------------------------------------------------------------------- the lines


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": KITE, **ANSWERS},
        {"prompt": None, "messages": KITE, **ANSWERS},
        {"prompt": KITE, "chosen": messages("小梅"), "rejected": messages("小明")},
        {"chosen": KITE + messages("小梅"), "rejected": KITE + messages("小明")},
        {"prompt": "it", "chosen": KITE + messages("小梅"), "rejected": KITE + messages("小明")},
        {"prompt": "it", "chosen": KITE + messages("小梅"), "rejected": "小明"},
        {"instruction": "it", "chosen": "小梅", "rejected": KITE + messages("小明")},
        {
            "conversations": [{"from": "human", "value": "谁丢了风筝？"}],
            "chosen": {"from": "gpt", "value": "小梅"},
            "rejected": {"from": "gpt", "value": "小明"},
        },
    ],
)
def test_every_usual_form_of_a_conversation_is_read(record):
    line = line_of(record, "preference", {}, "pairs.jsonl, line 1")
    assert line == {"messages": KITE, **ANSWERS}


def test_a_text_is_both_a_prompt_and_a_message():
    line = line_of({"prompt": "谁丢了风筝？", **ANSWERS}, "preference", {}, "")
    assert line == {"messages": KITE, "prompt": "谁丢了风筝？", **ANSWERS}


def test_a_conversation_is_no_prompt_and_neither_is_one_with_a_system_prompt():
    talk = KITE + messages("who?") + KITE
    line = line_of({"messages": talk, **ANSWERS}, "preference", {}, "")
    assert line == {"messages": talk, **ANSWERS}
    line = line_of({"prompt": "a", "system": "Be kind.", **ANSWERS}, "preference", {}, "")
    assert [m["role"] for m in line["messages"]] == ["system", "user"] and "prompt" not in line


def test_alpacas_question_is_a_message_or_its_form():
    record = {"instruction": "Name a fruit.", "input": "red", **ANSWERS}
    line = line_of(record, "preference", {}, "")
    assert line["messages"] == [{"role": "user", "content": "Name a fruit.\n\nred"}]
    assert line["prompt"].startswith("### Instruction:\nName a fruit.\n\n### Input:\nred")
    older = {"instruction": "Name a fruit.", "input": "red", "output": list(ANSWERS.values())}
    assert line_of(older, "preference", {}, "") == line
    line = line_of(record | {"history": [["a", "b"]]}, "preference", {}, "")
    assert len(line["messages"]) == 3 and "prompt" not in line


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected', found prompt, chosen"),
        (
            {"question": "a", **ANSWERS},
            "no field 'prompt', found question, chosen, rejected; if the file names it "
            "differently, type --fields prompt=THEIRS .*; where the answers begin with the prompt, "
            "split it off",
        ),
        ({"prompt": KITE + messages("a"), **ANSWERS}, "the last message before the answers must"),
        ({"prompt": [], **ANSWERS}, "prompt must be text, found '\\[\\]'"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "chosen must be text, found '1'"),
        (
            {"chosen": KITE, "rejected": KITE},
            "the last message of chosen must be the assistant's",
        ),
        (
            {"chosen": KITE + messages("a"), "rejected": KITE * 2 + messages("b")},
            "chosen and rejected do not answer the same conversation",
        ),
        ({"prompt": [{"role": "me", "content": "a"}], **ANSWERS}, "role=me is not one of"),
    ],
)
def test_a_wrong_line_is_told(record, told):
    with pytest.raises(SystemExit, match=f"pairs.jsonl, line 3: {told}"):
        line_of(record, "preference", {}, "pairs.jsonl, line 3")


def test_pairs_given_to_another_task_name_theirs():
    with pytest.raises(SystemExit, match="that is for --task=preference"):
        line_of({"prompt": "a", **ANSWERS}, "completion", {}, "")


# ------------------------------------------------------------------------------------- a run


def test_it_learns_what_is_preferred_and_is_held_to_what_it_was(tune, capsys):
    before, tokenizer, _ = load_model("out/base")
    tune("preference", "--max_iters=60", "--batch_size=8", "--learning_rate=3e-3")
    told = capsys.readouterr().out
    assert "step 0: val loss 0.6931, accuracy 0.5, margin 0," in told
    mine = results()["this model"]
    assert mine["accuracy"] == 1 and mine["loss"] < 0.4 and mine["margin"] > 0.5
    assert results()["what the base finds likelier"]["accuracy"] < 1
    assert "20 train" not in told and "24 train, 6 val, 6 test; 24 targets per epoch" in told
    after, _, checkpoint = load_model("out/tuned")
    prompt = tokenizer.encode(LINES["preference"][0]["prompt"]).tolist()
    better, worse = (tokenizer.encode(LINES["preference"][0][n]).tolist() for n in ANSWERS)
    gain = [log_p(after, prompt, a) - log_p(before, prompt, a) for a in (better, worse)]
    assert gain[0] > gain[1]
    assert checkpoint["task"]["task"] == "completion"  # it is asked as before
    assert text_of(after, tokenizer, prompt, 4, seed=0)
    answered = json.loads(Path("out/tuned/predictions.jsonl").read_text().splitlines()[0])
    assert answered["answer"]["choice"] == answered["chosen"]


def test_how_a_step_is_divided_makes_no_difference(tune):
    ends = []
    for rows, times in ((4, 1), (2, 2), (1, 4)):
        tune(
            "preference", f"--batch_size={rows}", f"--gradient_accumulation_steps={times}",
            "--max_iters=6", f"--eval_iters={8 // rows}", "--learning_rate=1e-3",
        )  # fmt: skip
        ends.append(last()["model"])
    for other in ends[1:]:
        for name, tensor in ends[0].items():
            torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)


def test_a_resumed_run_remembers_the_base(tune):
    tune("preference", "--max_iters=6", "--lr_decay_iters=6")
    expected = last()
    tune("preference", "--max_iters=3", "--lr_decay_iters=6", "--eval_interval=3")
    Path("out/base").rename("out/elsewhere")
    options = "--max_iters=6", "--lr_decay_iters=6", "--eval_interval=2"
    tune("preference", *options, "--init_from=resume")
    assert last()["step"] == 6 and last()["of_base"] == expected["of_base"]
    for name, tensor in expected["model"].items():
        assert torch.equal(last()["model"][name], tensor), name
    new = [line | {"chosen": " another"} for line in LINES["preference"]]
    Path("tasks/preference/train.jsonl").write_text(jsonl(new), encoding="utf-8")
    with pytest.raises(SystemExit, match="has other pairs than when this run began"):
        tune("preference", "--max_iters=9", "--init_from=resume")


def test_lora_learns_it_too(tune):
    tune("preference", "--method=lora", "--merge", "--max_iters=40", "--learning_rate=1e-2")
    assert results()["this model"]["accuracy"] == 1
    model, _, checkpoint = load_model("out/tuned/merged.pt")
    assert "of_base" in last() and "of_base" not in checkpoint
    assert torch.isfinite(model(torch.randint(256, (2, 20)))[0]).all()


def test_a_model_that_converses_is_asked_in_its_template(tune, run, capsys):
    tune("chat")
    Path("out/tuned").rename("out/chat")
    tune("preference", "--init_from=out/chat", "--dry_run=True")
    assert "<|im_end|>" in capsys.readouterr().out
    lines = [
        {"messages": line["messages"][:3], "chosen": f"yes {i}", "rejected": f"no {i}"}
        for i, line in enumerate(LINES["chat"])
    ]
    Path("talks.jsonl").write_text(jsonl(lines), encoding="utf-8")
    tune("preference", "--init_from=out/chat", "--dataset=talks.jsonl", "--max_iters=20")
    assert results()["this model"]["accuracy"] == 1
    assert last()["task"]["task"] == "chat"
    assert "python sample.py --out_dir=out/tuned --chat" in capsys.readouterr().out
    tune("preference", "--init_from=resume", "--dataset=talks.jsonl", "--max_iters=22")
    assert last()["step"] == 22
    run("sample.py", "--out_dir=out/tuned", "--start=it", "--device=cpu", "--max_new_tokens=4")


def test_a_conversation_is_not_put_to_a_model_that_does_not_converse(tune):
    lines = [{"messages": line["messages"][:3], **ANSWERS} for line in LINES["chat"]]
    Path("talks.jsonl").write_text(jsonl(lines), encoding="utf-8")
    with pytest.raises(SystemExit, match="out/base was not taught to converse: teach it by"):
        tune("preference", "--dataset=talks.jsonl")


def test_in_16_bits_the_base_is_asked_in_16_bits_too(tune, capsys):
    tune("preference", "--dtype=bfloat16", "--preference_beta=5", "--eval_iters=0")
    assert "step 0: val loss 0.6931, accuracy 0.5, margin 0," in capsys.readouterr().out


def test_a_message_to_a_plain_model_is_answered_behind_a_space(tune, capsys):
    task = task_of("preference", lines=[LINE])
    assert task.tokenizer.decode(task.asked(LINE) + task.answer(LINE, "chosen")[:-1]) == "who? me"
    assert task.answer(LINE | {"prompt": "who?"}, "chosen")[:-1] == list(b"me")


def test_pairs_about_one_question_stay_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"{i % 12}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(72)]
    Path("pairs.jsonl").write_text(jsonl(lines), encoding="utf-8")
    splits = open_examples("pairs.jsonl", "preference", val_fraction=0.2)
    asked = [{line["prompt"] for line in splits[split]} for split in ("train", "val", "test")]
    assert [len(some) for some in asked] == [8, 2, 2] and not asked[0] & (asked[1] | asked[2])
    assert sum(map(len, splits.values())) == 72


def test_pairs_with_equal_answers_are_told(tune, capsys):
    some = [line | {"rejected": line["chosen"]} for line in LINES["preference"][:5]]
    path = Path("tasks/preference/train.jsonl")
    path.write_text(jsonl(LINES["preference"] + some), encoding="utf-8")
    tune("preference", "--max_iters=1")
    assert "5 have equal answers, as far as they fit and are left out" in capsys.readouterr().out
    path.write_text(jsonl(some), encoding="utf-8")
    with pytest.raises(SystemExit, match="all train examples have equal answers"):
        tune("preference")


def test_evaluated_alone_a_model_is_compared_with_itself_and_says_so(tune, capsys):
    tune("preference", "--eval_only=True")
    told = capsys.readouterr().out
    assert "compared with itself" in told and "accuracy 0.5, margin 0," in told
    tune("preference", "--max_iters=40", "--learning_rate=3e-3", "--eval_interval=40")
    tune("preference", "--init_from=resume", "--eval_only=True")
    told = capsys.readouterr().out
    assert "accuracy 1, margin 3" in told and told.count("compared with itself") == 0


def test_the_dry_run_shows_a_pair_and_asks_the_model_nothing(tune, capsys):
    tune("preference", "--dry_run=True")
    told = capsys.readouterr().out
    assert told.count("<|endoftext|>") == 2 and "before it is trained" not in told
    assert "  the better answer:\n" in told and "  the worse one:\n" in told
    assert "dry run: 4 steps" in told


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--pretrained=False", "pretrained=False does not go with --task=preference"),
        ("--teacher=out/base", "teacher=out/base does not go with"),
        ("--pack=True", "pack=True: a pair of answers has two rows"),
        ("--long=chunk", "long=chunk would tear pairs of answers apart"),
        ("--word_deletion=0.1", "are for classification, completion and choice"),
        ("--preference_beta=0", "preference_beta=0.0 must be above 0"),
    ],
)
def test_what_makes_no_sense_with_preferences_is_refused(tune, capsys, option, told):
    with pytest.raises(SystemExit) as stop:
        tune("preference", option)
    assert told in str(stop.value) + capsys.readouterr().err
