"""Reads the plots: text files in plots/, each sentence in English and below it in Chinese.

    plot lost_kite                                   a name, and below it what the plot is about
        The wind takes a kite.
    cast key=toy look=toy_look                       which words its roles may be, see telling.py
    title The Lost {key.title} | 丢失的{key}
    - hero lose key @wild; hero be sad               a sentence: what happens in it (may be empty),
        {Time}, {hero} lost {his} {key} {wild.at}.   how English says it,
        {time}，{hero}在{wild.里}丢了{他}的{key}。       how Chinese says it
    paragraph                                        the next sentence begins a paragraph
    play earn_treat                                  a scene from scenes.txt is played here
    either found                                     the plot forks: one branch, or another
    - ...
    or never_found
    - ...
    end

Indentation is for the eye only, and a line that begins with `#` is a remark. To add a plot, write
it into one of the files, or into one of your own beside them: it needs a `{key}` (of one of
lexicon.py's KEY_CLASSES), the same roles in both languages, and an ending (`play happy_end` or
`play sad_end`) on every way through it.
"""

import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import NamedTuple

STEPS = ("-", "paragraph", "play", "either", "ending")
ENDS_OF_STEPS = ("plot", "scene", "or", "end")
CHINESE = re.compile("[\u4e00-\u9fff]")
PLOTS = Path(__file__).parent / "plots"
SCENES = "scenes.txt"
OURS = ("lost.txt", "gifts.txt", "animals.txt", "making.txt", "courage.txt")  # then others by name


class Beat(NamedTuple):
    """A sentence of a story: what happens in it, and how each language tells it."""

    events: str
    en: str
    zh: str


class Fork(NamedTuple):
    """A place where the plot may go one way or another."""

    branches: dict  # name -> tuple of steps


class Scene(NamedTuple):
    """A shared scene, by name."""

    name: str


class Paragraph(NamedTuple):
    """The next sentence begins a paragraph."""


class Ending(NamedTuple):
    """How the story ends: happy or sad."""

    mood: str


class Plot(NamedTuple):
    """A plot or a scene."""

    name: str
    summary: str
    cast: dict  # role -> class of words
    titles: dict  # language -> template
    steps: tuple


@cache
def scenes():
    """The shared scenes by name."""
    return {scene.name: scene for scene in read_plots(SCENES)}


@cache
def plots():
    """All plots; the place of a plot in this tuple helps to decide what is held out."""
    there = sorted(file.name for file in PLOTS.glob("*.txt") if file.name != SCENES)
    files = [*OURS, *(file for file in there if file not in OURS)]
    return tuple(plot for file in files for plot in read_plots(file))


def read_plots(file):
    """The plots or scenes of a file in plots/."""
    text = (PLOTS / file).read_text(encoding="utf-8")
    stripped = (line.strip() for line in text.splitlines())
    lines = deque(line for line in stripped if line and not line.startswith("#"))
    plots = []
    while lines:
        heading = lines[0]
        try:
            plots.append(_read_plot(lines))
        except IndexError:
            raise ValueError(
                f"plots/{file}, {heading!r} breaks off: is `end` missing, or a sentence's Chinese?"
            ) from None
        except (ValueError, KeyError) as error:
            raise ValueError(f"plots/{file}, {heading!r}: {error}") from None
    return tuple(plots)


def _read_plot(lines):
    """The next plot, taken off `lines`."""
    name = _rest(lines.popleft())
    summary, cast, titles = [], {}, {}
    while lines and _keyword(lines[0]) not in STEPS:
        line = lines.popleft()
        if _keyword(line) == "cast":
            cast = dict(pair.split("=") for pair in _rest(line).split())
        elif _keyword(line) == "title":
            if line.count(" | ") != 1:
                raise ValueError(f"expected `title English | Chinese`, not {line!r}")
            titles = dict(zip(("en", "zh"), _rest(line).split(" | ")))
        else:
            summary.append(line)
    return Plot(name, " ".join(summary), cast, titles, _read_steps(lines))


def _read_steps(lines):
    """The steps up to the next plot or the end of the branch, taken off `lines`."""
    steps = []
    while lines and _keyword(lines[0]) not in ENDS_OF_STEPS:
        line = lines.popleft()
        keyword, rest = _keyword(line), _rest(line)
        if keyword == "-":
            steps.append(_beat(rest, lines.popleft(), lines.popleft()))
        elif keyword == "either":
            steps.append(_read_fork(rest, lines))
        elif keyword == "play":
            steps.append(Scene(rest))
        elif keyword == "ending":
            steps.append(Ending(rest))
        elif keyword == "paragraph":
            steps.append(Paragraph())
        else:
            raise ValueError(f"cannot read {line!r}: a step begins with one of {', '.join(STEPS)}")
    return tuple(steps)


def _read_fork(name, lines):
    """The fork whose first branch is `name`, taken off `lines`."""
    branches = {name: _read_steps(lines)}
    while _keyword(lines[0]) == "or":
        name = _rest(lines.popleft())
        branches[name] = _read_steps(lines)
    if lines.popleft() != "end":
        raise ValueError(f"the fork with the branch {name!r} lacks its `end`")
    return Fork(branches)


def _beat(events, en, zh):
    if CHINESE.search(en) or not CHINESE.search(zh):
        raise ValueError(f"expected an English line and a Chinese one, not {en!r} and {zh!r}")
    return Beat(events, en, zh)


def _keyword(line):
    return line.partition(" ")[0]


def _rest(line):
    return line.partition(" ")[2]
