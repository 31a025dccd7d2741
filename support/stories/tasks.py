"""Examples to fine-tune on, with answers that are right by construction: nine tasks.

A story knows who gave what to whom, where things are, how it ends, what it is called and how the
other language tells it. Each maker below gives the examples of its task that a story lends itself
to, if any. They are short where that is possible: a small model learns from how many answers it
has seen, and its time goes into reading.

    qa, title, relations, translation    {"prompt": ..., "completion": ...}
    mood                                 {"text": ..., "label": "happy" or "sad"}
    entities                             {"tokens": [...], "tags": [...]}
    chat                                 {"messages": [{"role": ..., "content": ...}, ...]}
    memory                               {"prompt": ..., "choices": [...], "label": 0 to 3}
    preference                           {"prompt": ..., "chosen": ..., "rejected": ...}

A prompt and its completion are one text as they stand, so a completion in English begins with a
space unless it begins a line.
"""

import re
from bisect import bisect_right
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple
from zlib import crc32

from .lexicon import lexicon
from .screenplay import plots
from .story import generate

SPLITS = "train", "val", "test"
SIZES = {  # examples in each split
    "qa": (16000, 200, 400),
    "title": (2000, 200, 400),
    "mood": (1000, 100, 200),
    "entities": (4000, 200, 400),
    "relations": (8000, 200, 400),
    "translation": (8000, 200, 400),
    "chat": (4000, 100, 200),
    "memory": (1000, 200, 400),
    "preference": (1000, 100, 200),
}
CHOICES = 4
FEWEST = 10  # in a split, however small the corpus
FROM_ONE_STORY = 3  # excerpts for relations or translation, at the most
TITLE = {"en": "\n\nTitle:", "zh": "\n\n标题："}
ANSWER = {"en": "\n\nQuestion: {}\nAnswer:", "zh": "\n\n问：{}\n答："}
RELATIONS = {"en": "\n\nWho did what to whom?\n", "zh": "\n\n谁对谁做了什么？\n"}
TRANSLATION = {"en": "\n\nChinese:", "zh": "\n\n英文："}
ABOUT = {"en": "Who is the story about?", "zh": "这个故事讲的是谁？"}
REQUESTS = {
    "en": (
        "Tell me a story about {hero} and {key}.",
        "Can you tell me a story about {hero} and {key}?",
        "I want a story about {hero} and {key}.",
        "A story about {hero} and {key}, please.",
    ),
    "zh": (
        "给我讲一个关于{hero}和{key}的故事。",
        "能讲一个{hero}和{key}的故事吗？",
        "我想听一个关于{hero}和{key}的故事。",
        "请讲一个故事，里面有{hero}和{key}。",
    ),
}
GO_ON = {
    "en": ("What happened next?", "And then?", "Go on, please."),
    "zh": ("后来呢？", "然后呢？", "请接着讲。"),
}
BLUE = {"en": "blue", "zh": "蓝色"}
TOKEN = {"en": re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|'s\b|[^\sA-Za-z]"), "zh": re.compile(r"\S")}
# What an entity is tagged as: its part in the story or else its type. Which name is the hero's and
# which thing matters is not to be seen from the word alone.
TAGS_OF_ROLES = {"hero": "HERO", "key": "KEY"}
TAGS_OF_TYPES = {"person": "PERSON", "animal": "ANIMAL", "object": "THING", "place": "PLACE"}
LIVING = {"person", "animal"}
PRONOUN = re.compile(r"\b(?:he|she|his|her|him)\b|[他她]", re.IGNORECASE)
PLOTS_KEPT_BACK_ONE_IN = 3  # to see whether moods were understood
# A conversation shall fit a context of 256 tokens, at some four bytes each and six of marks a turn.
CHAT_BYTES, TURN_BYTES = 800, 40
BEATS_TOLD = 2  # at a time
MOST_BEATS, MOST_EVENTS = 2, 3  # of an excerpt whose relations are asked for


def story_tasks(seed, language=None, share=1.0):
    """{task: {split: examples}} from stories of both languages, or of one.

    val and test have held-out stories, and no example that another split has. `share` of SIZES are
    made.
    """
    seed = crc32(f"tasks {seed}".encode())  # for stories that the corpus of this seed lacks
    held_out = generate(seed, True, language)
    stories = {"train": generate(seed, False, language), "val": held_out, "test": held_out}
    splits, seen = {}, {task: set() for task in MAKERS}
    for i, split in enumerate(SPLITS):
        random = Random(crc32(f"{seed} {split}".encode())).random
        sizes = {task: max(FEWEST, round(SIZES[task][i] * share)) for task in MAKERS}
        splits[split] = examples_of(stories[split], sizes, random, seen)
    return {task: {split: splits[split][task] for split in SPLITS} for task in MAKERS}


def examples_of(stories, sizes, random, seen):
    """{task: examples}, `sizes` of each, from the next of the stories; `seen` are left out."""

    def pick(options):
        return options[int(random() * len(options))]

    made, counts = {task: [] for task in MAKERS}, Counter()
    while unfinished := [task for task in MAKERS if len(made[task]) < sizes[task]]:
        story = next(stories)
        for task in unfinished:
            new = [e for e in MAKERS[task](story, pick, counts) if str(e) not in seen[task]]
            made[task] += new
            seen[task].update(map(str, new))
    return {task: examples[: sizes[task]] for task, examples in made.items()}


# -------------------------------------------------------------------------------------- questions


class Form(NamedTuple):
    """A way to ask for one field of an event, given others."""

    asked: str
    kind: str
    wording: dict  # language -> template
    given: tuple  # the fields that the templates name


@cache
def forms_of_questions():
    """{verb: Forms}, read from questions.txt."""
    text = (Path(__file__).parent / "questions.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    forms = {}
    for heading, en, zh in zip(lines[::3], lines[1::3], lines[2::3]):
        verb, asked, kind = heading.split()
        given = tuple(re.findall(r"\{(\w+)\}", en))
        forms.setdefault(verb, []).append(Form(asked, kind, {"en": en, "zh": zh}, given))
    return forms


@lru_cache(maxsize=1)  # two tasks ask about the same story
def questions(story):
    """[(kind, question, answer, beat)]: all that a story tells with one right answer, and where."""
    language = story.language
    entities = {entity.name: entity for entity in story.entities}
    found = {ABOUT[language]: ("hero", story_names(story, "hero"), 0)}
    ends = [end for _, end in story.beats]
    for event in story.events:
        for form in forms_of_questions().get(event.verb, ()):
            if has_one_answer(form, event, story, entities):
                given = {
                    field: mention(getattr(event, field), entities, story) for field in form.given
                }
                answer = getattr(event, form.asked)
                answer = at_place(answer) if form.asked == "place" else answer
                beat = bisect_right(ends, event.start)
                found[form.wording[language].format(**given)] = (form.kind, answer, beat)
    return [
        (kind, question, answer, beat)
        for question, (kind, answer, beat) in found.items()
        if answer not in question and answer in story.text[slice(*story.beats[beat])]
    ]


def has_one_answer(form, event, story, entities):
    """Whether an event can be asked about in this way, and the story leaves no doubt."""
    given = [getattr(event, field) for field in form.given]
    if not all((getattr(event, form.asked), *given)):
        return False
    if form.kind == "colour":
        return entities[event.subject].role == "key"
    if form.kind == "owner" and not is_last_of_key(event, story, entities):
        return False
    alike = [
        other
        for other in story.events
        if other.verb == event.verb and [getattr(other, field) for field in form.given] == given
    ]
    answers = {getattr(other, form.asked) for other in alike}
    return len(answers) == 1 and all(
        is_plain(form.asked, other, story, entities) for other in alike
    )


def is_last_of_key(event, story, entities):
    """Whether an event is the last of the thing that the story is about."""
    last = [other for other in story.events if event.object in other][-1]
    return last == event and entities[event.object].role == "key"


def is_plain(asked, event, story, entities):
    """Whether the sentence of an event names the answer, and nothing else that could be it.

    A pronoun is as good as a name where the answer is the hero.
    """
    answer = entities.get(getattr(event, asked))
    if answer is None or (asked == "place") != (at_place(answer.name) is not None):
        return False
    group = LIVING if answer.type in LIVING else {answer.type}
    named = {
        name
        for name, entity in entities.items()
        if entity.type in group
        and any(event.start <= start < event.end for start, _ in entity.spans)
    }
    told_of = {name for other in story.events if other.start == event.start for name in other[:5]}
    told = answer.name in named or (
        answer.role == "hero" and PRONOUN.search(story.text, event.start, event.end)
    )
    return bool(told) and named <= told_of


def mention(name, entities, story):
    """How a question names somebody or something."""
    if story.language == "zh":
        of_hero = story_names(story, "hero") + "的"
    else:
        of_hero = story_names(story, "hero") + "'s "
    if at_place(name):
        return at_place(name)
    if entities[name].role.startswith("family"):
        return of_hero + name
    is_name = nouns_by_name()[name] in lexicon().names
    return name if is_name or story.language == "zh" else "the " + name


def at_place(name):
    """The name of a place with what says that one is there: "in the park"; None of other things."""
    word = nouns_by_name()[name]
    if not word.at:
        return None
    return word.at + name if name == word.en else name + word.within


def entity_of(story, role):
    """Who or what plays a role."""
    return next(entity for entity in story.entities if entity.role == role)


def story_names(story, role):
    """The name of who or what plays a role."""
    return entity_of(story, role).name


@cache
def nouns_by_name():
    """The nouns of the world by their names in both languages."""
    nouns = lexicon().nouns.values()
    return {word.en: word for word in nouns} | {word.zh: word for word in nouns}


# ----------------------------------------------------------- the tasks: the examples of a story


def qa(story, pick, counts):
    """Sentences of a story, each with a question that it answers."""
    return [
        completion(
            story.text[slice(*story.beats[beat])] + ANSWER[story.language].format(question),
            answer,
            story.language,
        )
        for _, question, answer, beat in questions(story)
    ]


def completion(prompt, text, language):
    """The example of a prompt and what continues it on the same line."""
    return {"prompt": prompt, "completion": " " * (language == "en") + text}


def title(story, pick, counts):
    """Two sentences, the first that name the thing a story is about, and the story's title.

    Left out are titles that name neither that thing nor the hero: they tell the plot alone.
    """
    named = (story_names(story, role).lower() for role in ("hero", "key"))
    if not any(name in story.title.lower() for name in named):
        return []
    key = entity_of(story, "key")
    first = bisect_right([end for _, end in story.beats], key.spans[0][0])
    told = story.beats[first : first + 2]
    text = story.text[told[0][0] : told[-1][1]].strip()
    return [completion(text + TITLE[story.language], story.title, story.language)]


def mood(story, pick, counts):
    """A story up to its ending, and how it ends: as many happy ones as sad ones.

    The plots of val and test are not those of train. Else the words of a plot would decide.
    """
    names = [plot.name for plot in plots()]
    is_kept_back = names.index(story.plot) % PLOTS_KEPT_BACK_ONE_IN == 1
    other = "happy" if story.ending == "sad" else "sad"
    if is_kept_back != story.held_out or counts[story.ending] > counts[other]:
        return []
    counts[story.ending] += 1
    return [{"text": story.text_before_ending, "label": story.ending}]


def entities(story, pick, counts):
    """The words of a first paragraph, or characters if it is Chinese, with their tags in BIO."""
    spans = [
        (start, end, TAGS_OF_ROLES.get(entity.role) or TAGS_OF_TYPES[entity.type])
        for entity in story.entities
        for start, end in entity.spans
    ]
    tag_at = {start: "B-" + tag for start, _, tag in spans}
    tag_at |= {i: "I-" + tag for start, end, tag in spans for i in range(start + 1, end)}
    tokens = list(TOKEN[story.language].finditer(story.text.split("\n")[0]))
    tags = [tag_at.get(token.start(), "O") for token in tokens]
    return [{"tokens": [token[0] for token in tokens], "tags": tags}]


def relations(story, pick, counts):
    """A few sentences of a story, and who did what in them: a line for each event."""
    excerpts = []
    for number in range(len(story.beats)):
        for last in range(number, min(number + MOST_BEATS, len(story.beats))):
            start, end = story.beats[number][0], story.beats[last][1]
            events = [event for event in story.events if start <= event.start < end]
            if 1 <= len(events) <= MOST_EVENTS and all_named(events, start, end, story):
                excerpts.append((story.text[start:end], events))
    examples = []
    for text, events in some(excerpts, pick):
        lines = [" | ".join(filter(None, event[:5])) for event in events]
        prompt = text + RELATIONS[story.language]
        examples.append({"prompt": prompt, "completion": "\n".join(lines)})
    return examples


def some(things, pick):
    """At most FROM_ONE_STORY of the things, picked at random."""
    left, picked = list(things), []
    while left and len(picked) < FROM_ONE_STORY:
        picked.append(pick(left))
        left.remove(picked[-1])
    return picked


def all_named(events, start, end, story):
    """Whether the text from start to end names all that these events are about."""
    text = story.text[start:end]
    edge = r"\b" if story.language == "en" else ""
    names = {name for event in events for name in (event.subject, *event[2:5])}
    return all(re.search(edge + re.escape(name) + edge, text) for name in names)


def translation(story, pick, counts):
    """Sentences of a story, each with the same sentence of its translation."""
    other, examples = story.translation(), []
    for beat in some(range(len(story.beats)), pick):
        source, target = (told.text[slice(*told.beats[beat])] for told in (story, other))
        prompt = source.strip() + TRANSLATION[story.language]
        examples.append(completion(prompt, target.strip(), other.language))
    return examples


def chat(story, pick, counts):
    """A conversation: a story is told a little at a time, and asked about in between."""
    choice, turns, whole = questions(story), [], []
    wish = request(story, pick)
    for first in range(0, len(story.beats), BEATS_TOLD):
        told = story.beats[first : first + BEATS_TOLD]
        turns.append((wish, story.text[told[0][0] : told[-1][1]].strip()))
        asked = [new for new in choice if first <= new[3] < first + BEATS_TOLD]
        if asked:
            turns.append(ask(asked, pick, counts))
        if sum(TURN_BYTES + len((a + b).encode()) for a, b in turns) > CHAT_BYTES:
            break
        whole = list(turns) if asked else whole  # it ends with an answer that can be checked
        wish = pick(GO_ON[story.language])
    messages = [
        {"role": role, "content": content}
        for turn in whole
        for role, content in zip(("user", "assistant"), turn)
    ]
    return [{"messages": messages}] if messages else []


def ask(choice, pick, counts):
    """(question, answer), one of a choice of questions, of a kind asked least often so far."""
    fewest = min(counts[new[0]] for new in choice)
    kind, question, answer, _ = pick([new for new in choice if counts[new[0]] == fewest])
    counts[kind] += 1
    return question, answer


def request(story, pick):
    """A wish for a story about a hero and a thing."""
    key = story_names(story, "key")
    key = nouns_by_name()[key].article + key if story.language == "en" else key
    return pick(REQUESTS[story.language]).format(hero=story_names(story, "hero"), key=key)


def memory(story, pick, counts):
    """A story up to the last time that its thing is named, and four things that could follow.

    It tests whether a model still knows what the story is about. Nothing is picked at random: the
    other tasks are as they would be without this one.
    """
    key = entity_of(story, "key")
    start, end = key.spans[-1]
    told = story.text[:start]
    if len(key.spans) < 2 or story.text[start:end] != key.name:
        return []
    names = [getattr(word, story.language) for word in lexicon().keys]
    others = [name for name in names if name not in story.text]
    others.sort(key=lambda name: crc32((told + name).encode()))
    choices = sorted(
        [key.name, *others[: CHOICES - 1]], key=lambda name: crc32((name + told).encode())
    )
    return [{"prompt": told.rstrip(" "), "choices": choices, "label": choices.index(key.name)}]


def preference(story, pick, counts):
    """A story up to its first colour, and how it goes on: as it was, and better, in blue."""
    language, blue = story.language, BLUE[story.language]
    first = colours(language).search(story.text)
    if not first or first[0] == blue or story.text[: first.start()].endswith(" an "):
        return []
    told, rest = story.text[: first.start()], story.text[first.start() :]
    in_blue = colours(language).sub(lambda word: blue if word[0] == first[0] else word[0], rest)
    chosen, rejected = (completion(told, text, language)["completion"] for text in (in_blue, rest))
    return [{"prompt": told.rstrip(" "), "chosen": chosen, "rejected": rejected}]


@cache
def colours(language):
    """A pattern that finds the colours of things, not of golden afternoons."""
    words = [getattr(word, language) for word in lexicon().classes["colour"]]
    any_of = "|".join(sorted(words, key=len, reverse=True))
    if language == "zh":
        return re.compile(rf"(?:{any_of})(?!的午后)")
    return re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-]| afternoon)")


MAKERS = {
    "qa": qa,
    "title": title,
    "mood": mood,
    "entities": entities,
    "relations": relations,
    "translation": translation,
    "chat": chat,
    "memory": memory,
    "preference": preference,
}
