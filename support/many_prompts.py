"""Answer every line of a file: `python sample.py --lines=messages.csv > answers.jsonl`.

A line of the answers is a line of the file, in JSON, with one field more: `answer`. What is asked
is the field that --fields names or else, in this order, `prompt`, `instruction`, `messages` and
`text`; a classifier reads `text` first, a tagger `tokens`.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sample import (
    TextStream,
    ends_of_a_text,
    ends_of_an_answer,
    first_tokens,
    new_context,
    opening_that_fits,
    start_tokens,
    steps_of,
    with_instruction,
)
from support.examples import (
    FORMATS,
    advice_on_place,
    asked_in,
    in_messages,
    pair_in,
    records,
    refuse_other_kinds,
    repaired,
    text,
    with_our_names,
    with_system,
)
from support.files import check_encoding
from support.labelling import chances_of, tags_of, to_continue, words_of

CONVERSATIONS = "messages", "conversations"
ASKED = "prompt", "instruction", *CONVERSATIONS, "text"  # the fields that may hold a prompt


class Line(NamedTuple):
    """A line of the file, the same with our names for its fields, and where it stands."""

    record: dict
    named: dict
    where: str


class Prompt(NamedTuple):
    """What a line asks: a text (None for a conversation), messages, for a tagger perhaps words."""

    where: str
    text: str | None
    messages: list
    words: list


# ------------------------------------------------------------------------------ reading the file


def read_lines(config):
    """[Line] of the file `lines`: of a table or JSON, else each line is a prompt. Exits with a
    message if it cannot be read.
    """
    file = Path(config.lines)
    check_encoding(config.encoding)
    if file.is_dir():
        raise SystemExit(f"lines={file}: it is a folder; name a file in it")
    if not file.exists():
        raise SystemExit(f"lines={file}: there is no such file{advice_on_place(file)}")
    refuse_other_kinds(file)
    suffix = file.suffix.lower()
    kind = "lines" if suffix == ".txt" else FORMATS.get(suffix, "lines")
    if kind == "conll":
        raise SystemExit(f"{file}: expected .jsonl, .json, .csv, .tsv or plain text")
    if kind == "lines" and config.fields:
        raise SystemExit(f"fields={' '.join(config.fields)}: plain text, as in {file}, has none")
    renamed, lines, n_empty = dict(pair_in(pair) for pair in config.fields), [], 0
    for number, record in records(file, kind, config.encoding):
        record, where = repaired(record), f"{file}, line {number}"
        line = Line(record, with_our_names(record, renamed, where), where)
        if kind == "lines":
            check_is_text(line)
        if kind == "lines" and not record["prompt"].strip():
            n_empty += 1
        else:
            lines.append(line)
    if not lines:
        raise SystemExit(f"{file} has no prompts: it is empty")
    if n_empty:
        print(f"{n_empty:,} empty lines of {file} are left out", file=sys.stderr)
    return lines


def check_is_text(line):
    """Exit if a line of plain text is something else."""
    start = line.record["prompt"]
    if "\0" in start:
        raise SystemExit(f"{line.where}: not text; expected .jsonl, .json, .csv, .tsv or text")
    if start.startswith('{"') and start.endswith("}"):
        raise SystemExit(f"{line.where}: looks like JSON; call the file .jsonl")


def prompt_in(line, config, labels):
    """The Prompt of a line; `labels`: for a model that labels texts."""
    record, where = line.named, line.where
    if isinstance(record.get("tokens"), list):
        words = [text({"token": word}, "token", where) for word in record["tokens"]]
        joined = " ".join(words)
        return Prompt(where, joined, [{"role": "user", "content": joined}], words)
    there = [name for name in ASKED if name in record]
    named = (pair.partition("=")[0] for pair in config.fields)
    wanted = [name for name in named if name in ASKED]
    if wanted or (labels and "text" in there):
        there = wanted[:1] or ["text"]
        record = {n: v for n, v in record.items() if n not in ASKED or n == there[0]}
    if not there:
        found, ours = ", ".join(map(str, record)) or "nothing", "text" if labels else "prompt"
        raise SystemExit(
            f"{where}: no field {', '.join(ASKED)}, found {found}; type --fields {ours}=THEIRS "
            "(in CSV and TSV the names are in the first line)"
        )
    if there == ["text"]:
        record = record | {"prompt": text(record, "text", where)}
    for name in CONVERSATIONS:
        if name in there and "prompt" not in record and not in_messages(record[name], where):
            raise SystemExit(f'{where}: {name} must be a list of {{"role": …, "content": …}}')
    messages, prompt = asked_in(record, where)
    while messages and messages[-1]["role"] == "assistant":  # what was answered before
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise SystemExit(f"{where}: the user says nothing that could be answered")
    return Prompt(where, prompt, with_system(messages, record, where), [])


# ------------------------------------------------------------------------------------ the answers


def answer_lines(lines, model, tokenizer, checkpoint, config, out):
    """Write the answer to each line, as soon as it is known.

    All lines are turned into tokens before the first answer, so that mistakes are told before
    anything is written. Fields that the file has already are written as `model_answer` and so on.
    """
    labels = model.config.n_labels > 0
    prompts = [prompt_in(line, config, labels) for line in lines]
    if checkpoint.get("task", {}).get("task") == "tagging":
        answers = with_tags(model, tokenizer, checkpoint, prompts, config)
    elif labels:
        answers = with_labels(model, tokenizer, checkpoint, prompts, config)
    else:
        answers = with_texts(model, tokenizer, checkpoint, prompts, config)
    taken = set().union(*(line.record for line in lines))
    begun, hidden = time.perf_counter(), True if out.isatty() else None
    bar = tqdm(zip(lines, answers), total=len(lines), unit="line", disable=hidden, leave=False)
    for line, answer in bar:
        if taken & answer.keys():
            answer = {f"model_{name}": value for name, value in answer.items()}
        out.write(json.dumps(line.record | answer, ensure_ascii=False) + "\n")
        out.flush()
    seconds = time.perf_counter() - begun
    print(f"answers: {len(lines):,}, {len(lines) / seconds:,.1f} a second", file=sys.stderr)


def of_each(prompts, function):
    """[function(prompt)] of each line; exits with the number of one that cannot be read."""
    found = []
    for prompt in prompts:
        try:
            found.append(function(prompt))
        except (ValueError, SystemExit) as error:
            raise SystemExit(f"{prompt.where}: {error}") from None
    return found


def plain_text(prompt):
    """What is asked as text; raises ValueError if it is a conversation."""
    if prompt.text is None:
        raise ValueError("a conversation, which --chat answers, with a model that converses")
    return prompt.text


def together(rows, config):
    """Yield the rows in lists of batch_size."""
    for first in range(0, len(rows), config.batch_size):
        yield rows[first : first + config.batch_size]


def with_labels(model, tokenizer, checkpoint, prompts, config):
    """Yield {"answer": the likeliest label, "probability"} for each of the lines."""
    rows = of_each(prompts, lambda prompt: start_tokens(tokenizer, plain_text(prompt).strip()))
    for some in together(rows, config):
        for (chance, label), *_ in chances_of(model, tokenizer, some, checkpoint):
            yield {"answer": label, "probability": round(chance, 4)}


def with_tags(model, tokenizer, checkpoint, prompts, config):
    """Yield {"words", "answer": their tags} for each of the lines."""
    blanks = checkpoint["task"].get("blanks", False)
    rows = of_each(prompts, lambda prompt: prompt.words or words_of(plain_text(prompt), blanks))
    for some in together(rows, config):
        for words, tags in zip(some, tags_of(model, tokenizer, some, checkpoint)):
            yield {"words": words, "answer": tags}


def with_texts(model, tokenizer, checkpoint, prompts, config):
    """Yield {"answer": the text that follows} for each of the lines, batch_size of them at once.

    Labels and what is said in a conversation have no blanks around them.
    """
    size, task = model.config.block_size, checkpoint.get("task", {})
    documents = checkpoint["data"].get("train_documents", 0)

    def text_prompt(prompt):
        return first_tokens(tokenizer, to_continue(plain_text(prompt), task), documents)

    def chat_prompt(prompt):
        instruction, said = with_instruction(prompt.messages, config.system)
        return opening_that_fits(instruction, said, tokenizer, size)[0]

    rows = of_each(prompts, chat_prompt if config.chat else text_prompt)
    too_long = sum(len(row) > size for row in rows)
    if too_long:
        print(f"of {too_long:,} prompts only the last {size:,} tokens are read", file=sys.stderr)
    if config.chat:
        ends, begins = ends_of_an_answer(tokenizer), [True] * len(rows)
    else:
        ends = ends_of_a_text(tokenizer, config)
        begins = [not to_continue(prompt.text, task) for prompt in prompts]
    context, is_bare = new_context(model, config), config.chat or task.get("generative")
    for first in range(0, len(rows), config.batch_size):
        some = slice(first, first + config.batch_size)
        streams = [TextStream(tokenizer, config.stop, ends, begin) for begin in begins[some]]
        texts = [""] * len(streams)
        for tokens in steps_of(context, tokenizer, rows[some], config, config.seed + first):
            parts = [stream.push(token) for stream, token in zip(streams, tokens)]
            texts = [text + part for text, part in zip(texts, parts)]
            if all(stream.ended for stream in streams):
                break
        for written, stream in zip(texts, streams):
            written += stream.finish()
            yield {"answer": written.strip() if is_bare else written}
