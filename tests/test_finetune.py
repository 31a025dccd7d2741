"""Fine-tuning: the same loop, masked targets, and a result that lasts."""

import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import finetune as finetune_module
import support.tasks as tasks_module
from finetune import FinetuneConfig, all_examples, example_batches, fitting, noisy
from model import IGNORED, ModelConfig, Transformer
from support import labelling
from support.chat import without_thoughts
from support.checkpoint import load_model, read_checkpoint, save_checkpoint
from support.distillation import taught_by
from support.examples import checked
from support.huggingface import write_model
from support.labelling import words_of
from support.processes import World
from support.tasks import Example, batch_of, continuing, open_task, shifted
from support.tokenizer import (
    byte_tokenizer,
    char_tokenizer,
    own_tokenizer,
    tokenizer_from_dict,
)
from support.tokenizer_files import CHATML
from tests.conftest import REPOSITORY, call
from train import make_optimizers

ALONE = World(torch.device("cpu"), torch.float32)
SHAPE = "--n_layer=2 --n_head=2 --n_embd=32 --block_size=96 --position=rope --tie_weights=False"
BASE = (  # a model that has seen the text of data/tiny for a moment
    f"{SHAPE} --batch_size=8 --gradient_accumulation_steps=1 --max_iters=30 --warmup_iters=0 "
    "--learning_rate=1e-2 --eval_interval=30 --eval_iters=1 --sample_tokens=0 --device=cpu "
    "--dtype=float32"
).split()
QUICK = (  # a few steps of fine-tuning
    "--init_from=out/base --out_dir=out/tuned --batch_size=4 --max_iters=4 --warmup_iters=0 "
    "--learning_rate=1e-2 --eval_interval=2 --eval_iters=2 --device=cpu --dtype=float32"
).split()
ANIMALS = ("cat", "dog", "猫", "狗")
LINES = {
    "text": [{"text": f"the {a} ran home {i}"} for i, a in enumerate(ANIMALS * 5)],
    "completion": [
        {"prompt": f"{i} who ran? the {a}. =", "completion": f" {a}"}
        for i, a in enumerate(ANIMALS * 6)
    ],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"the {a} ran {i}"},
                {"role": "assistant", "content": "who?"},
                {"role": "user", "content": "it"},
                {"role": "assistant", "content": a},
            ]
        }
        for i, a in enumerate(ANIMALS * 5)
    ],
    "preference": [
        {"prompt": f"{i} who ran? the {a}. =", "chosen": " Ann"[: 2 + i % 3], "rejected": f" {a}"}
        for i, a in enumerate(ANIMALS * 6)
    ],
    "classification": [
        {"text": f"a {a} ran home " * (1 + i % 3), "label": "animal" if i % 2 else "tier"}
        for i, a in enumerate(ANIMALS * 5)
    ],
    "choice": [
        {"prompt": f"{i} the {a} ran", "choices": ["home", "home again", "跑"], "label": i % 3}
        for i, a in enumerate(ANIMALS * 5)
    ],
    "tagging": [
        {"tokens": ["the", a, "saw", "Ann", "Lee"][: 3 + i % 3], "tags": tags[: 3 + i % 3]}
        for i, a in enumerate(ANIMALS * 5)
        for tags in [["O", "B-PET", "O", "B-PER", "I-PER"]]
    ],
}
METHODS = ("full", "last", "head", "lora", "adapter", "prefix")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with out/base, a small model of bytes, and tasks/<task>/{train,val,test}.jsonl."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = "\n".join(f"the {a} saw a {b} 跑" for a in ANIMALS for b in ANIMALS) * 30
        Path("tiny.txt").write_text(text, encoding="utf-8")
        Path("first.txt").write_text("a dog", encoding="utf-8")  # and there it ends
        two = "first.txt", "tiny.txt"
        call(patch, "prepare_data.py", *two, "--dataset=tiny", "--tokenizer=byte")
        Path("base.py").write_text("dataset = 'tiny'\nout_dir = 'out/base'\n", encoding="utf-8")
        call(patch, "train.py", "base.py", *BASE)
        for task, lines in LINES.items():
            for split, some in (("train", lines), ("val", lines[:6]), ("test", lines[:6])):
                path = Path("tasks", task, f"{split}.jsonl")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(jsonl(some), encoding="utf-8")
        Path("empty.py").write_text("", encoding="utf-8")
    return folder


def jsonl(lines):
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A function that types a command in a copy of that folder: run("finetune.py", …)."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda script, *options: call(monkeypatch, script, *options)


@pytest.fixture
def tune(run):
    """A function that fine-tunes on a task's examples: tune("chat", "--method=lora")."""

    def tune(task, *options):
        words = ("empty.py", f"--task={task}", f"--dataset=tasks/{task}", *QUICK, *options)
        run("finetune.py", *words)

    return tune


def last(out_dir="out/tuned"):
    return read_checkpoint(Path(out_dir) / "ckpt.pt")


def results(out_dir="out/tuned"):
    return json.loads(Path(out_dir, "test.json").read_text(encoding="utf-8"))


def task_of(name, config=None, lines=None):
    config = config or FinetuneConfig(task=name, block_size=64, position="rope")
    lines = lines or LINES[name]
    return open_task(config, {s: lines for s in ("train", "val", "test")}, byte_tokenizer(), 0)


def small(**changes):
    torch.manual_seed(0)
    shape = dict(vocab_size=259, block_size=64, n_layer=2, n_head=2, n_embd=32, position="rope")
    return Transformer(ModelConfig(**{**shape, **changes}))


# --------------------------------------------------------------------------- what is to be learned


def test_a_completion_is_learned_and_its_prompt_is_not():
    task = task_of("completion")
    (example,) = task.examples({"prompt": "ab", "completion": " c"})
    assert example.inputs == [97, 98, 32, 99]
    assert example.targets == [IGNORED, 32, 99, task.tokenizer.eot]


def test_shifted_targets_are_the_next_tokens_where_they_are_learned():
    assert shifted([5, 6, 7, 8], [True, False, True, True]) == Example([5, 6, 7], [IGNORED, 7, 8])


def test_a_label_stands_at_the_last_token_and_tags_at_the_last_of_each_word():
    (example,) = task_of("classification").examples({"text": "ab", "label": "tier"})
    assert example == Example([97, 98], [IGNORED, 1])
    task = task_of("tagging")
    (example,) = task.examples({"tokens": ["ab", "猫"], "tags": ["O", "B-PET"]})
    assert len(example.inputs) == 5  # two letters and three bytes
    tags = [task.labels.index(tag) for tag in ("O", "B-PET")]
    assert example.targets == [IGNORED, tags[0], IGNORED, IGNORED, tags[1]]


