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
    first_tokens,
    new_context,
    opening_that_fits,
    start_tokens,
    steps_of,
)
from support.chat import end_of_turn
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
from support.labelling import LABEL, chances_of, tags_of, words_of

CONVERSATIONS = "messages", "conversations"
ASKED = "prompt", "instruction", *CONVERSATIONS, "text"  # the fields that may hold a prompt


class Line(NamedTuple):
    """A line of the file, and where it stands."""

    record: dict
    where: str


class Prompt(NamedTuple):
    """What a line asks: a text (None for a conversation), messages, for a tagger perhaps words."""

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
    lines, n_empty = [], 0
    for number, record in records(file, kind, config.encoding):
        line = Line(repaired(record), f"{file}, line {number}")
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
    renamed = dict(pair_in(pair) for pair in config.fields)
    record, where = with_our_names(line.record, renamed, line.where), line.where
    if isinstance(record.get("tokens"), list):
        words = [text({"token": word}, "token", where) for word in record["tokens"]]
        joined = " ".join(words)
        return Prompt(joined, [{"role": "user", "content": joined}], words)
    there = [name for name in ASKED if name in record]
    wanted = [name for name in renamed if name in ASKED]
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
    return Prompt(prompt, with_system(messages, record, where), [])


# ------------------------------------------------------------------------------------ the answers


def answer_lines(lines, model, tokenizer, checkpoint, config, out):
    """Write the answer to each line, as soon as it is known.

    All lines are turned into tokens before the first answer, so that mistakes are told before
    anything is written. Fields that the file has already are written as `model_answer` and so on.
    """
    labels = model.config.n_labels > 0
    prompts = [prompt_in(line, config, labels) for line in lines]
    told = [(prompt, line.where) for prompt, line in zip(prompts, lines)]
    if checkpoint.get("task", {}).get("task") == "tagging":
        answers = with_tags(model, tokenizer, checkpoint, told, config)
    elif labels:
        answers = with_labels(model, tokenizer, checkpoint, told, config)
    else:
        answers = with_texts(model, tokenizer, checkpoint, told, config)
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


def of_each(told, function):
    """[function(prompt)] of each line; exits with the number of one that cannot be read."""
    found = []
    for prompt, where in told:
        try:
            found.append(function(prompt))
        except (ValueError, SystemExit) as error:
            raise SystemExit(f"{where}: {error}") from None
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


def with_labels(model, tokenizer, checkpoint, told, config):
    """Yield {"answer": the likeliest label, "probability"} for each of the lines."""
    rows = of_each(told, lambda prompt: start_tokens(tokenizer, plain_text(prompt).strip()))
    for some in together(rows, config):
        for (chance, label), *_ in chances_of(model, tokenizer, some, checkpoint):
            yield {"answer": label, "probability": round(chance, 4)}


def with_tags(model, tokenizer, checkpoint, told, config):
    """Yield {"words", "answer": their tags} for each of the lines."""
    blanks = checkpoint["task"].get("blanks", False)
    rows = of_each(told, lambda prompt: prompt.words or words_of(plain_text(prompt), blanks))
    for some in together(rows, config):
        for words, tags in zip(some, tags_of(model, tokenizer, some, checkpoint)):
            yield {"words": words, "answer": tags}


def with_texts(model, tokenizer, checkpoint, told, config):
    """Yield {"answer": the text that follows} for each of the lines, batch_size of them at once.

    Labels and what is said in a conversation have no blanks around them.
    """
    size, is_label = model.config.block_size, checkpoint.get("task", {}).get("generative")
    documents = checkpoint["data"].get("train_documents", 0)

    def text_prompt(prompt):
        start = plain_text(prompt)
        start = start.strip() + LABEL if is_label else start
        return first_tokens(tokenizer, start, documents)

    def chat_prompt(prompt):
        said = prompt.messages
        if config.system and said[0]["role"] != "system":
            said = [{"role": "system", "content": config.system}, *said]
        n = int(said[0]["role"] == "system")
        return opening_that_fits(said[:n], said[n:], tokenizer, size)[0]

    rows = of_each(told, chat_prompt if config.chat else text_prompt)
    too_long = sum(len(row) > size for row in rows)
    if too_long:
        print(f"of {too_long:,} prompts only the last {size:,} tokens are read", file=sys.stderr)
    ends = [tokenizer.eot] if config.chat or config.until_eot else []
    ends += [end_of_turn(tokenizer)] if config.chat else []
    begins = [config.chat or not (prompt.text or is_label) for prompt, _ in told]
    context = new_context(model, config)
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
            yield {"answer": written.strip() if config.chat or is_label else written}
