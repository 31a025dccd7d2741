"""The story world: the same everywhere, one derivation per text, and facts that the text tells."""

import hashlib
import re
import shutil
from itertools import islice
from math import isclose, log2

import pytest

from support.stories import HELD_OUT, floor_bits_per_byte, generate, screenplay
from support.stories import story as story_module
from support.stories.english import plural
from support.stories.lexicon import lexicon
from support.stories.screenplay import Beat, Fork, Scene, plots, scenes
from support.stories.story import GIVES, PUTS, TAKES, parse_events, tell_story
from support.stories.telling import Slot, Tape, Telling, compile_template

# Change it when a word or a plot was added; it must come out the same on every Python.
SHA256_OF_200_STORIES = "b130b44bf46b04f009cb1d9d05c9d5f05ae92877f49fd6bfcd2be24d5d303ed6"


def take(number, **how):
    return list(islice(generate(**how), number))


@pytest.fixture(scope="module")
def stories():
    return take(3000, seed=0)


# --- The same stories everywhere ----------------------------------------------------------------


def test_the_same_seed_tells_the_same_stories_on_every_python():
    text = "\n\n".join(story.text for story in take(200, seed=1337))
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256_OF_200_STORIES


def test_no_two_of_10_000_stories_are_equal():
    assert len({story.text for story in take(10_000, seed=1)}) == 10_000


def test_half_of_the_stories_are_english_unless_a_language_is_asked_for(stories):
    assert 0.45 < sum(story.language == "en" for story in stories) / len(stories) < 0.55
    assert {story.language for story in take(20, seed=0, language="zh")} == {"zh"}
    with pytest.raises(ValueError, match="language='de': expected 'en', 'zh' or None"):
        generate(seed=0, language="de")


def test_stories_have_one_to_four_paragraphs_of_plain_text(stories):
    for story in stories:
        assert 1 <= len(story.text.split("\n")) <= 4
        assert not re.search(r"[\[\]{}|<>\t]|  | \n|\n |\n\n|^\s|\s$", story.text)
        chinese = re.search("[\u4e00-\u9fff]", story.text) is not None
        latin = re.search("[A-Za-z]", story.text) is not None
        assert (chinese, latin) == ((True, False) if story.language == "zh" else (False, True))


def test_english_articles_agree_with_the_next_word(stories):
    for story in stories:
        if story.language == "en":
            for article, word in re.findall(r"\b([Aa]n?) (\w+)", story.text):
                vowel = word[0] in "aeiou" and word != "unicorn"
                assert (article.lower() == "an") == vowel, f"{article} {word}"


# --- Held-out combinations ----------------------------------------------------------------------


def keys_of(plot):
    """The numbers of the objects that a plot may be about."""
    words = lexicon().classes[plot.cast["key"]]
    return [lexicon().keys.index(word) for word in words]


def is_held_out(hero, key, plot):
    telling = Telling("en", Tape(None))
    telling.words = {"hero": lexicon().names[hero], "key": lexicon().keys[key]}
    telling.plot = plot
    return telling.held_out


def test_exactly_one_name_in_ten_is_held_out_whatever_the_plot_and_object():
    names = range(len(lexicon().names))
    for number, plot in enumerate(plots()):
        for key in keys_of(plot):
            share = sum(is_held_out(hero, key, number) for hero in names) / len(names)
            assert share == HELD_OUT


def test_training_and_held_out_stories_share_no_triple_of_hero_object_and_plot(stories):
    def triples(some):
        return {(s._telling.words["hero"], s._telling.words["key"], s.plot) for s in some}

    held_out = take(1000, seed=0, held_out=True)
    assert not any(story.held_out for story in stories)
    assert all(story.held_out for story in held_out)
    assert not triples(stories) & triples(held_out)


def test_every_pair_of_hero_object_and_plot_is_trained_on():
    possible = {
        (hero, key, number)
        for number, plot in enumerate(plots())
        for key in keys_of(plot)
        for hero in range(len(lexicon().names))
    }
    trained = {triple for triple in possible if not is_held_out(*triple)}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pairs = {(triple[one], triple[other]) for triple in possible}
        assert {(triple[one], triple[other]) for triple in trained} == pairs


# --- The probability of a text ------------------------------------------------------------------


class DeadEnd(Exception):
    """The text told so far is not the beginning of the text to be derived."""


