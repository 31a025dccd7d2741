"""Fine-tuning examples from Python files: what a function does, and which package it is from.

docstring    {"prompt": a function without its docstring, then its signature again, "completion"}
module       {"text": a function, "label": the top-level package that it is from}

Both are split by file, like the text that a model is pretrained on (support/corpora.py).
"""

import ast
import re
import warnings
from collections import defaultdict
from hashlib import blake2b
from textwrap import dedent
from typing import NamedTuple

MOST_CHARACTERS = 3000  # in a function for `docstring`
MOST_TO_PLACE = 600  # characters in one for `module`: all of it fits a small context
MOST_IN_SENTENCE = 100  # characters
PACKAGES = 10  # labels of `module`: those with the most functions
MOST_OF_PACKAGE = {"train": 250, "val": 40, "test": 80}  # functions
SPLITS = {"train": 85, "val": 5, "test": 10}  # percent of the files
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)\s")


class Function(NamedTuple):
    """A function as written, without its docstring (if any), and what precedes the docstring."""

    file: str
    source: str
    undocumented: str
    signature: str
    docstring: str


def code_tasks(files, root):
    """{task: {split: examples}} from the functions in these files below the folder `root`."""
    functions = []
    for file in files:
        functions += functions_in(file, file.relative_to(root).as_posix())
    short = [function for function in functions if len(function.source) <= MOST_TO_PLACE]
    return {"docstring": docstrings(distinct(functions)), "module": modules(distinct(short))}


def distinct(functions):
    """The functions without duplicates, docstrings aside; the last of each is kept."""
    return list({function.undocumented: function for function in functions}.values())


def functions_in(file, name):
    """The Functions of a file that are short enough; none if this Python cannot parse it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that were once allowed
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    # Not splitlines, which also splits where Python does not, such as at a form feed.
    lines = re.sub(r"\r\n?", "\n", text).split("\n")
    functions = [read_function(node, lines, name) for node in definitions(tree)]
    return [function for function in functions if len(function.source) <= MOST_CHARACTERS]


def definitions(node):
    """Yield the functions and methods in a module or class, except those inside functions."""
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
    """{split: examples}: functions with the first sentence of their docstrings, split by file.

    The prompt ends as a model of code has often seen it: with the lines before a docstring.
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
    """{split: examples}: functions with their top-level package, split by file.

    A package qualifies if some of its files are in the training split and others in the test split.
    """
    packages = defaultdict(lambda: {split: [] for split in SPLITS})
    for function in functions:
        label = function.file.split("/")[0].removesuffix(".py")
        example = {"text": function.source, "label": label}
        packages[label][split_of(function.file)].append(example)
    qualified = [package for package in packages.values() if package["train"] and package["test"]]
    qualified.sort(key=lambda package: -sum(map(len, package.values())))
    return {
        split: [example for package in qualified[:PACKAGES] for example in package[split][:most]]
        for split, most in MOST_OF_PACKAGE.items()
    }


def split_of(name):
    """The split of a file, by the hash of its name."""
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") % 100
    for split, percent in SPLITS.items():
        if number < percent:
            return split
        number -= percent
