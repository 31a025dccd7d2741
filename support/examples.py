"""Read files of examples for fine-tuning, check them line by line, and split them.

    a line of JSON                                                     task
    {"text": …}                                                        text
    {"prompt": …, "completion": …}                                     completion
    {"instruction": …, "input": …, "output": …}   as in Alpaca         completion, chat
    {"messages": [{"role": …, "content": …}, …]}  or ShareGPT's        chat
    {"prompt": …, "chosen": …, "rejected": …}     or messages (TRL's)  preference
    {"text": …, "label": …}                       or CSV, TSV          classification
    {"prompt": …, "choices": […], "label": 2}     or columns A, B, …   choice
    {"tokens": […], "tags": […]}                  or columns (CoNLL)   tagging

A .json file contains a list of such objects. Any error in a line ends the program with the file
name and the line number, before any training.
"""

import csv
import difflib
import json
from hashlib import blake2b
from pathlib import Path
from unicodedata import normalize

from support.files import advice_on_encoding, check_encoding, with_mark
from support.tokenizer import repair

ALPACA = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
ROLES = "system", "user", "assistant"
OURS = (
    "text label prompt completion chosen rejected choices instruction input output messages tokens "
    "tags"
).split()
LETTERS = "ABCDEFGHIJ"  # of choices, as columns of a table or as a label
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its names for the roles
VAL_FRACTION = 0.1  # FinetuneConfig's default
SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev", "testa"),
    "test": ("test", "testb"),
}
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".conll": "conll",
    ".bio": "conll",
    ".txt": "conll",
}
# The prefixes of other tagging schemes (BILOU, BIOES, BMES), and what BIO uses instead.
IN_BIO = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}
# The fields that identify the task of a line.
FIELDS = (
    ("preference", {"chosen", "rejected"}),
    ("chat", {"messages"}),
    ("chat", {"conversations"}),
    ("completion", {"prompt", "completion"}),
    ("completion", {"instruction", "output"}),
    ("choice", {"prompt", "choices"}),
    ("choice", {"A", "B"}),
    ("classification", {"text", "label"}),
    ("tagging", {"tokens", "tags"}),
    ("text", {"text"}),
)


def open_examples(
    path, task, format="auto", fields=(), val_fraction=VAL_FRACTION, encoding="utf-8"
):
    """{"train": lines, "val": lines, "test": lines} from a file, or from a folder with a file each.

    A line is a dict of the fields that `task` reads. A single file is split by the hash of its
    lines, so that equal lines stay together; with val_fraction=1 each split is all of it. fields:
    pairs `text=message`, our name and the file's. Exits with a message if anything is wrong.
    """
    check_encoding(encoding)
    path = Path("data") / path if (Path("data") / path).exists() else Path(path)
    if not path.exists():
        raise SystemExit(f"dataset={path}: there is no such file or folder{advice_on_place(path)}")
    renamed = dict(pair_in(pair) for pair in fields)
    files = files_in(path, val_fraction != 1) if path.is_dir() else {"train": path}
    how = task, format, renamed, encoding
    found = {split: checked(file, *how) for split, file in files.items()}
    if val_fraction == 1:
        some = found.get("val") or found.get("test") or found["train"]
        found = {split: found.get(split, some) for split in SPLITS}
    elif "val" in found and val_fraction != VAL_FRACTION:
        raise SystemExit(
            f"val_fraction={val_fraction}: {path} has validation examples of its own; leave it out"
        )
    if "val" not in found:
        shares = (val_fraction, 0.0 if "test" in found else val_fraction)
        found |= split_by_hash(found["train"], shares, found.get("test"), path)
    if "test" not in found:
        print(f"{path} has no test examples: the last test is on those that choose the best model")
        found["test"] = found["val"]
    return found


def advice_on_place(path):
    """What exists instead of `path`, or the command that creates it."""
    if path.parent.is_dir():
        return f"; {path.parent} contains {listing(path.parent, path.name)}"
    if path.parent.name == "tasks":
        return f"; make it with: python prepare_data.py {path.parent.parent.name}"
    return ""


