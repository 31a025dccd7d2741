"""Files of examples: every usual form is read, and whatever is wrong is named with its line."""

import json
import re
from pathlib import Path

import pytest

from finetune import FinetuneConfig
from support.examples import VAL_FRACTION, in_bio, line_of, open_examples
from support.labelling import gaps, pieces, word_tokens, words_of
from support.tokenizer import byte_tokenizer, char_tokenizer

MOODS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)]


def wrote(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    path.write_text(content, encoding="utf-8")
    return name


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_folder_has_a_file_for_each_split():
    for split, n in (("train", 30), ("validation", 6), ("test", 4)):
        wrote(f"moods/{split}.jsonl", MOODS[:n])
    found = open_examples("moods", "classification")
    assert {split: len(lines) for split, lines in found.items()} == {
        "train": 30,
        "val": 6,
        "test": 4,
    }


def test_a_single_file_is_split_by_hash_with_equal_lines_together():
    wrote("moods.jsonl", MOODS + MOODS)
    found = open_examples("moods.jsonl", "classification", val_fraction=0.2)
    texts = {split: {line["text"] for line in lines} for split, lines in found.items()}
    assert {split: len(lines) for split, lines in found.items()} == {
        "train": 48,
        "val": 16,
        "test": 16,
    }
    assert not texts["train"] & texts["val"] and not texts["val"] & texts["test"]
    assert open_examples("moods.jsonl", "classification", val_fraction=0.2) == found
    wrote("moods.jsonl", list(reversed(MOODS + MOODS)))
    again = open_examples("moods.jsonl", "classification", val_fraction=0.2)
    assert {line["text"] for line in again["val"]} == texts["val"]  # whatever their order


def test_what_has_a_label_of_its_own_is_learned_and_not_judged_by():
    rare = [{"text": f"rare {i}", "label": f"rare {i}"} for i in range(20)]
    wrote("moods.jsonl", MOODS + rare)
    found = open_examples("moods.jsonl", "classification")
    assert sum(map(len, found.values())) == len(MOODS) + 20
    known = {line["label"] for line in found["train"]}
    assert {line["label"] for line in found["val"] + found["test"]} <= known
    wrote("moods.jsonl", rare)  # all of them: the task will say so
    assert len(open_examples("moods.jsonl", "classification")["val"]) == 2


def test_a_folder_without_a_test_file_is_tested_on_its_validation_examples(capsys):
    wrote("moods/train.jsonl", MOODS)
    wrote("moods/dev.jsonl", MOODS[:4])
    found = open_examples("moods", "classification")
    assert found["test"] == found["val"] and len(found["val"]) == 4
    assert "moods has no test examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", 'text,label\n"one, two",good\nthree,bad\nfour,bad\nfive,good\n'),
        ("m.tsv", "label\ttext\ngood\tone, two\nbad\tthree\nbad\tfour\ngood\tfive\n"),
        ("m.csv", '\ufefftext,label\r\n"one, two",good\r\nthree,bad\r\nfour,bad\r\nfive,good\r\n'),
    ],
)
def test_tables_are_read_by_the_names_of_their_columns(name, content):
    wrote(name, content)
    found = open_examples(name, "classification", val_fraction=0.25)
    lines = found["train"] + found["val"] + found["test"]
    assert {"text": "one, two", "label": "good"} in lines and len(lines) == 4


def test_a_files_own_names_can_be_told():
    wrote("m.csv", "message,topic\nhello,greeting\nbye,parting\nhi,greeting\nciao,parting\n")
    fields = ("text=message", "label=topic")
    found = open_examples("m.csv", "classification", fields=fields)
    assert {line["label"] for line in found["train"]} <= {"greeting", "parting"}
    with pytest.raises(SystemExit, match="--fields text=THEIRS"):
        open_examples("m.csv", "classification")
    with pytest.raises(SystemExit, match="OURS=THEIRS"):
        open_examples("m.csv", "classification", fields=("text",))


