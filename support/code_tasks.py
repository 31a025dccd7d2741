"""Examples to fine-tune on from Python files: what a function does, and where it belongs.

docstring    {"prompt": a function without its docstring, and its beginning once more, "completion"}
module       {"text": a function, "label": the top-level package that it is from}

Both are split by file, as the text that a model is trained on before (support/corpora.py).
"""

import ast
import re
import warnings
from collections import defaultdict
from hashlib import blake2b
from textwrap import dedent
from typing import NamedTuple

MOST_CHARACTERS = 3000  # of a function that is asked about
MOST_TO_PLACE = 600  # of one whose module is asked for: all of it fits a small context
MOST_IN_SENTENCE = 100
PACKAGES = 10  # the labels of `module`: those with most functions
MOST_OF_PACKAGE = {"train": 250, "val": 40, "test": 80}  # functions
SPLITS = {"train": 85, "val": 5, "test": 10}  # percent of the files
SENTENCE_END = re.compile(r"(?<=[.!?])\s")


class Function(NamedTuple):
    """A function as written, without the docstring that it may have, and what precedes that."""

    file: str
    source: str
    undocumented: str
    signature: str
    docstring: str


def code_tasks(files, root):
    """{task: {split: examples}} of the functions in these files below the folder `root`."""
    functions = []
    for file in files:
        functions += functions_in(file, file.relative_to(root).as_posix())
    short = [function for function in functions if len(function.source) <= MOST_TO_PLACE]
    return {"docstring": docstrings(distinct(functions)), "module": modules(distinct(short))}


def distinct(functions):
    """The functions without those that do the same, word for word, as a later one."""
    return list({function.undocumented: function for function in functions}.values())


def functions_in(file, name):
    """The Functions of a file that are short enough; none if this Python cannot parse it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that were once allowed
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    # Not splitlines, which also ends a line where Python does not, as at a form feed.
    lines = re.sub(r"\r\n?", "\n", text).split("\n")
    functions = [read_function(node, lines, name) for node in definitions(tree)]
    return [function for function in functions if len(function.source) <= MOST_CHARACTERS]


def definitions(node):
    """The functions and methods in a module or class, but for those inside of functions."""
    for inner in node.body:
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield inner
        elif isinstance(inner, ast.ClassDef):
            yield from definitions(inner)


def read_function(node, lines, file):
    """The Function of a node of the syntax tree."""
    first, last = node.lineno - 1, node.end_lineno
    source = dedent("\n".join(lines[first:last]))
    docstring = ast.get_docstring(node) or ""
    if not docstring or len(node.body) == 1:
        return Function(file, source, source, "", "")
    start, end = node.body[0].lineno - 1, node.body[0].end_lineno
    if start == first or node.body[1].lineno == end:  # it shares a line with code
        return Function(file, source, source, "", "")
    undocumented = dedent("\n".join(lines[first:start] + lines[end:last]))
    signature = dedent("\n".join(lines[first:start]))
    return Function(file, source, undocumented, signature, docstring)


def docstrings(functions):
    """{split: examples}: functions and the first sentence on them, split by file.

    The question is what a model of code has read a thousand times: the line before a docstring.
    """
    splits = {split: [] for split in SPLITS}
    for function in functions:
        sentence = first_sentence(function.docstring)
        if sentence and len(sentence) <= MOST_IN_SENTENCE and "->" not in sentence:
            prompt = f'{function.undocumented}\n\n{function.signature}\n    """'
            example = {"prompt": prompt, "completion": sentence}
            splits[split_of(function.file)].append(example)
    return splits


def first_sentence(docstring):
    """The first sentence of a docstring, on one line."""
    paragraph = docstring.strip().split("\n\n")[0]
    return SENTENCE_END.split(" ".join(paragraph.split()))[0]


def modules(functions):
    """{split: examples}: functions and the top-level package of each, split by file.

    A package qualifies if some of its files are for training and others for the test.
    """
    packages = defaultdict(lambda: {split: [] for split in SPLITS})
    for function in functions:
        label = function.file.split("/")[0].removesuffix(".py")
        example = {"text": function.source, "label": label}
        packages[label][split_of(function.file)].append(example)
    qualified = [package for package in packages.values() if package["train"] and package["test"]]
    qualified.sort(key=lambda package: -sum(map(len, package.values())))
    return {
        split: [one for package in qualified[:PACKAGES] for one in package[split][:most]]
        for split, most in MOST_OF_PACKAGE.items()
    }


def split_of(name):
    """The split that a file belongs to, by the hash of its name."""
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") % 100
    for split, percent in SPLITS.items():
        if number < percent:
            return split
        number -= percent