def listing(folder, wanted=""):
    """Some file names in a folder, for a message: those most similar to `wanted` first."""
    names = sorted(file.name for file in folder.iterdir() if file.suffix in FORMATS)
    names = names or sorted(file.name for file in folder.iterdir())
    near = difflib.get_close_matches(wanted, names)
    shown = [*near, *(name for name in names if name not in near)][:10]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more or "nothing"


def pair_in(pair):
    """(our name, the file's name) from `text=message`."""
    ours, equals, theirs = pair.partition("=")
    if not equals or ours not in OURS:
        raise SystemExit(
            f"fields={pair}: expected OURS=THEIRS, as in --fields text=message; "
            f"ours are {', '.join(OURS)}"
        )
    return ours, theirs


def files_in(folder, to_learn=True):
    """The file of each split in a folder: {"train": path, …}; to learn there must be train."""
    found = {}
    for split, names in SPLITS.items():
        for file in sorted(folder.iterdir()):
            stem = file.name.split(".")[-2] if file.suffix else ""
            ending = file.suffix.removeprefix(".")  # CoNLL's own files are called eng.testa
            known = file.suffix in FORMATS and stem in names
            if split not in found and file.is_file() and (known or ending in names):
                found[split] = file
    if not found or (to_learn and "train" not in found):
        raise SystemExit(
            f"dataset={folder}: expected a file train.jsonl (or .json .csv .tsv .conll .txt) "
            f"and optionally val and test; it contains {listing(folder)}"
        )
    return found


def split_by_hash(lines, shares, test, path):
    """Split the lines by hash: {"train", "val", "test"}. Equal lines always stay together, and so
    do pairs of answers to the same question.
    """
    are_pairs = "chosen" in lines[0]
    things = "questions" if are_pairs else "examples"
    keys = [hash_of(line["messages"] if are_pairs else line) for line in lines]
    ranked = sorted(set(keys))
    n_val, n_test = (max(1, round(share * len(ranked))) if share else 0 for share in shares)
    if len(ranked) <= n_val + n_test:
        raise SystemExit(
            f"{path}: {len(ranked)} different {things} are too few to split off a validation "
            "set; provide more, or a folder with train.jsonl and val.jsonl"
        )
    rank = {key: i for i, key in enumerate(ranked)}
    found = {"train": [], "val": [], "test": list(test or [])}
    for line, key in zip(lines, keys):
        place = rank[key]
        split = "val" if place < n_val else "test" if place < n_val + n_test else "train"
        found[split].append(line)
    # Examples with a label that training lacks move to the training split.
    known = set().union(*map(labels_in, found["train"]))
    for split in ("val",) if test else ("val", "test"):
        common = [line for line in found[split] if not labels_in(line) - known]
        if common:
            found["train"] += [line for line in found[split] if labels_in(line) - known]
            found[split] = common
    return found


def labels_in(line):
    """The label of a line, or the tags of its words; none of a choice, whose label is a place."""
    if "choices" in line:
        return set()
    return {line["label"]} if "label" in line else set(line.get("tags", ()))


def hash_of(line):
    """A short hash that is the same for equal lines, or fields of such, on every machine."""
    content = json.dumps(line, sort_keys=True).encode()
    return blake2b(content, digest_size=8).digest()


# -------------------------------------------------------------------------------------- reading


def checked(file, task, format, renamed, encoding):
    """The lines of a file as `task` reads them; exits at the first invalid one."""
    refuse_other_kinds(file)
    kind = FORMATS.get(file.suffix.lower(), "conll") if format == "auto" else format
    if kind == "conll" and task != "tagging":
        if task == "text":
            raise SystemExit(
                f"{file}: prepare plain text first, with the model's tokenizer: python "
                f"prepare_data.py {file} --dataset=NAME --tokenizer=BASE; then --dataset=NAME"
            )
        raise SystemExit(
            f"{file}: columns of words and tags are for --task=tagging; "
            f"for --task={task} expected .jsonl, .json or .csv"
        )
    lines = [
        line_of(record, task, renamed, f"{file}, line {number}")
        for number, record in records(file, kind, encoding)
    ]
    if not lines:
        raise SystemExit(f"{file} has no examples: it is empty")
    return lines