def test_alpaca_is_read_as_completions_and_as_conversations():
    lines = [
        {"instruction": f"Add {i}.", "input": "1" if i % 2 else "", "output": f"{i + 1}"}
        for i in range(40)
    ]
    Path("alpaca.json").write_text(json.dumps(lines), encoding="utf-8")
    found = open_examples("alpaca.json", "completion")
    every = [line for lines in found.values() for line in lines]
    assert {
        "prompt": "### Instruction:\nAdd 1.\n\n### Input:\n1\n\n### Response:\n",
        "completion": "2",
    } in every
    assert {"prompt": "### Instruction:\nAdd 2.\n\n### Response:\n", "completion": "3"} in every
    talks = open_examples("alpaca.json", "chat")["train"]
    asked = {"role": "user", "content": "Add 1.\n\n1"}
    assert {"messages": [asked, {"role": "assistant", "content": "2"}]} in talks


CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def test_columns_of_conll_are_sentences_of_words_and_tags():
    for name in ("eng.train", "eng.testa", "eng.testb"):
        wrote(f"conll/{name}", CONLL)
    found = open_examples("conll", "tagging", format="conll")
    assert found["test"] == [
        {"tokens": ["EU", "rejects", "German"], "tags": ["B-ORG", "O", "B-MISC"]},
        {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    ]


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        ("I-A I-A O I-B", "B-A I-A O B-B"),
        ("S-A B-B E-B", "B-A B-B I-B"),
        ("U-A B-B I-B L-B", "B-A B-B I-B I-B"),
        ("B-人 M-人 E-人 O S-物", "B-人 I-人 I-人 O B-物"),
        ("B-A B-A I-A", "B-A B-A I-A"),
        ("I-A I-B", "B-A B-B"),
    ],
)
def test_every_usual_scheme_of_tags_becomes_bio(tags, bio):
    assert in_bio(tags.split()) == bio.split()


@pytest.mark.parametrize(
    ("task", "lines", "told"),
    [
        ("classification", '{"text": "a", "label": "b"}\n{"text": ', "line 2: not JSON"),
        ("classification", '{"text": "a"}\n', "line 1"),
        ("classification", '{"text": "a", "label": ""}\n', "the label is empty"),
        ("classification", '{"text": 5, "label": "b"}\n', "text must be text"),
        ("classification", "[1]\n", "expected an object"),
        ("completion", '{"prompt": "a"}\n', "no field 'completion'"),
        ("completion", "\n\n", "empty"),
        ("text", "", "empty"),
        ("chat", '{"messages": "hi"}\n', "expected"),
        ("chat", '{"messages": [{"role": "bot", "content": "hi"}]}\n', "role=bot"),
        ("chat", '{"messages": [{"role": "user", "content": "hi"}]}\n', "assistant says nothing"),
        ("chat", '{"messages": [{"role": "assistant"}]}\n', "no field 'content'"),
        ("tagging", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "2 tokens and 1 tags"),
        ("tagging", '{"tokens": ["a"], "tags": ["PERSON"]}\n', "the tag 'PERSON'"),
        ("tagging", '{"tokens": [], "tags": []}\n', "no tokens"),
        ("tagging", '{"tokens": "a", "tags": ["O"]}\n', "list of strings"),
    ],
)
def test_a_wrong_line_is_named_and_what_was_expected(task, lines, told):
    wrote("x.jsonl", lines)
    with pytest.raises(SystemExit, match=r"x\.jsonl") as stop:
        open_examples("x.jsonl", task)
    assert told in str(stop.value)


