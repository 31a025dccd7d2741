"""A file of prompts: every line has the answer that it would have alone."""
# ruff: noqa: F401, F811 (fixtures are imported by their names)

import json
from pathlib import Path

import pytest

from support.examples import open_prompts
from tests.test_finetune import ANIMALS, jsonl, made, run, tune

GREEDY = "--temperature=0 --max_new_tokens=9 --device=cpu --until_eot=False".split()
PROMPTS = ["the cat", "a dog saw", "狗", "the 猫 ran home to the", "x"]


def answered(run, capsys, *options):
    """The lines that sample.py writes for the file."""
    capsys.readouterr()
    run("sample.py", "--device=cpu", *options)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("size", [1, 2, 16])
def test_prompts_of_different_lengths_are_continued_as_each_alone(run, capsys, size):
    alone = []
    for prompt in PROMPTS:
        options = [f"--start={prompt}", "--num_samples=1", "--out_dir=out/base"]
        run("sample.py", *GREEDY, *options)
        alone.append(capsys.readouterr().out.removesuffix("\n").removeprefix(prompt))
    records = [{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    Path("p.jsonl").write_text(jsonl(records), encoding="utf-8")
    options = ["--lines=p.jsonl", "--out_dir=out/base", f"--batch_size={size}"]
    found = answered(run, capsys, *GREEDY, *options)
    assert found == [record | {"answer": text} for record, text in zip(records, alone)]


def test_tables_lists_and_plain_text_ask_the_same(run, capsys):
    files = {
        "p.txt": "\n\n".join(PROMPTS),
        "p.csv": "\r\n".join(["message,note", *(f'"{prompt}",1' for prompt in PROMPTS)]),
        "p.json": json.dumps([{"message": prompt} for prompt in PROMPTS]),
    }
    answers = []
    for name, content in files.items():
        encoding = "gb18030" if name == "p.csv" else "utf-8"
        Path(name).write_text(content, encoding=encoding)
        options = [f"--lines={name}", "--out_dir=out/base", f"--encoding={encoding}"]
        options += [] if name == "p.txt" else ["--fields", "prompt=message"]
        found = answered(run, capsys, *options, *GREEDY)
        answers.append([line["answer"] for line in found])
        given = "prompt" if name == "p.txt" else "message"
        assert [line[given] for line in found] == PROMPTS
    assert answers[0] == answers[1] == answers[2]


def test_the_same_seed_gives_the_same_answers(run, capsys):
    Path("p.txt").write_text("the\nthe\nthe", encoding="utf-8")
    options = ["--lines=p.txt", "--out_dir=out/base", "--temperature=1", "--batch_size=2"]
    once, again = (answered(run, capsys, *options, "--max_new_tokens=20") for _ in range(2))
    assert once == again
    assert len({line["answer"] for line in once}) == 3


def test_a_text_is_labelled_and_keeps_its_fields(tune, run, capsys):
    tune("classification")
    lines = [{"text": f"a {animal} ran home", "from": "Ann"} for animal in ANIMALS]
    Path("t.jsonl").write_text(jsonl(lines), encoding="utf-8")
    found = answered(run, capsys, "--lines=t.jsonl", "--out_dir=out/tuned")
    for line, answer in zip(lines, found, strict=True):
        run("sample.py", "--out_dir=out/tuned", f"--start={line['text']}", "--device=cpu")
        chance, label = capsys.readouterr().out.splitlines()[0].split(" ", 1)
        assert answer == line | {"answer": label, "probability": float(chance)}


def test_words_are_tagged_as_they_are_given_or_as_they_are_found(tune, run, capsys):
    tune("tagging")
    lines = [{"tokens": ["the", "cat", "saw", "Ann"]}, {"text": "the cat saw Ann"}]
    Path("t.jsonl").write_text(jsonl(lines), encoding="utf-8")
    given, found = answered(run, capsys, "--lines=t.jsonl", "--out_dir=out/tuned")
    assert given["tokens"] == found["tokens"] == ["the", "cat", "saw", "Ann"]
    assert given["answer"] == found["answer"]
    assert len(given["answer"]) == 4


def test_a_generated_label_is_the_answer(tune, run, capsys):
    tune("classification", "--generative=True", "--max_iters=30", "--eval_interval=30")
    Path("t.txt").write_text("a cat ran home\na 狗 ran home", encoding="utf-8")
    options = ["--out_dir=out/tuned", "--temperature=0", "--max_new_tokens=9"]
    for line in answered(run, capsys, "--lines=t.txt", *options):
        start = f"--start={line['prompt']}"
        run("sample.py", *options, start, "--num_samples=1", "--device=cpu")
        assert capsys.readouterr().out.partition("Label:")[2].strip() == line["answer"] != ""


def test_conversations_are_answered_where_the_user_spoke_last(tune, run, capsys):
    tune("chat", "--max_iters=30", "--eval_interval=30")
    said = [
        {"role": "user", "content": "the cat ran 3"},
        {"role": "assistant", "content": "who?"},
        {"role": "user", "content": "it"},
    ]
    lines = [
        {"messages": said},
        {"messages": [*said, {"role": "assistant", "content": "nothing"}]},
        {"prompt": "the cat ran 3"},
        {"instruction": "the cat ran 3", "input": ""},
    ]
    Path("t.jsonl").write_text(jsonl(lines), encoding="utf-8")
    options = ["--lines=t.jsonl", "--out_dir=out/tuned", "--temperature=0", "--chat"]
    answers = [line["answer"] for line in answered(run, capsys, *options, "--max_new_tokens=9")]
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]
    with pytest.raises(SystemExit, match=r"t\.jsonl, line 1: a conversation, which --chat answers"):
        run("sample.py", "--lines=t.jsonl", "--out_dir=out/tuned", "--device=cpu")
    with pytest.raises(SystemExit, match=r"line 1: too long"):
        run("sample.py", *options, "--system=" + "a" * 99, "--device=cpu")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "x"}, "line 1: no field prompt, text, .*found question; type --fields"),
        ({"prompt": 3}, "line 1: prompt must be text"),
        ({"prompt": "x", "answer": "y"}, "line 1: has a field 'answer' already"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 1: the user says nothing"),
        ([1], "line 1: expected an object"),
    ],
)
def test_mistakes_are_told_by_their_line(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text(json.dumps(line))
    with pytest.raises(SystemExit, match=message):
        open_prompts("p.jsonl")
    Path("empty.txt").write_text("\n")
    with pytest.raises(SystemExit, match="has no prompts"):
        open_prompts("empty.txt")
    with pytest.raises(SystemExit, match=r"lines=none\.csv: there is no such file"):
        open_prompts("none.csv")


def test_options_for_files_alone_are_told_to_be_of_no_use(run, capsys):
    run("sample.py", *GREEDY, "--out_dir=out/base", "--batch_size=2", "--num_samples=1")
    assert "batch_size is not used: it is for --lines=FILE" in capsys.readouterr().err
    Path("p.txt").write_text("the")
    options = ["--lines=p.txt", "--start=a", "--num_samples=2"]
    run("sample.py", *GREEDY, "--out_dir=out/base", *options)
    told = capsys.readouterr().err
    assert "start is not used: the prompts are in the file" in told
    assert "num_samples is not used: a prompt has one answer" in told
    with pytest.raises(SystemExit):
        run("sample.py", "--out_dir=out/base", "--lines=p.txt", "--interactive=True")
    assert "interactive=True does not go with --lines" in capsys.readouterr().err


def test_what_a_model_cannot_do_is_told_before_anything_is_written(tune, run, capsys):
    Path("p.txt").write_text("the " * 40 + "\na cat", encoding="utf-8")
    assert len(answered(run, capsys, *GREEDY, "--lines=p.txt", "--out_dir=out/base")) == 2
    run("sample.py", *GREEDY, "--lines=p.txt", "--out_dir=out/base")
    assert "of 1 prompts only the last 96 tokens are read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="line 1: too long: 179 tokens, of 96 that are read"):
        run("sample.py", "--lines=p.txt", "--out_dir=out/base", "--chat", "--device=cpu")
    told = capsys.readouterr()
    assert "was not fine-tuned to chat" in told.err
    assert not told.out
    tune("classification", "--max_iters=1")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="cannot converse: leave --chat out"):
        run("sample.py", "--lines=p.txt", "--out_dir=out/tuned", "--chat", "--device=cpu")
    assert not capsys.readouterr().out