def refuse_other_kinds(file):
    """Exit if a file is of a kind that has to be converted first."""
    if file.suffix.lower() in (".xlsx", ".xls"):
        raise SystemExit(f"{file} is an Excel workbook; save it as CSV in UTF-8")
    if file.suffix.lower() in (".parquet", ".gz", ".zip"):
        raise SystemExit(
            f"{file}: expected .jsonl, .json, .csv or .tsv; convert or unpack it first"
        )


def records(file, kind, encoding):
    """Yield (line number, record) of a file, one of READERS; exits if it is not of that kind."""
    try:
        with open(file, encoding=with_mark(encoding), newline="") as stream:
            yield from READERS[kind](stream)
    except UnicodeDecodeError as error:
        advice = advice_on_encoding(error.object, encoding)
        raise SystemExit(f"{file} is not {encoding.upper()}; {advice}") from None
    except UnicodeError as error:
        raise SystemExit(f"{file} is not {encoding.upper()} ({error})") from None
    except json.JSONDecodeError as error:
        advice = "; one object per line is .jsonl, or --format=jsonl" if error.lineno > 1 else ""
        raise SystemExit(f"{file}: not {kind} ({error}){advice}") from None


def json_lines(stream):
    """Yield (line number, object) of each line that is not empty."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                reason = f"{error.msg}, at {line[error.pos : error.pos + 10]!r}"
                advice = "; a list is .json, or --format=json" if line.startswith("[") else ""
                raise SystemExit(
                    f"{stream.name}, line {number}: not JSON ({reason}){advice}"
                ) from None


def json_list(stream):
    """Yield (number, object) of a file that contains one list, counted from 1."""
    content = json.load(stream)
    if not isinstance(content, list):
        raise SystemExit(f"{stream.name}: expected a list of objects, [{{…}}, {{…}}]")
    yield from enumerate(content, 1)


def table(stream, delimiter=","):
    """Yield (line number, {column: text}) of each row below the header."""
    csv.field_size_limit(2**31 - 1)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.DictReader(stream, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in rows:
            if None in row:
                raise SystemExit(
                    f"{stream.name}, line {rows.line_num}: more cells than columns "
                    f"({', '.join(rows.fieldnames)}); a text with {delimiter!r} must be quoted"
                )
            cells = {name: text for name, text in row.items() if name and text is not None}
            yield rows.line_num, cells
    except csv.Error as error:
        kind = "tsv" if delimiter == "\t" else "csv"
        number = rows.reader.line_num
        raise SystemExit(f"{stream.name}, line {number}: not {kind} ({error})") from None


def columns(stream):
    """Yield (line number, {"tokens", "tags"}) of each sentence: a word per line, its tag last."""
    tokens, tags, first = [], [], 1
    for number, line in enumerate([*stream, ""], 1):
        cells = line.split("\t") if "\t" in line.strip() else line.split()
        cells = [cell.strip() for cell in cells if cell.strip()]
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise SystemExit(f"{stream.name}, line {number}: expected WORD TAG, found {line!r}")
            first = first if tokens else number
            tokens.append(cells[0])
            tags.append(cells[-1])
        elif tokens:
            yield first, {"tokens": tokens, "tags": tags}
            tokens, tags = [], []


def plain_lines(stream):
    """Yield (line number, {"prompt": line}) of each line."""
    for number, line in enumerate(stream, 1):
        yield number, {"prompt": line.rstrip("\r\n")}


READERS = {
    "lines": plain_lines,
    "jsonl": json_lines,
    "json": json_list,
    "csv": table,
    "tsv": lambda stream: table(stream, "\t"),
    "conll": columns,
}


# --------------------------------------------------------------------------------- fields of a line


def line_of(record, task, renamed, where):
    """The fields of a line that `task` reads; exits, naming `where`, if one is missing."""
    return repaired(LINES[task](with_our_names(record, renamed, where), where))


def with_our_names(record, renamed, where):
    """The record with the fields that `renamed`, {ours: theirs}, names differently."""
    if not isinstance(record, dict):
        raise SystemExit(f"{where}: expected an object {{…}}, found {str(record)[:40]!r}")
    for ours, theirs in renamed.items():
        value = named(record, theirs, ours == "choices")
        if value is not None:
            record = record | {ours: value}
        elif ours != "input":  # input is optional
            found = ", ".join(map(str, record)) or "nothing"
            raise SystemExit(f"{where}: no field {theirs!r}, found {found}")
    return record


def named(record, name, as_list):
    """The value of a field, or of several, `story,question`: a list, or texts below each other."""
    if name in record:
        return record[name]
    parts = [record.get(part) for part in name.split(",")]
    if None in parts:
        return None
    return parts if as_list else "\n".join(map(str, parts))


def repaired(value):
    """A JSON value with whole characters only, where its \\u escapes write half of one."""
    if isinstance(value, dict):
        return {name: repaired(item) for name, item in value.items()}
    if isinstance(value, list):
        return [repaired(item) for item in value]
    return repair(value) if isinstance(value, str) else value


def text(record, name, where):
    """The value of a field, which must exist and be a string."""
    if name not in record:
        raise SystemExit(f"{where}: no field {name!r}, {what_is_there(record, name)}")
    if not isinstance(record[name], str):
        raise SystemExit(f"{where}: {name} must be text, found {str(record[name])[:40]!r}")
    return record[name]


def what_is_there(record, name, wanted=None):
    """The fields of a record that lacks `name`, and what to type if they fit another task than the
    one that is `wanted`.
    """
    found = "found " + (", ".join(map(str, record)) or "nothing")
    for task, fields in FIELDS:
        if task != wanted and name in OURS and name not in fields and fields <= record.keys():
            return f"{found}: that is for --task={task}"
    if name not in OURS:
        return found
    theirs = "FIRST,SECOND" if name == "choices" else "THEIRS"
    return (
        f"{found}; if the file names it differently, type --fields {name}={theirs} (in CSV and TSV "
        "the names are in the first line)"
    )


def text_line(record, where):
    return {"text": text(record, "text", where)}


def is_alpaca(record):
    return "instruction" in record and "prompt" not in record and "messages" not in record


def completion_line(record, where):
    if is_alpaca(record):
        parts = {"instruction": text(record, "instruction", where)}
        parts["input"] = text({"input": record.get("input") or ""}, "input", where)
        if record.get("history"):
            raise SystemExit(f"{where}: history is a conversation, for --task=chat")
        form = ALPACA_WITH_INPUT if parts["input"] else ALPACA
        system = text({"system": record.get("system") or ""}, "system", where)
        prompt = (f"{system}\n\n" if system else "") + form.format(**parts)
        return {"prompt": prompt, "completion": text(record, "output", where)}
    return {name: text(record, name, where) for name in ("prompt", "completion")}


def chat_line(record, where):
    if is_alpaca(record):
        question = text(record, "instruction", where)
        more = text({"input": record.get("input") or ""}, "input", where)
        answer = text(record, "output", where)
        pair = [f"{question}\n\n{more}" if more else question, answer]
        turns = [zip(("user", "assistant"), turn) for turn in [*history_of(record, where), pair]]
        messages = [{"role": role, "content": said} for turn in turns for role, said in turn]
        record = {"messages": messages, "system": record.get("system")}
    messages = in_messages(record.get("messages", record.get("conversations")), where)
    if messages is None:
        raise SystemExit(
            f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}, '
            f"{what_is_there(record, 'messages')}"
        )
    if "assistant" not in [message["role"] for message in messages]:
        raise SystemExit(f"{where}: the assistant says nothing, so there is nothing to learn")
    return {"messages": with_system(messages, record, where)}


def preference_line(record, where):
    """A chosen and a rejected answer to `messages`, and for models that do not converse to a
    `prompt`, if one was given as text and says it all.
    """
    pair = record.get("output")
    if "chosen" not in record and isinstance(pair, list) and len(pair) == 2:  # LLaMA-Factory's
        record = record | {"chosen": pair[0], "rejected": pair[1]}
    answers, talks = {}, []
    for name in ("chosen", "rejected"):
        turns = record.get(name)
        turns = in_messages([turns] if isinstance(turns, dict) else turns, where)
        if not turns:
            answers[name] = text(record, name, where)
            continue
        if turns[-1]["role"] != "assistant":
            raise SystemExit(f"{where}: the last message of {name} must be the assistant's")
        answers[name] = turns[-1]["content"]
        talks += [turns[:-1]] if turns[:-1] else []
    if len(talks) == 2 and talks[0] != talks[1]:
        raise SystemExit(f"{where}: chosen and rejected do not answer the same conversation")
    messages, prompt = (talks[0], None) if talks else asked_in(record, where)
    messages = with_system(messages, record, where)
    if messages[-1]["role"] != "user":
        raise SystemExit(f"{where}: the last message before the answers must be the user's")
    says_it_all = prompt is not None and (is_alpaca(record) or len(messages) == 1)
    return {"messages": messages} | ({"prompt": prompt} if says_it_all else {}) | answers


def asked_in(record, where):
    """(messages, prompt) that the answers of a pair reply to; no prompt (None) unless it is given
    as text.
    """
    if is_alpaca(record):
        answered = record | {"output": ""}
        *messages, _ = chat_line(answered, where)["messages"]
        is_talk = record.get("history")
        return messages, None if is_talk else completion_line(answered, where)["prompt"]
    for name in ("prompt", "messages", "conversations"):
        messages = in_messages(record.get(name), where)
        if messages:
            return messages, None
    if record.get("prompt") is None:
        raise SystemExit(
            f"{where}: no field 'prompt', {what_is_there(record, 'prompt', 'preference')}; where "
            "the answers begin with the prompt, split it off"
        )
    prompt = text(record, "prompt", where)
    return [{"role": "user", "content": prompt}], prompt


def with_system(messages, record, where):
    """The messages behind the record's system prompt, if it has one and they do not."""
    if record.get("system") and "system" not in [message["role"] for message in messages]:
        return [{"role": "system", "content": text(record, "system", where)}, *messages]
    return messages