class Walk(Tape):
    """Makes given choices, then always the first that may lead on, while the text agrees."""

    def __init__(self, text, path):
        super().__init__(None)
        self.text = text
        self.lower = text.lower()
        self.path = path
        self.open = []  # of each choice made: the options that may lead on, the taken one first
        self.parts = []
        self.compared = self.position = 0

    def choose(self, options, name):
        self.compare()
        number = len(self.open)
        if number < len(self.path):
            self.open.append(self.path[number])
        else:
            self.open.append([option for option in options if self.may_be_told(option)])
        if not self.open[-1]:
            raise DeadEnd
        self.bits += log2(len(options))
        return self.open[-1][0]

    def compare(self):
        for part in self.parts[self.compared :]:
            if not self.text.startswith(part, self.position):
                raise DeadEnd
            self.position += len(part)
        self.compared = len(self.parts)

    def may_be_told(self, option):
        """Whether a Word is named anywhere in the text; a choice of another kind always may be."""
        if not hasattr(option, "en"):
            return True
        names = (option.en, plural(option.en), option.zh, *option.done)
        return any(name and name.lower() in self.lower for name in names)


def derivations(text, monkeypatch):
    """The bits of every sequence of choices that tells a text, found by trying all."""

    class WalkedTelling(Telling):
        def __init__(self, language, tape, wanted=None):
            super().__init__(language, tape, wanted)
            self.parts = tape.parts

    monkeypatch.setattr(story_module, "Telling", WalkedTelling)
    found, path = [], []
    while True:
        tape = Walk(text, path)
        try:
            if tell_story(tape).text == text:
                found.append(tape.bits)
        except DeadEnd:
            pass
        path = tape.open
        while path and len(path[-1]) <= 1:
            path.pop()
        if not path:
            return found
        path[-1] = path[-1][1:]


def one_story_of_each_plot(seed, language):
    """A story of each plot and ending, training and held-out ones by turns of the seed."""
    wanted = {(plot.name, mood) for plot in plots() for mood in endings(plot.steps)}
    found = {}
    stories = generate(seed, held_out=seed % 2 == 1, language=language)
    while len(found) < len(wanted):
        story = next(stories)
        found[story.plot, story.ending] = story
    assert set(found) == wanted
    return list(found.values())


def endings(steps):
    """The ways in which these steps may end."""
    last = steps[-1]
    if isinstance(last, Fork):
        return {mood for branch in last.branches.values() for mood in endings(branch)}
    return {last.name.removesuffix("_end")}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", range(5))
def test_a_text_has_exactly_one_derivation_with_exactly_its_bits(seed, language, monkeypatch):
    for story in one_story_of_each_plot(seed, language):
        bits = derivations(story.text, monkeypatch)
        assert len(bits) == 1, story.text
        assert isclose(bits[0], story.bits + 1)  # one more for the language, which was given


def test_every_plot_is_equally_likely(stories):
    mean = len(stories) / len(plots())
    for plot in plots():
        number = sum(story.plot == plot.name for story in stories)
        assert abs(number - mean) < 5 * mean**0.5


def test_the_floor_charges_a_story_its_probability_within_its_split():
    training, held_out = next(generate(seed=3)), next(generate(seed=3, held_out=True))
    bits = training.bits + log2(0.9) + held_out.bits + log2(0.1)
    size = len(training.text.encode()) + len(held_out.text.encode())
    assert isclose(floor_bits_per_byte([training, held_out]), bits / size)
    with pytest.raises(ValueError, match="expected at least one story"):
        floor_bits_per_byte([])


def test_the_floor_leaves_something_to_learn_and_little_to_guess(stories):
    assert 0.2 < floor_bits_per_byte(stories) < 0.45


# --- Facts --------------------------------------------------------------------------------------


def test_spans_are_exact(stories):
    for story in stories:
        for entity in story.entities:
            names = {entity.name, entity.name.capitalize(), plural(entity.name)}
            assert {story.text[start:end] for start, end in entity.spans} <= names


def test_every_mention_of_an_entity_is_marked(stories):
    for story in stories:
        marked = {i for entity in story.entities for span in entity.spans for i in range(*span)}
        for entity in story.entities:
            edge = r"\b" if story.language == "en" else ""
            if len(entity.name) > 1:  # a single Chinese character may be part of other words
                for match in re.finditer(f"{edge}{re.escape(entity.name)}{edge}", story.text):
                    assert marked.issuperset(range(*match.span())), (entity.name, story.text)


def test_nobody_and_nothing_plays_two_roles(stories):
    for story in stories:
        words = story._telling.words.values()
        assert len(set(words)) == len(words), story.text


def test_entities_have_different_names_and_known_types(stories):
    for story in stories:
        names = [entity.name for entity in story.entities]
        assert len(set(names)) == len(names), story.text
        assert {entity.type for entity in story.entities} <= {"person", "animal", "object", "place"}


def test_whoever_is_in_an_event_was_named_before_its_sentence_ends(stories):
    for story in stories:
        first = {entity.name: entity.spans[0][0] for entity in story.entities}
        for event in story.events:
            for name in {event.subject, event.object, event.recipient, event.place} - {""}:
                told_at = first[name] if name in first else story.text.index(name)
                assert told_at < event.end, (event, story.text)