def test_what_is_not_there_or_too_little_is_told():
    with pytest.raises(SystemExit, match="no such file"):
        open_examples("nowhere", "text")
    Path("empty").mkdir()
    with pytest.raises(SystemExit, match=r"train\.jsonl"):
        open_examples("empty", "text")
    wrote("two.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(SystemExit, match="too few"):
        open_examples("two.jsonl", "text")
    wrote("words.txt", "a O\n")
    with pytest.raises(SystemExit, match=r"prepare_data\.py words\.txt"):
        open_examples("words.txt", "text")
    with pytest.raises(SystemExit, match="--task=tagging"):
        open_examples("words.txt", "completion")
    Path("gbk.jsonl").write_bytes('{"text": "中文"}'.encode("gbk"))
    with pytest.raises(SystemExit, match="not UTF-8"):
        open_examples("gbk.jsonl", "text")


def test_words_are_joined_as_in_running_text_and_each_has_an_end():
    english = ["\u201c", "Mei", "'s", "kite", ",", "(", "red", ")", "!"]
    assert "".join(g + w for g, w in zip(gaps(english), english)) == "\u201cMei's kite, (red)!"
    chinese = list("梅在Park里。")
    assert set(gaps(["梅", "在", "里", "。"])) == {""}
    tokens, ends = word_tokens(chinese, byte_tokenizer())
    assert byte_tokenizer().decode(tokens).replace(" ", "") == "梅在Park里。"
    assert ends == sorted(ends) and ends[-1] == len(tokens) - 1
    parts = list(pieces(["a" * 30, "b", "c"], byte_tokenizer(), first=[256], block_size=8))
    assert [len(tokens) for tokens, _ in parts] == [8, 4] and [e for _, e in parts] == [[7], [1, 3]]
    nothing_known = list(pieces(["é"], char_tokenizer(["abc"]), first=[], block_size=8))
    assert nothing_known == [([0], [0])]
    assert words_of("Mei's kite, 风筝!") == ["Mei's", "kite", ",", "风", "筝", "!"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The U.S. lost 10.5% (1,000) at 5 p.m.", "The U.S. lost 10.5 % ( 1,000 ) at 5 p.m."),
        ("On 1996-08-22, at 10:30: a@b.com.", "On 1996-08-22 , at 10:30 : a@b.com ."),
        ("AT&T's well-known 3/4", "AT&T's well-known 3/4"),
        ("他2024年买iPhone15了", "他 2024 年 买 iPhone15 了"),
    ],
)
def test_numbers_abbreviations_and_addresses_are_one_word(text, words):
    words = words.split()
    assert words_of(text) == words
    assert words_of(" ".join(words)) == words
    assert words_of(" ".join(words[:4]), blanks=True) == words[:4]


def test_half_characters_that_json_escapes_write_are_repaired():
    wrote("text.jsonl", '{"text": "a \\ud83d!"}\n{"text": "\\ud83d\\ude00"}\n{"text": "b"}\n')
    found = open_examples("text.jsonl", "text", val_fraction=0.3)
    texts = {line["text"] for lines in found.values() for line in lines}
    assert texts == {"a \ufffd!", "😀", "b"}
    said = [{"role": role, "content": f"{role} \ud83d"} for role in ("user", "assistant")]
    line = line_of({"messages": said}, "chat", {}, "x")
    assert [m["content"] for m in line["messages"]] == ["user \ufffd", "assistant \ufffd"]
    line = line_of({"tokens": ["\ud83d"], "tags": ["O"]}, "tagging", {}, "x")
    assert line == {"tokens": ["\ufffd"], "tags": ["O"]}


def test_alpacas_system_and_history_are_read():
    line = {
        "instruction": "再见",
        "output": "走好",
        "system": "你很有礼貌",
        "history": [["你好", "你好呀"]],
    }
    roles = [("system", "你很有礼貌"), ("user", "你好"), ("assistant", "你好呀")]
    roles += [("user", "再见"), ("assistant", "走好")]
    said = [{"role": role, "content": content} for role, content in roles]
    assert line_of(line, "chat", {}, "x") == {"messages": said}
    with pytest.raises(SystemExit, match="history is a conversation, for --task=chat"):
        line_of(line, "completion", {}, "x")
    prompt = line_of(line | {"history": []}, "completion", {}, "x")["prompt"]
    assert prompt.startswith("你很有礼貌\n\n### Instruction:\n再见")