def history_of(record, where):
    """The earlier turns, in Alpaca's format as LLaMA-Factory writes it: [[asked, answered], …]."""
    history = record.get("history") or []
    for pair in history if isinstance(history, list) else [None]:
        texts = [t for t in pair if isinstance(t, str)] if isinstance(pair, list) else []
        if len(texts) != 2 or len(pair) != 2:
            raise SystemExit(
                f"{where}: history must be a list of [asked, answered], found {str(history)[:40]!r}"
            )
    return history


def in_messages(conversation, where):
    """[{"role", "content"}, …], of which ShareGPT's [{"from": "human", "value": …}, …] is another
    form; None if this is neither. Exits if a role or a text is missing.
    """
    turns = conversation
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    if all(isinstance(turn.get("from"), str) for turn in turns):
        turns = [
            {"role": SHAREGPT.get(turn["from"], turn["from"]), "content": turn.get("value")}
            for turn in turns
        ]
    for turn in turns:
        if text(turn, "role", where) not in ROLES:
            raise SystemExit(f"{where}: role={turn['role']} is not one of {', '.join(ROLES)}")
        text(turn, "content", where)
    return [{name: turn[name] for name in ("role", "content")} for turn in turns]


def classification_line(record, where):
    label = record.get("label")
    if isinstance(label, (int, bool)):  # numbers are labels too
        record = record | {"label": str(label)}
    line = {name: text(record, name, where).strip() for name in ("text", "label")}
    if not line["label"]:
        raise SystemExit(f"{where}: the label is empty")
    return line


