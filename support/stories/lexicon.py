"""Reads words.txt: the words of the story world in English and Chinese, by what they may be."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"([^\u4e00-\u9fff]+) ([\u4e00-\u9fff]\S*)(?: (he|she))?")
KEY_CLASSES = ("toy", "clothing", "instrument", "treasure", "tool", "dish")


@dataclass(frozen=True, eq=False)
class Word:
    """One word of the world; two words are the same only if they are the same object."""

    kind: str  # person, animal, object, place or phrase
    en: str
    zh: str
    article: str = ""  # what stands before the English noun when it is new: "a ", "a jar of "
    measure: str = ""  # the Chinese measure word: "只"
    at: str = ""  # what makes a place of the English noun: "by the "
    within: str = ""  # and of the Chinese one: "边"
    pronoun: str = "it"
    done: tuple[str, str] = ("", "")  # the second form of a phrase in both languages
    links: dict[str, tuple["Word", ...]] = field(default_factory=dict)


class Lexicon(NamedTuple):
    """All words of the world; the places in `names` and `keys` decide what is held out."""

    nouns: dict  # English name -> Word
    classes: dict  # name -> Words, or the name of a link such as "helper.likes"
    names: tuple  # the Words that a hero may be called
    keys: tuple  # the Words that a story may be about


@cache
def lexicon():
    """The Lexicon that words.txt describes."""
    nouns, classes = {}, {}
    for heading, lines in sections():
        keyword, _, rest = heading.partition(" ")
        if keyword == "class":
            names, _, kind = rest.partition(": ")
            words = tuple(read_word(entry, kind, nouns) for entry in entries(lines))
            classes.update(dict.fromkeys(names.split(), words or kind))
        elif keyword == "subset":
            classes[rest] = find_nouns(entries(lines), nouns)
        elif keyword == "link":
            for left, right in (line.split(":") for line in lines):
                for word in find_nouns(entries([left]), nouns):
                    word.links[rest] = find_nouns(entries([right]), nouns)
        else:
            raise ValueError(f"words.txt: {heading!r} begins with none of class, subset, link")
    keys = tuple(word for name in KEY_CLASSES for word in classes[name])
    return Lexicon(nouns, classes, classes["hero"], keys)


def sections():
    """The (heading, lines) of words.txt; only headings stand at the left margin."""
    text = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            found[-1][1].append(line.strip())
        else:
            found.append((line, []))
    return found


def entries(lines):
    """The entries of a section, which are parted by commas."""
    return [entry.strip() for entry in " ".join(lines).split(",") if entry]


def find_nouns(names, nouns):
    """The Words of these names, which must have been read before."""
    for name in names:
        if name not in nouns:
            raise ValueError(f"words.txt: {name!r} stands in no class above; a space is written _")
    return tuple(nouns[name] for name in names)


def read_word(entry, kind, nouns):
    """The Word of an entry such as "a kite 一只风筝"; a noun of two classes is one Word."""
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"words.txt: {entry!r} is not English, a space and Chinese")
    english, chinese, pronoun = match.groups()
    if kind == "phrase":
        english, _, english_done = english.partition("/")
        chinese, _, chinese_done = chinese.partition("/")
        return Word(kind, english, chinese, done=(english_done, chinese_done))
    before, _, name = english.rpartition(" ")
    if name not in nouns:
        nouns[name] = noun(kind, before and before + " ", name, chinese, pronoun or "it")
    return nouns[name]


def noun(kind, before, name, chinese, pronoun):
    """The Word of a noun, from what stands before its English name, and its Chinese entry."""
    english = name.replace("_", " ")
    if "/" in chinese:
        chinese, _, within = chinese.partition("/")
        return Word(kind, english, chinese, at=before, within=within)
    if before and chinese.startswith("一"):
        return Word(kind, english, chinese[2:], before, chinese[1], pronoun=pronoun)
    return Word(kind, english, chinese, before, pronoun=pronoun)