def test_the_right_choice_is_learned_behind_a_space_where_its_language_has_spaces():
    task = task_of("choice")
    (example,) = task.examples({"prompt": "ab", "choices": ["c", "de"], "label": 1})
    assert example == Example([97, 98, 32, 100], [IGNORED, 32, 100, 101])
    assert task.prompt({"prompt": "ab "}) == [97, 98]  # the space is part of the choice
    (same,) = task.examples({"prompt": "ab ", "choices": ["c", "de"], "label": 1})
    assert same == example


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        *(("a b", text, " " + text) for text in ("c", "é", "1", "-1", "$5", "(c)", '"c"', "“c”")),
        *(("a", text, text) for text in (", c", ".", "!", "’s", "跑", " c", "ครับ")),
        *(
            (prompt, "c", "c")
            for prompt in ("猫", "他说：", "", "a ", "a\n", "(", "a (", 'a "', "“")
        ),
        ('he said "no"', "c", " c"),
        ("he said “no”", "c", " c"),
    ],
)
def test_a_text_continues_another_behind_a_space_where_its_language_has_spaces(
    prompt, text, expected
):
    assert continuing(prompt, text) == expected


@pytest.mark.parametrize("block_size", [64, 16])
def test_choices_are_weighed_by_the_log_probabilities_of_their_tokens(block_size, monkeypatch):
    monkeypatch.setattr(tasks_module, "SCORES_AT_ONCE", 5000)  # a few rows at once
    config = FinetuneConfig(task="choice", block_size=block_size, position="rope")
    task, model = task_of("choice", config), small(block_size=block_size).eval()
    lines = [*LINES["choice"], {"prompt": "", "choices": ["x" * 16, "y"], "label": 0}]
    with torch.no_grad():
        answers = task.answers(model, lines)
        for line, answer in zip(lines, answers, strict=True):
            expected = []
            for choice in line["choices"]:
                prompt, tokens = task.prompt(line), task.choice(line, choice)
                row = torch.tensor([prompt + tokens])[:, -block_size - 1 :]
                log_p = model(row[:, :-1])[0].log_softmax(2)
                of_row = log_p.gather(2, row[:, 1:, None]).flatten()
                expected.append(of_row[-len(tokens) :].sum().item())
            assert answer["log_probabilities"] == pytest.approx(expected, rel=1e-4)
            assert answer["choice"] == line["choices"][expected.index(max(expected))]


def test_solved_examples_stand_before_a_choice_but_never_its_own_answer():
    lines = [{"prompt": f"{c} ", "choices": ["no", "yes"], "label": i % 2} for i, c in
             enumerate("ab猫")]  # fmt: skip
    config = FinetuneConfig(task="choice", block_size=64, position="rope", shots=2)
    task = task_of("choice", config, lines)
    told = [task.tokenizer.decode(task.prompt(line)) for line in lines]
    assert told == [
        "b yes\n\n猫no\n\na",
        "a no\n\n猫no\n\nb",
        "a no\n\nb yes\n\n猫",
    ]
    assert task.prompt(lines[0] | {"prompt": "c"}) == list(b"a no\n\nb yes\n\nc")


def test_shots_are_for_choices_alone(tune):
    with pytest.raises(SystemExit, match="shots=2 is for --task=choice, not completion"):
        tune("completion", "--shots=2")
    with pytest.raises(SystemExit, match="shots=2 would show the text unchanged"):
        tune("choice", "--shots=2", "--word_swap=0.1")


def test_a_choice_that_does_not_fit_the_context_is_told():
    config = FinetuneConfig(task="choice", block_size=16, position="rope")
    line = {"prompt": "a", "choices": ["x" * 16, "y"], "label": 1}
    told = (
        r"train example 1, which begins with 'ax.*one of the choices has 17 tokens.*block_size=16"
    )
    with pytest.raises(SystemExit, match=told):
        task_of("choice", config, [line])


def test_choices_are_judged_without_training_on_all_of_a_file(run, capsys):
    Path("quiz.csv").write_text(
        "Question,A,B,C,D,answer\n" + "".join(f"{i} the cat,ran,saw,a,home,B\n" for i in range(30)),
        encoding="utf-8",
    )
    words = "--task=choice --dataset=quiz.csv --fields prompt=Question label=answer --device=cpu"
    judge = f"empty.py --init_from=out/base {words} --val_fraction=1 --eval_only=True"
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        numbers = tasks_module.choice_numbers
        patch.setattr(
            tasks_module,
            "choice_numbers",
            lambda lines, s: asked.append(lines) or numbers(lines, s),
        )
        run("finetune.py", *judge.split())
    assert len(asked[0]) == 30 and asked[0][7]["label"] == 1
    told = capsys.readouterr().out
    assert re.search(r"\nval loss [\d.]+, accuracy [\d.]+, acc norm [\d.]+\n", told), told
    assert "30 validation examples:" in told and "(1) first choice" in told
    assert "too few to learn from" not in told
    with pytest.raises(SystemExit):
        run("finetune.py", *f"empty.py --init_from=out/base {words} --val_fraction=1".split())
    assert "val_fraction=1 leaves nothing to learn from" in capsys.readouterr().err


def test_of_a_conversation_the_answers_are_learned():
    task = task_of("chat")
    (example,) = task.examples(LINES["chat"][0])
    told = bytes(t for t in example.targets if 0 <= t < 256).decode()
    assert told == "who?cat"
    assert sum(t == task.tokenizer.special_tokens["<|im_end|>"] for t in example.targets) == 2


def test_what_is_too_long_keeps_its_end_or_is_split_with_each_token_learned_once():
    example = Example(list(range(25)), [IGNORED] * 5 + list(range(106, 126)))
    (kept,) = fitting(example, 10, "cut")
    assert kept == Example(list(range(15, 25)), list(range(116, 126)))
    parts = fitting(example, 10, "chunk")
    learned = [t for part in parts for t in part.targets if t != IGNORED]
    assert sorted(learned) == list(range(106, 126))
    for inputs, targets in parts:
        assert len(inputs) == len(targets) == 10
        assert all(t in (IGNORED, i + 101) for i, t in zip(inputs, targets))


def test_examples_without_a_target_are_counted_and_left_out():
    config = FinetuneConfig(task="classification", block_size=8, long="chunk", position="rope")
    task = task_of("classification", config)
    found, told = all_examples(task, [{"text": "a" * 20, "label": "tier"}], config)
    assert [len(example.inputs) for example in found] == [8, 8, 4] and told["long"] == 1
    assert all(example.targets[-1] == 1 for example in found)
    task.examples = lambda line: [Example([1, 2], [IGNORED, IGNORED])]
    found, told = all_examples(task, [{}], config)
    assert found == [] and told["without a target"] == 1


def test_long_sentences_are_tagged_piece_by_piece_and_nothing_is_lost():
    line = {"tokens": ["word"] * 30, "tags": ["O", "B-PET", "I-PET"] * 10}
    config = FinetuneConfig(task="tagging", block_size=20, position="rope")
    task = task_of("tagging", config, [line])
    examples, told = all_examples(task, [line], config)
    assert max(len(example.inputs) for example in examples) <= 20 and told["long"] == 1
    tags = [task.labels[t] for example in examples for t in example.targets if t != IGNORED]
    assert tags == line["tags"]
    answers = task.answers(small(n_labels=3, tie_weights=False, block_size=20), [line])
    assert len(answers[0]) == 30


def test_a_word_that_the_tokenizer_does_not_know_has_its_own_tag():
    lines = [{"tokens": ["鱼", "猫", "鱼", "狗"], "tags": ["O", "B-PET", "I-PET", "B-PER"]}]
    config = FinetuneConfig(task="tagging", block_size=64, position="rope")
    splits = {split: lines for split in ("train", "val", "test")}
    task = open_task(config, splits, char_tokenizer(["猫狗"]), 0)
    (example,) = task.examples(lines[0])
    assert [task.labels[target] for target in example.targets] == lines[0]["tags"]


