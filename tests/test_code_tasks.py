"""Examples from Python files: functions, what they do and where they belong."""

import json
from collections import Counter

from support.code_tasks import (
    MOST_CHARACTERS,
    MOST_TO_PLACE,
    code_tasks,
    first_sentence,
    functions_in,
    split_of,
)

FILE = '''
"""A module."""

def double(x):
    """Return twice x.  And more.

    Much more.
    """
    return 2 * x

class A:
    def method(self):
        "Say hello."
        print("hello")

    def bare(self):
        return 1

def only():
    """Nothing else."""

def short(x): "On a line."; return x
'''


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return sorted(folder.rglob("*.py"))


def all_examples(splits):
    return [example for examples in splits.values() for example in examples]


def test_docstrings_are_taken_out_of_their_functions(tmp_path):
    files = write(tmp_path, {"a.py": FILE})
    made = all_examples(code_tasks(files, tmp_path)["docstring"])
    assert made == [
        {
            "prompt": 'def double(x):\n    return 2 * x\n\ndef double(x):\n    """',
            "completion": "Return twice x.",
        },
        {
            "prompt": 'def method(self):\n    print("hello")\n\ndef method(self):\n    """',
            "completion": "Say hello.",
        },
    ]


def test_functions_are_labelled_by_their_package_and_split_by_file(tmp_path):
    texts = {f"{p}/m{i}.py": f"def {p}{i}():\n    return 5\n" for p in "abc" for i in range(50)}
    alone = {"d.py": FILE, "e/one.py": "def e():\n    return 5\n"}  # cannot be split by file
    made = code_tasks(write(tmp_path, texts | alone), tmp_path)["module"]
    assert {"text": "def c0():\n    return 5", "label": "c"} in all_examples(made)
    assert Counter(example["label"] for example in all_examples(made)) == {p: 50 for p in "abc"}
    for split, examples in made.items():
        assert examples
        for example in examples:
            package, number = (
                example["label"],
                example["text"].removeprefix("def ")[1:].split("(")[0],
            )
            assert split_of(f"{package}/m{number}.py") == split


def test_files_that_do_not_parse_are_passed_over_and_old_escapes_are_not(tmp_path):
    files = write(
        tmp_path,
        {
            "a.py": "print 'old'\n",
            "b.py": "x = 'null \0'\n",
            "c.py": "def f():\n    return '\\d'\n",
            "d.py": "def g():\r\n    'Say.'\r\n    return 1\r\n",
        },
    )
    (tmp_path / "e.py").write_bytes(b"x = '\xff'\n")
    files.append(tmp_path / "e.py")
    assert [file.name for file in files if functions_in(file, file.name)] == ["c.py", "d.py"]
    made = code_tasks(files, tmp_path)
    prompt = all_examples(made["docstring"])[0]["prompt"]
    assert prompt == 'def g():\n    return 1\n\ndef g():\n    """'


def test_long_functions_are_left_out(tmp_path):
    for name, length in (("a", MOST_TO_PLACE), ("b", MOST_CHARACTERS)):
        body = f'    """Say {name}."""\n' + "    x = 1\n" * (length // 10)
        write(tmp_path, {f"p/{name}{i}.py": f"def f{i}():\n{body}" for i in range(50)})
    made = code_tasks(sorted(tmp_path.rglob("*.py")), tmp_path)
    assert not all_examples(made["module"])
    assert {example["completion"] for example in all_examples(made["docstring"])} == {"Say a."}


def test_no_file_has_docstrings_in_two_splits_and_no_function_is_in_two(tmp_path):
    function = 'def f{0}():\n    """Return {0}."""\n    return {0}\n'
    names = {
        f"m/m{i}.py": "".join(function.format(10 * i + j) for j in range(10)) for i in range(60)
    }
    names["m/copy.py"] = names["m/m0.py"]
    made = code_tasks(write(tmp_path, names), tmp_path)
    places = {}
    for split, examples in made["docstring"].items():
        assert examples
        for example in examples:
            number = int(example["completion"].removeprefix("Return ")[:-1])
            assert places.setdefault(number // 10, split) == split
    texts = [example["text"] for example in all_examples(made["module"])]
    assert len(set(texts)) == len(texts)
    assert code_tasks(sorted(tmp_path.rglob("*.py")), tmp_path) == made
    json.dumps(made)


def test_a_first_sentence_is_one_line():
    assert first_sentence("Return the\n  value. More.") == "Return the value."
    assert first_sentence("Return it\n\nMore") == "Return it"
    assert first_sentence("Name it, e.g. x (i.e. short). More.") == "Name it, e.g. x (i.e. short)."
    assert {split_of(str(number)) for number in range(200)} == {"train", "val", "test"}