def choice_line(record, where):
    """A prompt, texts of which one continues it, and the index of that one, counted from 0."""
    for name in ("prompt", "choices", "label"):
        if name not in record and not (name == "choices" and "A" in record):
            told = what_is_there(record, name, "choice")
            raise SystemExit(f"{where}: no field {name!r}, {told}")
    choices, names = choices_of(record)
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise SystemExit(f"{where}: choices must be a list of texts, found {str(choices)[:40]!r}")
    if len(choices) < 2:
        advice = " (in a table, the first line names the columns: prompt,A,B,C,D,label)"
        raise SystemExit(f"{where}: choices={choices}: expected at least two{advice}")
    prompt, label = text(record, "prompt", where), record["label"]
    if label in (None, ""):
        raise SystemExit(f"{where}: the label is empty; is this a test set without answers?")
    right = place_of(label, choices, names)
    if right is None:
        expected = ", ".join(names) or f"0 to {len(choices) - 1} (counted from 0), a letter from A"
        raise SystemExit(
            f"{where}: label={label!r} is none of the {len(choices)} choices: expected {expected}, "
            "or the choice itself"
        )
    return {"prompt": prompt, "choices": choices, "label": right}


def choices_of(record):
    """(texts, the names that a file gives them): a list, which has no names; the columns A, B, … of
    a table, of which some may be empty; {"A": …, "B": …}; or as in ARC {"text": […], "label": […]}.
    """
    choices = record.get("choices", {name: record[name] for name in LETTERS if record.get(name)})
    names = []
    if isinstance(choices, dict) and "text" in choices:
        choices, names = choices["text"], choices.get("label")
    elif isinstance(choices, dict):
        choices, names = list(choices.values()), list(choices)
    if isinstance(choices, list):  # numbers are texts too
        choices = [str(c) if type(c) in (int, float) else c for c in choices]
    are_names = isinstance(names, list) and len(names) == len(choices or ())
    return choices, list(map(str, names)) if are_names else []


