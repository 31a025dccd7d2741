"""The tasks of finetune.py: turn lines of a file into inputs and targets, answers into metrics.

    task             a line                    what is learned
    text             {"text"}                  every token
    completion       {"prompt", "completion"}  the completion's tokens
    chat             {"messages"}              the tokens that the assistant says
    classification   {"text", "label"}         a label at the last token, with a head for labels;
                                               or, if generative, the label's own tokens
    preference       {"prompt", "chosen",      that the chosen answer is better than the other
                      "rejected"}              (support/preference.py)
    choice           {"prompt", "choices",     the tokens of the right choice; evaluated by which
                      "label"}                 choice is the most likely, also without training
    tagging          {"tokens", "tags"}        a tag at the last token of each word

Targets are -1 where nothing is to be learned. To add a task, subclass `Task`, override what
differs, add the class to TASKS, and add a function that checks a line to LINES
(support/examples.py).
"""

import math
from collections import ChainMap, defaultdict
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import regex
import torch
from tqdm import tqdm

from model import IGNORED
from sample import generate, next_token_distribution
from support.baselines import (
    baseline_answers,
    baseline_choices,
    baseline_labels,
    baseline_tags,
)
from support.chat import (
    conversation,
    conversation_to,
    end_of_turn,
    opening,
    without_thoughts,
)
from support.examples import hash_of
from support.labelling import LABEL, label_scores, pieces
from support.metrics import (
    ROUNDING,
    choice_numbers,
    class_numbers,
    class_report,
    draw_confusion,
    entity_numbers,
    entity_report,
    preference_numbers,
    text_numbers,
)
from support.preference import SHORTEST_PROMPT, Pair, batch_of_pairs, preferring, row_of
from support.tokenizer_files import tokens_before

ANSWERED_AT_ONCE = 64  # lines per batch
BETWEEN_SHOTS = "\n\n"  # as in lm-evaluation-harness
SCORES_AT_ONCE = 2**26  # logits in a batch of choices: 256 MB in float32
# Where one text continues another, no space stands behind or before these: writing without spaces
# between words, brackets and quotes that open, and punctuation.
UNSPACED = r"\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\u3000-\u303f\uff01-\uff65"
NO_SPACE_BEHIND = regex.compile(rf"([{UNSPACED}(\[{{“‘]|(^|[\s(\[])[\"'])$")
NO_SPACE_BEFORE = regex.compile(rf"[{UNSPACED}.,;:!?)\]}}’”%…]")
SHOWN_AFTER = 5  # seconds: what takes longer has a progress bar


class Example(NamedTuple):
    """Inputs and targets, lists of the same length; targets are -1 where nothing is learned."""

    inputs: list
    targets: list

    def end(self, size):
        """The last `size` of each."""
        return Example(self.inputs[-size:], self.targets[-size:])


def shifted(tokens, learned):
    """The Example that teaches the tokens marked in `learned`, a list with a bool for each."""
    targets = [t if is_learned else IGNORED for t, is_learned in zip(tokens[1:], learned[1:])]
    return Example(tokens[:-1], targets)


