"""How a plot becomes text: choices on a tape, templates with slots, a memory of who is who.

A template is a sentence with slots and alternatives:

    {hero} [found|saw] {colour.a} {key} {nook.at}.
    {hero}在{nook.里}[发现|看见]一{key.只}{colour}的{key}。

- `{role.form}` is the word of a role, in one of its forms (english.py and chinese.py list them).
  It is drawn when the role is first mentioned and stays the same to the end of the story.
  What may play a role is said by the `cast` of the plot; a role that is not cast may be any word
  of the class of its name (`{animal}`; `{animal2}` is another), or is one noun (`{potter}`).
- `[one|another]` is a choice of wording; alternatives may be empty, and may hold others.
- A slot with a capital, `{Time}`, writes a capital. `{he}`, `{his}`, `{他}` are the hero's.

Every choice shows in the text where it is made, and no word is drawn that is not told. So a text
has one derivation only, and its probability is that of its choices.
"""

import re
from functools import cache
from math import log2
from typing import NamedTuple

from . import chinese, english
from .lexicon import lexicon
from .screenplay import Beat, Fork, Paragraph, Scene, scenes

LANGUAGES = {"en": english, "zh": chinese}
HELD_OUT_ONE_IN = 10  # the number of hero's names must be a multiple of it


class OtherSplit(Exception):
    """The story being told turned out to belong to the split that is not wanted."""


class Tape:
    """Makes every choice of a story, and adds up what the choices cost in bits.

    Each choice has a name. With a `plan` given, it is read from there instead of drawn.
    """

    def __init__(self, random, plan=None):
        self.random = random  # draws a float from [0, 1)
        self.given = plan or {}
        self.plan = {}  # what was chosen, by name
        self.bits = 0.0

    def choose(self, options, name):
        """One of `options`, all of them equally likely."""
        option = self.given.get(name)
        if option not in options:
            option = options[int(self.random() * len(options))]
        self.plan[name] = option
        self.bits += log2(len(options))
        return option


class Slot(NamedTuple):
    """A place in a template for one form of the word of a role."""

    role: str
    form: str
    names: bool  # whether it names the word, rather than standing before, after or instead of it


@cache
def compile_template(template, language):
    """The template as a tuple of strings, Slots, and lists of alternative tuples of the same."""
    pieces = iter(re.findall(r"[\[\]|]|\{[^{}]*\}|[^\[\]|{}]+", template))
    alternatives = _compile_until("", pieces, LANGUAGES[language])
    if len(alternatives) != 1:
        raise ValueError(f"template {template!r}: '|' stands outside of [ ]")
    return alternatives[0]


def _compile_until(end, pieces, grammar):
    """The alternatives up to the piece `end`, each a tuple of nodes."""
    alternatives, nodes = [], []
    for piece in pieces:
        if piece == end:
            break
        if piece == "[":
            nodes.append(_compile_until("]", pieces, grammar))
        elif piece == "|":
            alternatives.append(tuple(nodes))
            nodes = []
        elif piece[0] == "{":
            nodes += _slots(piece[1:-1], grammar)
        else:
            nodes.append(piece)
    return [*alternatives, tuple(nodes)]


def _slots(name, grammar):
    """The Slots that `{name}` stands for: some forms are written with their noun."""
    role, _, form = name.partition(".")
    capital = "^" if role[0].isupper() else ""
    role = role[0].lower() + role[1:]
    if role in grammar.PRONOUNS:
        role, form = "hero", role
    if form in grammar.WITH_NOUN_BEFORE:
        return [Slot(role, "", True), Slot(role, form, False)]
    if form in grammar.WITH_NOUN_AFTER:
        return [Slot(role, capital + form, False), Slot(role, "", True)]
    return [Slot(role, capital + form, form in ("", "s"))]


class Telling:
    """One story while it is told, and what was told so far."""

    def __init__(self, language, tape, wanted=None):
        self.language = language
        self.tape = tape
        self.wanted = wanted  # True: held-out stories alone, False: training ones, None: both
        self.forms = LANGUAGES[language].forms
        self.lexicon = lexicon()
        self.parts = []  # the text, in pieces
        self.mentions = []  # (index into parts, Word)
        self.told = []  # (events, first part, last part + 1)
        self.plot = None  # its number
        self.cast = {}  # role -> class, where the plot says so
        self.words = {}  # role -> Word
        self.taken = set()  # the same Words
        self.ending = ""
        self.ending_part = None  # the index into parts where the scene that ends it begins
        self.gap = ""  # what parts the next sentence from the last
        self.forks = 0
        self.groups = 0  # of alternatives in this sentence, so far

    def play(self, steps):
        """Tells the steps of a plot or scene, choosing where it forks."""
        for step in steps:
            kind = step.__class__
            if kind is Beat:
                self._tell(step)
            elif kind is Fork:
                self.forks += 1
                branch = self.tape.choose(tuple(step.branches), f"fork {self.forks}")
                self.play(step.branches[branch])
            elif kind is Scene:
                self.play(scenes()[step.name].steps)
            elif kind is Paragraph:
                self.gap = "\n"
            else:
                self.ending = step.mood
                self.ending_part = len(self.parts)

    def word(self, role):
        """The Word of a role, drawn if this is its first mention."""
        if role in self.words:
            return self.words[role]
        word = self.tape.choose(self._options(role), role)
        self.words[role] = word
        self.taken.add(word)
        if role == "key" and self.wanted is not None and self.held_out != self.wanted:
            raise OtherSplit
        return word

    @property
    def held_out(self):
        """Whether hero, key object and plot together are kept for validation.

        Whatever object and plot are drawn, that is so for exactly one hero's name in ten.
        """
        hero = self.lexicon.names.index(self.words["hero"])
        key = self.lexicon.keys.index(self.words["key"])
        return (hero + key + self.plot) % HELD_OUT_ONE_IN == 0

    def write_apart(self, template):
        """The text of a template without alternatives that is no part of the story's text."""
        nodes = compile_template(template, self.language)
        return "".join(
            self.forms(self.words[node.role])[node.form] if isinstance(node, Slot) else node
            for node in nodes
        )

    def _tell(self, beat):
        if self.gap:
            self.parts.append(self.gap)
        first = len(self.parts)
        self.groups = 0
        self._write(compile_template(getattr(beat, self.language), self.language))
        self.told.append((beat.events, first, len(self.parts)))
        self.gap = LANGUAGES[self.language].SENTENCE_GAP

    def _write(self, nodes):
        for node in nodes:
            kind = node.__class__
            if kind is str:
                self.parts.append(node)
            elif kind is Slot:
                word = self.word(node.role)
                if node.names:
                    self.mentions.append((len(self.parts), word))
                self.parts.append(self.forms(word)[node.form])
            else:
                self.groups += 1
                name = len(self.told), self.groups
                self._write(node[self.tape.choose(range(len(node)), name)])

    def _options(self, role):
        """The Words that may play a role, but for those that play another already."""
        name = self.cast.get(role) or role.rstrip("0123456789")
        words = self.lexicon.classes.get(name, name)
        if isinstance(words, str):
            owner, _, link = words.partition(".")
            words = self.word(owner).links[link] if link else self._noun(words)
        if len(words) == 1:
            return words
        return [word for word in words if word not in self.taken]

    def _noun(self, name):
        if name not in self.lexicon.nouns:
            raise ValueError(f"role {name!r}: not cast, and no class or noun of words.txt either")
        return (self.lexicon.nouns[name],)