@pytest.mark.parametrize("history", ["xy", 5, [None], [["x"]], ["xy"], [["a", "b", "c"]], [[1, 2]]])
def test_a_history_that_is_none_is_refused(history):
    line = {"instruction": "q", "output": "a", "history": history}
    with pytest.raises(SystemExit, match=r"history must be a list of \[asked, answered\]"):
        line_of(line, "chat", {}, "x")


def test_values_that_are_no_text_are_refused_and_not_written():
    with pytest.raises(SystemExit, match="system must be text"):
        line_of({"instruction": "q", "output": "a", "system": ["x"]}, "completion", {}, "x")
    for value in (None, "x", [{"from": ["x"], "value": "y"}]):
        with pytest.raises(SystemExit) as stop:
            line_of({"messages": value}, "chat", {}, "x")
        assert "that is for" not in str(stop.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", '{"text": "a", "label": "b"}\n{"text": "b", "label": "c"}', "--format=jsonl"),
        ("a.jsonl", '[{"text": "a",', "--format=json"),
        ("a.jsonl", '{“text”: "a"}', "line 1: not JSON.*“text”"),
        ("a.xlsx", "PK", "is an Excel workbook; save it as CSV in UTF-8"),
        ("a.csv", "风筝丢了,难过\n找到了,高兴\n", "names are in the first line"),
    ],
)
def test_a_table_in_another_form_is_told_what_to_type(name, content, told):
    Path(name).write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=told):
        open_examples(name, "classification")


def test_a_file_that_is_not_there_is_answered_with_the_nearest():
    for i in range(20):
        Path(f"a{i}.jsonl").write_text("", encoding="utf-8")
    Path("我的问答.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"contains 我的问答.jsonl, a.* and 11 more"):
        open_examples("我的问题.jsonl", "completion")


CHOICE = {"prompt": "p", "choices": ["x", "y", "z"], "label": 1}


@pytest.mark.parametrize(
    "record",
    [
        CHOICE,
        *(CHOICE | {"label": label} for label in ("1", "B", "b", " (B) ", "Ｂ", "y", " y ")),
        CHOICE | {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "label": "2"},
        CHOICE | {"choices": {"text": ["x", "y", "z"], "label": [1, 2, 3]}, "label": 2},
        CHOICE | {"choices": {"text": ["x", "y", "z"]}},
        CHOICE | {"choices": {"text": ["x", "y", "z"], "label": 5}},
        CHOICE
        | {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3", "4"]}, "label": "B"},
        CHOICE | {"choices": {"A": "x", "B": "y", "C": "z"}, "label": "B"},
        {"prompt": "p", "A": "x", "B": "y", "C": "z", "D": "", "label": "B"},
        {"prompt": "p", "A": "x", "B": "", "C": "y", "D": "z", "label": "C"},
    ],
)
def test_the_right_choice_is_a_number_a_letter_or_the_choice(record):
    assert line_of(record, "choice", {}, "f") == CHOICE


@pytest.mark.parametrize(
    ("choices", "label", "right"),
    [
        (["0", "2", "1"], "1", 2),  # a list: the choice, before its place
        (["0", "2", "1"], 1, 1),
        ([3, 1, 2.5], "1", 1),
        ({"text": ["4", "1", "3"], "label": ["1", "2", "3"]}, "1", 0),  # names: these first
        ({"A": "O", "B": "A", "C": "B"}, "B", 1),
    ],
)
def test_what_a_file_calls_its_choices_is_meant_first(choices, label, right):
    line = line_of({"prompt": "p", "choices": choices, "label": label}, "choice", {}, "f")
    assert line["label"] == right and all(isinstance(choice, str) for choice in line["choices"])


def test_several_fields_can_be_the_choices_or_the_prompt():
    record = {"story": "s", "goal": "g", "sol1": "x", "sol2": "y", "label": 1}
    fields = {"prompt": "story,goal", "choices": "sol1,sol2"}
    expected = {"prompt": "s\ng", "choices": ["x", "y"], "label": 1}
    assert line_of(record, "choice", fields, "f") == expected
    with pytest.raises(SystemExit, match="no field 'sol1,sol3', found story"):
        line_of(record, "choice", fields | {"choices": "sol1,sol3"}, "f")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (CHOICE | {"label": 3}, "label=3 is none of the 3 choices: expected 0 to 2 (counted from"),
        (CHOICE | {"label": "D"}, "0 to 2 (counted from 0), a letter from A, or the choice itself"),
        (CHOICE | {"label": True}, "label=True is none"),
        (CHOICE | {"label": "9" * 5000}, "is none"),
        (CHOICE | {"label": ""}, "the label is empty; is this a test set without answers?"),
        ({"prompt": "p", "choices": ["x", "y"]}, "no field 'label', found prompt, choices; if the"),
        (
            {"prompt": "p", "A": "x", "B": "", "C": "y", "label": "B"},
            "is none of the 2 choices: ex",
        ),
        ({"prompt": "p", "A": "x", "B": "", "C": "y", "label": "B"}, "expected A, C, or"),
        (CHOICE | {"choices": ["x"]}, "choices=['x']: expected at least two"),
        (
            {"prompt": "p", "A": "B", "label": "A"},
            "choices=['B']: expected at least two (in a table, the first",
        ),
        (CHOICE | {"choices": "xy"}, "must be a list of texts, found 'xy'"),
        (CHOICE | {"choices": ["x", " "]}, "must be a list of texts"),
        (CHOICE | {"choices": {"text": None}}, "must be a list of texts"),
        ({"prompt": "p", "label": 0}, "no field 'choices', found prompt, label; if the file"),
        ({"choices": ["x", "y"], "label": 0}, "no field 'prompt', found choices, label; if the"),
        ({"q": "p", "A": "x", "B": "y"}, "no field 'prompt', found q, A, B; if the file names"),
        ({"text": "t", "label": "x"}, "that is for --task=classification"),
    ],
)
def test_what_is_wrong_with_choices_is_told(record, told):
    with pytest.raises(SystemExit, match=f"f, line 1: .*{re.escape(told)}"):
        line_of(record, "choice", {}, "f, line 1")