def test_nobody_gives_away_what_another_has(stories):
    for story in stories:
        holder = {}
        for event in story.events:
            if event.verb in GIVES | PUTS:
                assert holder.get(event.object, event.subject) == event.subject, story.text
                holder[event.object] = event.recipient or event.place
            elif event.verb in TAKES:
                holder[event.object] = event.subject


def test_the_outcome_is_what_the_events_lead_to(stories):
    lost_toy = next(story for story in stories if story.plot == "lost_toy")
    name = {entity.role: entity.name for entity in lost_toy.entities}
    assert lost_toy.outcome[name["key"]] == name["hero"]
    assert lost_toy.outcome[name["treat"]] is None  # eaten
    farewell = next(story for story in stories if story.plot == "farewell")
    name = {entity.role: entity.name for entity in farewell.entities}
    assert farewell.outcome[name["key"]] == name["corner"]
    assert farewell.outcome[name["treasure"]] == name["friend"]


def test_titles_are_short_and_in_the_language_of_the_story(stories):
    for story in stories:
        assert 0 < len(story.title) < 60
        assert (re.search("[\u4e00-\u9fff]", story.title) is None) == (story.language == "en")


def facts(story):
    """Events and outcome by role, so that they can be compared between languages."""
    role = {entity.name: entity.role for entity in story.entities} | {None: None}
    events = [
        (event.verb, *(role.get(name, bool(name)) for name in (event.subject, *event[2:5])))
        for event in story.events
    ]
    return events, {role[thing]: role[where] for thing, where in story.outcome.items()}


def test_a_translation_tells_the_same_plan_in_the_other_language(stories):
    for story in stories[:1000]:
        translation = story.translation()
        assert {story.language, translation.language} == {"en", "zh"}
        assert (translation.plot, translation.ending) == (story.plot, story.ending)
        assert translation.held_out == story.held_out
        assert facts(translation) == facts(story)
        assert facts(translation.translation()) == facts(story)


def test_a_translation_knows_its_probability(monkeypatch):
    for translation in [story.translation() for story in take(40, seed=4)]:
        assert derivations(translation.text, monkeypatch) == [pytest.approx(translation.bits)]


# --- Words and plots ----------------------------------------------------------------------------


def classes_of_words():
    return [words for words in lexicon().classes.values() if not isinstance(words, str)]


def test_there_are_a_thousand_words_and_thirty_plots():
    assert len({word for words in classes_of_words() for word in words}) > 1000
    assert len({plot.name for plot in plots()}) == len(plots()) > 30


def test_words_of_a_class_differ_in_both_languages():
    for words in classes_of_words():
        assert len({word.en for word in words}) == len({word.zh for word in words}) == len(words)


def beats(steps):
    for step in steps:
        if isinstance(step, Beat):
            yield step
        elif isinstance(step, Fork):
            for branch in step.branches.values():
                yield from beats(branch)
        elif isinstance(step, Scene):
            yield from beats(scenes()[step.name].steps)


def slots(nodes):
    for node in nodes:
        if isinstance(node, Slot):
            yield node
        elif isinstance(node, list):
            for alternative in node:
                yield from slots(alternative)


def test_every_slot_has_words_and_every_word_the_form_it_is_asked_for():
    for plot in (*plots(), *scenes().values()):
        for beat in beats(plot.steps):
            for language, template in (("en", beat.en), ("zh", beat.zh)):
                for slot in slots(compile_template(template, language)):
                    telling = Telling(language, Tape(lambda: 0.0))
                    telling.cast = plot.cast
                    for word in telling._options(slot.role):
                        assert slot.form in telling.forms(word), (plot.name, slot)


def test_events_name_roles_that_the_plot_mentions():
    for plot in plots():
        for beat in beats(plot.steps):
            for roles in parse_events(beat.events):
                assert len(roles) == 5
                for role in filter(None, (roles[0], *roles[2:])):
                    mention = re.compile(rf"\{{{role}[.}}]|\{{{role.capitalize()}[.}}]")
                    texts = [b.en + b.zh for b in beats((*scenes()["opening"].steps, *plot.steps))]
                    assert any(mention.search(text) for text in texts), (plot.name, role)


def test_a_file_of_ones_own_is_told_too_and_after_ours(tmp_path, monkeypatch):
    ours = [plot.name for plot in plots()]
    for file in screenplay.PLOTS.glob("*.txt"):
        shutil.copy(file, tmp_path)
    lost = (tmp_path / "lost.txt").read_text(encoding="utf-8")
    one = lost[lost.index("plot ") :].split("\nplot ")[0].splitlines()
    one[0] = "plot mine"
    (tmp_path / "a.txt").write_text("\n".join(one), encoding="utf-8")
    monkeypatch.setattr(screenplay, "PLOTS", tmp_path)
    assert [plot.name for plot in plots.__wrapped__()] == [*ours, "mine"]