class Task:
    """Plain text, every token learned: continued pretraining. The other tasks override this.

    lines: the dicts of support/examples.py; first: the tokens before a text; labels: what the head
    scores, empty where the model keeps generating tokens.
    """

    best_metric = "val_loss"
    noisy_field = None  # the field that random changes apply to
    labels = ()
    splits = False  # whether `examples` itself splits long lines
    asked_as = None  # the task that says how the model is asked afterwards, if not this one
    rows = 1  # of an example in a batch
    cut = "their beginning is cut off"  # what happens to examples that are too long
    nothing = "have no target"  # what is the matter with those that teach nothing

    def __init__(self, config, tokenizer, first, lines):
        self.config, self.tokenizer, self.first = config, tokenizer, first
        self.end = [] if tokenizer.eot is None else [tokenizer.eot]
        self.long = "chunk" if config.task == "text" else config.long
        check_lines(self, lines or {})

    def texts(self, line):
        """The texts of a line that are encoded as they are."""
        return [line["text"]]

    def check(self, line):
        """Raise ValueError if the line cannot be encoded."""
        for text in self.texts(line):
            if self.tokenizer.known(text) != text:
                self.tokenizer.encode(text)  # raises, with the characters that are unknown

    def encode(self, text, inside=False):
        """The tokens of a text, as a list; `inside`: it continues another one."""
        return self.tokenizer.encode(text, inside).tolist()

    def begun(self, text):
        """The tokens of a text that begins, at least one."""
        return [*self.first, *self.encode(text)] or [0]

    def examples(self, line):
        """The Examples of a line, of any length."""
        tokens = [*self.first, *self.encode(line["text"]), *self.end]
        return [shifted(tokens, [True] * len(tokens))]

    def batch(self, examples, pack=False, hide_padding=False):
        """What `model(**batch)` takes, of some of the Examples."""
        return batch_of(examples, pack, hide_padding)

    def to_show(self, batch):
        """{title: batch} of what `show_shift` can show of it."""
        return {"": batch}

    def begin(self, model, lines, remembered, world):
        """Called before training: what the task has to do with the model, or know of it. What it
        adds to the dict `remembered` is there again when the run is resumed.
        """

    def answers(self, model, lines):
        """The model's answer to each line; None where nothing is asked."""
        return [None] * len(lines)

    def right(self, line):
        """The correct answer."""
        return None

    def numbers(self, lines, answers, loss, n_targets):
        """{metric: value} of these answers and of `loss`, the mean over the targets."""
        n_bytes = sum(len(line["text"].encode()) for line in lines)
        bits = loss * n_targets / math.log(2)
        return {"perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits / max(n_bytes, 1)}

    def guesses(self, train, lines):
        """{name: answers} of the baselines, which use no language model."""
        return {}

    def report(self, lines, answers, out_dir):
        """Further details about the answers, as text."""
        return ""


class Completion(Task):
    """A prompt and its completion; only the completion is learned."""

    best_metric = "token_f1"
    noisy_field = "prompt"

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        if tokenizer.eot is None:
            raise SystemExit(f"{config.init_from}: its tokenizer has no end-of-text token")
        longest = max(self.length(line) for line in [*lines["train"], *lines["val"]])
        room = config.block_size - min(SHORTEST_PROMPT, config.block_size // 2)
        self.longest = min(longest, room)  # tokens in an answer

    def pair(self, line):
        """The prompt and the completion of a line, as text."""
        return line["prompt"], line["completion"]

    def texts(self, line):
        return self.pair(line)

    def examples(self, line):
        prompt = [*self.first, *self.encode(self.pair(line)[0])]
        completion = [*self.completion(line), *self.end]
        learned = [False] * len(prompt) + [True] * len(completion)
        return [shifted(prompt + completion, learned)]

    def completion(self, line):
        """The tokens of the completion, without its end."""
        prompt, completion = self.pair(line)
        return self.encode(completion, inside=bool(prompt))

    def length(self, line):
        """The number of tokens in the correct answer, including its end."""
        return len(self.completion(line)) + 1

    def asked(self, line):
        """The tokens of the prompt."""
        return self.begun(self.pair(line)[0])

    def room(self, line):
        """How many tokens of the prompt training keeps beside the right answer; at least 1."""
        inputs, _ = self.examples(line)[-1]
        n_after = len(inputs) - len(self.asked(line))
        return max(1, self.config.block_size - min(n_after, self.longest))

    def answers(self, model, lines):
        prompts = [self.asked(line)[-self.room(line) :] for line in lines]
        return written(model, self.tokenizer, prompts, self.longest, self.end)

    def right(self, line):
        return self.pair(line)[1].strip()

    def numbers(self, lines, answers, loss, n_targets):
        return text_numbers([self.right(line) for line in lines], answers)

    def guesses(self, train, lines):
        pairs = [
            [dict(zip(("prompt", "completion"), self.pair(line))) for line in of_split]
            for of_split in (train, lines)
        ]
        return baseline_answers(*pairs)


class Chat(Completion):
    """A conversation: what the assistant says is learned; its last answer is evaluated."""

    best_metric = "val_loss"
    noisy_field = None

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, [], lines)
        mark = end_of_turn(tokenizer)
        self.end = self.end if mark is None else [mark]

    def check(self, line):
        conversation(line["messages"], self.tokenizer)

    def examples(self, line):
        return [shifted(*pair) for pair in conversation(line["messages"], self.tokenizer)]

    def last_answer(self, line):
        """The index of the assistant's last message."""
        roles = [message["role"] for message in line["messages"]]
        return len(roles) - 1 - roles[::-1].index("assistant")

    def asked(self, line):
        return opening(line["messages"][: self.last_answer(line)], self.tokenizer)

    def length(self, line):
        last = self.last_answer(line)
        _, learned = conversation_to(line["messages"], last, self.tokenizer)
        return sum(learned)

    def answers(self, model, lines):
        return [without_thoughts(answer) for answer in super().answers(model, lines)]

    def right(self, line):
        return without_thoughts(super().right(line))

    def pair(self, line):
        texts, last = [message["content"] for message in line["messages"]], self.last_answer(line)
        return "\n".join(texts[:last]), texts[last]


class Preference(Task):
    """A prompt and two answers, of which the chosen one is better than the rejected one.

    An answer is {"choice": text, "gains": …, "log_probabilities": …}, both of both answers; a gain
    is how much larger the log-probability is than the base's.
    """

    asked_as = "completion"
    rows = 2
    cut = "the beginning of the prompt and the end of long answers are cut off"
    nothing = "have equal answers, as far as they fit"

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        if config.long == "chunk":
            raise SystemExit("long=chunk would tear pairs of answers apart: leave it out")
        for split, some in lines.items():
            if all(line["chosen"] == line["rejected"] for line in some):
                raise SystemExit(f"{config.dataset}: all {split} examples have equal answers")
        # Key of a line -> the log-probabilities of its answers, once the base was asked.
        self.of_base = defaultdict(lambda: [0.0, 0.0])
        self.precision = nullcontext

    def check(self, line):
        if len(line["messages"]) > 1 and "prompt" not in line:
            raise ValueError(
                f"a conversation, and {self.config.init_from} was not taught to converse: teach it "
                "by --task=chat first, or take a chat model"
            )
        super().check(line)
        self.check_answers(line)

    def check_answers(self, line):
        """Raise ValueError if an answer cannot be encoded, or has nothing to learn."""
        for which in ("chosen", "rejected"):
            if not self.answer(line, which):
                raise ValueError(f"{which} is empty, and this model's texts have no end")

    def texts(self, line):
        return self.question(line), line["chosen"], line["rejected"]

    def question(self, line):
        """What is asked, as text."""
        return line["prompt"] if "prompt" in line else line["messages"][-1]["content"]

    def asked(self, line):
        """The tokens of the prompt, at least one."""
        return self.begun(self.question(line))

    def answer(self, line, which):
        """The tokens of an answer, including its end. A text goes on as it is; what was a message
        begins with a space, where its language has spaces.
        """
        question = self.question(line)
        text = line[which] if "prompt" in line else continuing(question, line[which])
        return [*self.encode(text, inside=bool(question)), *self.end]

    def examples(self, line):
        both = (self.answer(line, which) for which in ("chosen", "rejected"))
        return [Pair(self.asked(line), *both, key_of(line))]

    def batch(self, examples, pack=False, hide_padding=False):
        return batch_of_pairs(examples, self.of_base)

    def to_show(self, batch):
        return {"the better answer:": row_of(batch, 0), "the worse one:": row_of(batch, 1)}

    def begin(self, model, lines, remembered, world):
        preferring(model, self.config.preference_beta)
        self.precision = world.precision  # that of training, whose rounding would count otherwise
        by_key = {key_of(line): line for line in chain(*lines.values())}
        if "of_base" in remembered:
            self.of_base = remembered["of_base"]
            if by_key.keys() - self.of_base.keys():
                raise SystemExit(
                    f"{self.config.dataset} has other pairs than when this run began: start a new "
                    "one with --init_from=BASE"
                )
            return
        if self.config.eval_only:
            print("compared with itself; --init_from=resume compares a run with its base")
        else:
            print("what the model finds likely before it is trained…")
        mine = list(by_key)[world.rank :: world.size]
        with torch.no_grad():
            model.eval()
            scores = self.log_probabilities(model, [by_key[key] for key in mine])
            model.train()
        found = world.gather(dict(zip(mine, scores)))
        remembered["of_base"] = self.of_base = dict(ChainMap(*found))

    def log_probabilities(self, model, lines):
        """[[that of the chosen answer, that of the rejected one], …] in nats."""
        pairs = [self.examples(line)[0].end(self.config.block_size) for line in lines]
        rows = [row for pair in pairs for row in pair.rows]
        counts = [len(answer) for pair in pairs for answer in (pair.better, pair.worse)]
        with self.precision():
            scores = iter(log_probabilities(model, rows, counts))
        return [[next(scores), next(scores)] for _ in pairs]

    def answers(self, model, lines):
        answers = []
        for line, scores in zip(lines, self.log_probabilities(model, lines)):
            gains = [mine - base for mine, base in zip(scores, self.of_base[key_of(line)])]
            # Before training there is no gain: then the likelier one is shown.
            chosen, rejected = scores if abs(gains[0] - gains[1]) < ROUNDING else gains
            choice = line["chosen" if chosen >= rejected else "rejected"]
            answers.append({"choice": choice, "gains": gains, "log_probabilities": scores})
        return answers

    def right(self, line):
        return line["chosen"]

    def numbers(self, lines, answers, loss, n_targets):
        return preference_numbers(answers, self.config.preference_beta)

    def guesses(self, train, lines):
        return {
            "the longer answer": [
                {"gains": [len(line[which]) for which in ("chosen", "rejected")]} for line in lines
            ],
            "what the base finds likelier": [
                {"gains": self.of_base[key_of(line)]} for line in lines
            ],
        }


class PreferenceInChat(Preference):
    """The same for a model that converses: the answers are the assistant's, in its template."""

    asked_as = "chat"

    def check(self, line):
        self.check_answers(line)

    def asked(self, line):
        return opening(line["messages"], self.tokenizer)

    def answer(self, line, which):
        messages = [*line["messages"], {"role": "assistant", "content": line[which]}]
        tokens, learned = conversation_to(messages, len(messages) - 1, self.tokenizer)
        return [token for token, is_learned in zip(tokens, learned) if is_learned]


def key_of(line):
    """What stands for a line in a checkpoint."""
    return hash_of(line).hex()


class Choice(Task):
    """A prompt and several continuations, one of them right: which does the model find likeliest?

    An answer is {"choice": text, "log_probabilities": [one for each choice]}.
    """

    best_metric = "accuracy"
    noisy_field = "prompt"

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        self.shots = lines["train"][: config.shots + 1]  # one more, since none shows itself

    def texts(self, line):
        return [line["prompt"], *line["choices"]]

    def check(self, line):
        super().check(line)
        longest = max(len(self.choice(line, choice)) for choice in line["choices"])
        if longest > self.config.block_size:
            raise ValueError(
                f"one of the choices has {longest:,} tokens and does not fit "
                f"block_size={self.config.block_size}: leave the example out"
            )

    def prompt(self, line):
        """The tokens of the prompt, at least one, behind some that are solved. Spaces at its end
        belong to the choices: there a token of a word begins.
        """
        shots = [shot for shot in self.shots if shot != line][: self.config.shots]
        solved = (self.asked(shot) + self.continued(shot, self.right(shot)) for shot in shots)
        return self.begun(BETWEEN_SHOTS.join([*solved, self.asked(line)]))

    def asked(self, line):
        """The prompt as text."""
        return line["prompt"].rstrip(" ")

    def continued(self, line, choice):
        """A choice as text, as it continues the prompt."""
        return continuing(self.asked(line), choice)

    def choice(self, line, choice):
        """The tokens of a choice, as it continues the prompt."""
        inside = bool(self.asked(line) or self.config.shots)
        return self.encode(self.continued(line, choice), inside)

    def examples(self, line):
        prompt, choice = self.prompt(line), self.choice(line, self.right(line))
        return [shifted(prompt + choice, [False] * len(prompt) + [True] * len(choice))]

    def answers(self, model, lines):
        rows, counts = [], []
        for line in lines:
            prompt = self.prompt(line)
            for choice in line["choices"]:
                tokens = self.choice(line, choice)
                rows.append([*prompt, *tokens][-self.config.block_size - 1 :])
                counts.append(len(tokens))
        scores, answers = iter(log_probabilities(model, rows, counts)), []
        for line in lines:
            of_line = [next(scores) for _ in line["choices"]]
            likeliest = line["choices"][of_line.index(max(of_line))]
            answers.append({"choice": likeliest, "log_probabilities": of_line})
        return answers

    def right(self, line):
        return line["choices"][line["label"]]

    def numbers(self, lines, answers, loss, n_targets):
        return choice_numbers(lines, [answer["log_probabilities"] for answer in answers])

    def guesses(self, train, lines):
        return {
            name: [{"log_probabilities": scores} for scores in of_lines]
            for name, of_lines in baseline_choices(lines).items()
        }


def continuing(prompt, text):
    """The text as it continues the prompt: behind a space, where its language has spaces."""
    together = not prompt or NO_SPACE_BEHIND.search(prompt[-2:]) or NO_SPACE_BEFORE.match(text)
    return text if together else " " + text


class Labelled:
    """Metrics and report of a classifier, whether a head or the generated text gives the label."""

    best_metric = "macro_f1"
    noisy_field = "text"

    def numbers(self, lines, answers, loss, n_targets):
        return class_numbers([line["label"] for line in lines], answers, self.classes)

    def guesses(self, train, lines):
        return baseline_labels(train, lines)

    def report(self, lines, answers, out_dir):
        gold = [line["label"] for line in lines]
        draw_confusion(Path(out_dir) / "confusion.png", gold, answers, self.classes)
        return class_report(gold, answers, self.classes)


class Classification(Labelled, Task):
    """A text and its label, which is the target at the last token in place of the next token."""

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        self.splits = self.long == "chunk"
        self.labels = self.classes = classes_of(lines, config)

    def tokens(self, line):
        return self.begun(line["text"])

    def examples(self, line):
        label, size = self.labels.index(line["label"]), self.config.block_size
        tokens = self.tokens(line)
        if self.splits:
            parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        else:
            parts = [tokens]
        return [Example(part, [IGNORED] * (len(part) - 1) + [label]) for part in parts]

    def answers(self, model, lines):
        rows = [self.tokens(line)[-self.config.block_size :] for line in lines]
        return [self.labels[best[-1]] for best in likeliest(model, rows)]

    def right(self, line):
        return line["label"]


class WrittenClass(Labelled, Completion):
    """Classification without a head: the model generates the label as text."""

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        self.classes = classes_of(lines, config)

    def pair(self, line):
        return line["text"] + LABEL, f" {line['label']}"

    def answers(self, model, lines):
        return [answer.strip() for answer in super().answers(model, lines)]


class Tagging(Task):
    """Words with a tag each, which is the target at the word's last token."""

    best_metric = "entity_f1"
    splits = True

    def __init__(self, config, tokenizer, first, lines):
        super().__init__(config, tokenizer, first, lines)
        self.labels = sorted({tag for line in lines["train"] for tag in line["tags"]})
        check_labels(self.labels, lines, lambda line: line["tags"], config)

    def texts(self, line):
        return []  # unknown characters are left out of words

    def pieces(self, line):
        """Yield (tokens, indices of the words' last tokens, tags) of parts that fit the context."""
        tags, block_size = line["tags"], self.config.block_size
        for tokens, ends in pieces(line["tokens"], self.tokenizer, self.first, block_size):
            yield tokens, ends, tags[: len(ends)]
            tags = tags[len(ends) :]

    def examples(self, line):
        found = []
        for tokens, ends, tags in self.pieces(line):
            targets = [IGNORED] * len(tokens)
            for end, tag in zip(ends, tags):
                targets[end] = self.labels.index(tag)
            found.append(Example(tokens, targets))
        return found

    def answers(self, model, lines):
        parts = [list(self.pieces(line)) for line in lines]
        rows = [tokens for of_line in parts for tokens, _, _ in of_line]
        best = iter(likeliest(model, rows))
        return [
            [self.labels[i] for (_, ends, _), row in zip(of_line, best) for i in row[ends].tolist()]
            for of_line in parts
        ]

    def right(self, line):
        return line["tags"]

    def numbers(self, lines, answers, loss, n_targets):
        return entity_numbers([line["tags"] for line in lines], answers)

    def guesses(self, train, lines):
        return baseline_tags(train, lines)

    def report(self, lines, answers, out_dir):
        return entity_report([line["tags"] for line in lines], answers)


TASKS = {
    "text": Task,
    "completion": Completion,
    "chat": Chat,
    "classification": Classification,
    "preference": Preference,
    "choice": Choice,
    "tagging": Tagging,
}


def check_lines(task, lines):
    """Exit at the first line of any split that cannot be encoded."""
    for split, of_split in lines.items():
        for number, line in enumerate(of_split, 1):
            try:
                task.check(line)
            except ValueError as error:
                begins = "".join(task.texts(line))[:40]
                raise SystemExit(
                    f"{task.config.dataset}, {split} example {number}, which begins with "
                    f"{begins!r}: {error}"
                ) from None


def classes_of(lines, config):
    """The sorted labels of the training examples; the other splits must not have any others."""
    classes = sorted({line["label"] for line in lines["train"]})
    check_labels(classes, lines, lambda line: [line["label"]], config)
    return classes


def check_labels(known, lines, labels_of, config):
    """Exit if there is only one label, or if val or test has one that training does not have."""
    if len(known) < 2:
        raise SystemExit(
            f"{config.dataset}: all examples have the label {known[0]!r}; expected at least two"
        )
    for split in ("val", "test"):
        for number, line in enumerate(lines[split], 1):
            unknown = [label for label in labels_of(line) if label not in known]
            if unknown:
                shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
                raise SystemExit(
                    f"{config.dataset}, {split} example {number}: the label {unknown[0]!r} is not "
                    f"in the training examples, which have {shown}"
                )


# ------------------------------------------------------------------------- examples in rows


def rows_of(examples, size):
    """Pack the examples into rows of at most `size` tokens: longest first, each where it fits."""
    rows = []
    for example in sorted(examples, key=lambda example: -len(example.inputs)):
        room = (r for r in rows if sum(len(e.inputs) for e in r) + len(example.inputs) <= size)
        row = next(room, None)
        if row is None:
            rows.append([example])
        else:
            row.append(example)
    return rows


def batch_of(examples, pack=False, hide_padding=False):
    """The arguments of `model(**batch)`: several examples in a row (`pack`), or one per row.

    Rows are padded on the right, with targets of -1. `segments` number the examples of a row, so
    that none attends to another; `hide_padding` adds them even with one example per row, for
    bidirectional models.
    """
    longest = max(len(example.inputs) for example in examples)
    rows = rows_of(examples, longest) if pack else [[example] for example in examples]
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    targets, segments = torch.full_like(inputs, IGNORED), torch.full_like(inputs, -1)
    for i, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            place = slice(start, start + len(example.inputs))
            inputs[i, place] = torch.tensor(example.inputs)
            targets[i, place] = torch.tensor(example.targets)
            segments[i, place] = number
            start = place.stop
    batch = {"inputs": inputs, "targets": targets}
    return batch | ({"segments": segments} if hide_padding or len(rows) < len(examples) else {})


# --------------------------------------------------------------------- answers from the model


def by_length(rows):
    """Yield the indices of the rows in batches, shortest rows first; show how far it is."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    shown = {"desc": "answering", "disable": None, "leave": False, "delay": SHOWN_AFTER}
    with tqdm(total=len(rows), **shown) as bar:
        for first in range(0, len(order), ANSWERED_AT_ONCE):
            chosen = order[first : first + ANSWERED_AT_ONCE]
            yield chosen
            bar.update(len(chosen))


def likeliest(model, rows):
    """The index of the most likely label at each token (T) of each row, computed in batches."""
    found = [None] * len(rows)
    for chosen in by_length(rows):
        for i, scores in zip(chosen, label_scores(model, [rows[i] for i in chosen])):
            found[i] = scores.argmax(dim=1)
    return found


def log_probabilities(model, rows, counts):
    """The log-probability of the last tokens of each row (a list), `counts` of them, in nats."""
    device, found = model.token_embedding.weight.device, [0.0] * len(rows)
    for chosen in by_length(rows):
        longest = max(counts[i] for i in chosen)
        at_once = max(1, SCORES_AT_ONCE // (longest * model.config.vocab_size))
        for first in range(0, len(chosen), at_once):
            some = chosen[first : first + at_once]
            batch = batch_of([shifted(rows[i], [True] * len(rows[i])) for i in some])
            ends = torch.tensor([[len(rows[i]) - 1] for i in some])
            at = (ends - torch.arange(longest, 0, -1)).clamp(min=0)  # (B, longest), the row's last
            targets = batch["targets"].gather(1, at)[:, :, None].to(device)
            logits, _ = model(batch["inputs"].to(device), at=at.to(device))
            of_tokens = logits.float().log_softmax(dim=2).gather(2, targets)[:, :, 0].cpu()
            for i, row in zip(some, of_tokens):
                found[i] = row[longest - counts[i] :].sum().item()
    return found


def written(model, tokenizer, prompts, longest, ends):
    """The greedy completion of each prompt as text, at most `longest` tokens."""
    greedy = partial(next_token_distribution, temperature=0.0)
    found = [None] * len(prompts)
    for chosen in by_length(prompts):
        rows = [prompts[i] for i in chosen]
        texts, unfinished = [[] for _ in rows], [True] * len(rows)
        for tokens in generate(model, rows, longest, greedy, tokenizer.vocab_size):
            unfinished = [going and token not in ends for going, token in zip(unfinished, tokens)]
            for text, going, token in zip(texts, unfinished, tokens):
                if going:
                    text.append(token)
            if not any(unfinished):
                break
        for i, text in zip(chosen, texts):
            found[i] = tokenizer.decode(text)
    return found


def open_task(config, lines, tokenizer, documents, in_chat=False):
    """The Task of a config; lines: {split: examples}; in_chat: whether the model converses."""
    Kind = WrittenClass if config.generative else TASKS[config.task]
    if Kind is Preference and in_chat:
        Kind = PreferenceInChat
    return Kind(config, tokenizer, tokens_before(tokenizer, documents), lines)
