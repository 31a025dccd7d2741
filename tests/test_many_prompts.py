"""A file of prompts: every line has the answer that it would have alone."""
# ruff: noqa: F401, F811 (fixtures are imported by their names)

import json
import re
from pathlib import Path

import pytest

from support import many_prompts
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
    lines = [{"tokens": ["the", "New York", "saw", "Ann"]}, {"text": "the cat saw Ann"}]
    Path("t.jsonl").write_text(jsonl(lines), encoding="utf-8")
    given, found = answered(run, capsys, "--lines=t.jsonl", "--out_dir=out/tuned")
    assert given["words"] == given["tokens"] == ["the", "New York", "saw", "Ann"]
    assert found["words"] == ["the", "cat", "saw", "Ann"]
    assert len(given["answer"]) == 4
    run("sample.py", "--out_dir=out/tuned", "--start=the cat saw Ann", "--device=cpu")
    alone = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert found["answer"] == alone


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
        ({"question": "x"}, "line 1: no field prompt, .*found question; type --fields prompt="),
        ({"prompt": 3}, "line 1: prompt must be text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 1: the user says nothing"),
        ({"messages": "hello"}, "line 1: messages must be a list of"),
        ({"messages": []}, "line 1: messages must be a list of"),
        ([1], "line 1: expected an object"),
    ],
)
def test_mistakes_are_told_by_their_line(run, line, message):
    Path("p.jsonl").write_text(json.dumps(line))
    with pytest.raises(SystemExit, match=message):
        run("sample.py", "--lines=p.jsonl", "--out_dir=out/base", "--device=cpu")


@pytest.mark.parametrize(
    ("file", "content", "options", "message"),
    [
        ("empty.txt", "\n", [], "has no prompts"),
        ("none.csv", None, [], r"lines=none\.csv: there is no such file"),
        ("tasks", None, [], "lines=tasks: it is a folder"),
        ("a.xlsx", "x", [], "Excel workbook"),
        ("a.parquet", "x", [], "convert or unpack it first"),
        ("a.bio", "x O", [], r"expected \.jsonl"),
        ("a.bin", "a\0b", [], "line 1: not text"),
        ("a.log", '{"prompt": "x"}', [], r"line 1: looks like JSON; call the file \.jsonl"),
        ("a.txt", "x", ["--fields", "prompt=q"], "fields=prompt=q: plain text.* has none"),
        ("a.csv", "q\nx", ["--fields", "prompt=p"], "no field 'p', found q"),
        ("", None, [], "lines= is empty"),
    ],
)
def test_other_files_are_refused_before_the_model_is_read(
    run, capsys, file, content, options, message
):
    if content is not None:
        Path(file).write_text(content)
    with pytest.raises(SystemExit) as refused:
        run("sample.py", f"--lines={file}", *options, "--out_dir=out/base", "--device=cpu")
    assert re.search(message, f"{refused.value} {capsys.readouterr().err}")


def test_what_is_asked_is_what_the_user_names(tune, run, capsys):
    tune("classification", "--max_iters=30", "--eval_interval=30")
    rows = [("a cat ran home", "x"), ("a 狗 ran home ", "x"), (" a dog ran home\n", "x")]
    lines = [{"text": text, "message": text, "prompt": other} for text, other in rows]
    Path("t.jsonl").write_text(jsonl(lines), encoding="utf-8")
    Path("bare.jsonl").write_text(jsonl([{"text": text.strip()} for text, _ in rows]))
    found = []
    for options in (["t.jsonl"], ["t.jsonl", "--fields", "text=message"], ["bare.jsonl"]):
        more = answered(run, capsys, f"--lines={options[0]}", *options[1:], "--out_dir=out/tuned")
        found.append([(line["answer"], line["probability"]) for line in more])
    assert found[0] == found[1] == found[2]
    other = answered(
        run, capsys, "--lines=t.jsonl", "--fields", "prompt=prompt", "--out_dir=out/tuned"
    )
    assert len({line["probability"] for line in other}) == 1


def test_fields_of_the_file_are_kept_and_empty_lines_told(run, capsys):
    Path("p.csv").write_text('prompt,answer\n"the\ncat",yes\na dog,no\n', encoding="utf-8-sig")
    found = answered(run, capsys, *GREEDY, "--lines=p.csv", "--out_dir=out/base")
    assert [line["answer"] for line in found] == ["yes", "no"]
    assert all(line["model_answer"] for line in found)
    assert found[0]["prompt"] == "the\ncat"
    Path("p.txt").write_text("the\n\n\na dog", encoding="utf-8")
    run("sample.py", *GREEDY, "--lines=p.txt", "--out_dir=out/base")
    told = capsys.readouterr()
    assert "2 empty lines of p.txt are left out" in told.err
    assert len(told.out.splitlines()) == 2
    half = json.dumps({"prompt": "the", "note": "\ud83d\ude00"}).replace("\\ude00", "")
    Path("p.jsonl").write_text(half)
    (line,) = answered(run, capsys, *GREEDY, "--lines=p.jsonl", "--out_dir=out/base")
    assert line["note"] == "�"


@pytest.mark.parametrize("options", [["--until_eot=True"], ["--stop", "s"]])
def test_an_answer_ends_where_a_single_text_does(run, capsys, options):
    lines = [f"the {animal}" for animal in ANIMALS]
    Path("p.txt").write_text("\n".join(lines), encoding="utf-8")
    how = "--temperature=1 --max_new_tokens=40 --seed=3 --device=cpu --out_dir=out/base".split()
    found = answered(run, capsys, *how, *options, "--lines=p.txt", "--batch_size=1")
    for i, (start, line) in enumerate(zip(lines, found)):
        alone = [f"--start={start}", "--num_samples=1", f"--seed={3 + i}"]
        run("sample.py", *how, *options, *alone)
        assert capsys.readouterr().out == start + line["answer"] + "\n"


def test_a_record_may_have_its_own_system_prompt(tune, run, capsys, monkeypatch):
    tune("chat", "--max_iters=1")
    lines = [{"prompt": "it", "system": "who?"}, {"prompt": "it"}]
    Path("p.jsonl").write_text(jsonl(lines))
    seen = []
    monkeypatch.setattr(
        many_prompts,
        "opening_that_fits",
        lambda first, rest, *more: seen.append((first, rest)) or ([1], rest),
    )
    run("sample.py", *GREEDY, "--lines=p.jsonl", "--chat", "--system=be", "--out_dir=out/tuned")
    assert [first[0]["content"] for first, _ in seen] == ["who?", "be"]
    assert [rest for _, rest in seen] == [[{"role": "user", "content": "it"}]] * 2


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