def test_columns_of_choices_name_their_task():
    with pytest.raises(SystemExit, match="that is for --task=choice"):
        line_of({"question": "q", "A": "x", "B": "y", "answer": "A"}, "completion", {}, "f")


def test_the_places_of_choices_are_no_labels_of_classes():
    lines = [{"prompt": f"{i}", "choices": ["x"] * 90, "label": i} for i in range(90)]
    wrote("quiz.jsonl", [line | {"choices": list("abcdefghij") * 9} for line in lines])
    found = open_examples("quiz.jsonl", "choice")
    assert [len(found[split]) for split in ("train", "val", "test")] == [72, 9, 9]


def test_to_judge_a_folder_needs_no_training_examples():
    wrote("moods/test.jsonl", MOODS)
    found = open_examples("moods", "classification", val_fraction=1)
    assert found["val"] == found["test"] == MOODS
    with pytest.raises(SystemExit, match=r"expected a file train\.jsonl"):
        open_examples("moods", "classification")
    with pytest.raises(SystemExit, match=r"expected \.jsonl, .*convert or unpack it first"):
        open_examples(wrote("moods.parquet", "PAR1"), "choice")


def test_a_file_may_be_judged_whole():
    wrote("moods.jsonl", MOODS)
    found = open_examples("moods.jsonl", "classification", val_fraction=1)
    assert found["val"] == found["test"] == found["train"] == MOODS


def test_a_fraction_of_a_folder_that_is_split_already_is_refused():
    for split in ("train", "val"):
        wrote(f"moods/{split}.jsonl", MOODS)
    assert FinetuneConfig.val_fraction == VAL_FRACTION
    assert open_examples("moods", "classification")["val"] == MOODS
    with pytest.raises(SystemExit, match=r"val_fraction=0\.2: moods has validation examples"):
        open_examples("moods", "classification", val_fraction=0.2)
