"""Stories: drawn, told, translated, and annotated with what is true in them."""

from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from itertools import accumulate
from math import log2
from random import Random
from typing import Literal, NamedTuple
from zlib import crc32

from .screenplay import plots, scenes
from .telling import HELD_OUT_ONE_IN, LANGUAGES, OtherSplit, Tape, Telling

HELD_OUT = 1 / HELD_OUT_ONE_IN  # the exact share of held-out stories, see Telling.held_out

# What an event does to its object: it comes to the subject, goes to the recipient, stays at the
# place, or is no more. Other verbs leave it where it is.
TAKES = {"have", "get", "find", "win", "buy", "take", "steal", "pick", "catch", "build", "bring"}
GIVES = {"give", "lend", "sell"}
PUTS = {"put", "lose", "leave", "hide", "plant"}
ENDS = {"eat"}


class Event(NamedTuple):
    """Who did what: the verb in English in both languages, the rest in the words of the story."""

    subject: str
    verb: str
    object: str  # "" where there is none, like the next two
    recipient: str
    place: str
    start: int  # text[start:end] is the sentence, or the few sentences, that tell it
    end: int


class Entity(NamedTuple):
    """Somebody or something in a story, and every place where the text names it."""

    name: str
    role: str  # hero, key (the object that the story is about), friend, helper...
    type: str  # person, animal, object or place
    spans: tuple[tuple[int, int], ...]  # text[start:end] is the name, perhaps as a plural


class Story:
    """One story: its text and its probability; what is true in it is worked out when asked for."""

    def __init__(self, telling):
        self._telling = telling
        self.text = "".join(telling.parts)
        self.language = telling.language
        self.bits = telling.tape.bits  # -log2 of the probability that this text is drawn
        self.ending = telling.ending  # happy or sad
        self.plot = plots()[telling.plot].name
        self.held_out = telling.held_out

    @cached_property
    def title(self):
        """A title in the language of the story; it is no part of the text."""
        return self._telling.write_apart(plots()[self._telling.plot].titles[self.language])

    @cached_property
    def beats(self):
        """The (start, end) in the text of each sentence, or few sentences, of the plot, in order.

        A story and its translation have the same beats.
        """
        starts = self._starts_of_parts()
        return tuple((starts[first], starts[last]) for _, first, last in self._telling.told)

    @property
    def text_before_ending(self):
        """The text without the scene that ends it, whose words give away how the story ends."""
        return "".join(self._telling.parts[: self._telling.ending_part])

    @cached_property
    def entities(self):
        """The Entities of the story, in the order in which they are first named."""
        starts = self._starts_of_parts()
        spans = {}
        for part, word in self._telling.mentions:
            spans.setdefault(word, []).append((starts[part], starts[part + 1]))
        role_of = {word: role for role, word in reversed(self._telling.words.items())}
        return tuple(
            Entity(getattr(word, self.language), role_of[word], word.kind, tuple(places))
            for word, places in spans.items()
            if word.kind != "phrase"
        )

    @cached_property
    def events(self):
        """The Events of the story, in order."""
        starts = self._starts_of_parts()
        events = []
        for clauses, first, last in self._telling.told:
            for subject, verb, *others in parse_events(clauses):
                names = [self._name(role) for role in others]
                events.append(Event(self._name(subject), verb, *names, starts[first], starts[last]))
        return tuple(events)

    @cached_property
    def outcome(self):
        """Where each object of the events is at the end: its holder, its place, or None if gone."""
        objects = {entity.name for entity in self.entities if entity.type == "object"}
        where = {}
        for event in self.events:
            if event.object in objects:
                self._move(event, where)
        return where

    def translation(self):
        """The same plan told in the other language; only the wording is drawn anew."""
        language = "zh" if self.language == "en" else "en"
        plan = self._telling.tape.plan
        if "language" in plan:
            plan, language = plan | {"language": language}, None
        wording = Random(crc32(self.text.encode())).random
        return tell_story(Tape(wording, plan), language)

    def _starts_of_parts(self):
        return list(accumulate(map(len, self._telling.parts), initial=0))

    def _name(self, role):
        return getattr(self._telling.words[role], self.language) if role else ""

    @staticmethod
    def _move(event, where):
        if event.verb in TAKES:
            where[event.object] = event.subject
        elif event.verb in GIVES:
            where[event.object] = event.recipient
        elif event.verb in PUTS:
            where[event.object] = event.place
        elif event.verb in ENDS:
            where[event.object] = None


@cache
def parse_events(clauses):
    """The (subject, verb, object, recipient, place) of "hero give key >friend @meadow; ..."."""
    events = []
    for clause in filter(None, map(str.strip, clauses.split(";"))):
        subject, verb, *others = clause.split()
        by_mark = {word[0] if word[0] in ">@" else "": word.lstrip(">@") for word in others}
        events.append((subject, verb, *(by_mark.get(mark, "") for mark in ("", ">", "@"))))
    return tuple(events)


def tell_story(tape, language=None, wanted=None):
    """The Story that a tape tells; the language is one of its choices unless it is given."""
    telling = Telling(language or tape.choose(tuple(LANGUAGES), "language"), tape, wanted)
    telling.play(scenes()["opening"].steps)
    telling.plot = tape.choose(range(len(plots())), "plot")
    plot = plots()[telling.plot]
    telling.cast = plot.cast
    telling.play(plot.steps)
    return Story(telling)


def generate(
    seed: int, held_out: bool = False, language: Literal["en", "zh"] | None = None
) -> Iterator[Story]:
    """Endless Stories: those to train on, or the held-out ones; in "en", "zh", or (None) both.

    The same seed gives the same stories on every machine and Python, since all draws are made by
    `random.Random(seed).random()`, whose sequence Python guarantees.
    """
    if language not in (None, *LANGUAGES):
        raise ValueError(f"language={language!r}: expected 'en', 'zh' or None for both")
    return _generate(Random(seed).random, held_out, language)


def _generate(random, held_out, language):
    while True:
        try:
            yield tell_story(Tape(random), language, wanted=held_out)
        except OtherSplit:
            continue


def floor_bits_per_byte(stories: Iterable[Story]) -> float:
    """The ideal code length of stories, in bits per UTF-8 byte of their text.

    Each story is charged -log2 of its probability within its split. No model does better in
    expectation. The mark that ends a text costs nothing: its choices say when it is over.
    """
    bits = bytes_ = 0
    for story in stories:
        share = HELD_OUT if story.held_out else 1 - HELD_OUT
        bits += story.bits + log2(share)
        bytes_ += len(story.text.encode())
    if not bytes_:
        raise ValueError("floor_bits_per_byte: expected at least one story")
    return bits / bytes_