def place_of(label, choices, names):
    """The index of the choice that a label stands for; None if there is none.

    Where the file has names, they say what is meant. Otherwise it is a number from 0, the choice
    itself, a letter, or digits.
    """
    if type(label) is int and not names:
        return label if 0 <= label < len(choices) else None
    given = str(label).strip()
    letter = normalize("NFKC", given).strip("().").upper()
    known = [names, [choice.strip() for choice in choices]]
    known += [] if names else [list(LETTERS), list("0123456789")]
    for things in known:
        for wanted in (given, letter):
            if wanted in things[: len(choices)]:
                return things.index(wanted)
    return None


def tagging_line(record, where):
    tokens, tags = record.get("tokens"), record.get("tags")
    for name, value in (("tokens", tokens), ("tags", tags)):
        if name not in record:
            raise SystemExit(f"{where}: no field {name!r}, {what_is_there(record, name)}")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SystemExit(f"{where}: {name} must be a list of strings")
    if len(tokens) != len(tags):
        raise SystemExit(f"{where}: {len(tokens)} tokens and {len(tags)} tags: expected one each")
    if not tokens:
        raise SystemExit(f"{where}: no tokens")
    for tag in tags:
        if tag != "O" and (tag[:1] not in "BIESLUM" or tag[1:2] != "-" or not tag[2:]):
            raise SystemExit(f"{where}: the tag {tag!r} is not O, B-TYPE or I-TYPE (BIO)")
    return {"tokens": tokens, "tags": in_bio(tags)}


def in_bio(tags):
    """Convert tags of any common scheme to BIO: an entity begins with B- and continues with I-."""
    found, last = [], "O"
    for tag in tags:
        if tag != "O":
            tag = IN_BIO.get(tag[0], tag[0]) + tag[1:]
            begins = tag[0] == "B" or last[2:] != tag[2:]
            tag = ("B" if begins else "I") + tag[1:]
        found.append(tag)
        last = tag
    return found


LINES = {
    "text": text_line,
    "completion": completion_line,
    "chat": chat_line,
    "preference": preference_line,
    "classification": classification_line,
    "choice": choice_line,
    "tagging": tagging_line,
}