# -------------------------------------------------------------------------------- rows of examples


def examples_of_many_lengths(n=9, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(2, 40, n):
        tokens = random.integers(0, 256, length + 1).tolist()
        learned = [False, *(random.random(length - 1) < 0.5).tolist(), True]
        found.append(shifted(tokens, learned))
    return found


def loss_of(model, batch):
    n = int((batch["targets"] != IGNORED).sum())
    return model(**batch)[1].item() * n, n


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_a_batch_of_mixed_lengths_has_the_loss_of_its_examples_one_at_a_time(pack, causal):
    model, examples = small(causal=causal).eval(), examples_of_many_lengths()
    one_by_one = [loss_of(model, batch_of([e], hide_padding=not causal)) for e in examples]
    together = loss_of(model, batch_of(examples, pack, hide_padding=not causal))
    assert together[1] == sum(n for _, n in one_by_one)
    assert together[0] == pytest.approx(sum(loss for loss, _ in one_by_one), rel=1e-4)


def test_packing_puts_all_examples_into_fewer_rows():
    examples = examples_of_many_lengths(30)
    packed, padded = batch_of(examples, pack=True), batch_of(examples)
    assert len(packed["inputs"]) < 0.8 * len(padded["inputs"])
    for name in ("inputs", "targets"):
        assert (
            sorted(packed[name].flatten().tolist())[-300:]
            == (sorted(padded[name].flatten().tolist())[-300:])
        )
    assert "segments" in packed and "segments" not in padded


def test_an_all_masked_batch_makes_no_nan():
    model = small()
    _, loss = model(**batch_of([Example([1, 2, 3], [IGNORED] * 3)]))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def stepped_with(config, model):
    """The weights after three steps of the loop's own arithmetic."""
    task = task_of("completion", config)
    examples, _ = all_examples(task, LINES["completion"], config)
    batch_at = example_batches(task, LINES["completion"], examples, config, ALONE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        batches = batch_at(step)
        counts = [int((b["targets"] != IGNORED).sum()) for b in batches]
        for batch, count in zip(batches, counts):
            (model(**batch)[1] * count / sum(counts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_accumulation_over_unequal_numbers_of_targets_equals_the_larger_batch():
    shape = dict(task="completion", block_size=64, position="rope")
    whole = stepped_with(FinetuneConfig(**shape, batch_size=8), small())
    parts = FinetuneConfig(**shape, batch_size=2, gradient_accumulation_steps=4)
    for name, weight in stepped_with(parts, small()).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_every_epoch_has_each_example_once_and_in_another_order():
    config = FinetuneConfig(task="text", block_size=64, batch_size=5, position="rope", pack=False)
    task = task_of("text", config)
    examples, _ = all_examples(task, LINES["text"], config)
    batch_at = example_batches(task, LINES["text"], examples, config, ALONE)
    epochs = [
        [
            tuple(row[row != 0].tolist())
            for i in range(4)
            for row in batch_at(4 * e + i)[0]["inputs"]
        ]
        for e in range(2)
    ]
    every = sorted(tuple(example.inputs) for example in examples)
    assert sorted(epochs[0]) == sorted(epochs[1]) == every
    assert epochs[0] != epochs[1]


# ---------------------------------------------------------------------------------- random changes


def changed(text, seed=0, **shares):
    return noisy(text, FinetuneConfig(**shares), np.random.default_rng(seed).random)


def test_without_random_changes_a_text_stays_as_it_is():
    for text in ("the cat  saw\n\na dog ", "猫看见 a dog。\n", "", " x"):
        assert changed(text) == text


def test_words_are_left_out_swapped_or_overwritten_by_the_one_before():
    text = "one two three four 五六 seven"
    words = text.replace("五六", "五 六").split()
    shorter = changed(text, word_deletion=0.5)
    assert len(shorter) < len(text) and set(shorter.replace("五", " 五 ").split()) <= set(words)
    swapped = changed(text, word_swap=0.5)
    assert swapped != text and sorted(swapped) == sorted(text)
    shifted_text = changed(text, token_shift=0.999)
    assert shifted_text == "one one two three four五 六"
    assert changed("word", word_deletion=0.999) == "word"  # never nothing


def test_random_changes_differ_by_epoch_and_depend_on_the_step_alone():
    shape = dict(task="completion", block_size=64, batch_size=24, position="rope", pack=False)
    config = FinetuneConfig(**shape, token_shift=0.5)
    task = task_of("completion", config)
    examples, _ = all_examples(task, LINES["completion"], config)
    first = example_batches(task, LINES["completion"], examples, config, ALONE)
    again = example_batches(task, LINES["completion"], examples, config, ALONE)

    def rows(batch_at, step):
        return sorted(batch_at(step)[0]["inputs"].flatten().tolist())

    assert rows(first, 1) == rows(again, 1) and rows(first, 0) != rows(first, 1)
    (batch,) = first(0)
    answers = {bytes(t for t in row.tolist() if 0 <= t < 256) for row in batch["targets"]}
    assert answers == {f" {a}".encode() for a in ANIMALS}  # they are never changed


def test_random_changes_leave_the_parts_of_a_long_text_in_batches_of_their_own():
    shape = dict(task="classification", block_size=8, batch_size=4, long="chunk", pack=False)
    plain, barely = FinetuneConfig(**shape), FinetuneConfig(**shape, word_swap=1e-12)
    task = task_of("classification", plain)
    examples, _ = all_examples(task, LINES["classification"], plain)
    assert len(examples) > 2 * len(LINES["classification"])
    batches, same = (
        example_batches(task, LINES["classification"], examples, config, ALONE)
        for config in (plain, barely)
    )
    for step in range(2 * len(examples) // 4):  # two epochs
        assert torch.equal(batches(step)[0]["inputs"], same(step)[0]["inputs"])
        assert torch.equal(batches(step)[0]["targets"], same(step)[0]["targets"])


def test_random_changes_are_refused_where_they_would_spoil_the_answers(tune):
    with pytest.raises(SystemExit, match="classification, completion and"):
        tune("tagging", "--token_shift=0.1")


# ----------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("task", LINES)
def test_every_task_runs_is_tested_and_written_down(task, tune, capsys):
    tune(task)
    out = capsys.readouterr().out
    assert "6 test examples" in out and "this model" in out
    assert max(map(len, out.split("trained weights:")[1].splitlines())) <= 100
    numbers = results()["this model"]
    assert math.isfinite(numbers["loss"])
    assert last()["train_config"]["best_metric"] in {f"val_{name}" for name in numbers} | {*numbers}
    predictions = Path("out/tuned/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 6
    assert ("answer" in json.loads(predictions[0])) == (task != "text")
    assert Path("out/tuned/confusion.png").exists() == (task == "classification")


@pytest.mark.parametrize("method", METHODS)
def test_resuming_is_exact_for_each_method(method, tune, run):
    often = "--schedule=constant", "--eval_interval=3", f"--method={method}", "--dropout=0.1"
    tune("classification", *often, "--max_iters=6", "--out_dir=out/whole")
    tune("classification", *often, "--max_iters=3")
    run("finetune.py", "--init_from=resume", "--out_dir=out/tuned", "--max_iters=6")
    whole, resumed = last("out/whole"), last()
    assert resumed["step"] == whole["step"] == 6
    assert resumed["model"].keys() == whole["model"].keys()
    for name, weight in whole["model"].items():
        assert torch.equal(weight, resumed["model"][name]), name
    assert results("out/whole") == results()


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix"])
def test_an_adapter_is_small_and_is_put_on_its_base_again(method, tune, run, capsys):
    tune("completion", f"--method={method}", "--max_iters=8")
    base, tuned = (Path("out", name, "best.pt").stat().st_size for name in ("base", "tuned"))
    assert tuned < 0.7 * base
    capsys.readouterr()
    greedy = "--temperature=0", "--max_new_tokens=6", "--num_samples=1", "--device=cpu"
    run("sample.py", "--out_dir=out/tuned", "--start=the", *greedy)
    alone = capsys.readouterr().out
    for base in ([], ["--out_dir=out/base"]):
        run("sample.py", *base, "--adapter=out/tuned", "--start=the", *greedy)
        assert capsys.readouterr().out == alone
    shutil.move("out/base", "elsewhere")
    with pytest.raises(SystemExit, match="--init_from=BASE --adapter=PATH"):
        run("sample.py", "--out_dir=out/tuned")
    run("sample.py", "--init_from=elsewhere", "--adapter=out/tuned", "--start=the", *greedy)
    assert capsys.readouterr().out == alone
    shutil.move("elsewhere", "out/stories")  # sample.py's default, and typed here
    run("sample.py", "--init_from=out/stories", "--adapter=out/tuned", "--start=the", *greedy)
    assert capsys.readouterr().out == alone
    run("convert.py", "out/tuned")
    assert f"method={method}" in capsys.readouterr().out.replace("\n", " ")


def test_an_adapter_is_not_written_over_its_base(tune):
    with pytest.raises(SystemExit, match="--out_dir=out/base_lora"):
        tune("completion", "--method=lora", "--out_dir=out/base")
    with pytest.raises(SystemExit, match="--out_dir=out/base_lora"):
        tune("completion", "--method=lora", "--out_dir=out/base", "--init_from=out/base/best.pt")
    tune("completion", "--out_dir=out/base", "--max_iters=1")  # a whole model may be
    assert Path("out/base/previous-1/best.pt").exists()


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix"])
def test_an_end_that_the_base_has_never_seen_is_not_left_to_a_frozen_head(method, tune):
    words = f"--method={method}", "--dry_run"
    with pytest.raises(SystemExit, match=r"was not taught to chat.*use --method=full or last"):
        tune("chat", *words)
    base = last("out/base")
    base["data"]["train_documents"] = 1
    save_checkpoint("out/one_text/best.pt", base)
    words += ("--init_from=out/one_text",)
    for task, *more in (["completion"], ["classification", "--generative"]):
        with pytest.raises(SystemExit, match="was not taught to end a text"):
            tune(task, *words, *more)
    tune("classification", *words)  # its head is new
    for taught, task in (("chat", "chat"), ("chat", "completion"), ("completion", "completion")):
        base["task"] = {"task": taught, "labels": []}
        save_checkpoint("out/one_text/best.pt", base)
        tune(task, *words)


def test_an_adapter_refuses_another_base(tune, run):
    tune("completion", "--max_iters=1", "--out_dir=out/whole")
    with pytest.raises(SystemExit, match="is a whole model: --out_dir=out/whole"):
        run("sample.py", "--init_from=out/base", "--adapter=out/whole")
    tune("completion", "--method=lora")
    other = last("out/base")
    other["model"]["norm.weight"] += 0.5
    save_checkpoint("out/other/best.pt", other)
    with pytest.raises(SystemExit, match="other weights"):
        run("sample.py", "--init_from=out/other", "--adapter=out/tuned")


def test_merged_lora_is_a_model_like_any_other(tune, run, capsys):
    tune("completion", "--method=lora", "--merge", "--max_iters=8")
    shutil.rmtree("out/base")
    merged, _, _ = load_model("out/tuned/merged.pt")
    assert "blocks.0.attention.query.weight" in merged.state_dict()
    tokens = torch.randint(256, (2, 20))
    shutil.copytree(Path("tasks"), "unused")
    run("sample.py", "--init_from=out/tuned/merged.pt", "--max_new_tokens=3", "--device=cpu")
    settings = read_checkpoint("out/tuned/merged.pt")["train_config"]
    assert FinetuneConfig(**settings).method == "full"
    assert torch.isfinite(merged(tokens)[0]).all()


def test_lora_unmerged_equals_merged(tune):
    tune("completion", "--method=lora", "--merge", "--max_iters=8")
    tokens = torch.randint(256, (2, 20))
    (merged, _, _), (stacked, _, _) = load_model("out/tuned/merged.pt"), load_model("out/tuned")
    torch.testing.assert_close(merged(tokens)[0], stacked(tokens)[0])
    base, _, _ = load_model("out/base")
    assert not torch.allclose(base(tokens)[0], merged(tokens)[0], atol=1e-2)


def test_the_best_weights_are_tested_and_patience_ends_a_run(tune, capsys):
    tune("classification", "--patience=2", "--max_iters=40", "--learning_rate=0")
    out = capsys.readouterr().out
    assert "no better macro_f1 in 2 evaluations" in out
    assert last()["step"] == 4
    best = read_checkpoint("out/tuned/best.pt")
    assert best["step"] == 0
    assert results()["this model"]["loss"] == pytest.approx(math.log(2), rel=1e-4)


def test_a_model_learns_to_answer_questions_and_sample_gives_the_answer(tune, run, capsys):
    tune("completion", "--max_iters=250", "--batch_size=24", "--eval_interval=250")
    assert results()["this model"]["exact_match"] == 1
    assert results()["most common answer"]["exact_match"] < 0.5
    capsys.readouterr()
    prompt = LINES["completion"][0]["prompt"]
    options = "--temperature=0", "--num_samples=1", "--device=cpu"
    run("sample.py", "--out_dir=out/tuned", f"--start={prompt}", *options)
    assert capsys.readouterr().out == prompt + " cat\n"


def test_a_conversation_streams_and_stops_at_the_end_of_each_turn(tune, run, capsys, monkeypatch):
    tune("chat", "--max_iters=200", "--batch_size=20", "--eval_interval=200")
    assert "python sample.py --out_dir=out/tuned --chat" in capsys.readouterr().out
    typed = "".join(f"{said}\n" for said in ("the 猫 ran 2", "it", ""))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    capsys.readouterr()
    run("sample.py", "--out_dir=out/tuned", "--chat", "--temperature=0", "--device=cpu")
    first, second, rest = capsys.readouterr().out.split("\n")
    assert first == "who?" and second in ANIMALS and rest == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit, match="task=chat"):
        saved = last("out/base")
        saved["tokenizer"]["special_tokens"] = {"<|endoftext|>": 256}
        save_checkpoint("out/plain/best.pt", saved)
        run("sample.py", "--out_dir=out/plain", "--chat")


def test_a_classifier_and_a_tagger_label_new_text(tune, run, capsys):
    tune("classification", "--max_iters=60", "--batch_size=20", "--eval_interval=60")
    capsys.readouterr()
    run("sample.py", "--out_dir=out/tuned", "--start=a 猫 ran home ", "--device=cpu")
    first, second = capsys.readouterr().out.split("\n")[:2]
    assert {first.split()[1], second.split()[1]} == {"animal", "tier"}
    assert float(first.split()[0]) > 0.5
    tune("tagging", "--max_iters=60", "--batch_size=20", "--eval_interval=60")
    capsys.readouterr()
    run("sample.py", "--out_dir=out/tuned", "--start=the cat saw Ann Lee", "--device=cpu")
    told = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert told == {"the": "O", "cat": "B-PET", "saw": "O", "Ann": "B-PER", "Lee": "I-PER"}
    run("sample.py", "--out_dir=out/tuned", "--start=" + "the cat " * 40, "--device=cpu")
    assert len(capsys.readouterr().out.splitlines()) == 80  # more than the context holds
    with pytest.raises(SystemExit, match="cannot converse"):
        run("sample.py", "--out_dir=out/tuned", "--chat")


def test_new_text_is_labelled_in_parts_as_long_as_in_training(tune, run, capsys, monkeypatch):
    tune("classification", "--block_size=16")
    long, told = "the dog saw a cat and the cats ran", []
    assert long[-16:] == "and the cats ran"  # with no blanks around it, which do not count
    for start in (long, long[-16:]):
        capsys.readouterr()
        run("sample.py", "--out_dir=out/tuned", f"--start={start}", "--device=cpu")
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    tune("tagging", "--block_size=16", "--max_iters=1")
    sizes, of = [], labelling.pieces
    monkeypatch.setattr(labelling, "pieces", lambda *given: sizes.append(given[-1]) or of(*given))
    run("sample.py", "--out_dir=out/tuned", f"--start={long}", "--device=cpu")
    assert sizes == [16]


def test_chinese_is_tagged_in_the_words_that_were_learned(tune, run, capsys):
    lines = [
        {"tokens": ["小明", "去", place], "tags": ["B-PER", "O", "B-LOC"]}
        for place in ("学校", "公园") * 10
    ]
    for split in ("train", "val", "test"):
        Path(f"tasks/tagging/{split}.jsonl").write_text(jsonl(lines), encoding="utf-8")
    tune("tagging", "--max_iters=60", "--batch_size=20", "--eval_interval=60")
    capsys.readouterr()
    run("sample.py", "--out_dir=out/tuned", "--start=小明 去 公园", "--device=cpu")
    assert capsys.readouterr().out == "小明\tB-PER\n去\tO\n公园\tB-LOC\n"
    run("sample.py", "--out_dir=out/tuned", "--start=小明", "--device=cpu")
    assert len(capsys.readouterr().out.splitlines()) == 2  # no blanks: character by character


def test_a_label_may_be_written_instead_of_chosen(tune, run, capsys):
    tune("classification", "--generative", "--max_iters=120", "--batch_size=20")
    assert results()["this model"]["accuracy"] > 0.9
    assert read_checkpoint("out/tuned/best.pt")["model_config"]["n_labels"] == 0
    capsys.readouterr()
    options = "--temperature=0", "--num_samples=1", "--device=cpu"
    run("sample.py", "--out_dir=out/tuned", "--start=a 猫 ran home ", *options)
    assert capsys.readouterr().out.split()[-2:] in (["Label:", "tier"], ["Label:", "animal"])


def test_tags_may_look_both_ways(tune):
    tune("tagging", "--causal=False", "--max_iters=40", "--batch_size=10")
    assert last()["model_config"]["causal"] is False
    assert results()["this model"]["entity_f1"] > 0.5
    with pytest.raises(SystemExit, match="causal=False"):
        tune("completion", "--causal=False")


def test_pretraining_goes_on_with_a_folder_of_tokens(tune):
    tune("text", "--dataset=tiny", "--max_iters=6", "--eval_iters=1")
    assert last()["step"] == 6 and last()["train_config"]["best_metric"] == "val_loss"
    with pytest.raises(SystemExit, match="folder of tokens"):
        tune("completion", "--dataset=tiny")
    with pytest.raises(SystemExit, match=r"word_swap=0.2 is for examples.*leave out --word_swap"):
        tune("text", "--dataset=tiny", "--word_swap=0.2")


def test_too_few_examples_are_told_with_what_to_try(tune, capsys):
    tune("completion", "--batch_size=64", "--epochs=3", "--max_iters=None")
    told = capsys.readouterr().out
    assert "too few to learn from; try --batch_size=4 --epochs=" in told
    assert "6 test examples are too few to tell a good model from a bad one" in told
    assert 'to sample:   python sample.py --out_dir=out/tuned --start="' in told
    assert "for a file:  python sample.py --out_dir=out/tuned --lines=FILE" in told
    assert "to continue: python finetune.py --init_from=resume --out_dir=out/tuned" in told


def test_lines_of_another_task_are_told_which(tune):
    for task, asked in (("chat", "completion"), ("completion", "chat"), ("tagging", "text")):
        with pytest.raises(SystemExit, match=rf"that is for --task={task}"):
            tune(asked, f"--dataset=tasks/{task}")


def test_what_excel_saves_in_chinese_can_be_read(tune):
    lines = "内容,类别\n" + "风筝丢了,难过\n找到了,高兴\n" * 20
    Path("moods.csv").write_bytes(lines.encode("gb18030"))
    words = "--dataset=moods.csv", "--fields", "text=内容", "label=类别", "--max_iters=1"
    with pytest.raises(SystemExit, match=r"moods.csv is not UTF-8.*--encoding=gb18030"):
        tune("classification", *words)
    with pytest.raises(SystemExit, match="2 different examples are too few"):
        tune("classification", "--encoding=gb18030", *words)


def test_a_longer_context_is_had_with_rotary_positions_and_refused_with_learned_ones(tune):
    tune("completion", "--block_size=128", "--max_iters=1")
    assert last()["model_config"]["block_size"] == 128
    saved = last("out/base")
    saved["model_config"] |= {"position": "learned"}
    saved["model"]["position.embedding.weight"] = torch.zeros(96, 32)
    save_checkpoint("out/learned/best.pt", saved)
    with pytest.raises(SystemExit, match="96 positions"):
        tune("completion", "--block_size=128", "--init_from=out/learned")


def test_a_context_in_a_config_file_is_at_most_the_models(tune):
    Path("empty.py").write_text("block_size = 1024\n")
    tune("completion", "--max_iters=1")
    assert last()["model_config"]["block_size"] == 96


def test_the_shape_alone_can_be_taken_to_see_what_pretraining_was_worth(tune):
    tune("completion", "--pretrained=False", "--max_iters=1", "--learning_rate=0")
    drawn, base = last()["model"], last("out/base")["model"]
    assert drawn.keys() == base.keys()
    assert not torch.equal(drawn["token_embedding.weight"], base["token_embedding.weight"])
    with pytest.raises(SystemExit, match="pretrained=False"):
        tune("completion", "--pretrained=False", "--method=lora")


def test_layers_further_down_may_learn_more_slowly():
    config = FinetuneConfig(layer_decay=0.5, learning_rate=1.0, n_layer=2)
    (adamw,) = make_optimizers(small(tie_weights=False), config)
    names = {weight: name for name, weight in small(tie_weights=False).named_parameters()}
    rates = {}
    model = small(tie_weights=False)
    names = {weight: name for name, weight in model.named_parameters()}
    (adamw,) = make_optimizers(model, config)
    for group in adamw.param_groups:
        for weight in group["params"]:
            rates[names[weight].rpartition(".")[0]] = group["initial_lr"]
    assert rates["head"] == rates["norm"] == rates["blocks.1.mlp.up"] == 1.0
    assert rates["blocks.0.mlp.up"] == 0.5 and rates["token_embedding"] == 0.25


def test_a_hugging_face_model_is_taught_to_chat_with_rows_for_the_marks_it_lacks(tune, run):
    parts = [bytes([i]) for i in range(256)]
    saved = own_tokenizer("bpe", parts).to_dict()
    saved["special_tokens"] = {"<|endoftext|>": 256}
    shape = dict(bias=True, mlp="gelu_tanh", tie_weights=True)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(257, 96, 2, 2, 32, **shape))
    write_model("gpt2", model, tokenizer_from_dict(saved))
    tune("chat", "--init_from=gpt2")
    tuned, tokenizer, _ = load_model("out/tuned")
    assert tuned.config.vocab_size == tokenizer.vocab_size == 259
    assert tokenizer.eot == tokenizer.special_tokens["<|im_end|>"]
    with pytest.raises(SystemExit, match="no special tokens for chat"):
        tune("chat", "--init_from=gpt2", "--method=lora")
    run("convert.py", "out/tuned", "--to=hf", "--out=out/tuned_hf")
    again, written, _ = load_model("out/tuned_hf")
    assert written.chat_template == CHATML  # it has been taught to converse like that
    tokens = torch.randint(256, (1, 10))
    torch.testing.assert_close(again(tokens)[0], tuned(tokens)[0], rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------- teacher


def test_a_students_loss_mixes_the_right_answer_and_the_teachers_scores():
    student, teacher = small(), small(n_embd=64, n_head=4).eval()
    config = FinetuneConfig(teacher="x", teacher_weight=0.3, teacher_temperature=2.0)
    batch = batch_of(examples_of_many_lengths(4))
    ours, theirs = student(batch["inputs"])[0], teacher(batch["inputs"])[0]
    counts = batch["targets"] != IGNORED
    right = F.cross_entropy(ours[counts], batch["targets"][counts])
    soft = F.kl_div(
        F.log_softmax(ours[counts] / 2, 1), F.softmax(theirs[counts] / 2, 1), reduction="batchmean"
    )
    plain = student(**batch)[1].item()
    taught_by(student, teacher, config)
    assert student(**batch)[1].item() == pytest.approx((0.7 * right + 0.3 * 4 * soft).item())
    student.eval()
    assert student(**batch)[1].item() == pytest.approx(plain)  # judged as any other
    assert not any(name.startswith("teacher") for name in student.state_dict())


def test_a_teacher_teaches_any_task_and_a_folder_of_tokens(tune):
    tune("classification", "--out_dir=out/teacher", "--max_iters=20")
    tune("classification", "--teacher=out/teacher", "--teacher_weight=1")
    tune("text", "--dataset=tiny", "--teacher=out/base", "--max_iters=2", "--eval_iters=1")
    tune("completion", "--teacher=out/base")
    assert last()["step"] == 4
    with pytest.raises(SystemExit, match="fine-tune it on them first"):
        tune("classification", "--teacher=out/base")


# -------------------------------------------------------------------------------- what starts anew


@pytest.mark.parametrize("parts", [["attention"], ["mlp"], ["attention", "mlp"]])
def test_what_is_to_be_redrawn_starts_anew_and_nothing_else(tune, parts):
    tune("completion", "--max_iters=0", "--redraw", *parts)
    before, after = read_checkpoint(Path("out/base/ckpt.pt"))["model"], last()["model"]
    kept = {name for name in before if torch.equal(before[name], after[name])}
    anew = {n for n in before if n.startswith("blocks.") and any(f".{part}" in n for part in parts)}
    assert kept & anew == set()
    assert kept | anew == set(before)


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dataset=tasks/nowhere"], "no such file or folder"),
        (["--init_from=out/nowhere"], "no checkpoint"),
        (["--vocab_size=1000"], "vocab_size=1000 does not fit out/base"),
        (["--lora_rank=0"], "lora_rank"),
        (["--lora_targets", "queery"], "queery"),
        (["--redraw", "atention"], "atention"),
        (["--redraw", "mlp", "--method=lora"], "use --method=full"),
        (["--generative"], "task=classification"),
        (["--merge"], "method=lora"),
        (["--token_shift=1.5"], "token_shift"),
        (["--target_shift=2"], "target_shift"),
        (["--document_mask=True"], "document_mask"),
        (["--init_from=scratch"], "--pretrained=False"),
        (["--val_fraction=0"], "val_fraction"),
        (["--epochs=inf"], "epochs=inf must be above 0 and below inf"),
        (["--epochs=nan"], "epochs=nan must be above 0 and below inf"),
        (["--teacher_temperature=nan"], "teacher_temperature=nan must be above 0"),
        (["--num_train_epochs=3"], "--epochs"),
        (["--best_metric=bleuu"], "bleuu"),
    ],
)
def test_a_wrong_option_is_told_before_any_training(options, told, tune, capsys):
    with pytest.raises(SystemExit) as stop:
        tune("completion", *options)
    assert told in str(stop.value) + capsys.readouterr().err
    assert not Path("out/tuned/ckpt.pt").exists()


def test_an_unknown_label_in_the_test_file_is_told_before_any_training(tune):
    path = Path("tasks/classification/test.jsonl")
    path.write_text(jsonl([{"text": "a", "label": "tier"}, {"text": "b", "label": "plant"}]))
    with pytest.raises(SystemExit, match="test example 2: the label 'plant'"):
        tune("classification")
    assert not Path("out/tuned").exists()


def test_a_character_that_the_model_does_not_know_is_shown(run):
    run("prepare_data.py", "tiny.txt", "--dataset=chars", "--tokenizer=char")
    shape = [word for word in BASE if not word.startswith("--max_iters")]
    run("train.py", "base.py", *shape, "--dataset=chars", "--out_dir=out/chars", "--max_iters=1")
    words = "--task=text", "--dataset=tasks/text", *QUICK, "--init_from=out/chars"
    first = "tasks/text, train example 1, which begins with 'the cat ran home 0'"
    with pytest.raises(SystemExit, match=f"{first}: this tokenizer has no '0'"):
        run("finetune.py", "empty.py", *words)
    labelled = [{"text": "the 猫 saw" + " a" * i, "label": "ab"[i % 2]} for i in range(20)]
    Path("labels.jsonl").write_text(jsonl(labelled), encoding="utf-8")
    run("finetune.py", "empty.py", "--task=classification", "--dataset=labels.jsonl", *words[2:])
    with pytest.raises(SystemExit, match="start='@' cannot be continued"):
        run("sample.py", "--out_dir=out/tuned", "--start=@")
    for split, more in (
        ("train", []),
        ("val", []),
        ("test", [{"text": "who @ ran", "label": "a"}]),
    ):
        path = Path(f"labels/{split}.jsonl")
        path.parent.mkdir(exist_ok=True)
        path.write_text(jsonl(labelled[:4] + more), encoding="utf-8")
    words = "--dataset=labels", *words[2:], "--out_dir=out/more"
    with pytest.raises(SystemExit, match="test example 5, which begins with 'who @ ran'"):
        run("finetune.py", "empty.py", "--task=classification", *words)
    assert not Path("out/more").exists()


def test_a_run_of_the_other_script_is_answered_with_its_name(tune, run):
    tune("text")
    with pytest.raises(SystemExit, match=r"python finetune\.py --init_from=resume"):
        run("train.py", "--init_from=resume", "--out_dir=out/tuned")
    with pytest.raises(SystemExit, match=r"python train\.py --init_from=resume"):
        run("finetune.py", "--init_from=resume", "--out_dir=out/base")
    with pytest.raises(SystemExit, match="method=lora does not match"):
        run("finetune.py", "--init_from=resume", "--out_dir=out/tuned", "--method=lora")


def test_a_finished_run_may_be_merged_later_and_a_setting_of_its_own_may_be_repeated(tune, run):
    tune("completion", "--method=lora", "--max_iters=1")
    run("finetune.py", "--init_from=resume", "--out_dir=out/tuned", "--merge")
    assert Path("out/tuned/merged.pt").exists()
    tune("classification", "--generative", "--max_iters=1")
    again = "--init_from=resume", "--out_dir=out/tuned"
    run("finetune.py", *again, "--generative")
    with pytest.raises(SystemExit, match="merge=True is for --method=lora, not full"):
        run("finetune.py", *again, "--merge")


def test_a_resumed_run_makes_as_many_updates_as_are_typed(tune, run, capsys):
    tune("completion", "--max_iters=1")  # 24 examples, 4 at a time
    again = "--init_from=resume", "--out_dir=out/tuned", "--dry_run"
    for typed, steps in ((["--epochs=2"], 12), (["--epochs=2", "--max_iters=5"], 5)):
        run("finetune.py", *again, *typed)
        assert f"dry run: {steps} steps" in capsys.readouterr().out


def test_tokens_of_another_kind_are_told_which_command_makes_the_right_ones(tune, run):
    tune("text", "--dataset=tiny", "--max_iters=1", "--eval_iters=1")
    run("prepare_data.py", "tiny.txt", "--dataset=chars", "--tokenizer=char")
    resumed = "--init_from=resume", "--out_dir=out/tuned", "--dataset=chars"
    for source, words in (("out/base", []), ("out/tuned", resumed)):
        with pytest.raises(SystemExit, match=f"--tokenizer={source}$"):
            tune("text", "--dataset=chars", *words)
    shape = [word for word in BASE if not word.startswith("--max_iters")]
    run("train.py", "base.py", *shape, "--dataset=chars", "--out_dir=out/chars", "--max_iters=1")
    with pytest.raises(SystemExit, match="out/chars has different tokens from the model's"):
        tune("text", *resumed[:2], "--dataset=tiny", "--teacher=out/chars")


def test_data_is_another_word_for_dataset(run):
    words = "--task=text", "--data=tasks/text", *QUICK, "--max_iters=1"
    run("finetune.py", "empty.py", *words)
    assert last()["train_config"]["dataset"] == "tasks/text"


def test_epochs_make_the_updates_unless_these_are_typed(run, capsys):
    Path("three.py").write_text("epochs = 3\n", encoding="utf-8")  # 24 examples, 4 at a time
    words = "--task=completion", "--dataset=tasks/completion", "--init_from=out/base"
    words += "--batch_size=4", "--dry_run=True", "--device=cpu"
    for typed, steps in ((), 18), (("--epochs=2",), 12), (("--max_iters=5",), 5):
        run("finetune.py", "three.py", *words, *typed)
        assert f"dry run: {steps} steps" in capsys.readouterr().out


def test_a_dry_run_and_an_evaluation_write_nothing(tune, capsys):
    tune("classification", "--dry_run=True")
    *_, above, below, _ = capsys.readouterr().out.splitlines()
    assert above.startswith("  inputs ")
    assert below.split()[1:-1] == ["-1"] * 8
    assert below.split()[-1] in ("animal", "tier")
    tune("classification", "--eval_only=True")
    assert "accuracy" in capsys.readouterr().out
    assert not Path("out/tuned").exists()


def test_models_with_labels_go_nowhere_else(tune, run):
    tune("classification")
    with pytest.raises(SystemExit, match="labels"):
        run("convert.py", "out/tuned", "--to=hf", "--out=out/hf")
    with pytest.raises(SystemExit, match="labels instead of tokens"):
        tune("completion", "--init_from=out/tuned", "--out_dir=out/more")
    tune("completion", "--method=adapter")
    with pytest.raises(SystemExit, match="cannot be merged"):
        run("convert.py", "out/tuned", "--to=hf", "--out=out/hf")


def test_two_processes_equal_one(tune, made):
    options = "--gradient_accumulation_steps=2", "--method=lora"
    tune("completion", *options, "--out_dir=out/one")
    words = [f"--dataset=tasks/{'completion'}", "--task=completion", *QUICK, *options]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(REPOSITORY / "finetune.py"), "empty.py", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    for name, weight in last("out/one")["model"].items():
        torch.testing.assert_close(weight, last()["model"][name], rtol=1e-4, atol=1e-5, msg=name)
    assert results()["this model"]["loss"] == pytest.approx(
        results("out/one")["this model"]["loss"], rel=1e-4
    )


def test_every_task_config_differs_from_the_defaults_and_names_its_own_place():
    for path in sorted((REPOSITORY / "config").glob("finetune_*.py")):
        assert finetune_module.QUICK_START.parent == path.parent
        text = path.read_text(encoding="utf-8")
        assert f"python finetune.py config/{path.name}" in text
        assert dataclasses.fields(FinetuneConfig)


# ----------------------------------------------------------------------------- other people's data


def own(lines, name="own.jsonl"):
    Path(name).write_text(lines if isinstance(lines, str) else jsonl(lines), encoding="utf-8")
    return name


def test_one_long_answer_leaves_the_other_prompts_as_they_are(tune):
    long = {"prompt": "tell! =", "completion": " and the cat ran home" * 30}
    for name, more in (("short", []), ("long", [long])):
        own([*LINES["completion"], *more], f"{name}.jsonl")
        tune("completion", f"--dataset={name}.jsonl", "--max_iters=1", f"--out_dir=out/{name}")
    config = FinetuneConfig(task="completion", block_size=96, position="rope")
    lines = [*LINES["completion"], long]
    task = open_task(config, dict.fromkeys(("train", "val"), lines), byte_tokenizer(), 0)
    assert task.longest == 80  # beside it 16 tokens of a prompt are left
    seen = []
    model = small(block_size=96)
    forward = model.forward
    model.forward = lambda *args, **words: seen.append(args[0].shape[1]) or forward(*args, **words)
    task.answers(model, LINES["completion"])
    assert seen[0] == max(len(task.asked(line)) for line in LINES["completion"])


@pytest.mark.parametrize("task", ["completion", "chat"])
def test_a_prompt_that_is_cut_is_the_one_of_training(task, monkeypatch):
    size, lines = 24 if task == "completion" else 50, LINES[task]
    config = FinetuneConfig(task=task, block_size=size, position="rope")
    task = task_of(task, config)
    monkeypatch.setattr("support.tasks.written", lambda _, __, prompts, *___: [*map(str, prompts)])
    more = [line | {"prompt": "tell! " * 5 + line["prompt"]} for line in lines if "prompt" in line]
    lines = [*lines, *more]
    for line, answer in zip(lines, task.answers(None, lines)):
        ((inputs, targets),) = fitting(task.examples(line)[-1], size, "cut")
        asked = [i for i, target in enumerate(targets) if target != IGNORED][-task.length(line)]
        assert answer == str(inputs[: asked + 1])


def test_results_are_written_before_the_picture(tune, monkeypatch):
    def fail(*_):
        raise OSError("no room for a picture")

    monkeypatch.setattr("support.tasks.draw_confusion", fail)
    with pytest.raises(OSError, match="no room"):
        tune("classification", "--max_iters=1")
    assert "accuracy" in results()["this model"]
    assert len(Path("out/tuned/predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_a_dataset_of_ones_own_does_not_get_the_recipe_for_stories(run, capsys):
    own(LINES["completion"])
    words = "--init_from=out/base --task=completion --dataset=own.jsonl --dry_run=True".split()
    run("finetune.py", *words, "--device=cpu")
    told = capsys.readouterr().out
    assert "no config file named" not in told
    assert "muon" not in told.split("the others:")[0]
    assert "redraw=()" in told


def test_typed_shapes_that_the_base_settles_are_told(tune, capsys):
    tune("completion", "--norm=rmsnorm", "--max_iters=1")
    assert "out/base determines norm=layernorm" in capsys.readouterr().out


def test_a_resumed_run_evaluates_its_average(tune, run, capsys):
    tune("completion", "--ema_decay=0.9", "--max_iters=4", "--eval_interval=4", "--eval_iters=0")
    logged = json.loads(Path("out/tuned/log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    capsys.readouterr()
    run("finetune.py", "--init_from=resume", "--out_dir=out/tuned", "--eval_only=True")
    assert f"val loss {logged['val_loss']:.4f}" in capsys.readouterr().out


def test_the_average_of_a_tied_model_is_tested_with_its_own_head(tune):
    base = last("out/base")
    base["model_config"]["tie_weights"] = True
    base["model"]["head.weight"] = base["model"]["token_embedding.weight"]
    save_checkpoint("out/tied/best.pt", base)
    words = "--init_from=out/tied", "--ema_decay=0.9", "--best_metric=val_loss"
    tune("completion", *words, "--eval_interval=4", "--eval_iters=0")
    log = Path("out/tuned/log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["val_loss"] for line in map(json.loads, log) if "val_loss" in line]
    assert results()["this model"]["loss"] == pytest.approx(min(losses))
    assert len(losses) == 2 and min(losses) < losses[0]


@pytest.mark.parametrize("method", ["prefix", "adapter"])
def test_what_is_put_on_a_base_is_no_base(tune, run, method):
    tune("completion", f"--method={method}", "--max_iters=1")
    with pytest.raises(SystemExit, match="start from its base"):
        tune("completion", "--init_from=out/tuned", "--out_dir=out/more")
    with pytest.raises(SystemExit, match="start from its base"):
        run("train.py", "base.py", *BASE, "--init_from=out/tuned", "--out_dir=out/more")


def test_a_model_of_hugging_faces_is_not_written_over(tune):
    Path("theirs").mkdir()
    Path("theirs/config.json").touch()
    with pytest.raises(SystemExit, match="choose another folder"):
        tune("completion", "--out_dir=theirs")


@pytest.mark.parametrize(
    ("task", "name", "text", "options", "told"),
    [
        ("classification", "a.csv", "text,label\nHello, you,x\n", [], "line 2: more cells than"),
        ("classification", "a.csv", 'text,label\n"a"b,x\n', [], "line 2: not csv"),
        ("classification", "a.csv", "text,label\na,x\n", ["lable=x"], "ours are text, label"),
        ("classification", "a.csv", "text,label\na,x\n", ["text=mesage"], "no field 'mesage'"),
        ("completion", "a.jsonl", "", [], "has no examples"),
    ],
)
def test_a_table_that_is_not_what_it_seems_is_told(tune, task, name, text, options, told):
    own(text, name)
    with pytest.raises(SystemExit, match=told):
        tune(task, f"--dataset={name}", *(["--fields", *options] if options else []))


def test_quotes_in_a_tsv_are_letters(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Great\tpos\nfine\tneg\n', encoding="utf-8")
    lines = checked(path, "classification", "auto", {}, "utf-8")
    assert lines == [{"text": '"Great', "label": "pos"}, {"text": "fine", "label": "neg"}]


def test_a_word_of_two_parts_has_its_tag_behind_a_tab(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("New York\tB-LOC\nis\tO\n\n", encoding="utf-8")
    (line,) = checked(path, "tagging", "auto", {}, "utf-8")
    assert line == {"tokens": ["New York", "is"], "tags": ["B-LOC", "O"]}


def test_sharegpts_conversations_are_read(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "你好"}]
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl([{"conversations": turns}]), encoding="utf-8")
    (line,) = checked(path, "chat", "auto", {}, "utf-8")
    roles = [(message["role"], message["content"]) for message in line["messages"]]
    assert roles == [("user", "hi"), ("assistant", "你好")]
    for more, system in (([], "be kind"), ([{"from": "system", "value": "be brief"}], "be brief")):
        content = {"conversations": [*more, *turns], "system": "be kind"}
        path.write_text(jsonl([content]), encoding="utf-8")
        (line,) = checked(path, "chat", "auto", {}, "utf-8")
        assert line["messages"][0] == {"role": "system", "content": system}
        assert len(line["messages"]) == 3


def test_chinese_between_blanks_is_a_word_and_english_is_still_taken_apart():
    assert words_of("I saw 小明.", blanks=True) == ["I", "saw", "小明."]
    assert words_of("小明 saw Paris.", blanks=True) == ["小明", "saw", "Paris", "."]


def test_lora_around_nothing_is_refused(tune):
    with pytest.raises(SystemExit, match="lora_targets=gate: this model has no such matrix"):
        tune("completion", "--method=lora", "--lora_targets", "gate")


def test_thoughts_are_no_part_of_an_answer():
    assert without_thoughts("<think>\nwell\n</think>\n\nthe dog") == "the dog"
    assert without_thoughts(" the dog ") == "the dog"


def test_fp8_and_lora_go_together(tune):
    pytest.importorskip("torchao")
    tune("completion", "--method=lora", "--merge", "--fp8=True")
    merged, _, _ = load_model("out/tuned/merged.pt")
    assert torch.isfinite(merged(torch.randint(256, (2, 20)))[0]).all()


def test_a_model_keeps_its_context_however_short_the_examples(tune):
    tune("completion", "--block_size=48", "--max_iters=1")
    assert last()["train_config"]["block_size"] == 48
    assert last()["model_config"]["block_size"] == 96
    tune("completion", "--block_size=48", "--max_iters=2", "--init_from=resume")
    assert last()["model_config"]["block_size"] == 96
