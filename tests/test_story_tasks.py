"""Examples to fine-tune on: their answers are right, and their splits have nothing in common."""

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from zlib import crc32

import pytest

import prepare_data
from support.files import replacing_tree
from support.stories import generate
from support.stories.english import plural
from support.stories.screenplay import plots
from support.stories.tasks import (
    ANSWER,
    BLUE,
    MAKERS,
    PLOTS_KEPT_BACK_ONE_IN,
    RELATIONS,
    TITLE,
    TRANSLATION,
    at_place,
    chat,
    colours,
    entities,
    forms_of_questions,
    memory,
    mood,
    nouns_by_name,
    preference,
    qa,
    questions,
    relations,
    story_tasks,
    title,
    translation,
)

SHARE = 0.03


@pytest.fixture(scope="module")
def stories():
    return list(islice(generate(seed=0), 1000))


@pytest.fixture(scope="module")
def tasks():
    return story_tasks(seed=1, share=SHARE)


def first(options):
    return options[0]


def middle(options):
    return options[len(options) // 2]


def is_chinese(text):
    return re.search("[\u4e00-\u9fff]", text) is not None


# --- Questions ----------------------------------------------------------------------------------


def test_every_answer_is_told_by_the_story(stories):
    for story in stories:
        for _, question, answer, beat in questions(story):
            assert answer in story.text[slice(*story.beats[beat])], question
            assert answer not in question
            assert is_chinese(question) == is_chinese(answer) == (story.language == "zh")
            assert "{" not in question and "  " not in question


def test_a_question_has_one_answer_and_some_event_says_so(stories):
    for story in stories:
        asked = [question for _, question, _, _ in questions(story)]
        assert len(set(asked)) == len(asked)
        hero = next(entity.name for entity in story.entities if entity.role == "hero")
        facts = {field for event in story.events for field in event[:5]} | {hero}
        facts |= {at_place(name) for name in facts if name in nouns_by_name()}
        assert {answer for _, _, answer, _ in questions(story)} <= facts


def test_givers_and_receivers_are_those_of_the_events(stories):
    wordings = {form.kind: form.wording for form in forms_of_questions()["give"]}
    seen = 0
    for story in stories:
        asked = {question: answer for _, question, answer, _ in questions(story)}
        for event in story.events:
            if event.verb == "give" and story.language == "zh":
                names = {"object": event.object, "recipient": event.recipient}
                question = wordings["giver"]["zh"].format(**names)
                assert asked.get(question, event.subject) == event.subject
                seen += question in asked
    assert seen > 200


def test_who_has_the_thing_at_the_end_is_the_outcome(stories):
    for story in stories:
        key = next(entity.name for entity in story.entities if entity.role == "key")
        for kind, _, answer, _ in questions(story):
            if kind == "owner":
                assert story.outcome[key] == answer


def test_nobody_is_asked_about_when_others_took_part(stories):
    quarrels = [story for story in stories if story.plot in ("quarrel", "fallen_nestling")]
    kinds = {kind for story in quarrels for kind, _, _, _ in questions(story)}
    assert "found" in kinds and not {"finder", "breaker"} & kinds


def test_a_family_is_the_heros_and_only_names_stand_without_an_article(stories):
    asked = [
        question
        for story in stories
        if story.language == "en"
        for _, question, _, _ in questions(story)
    ]
    assert any(re.search(r"[A-Z]\w+'s (mother|big brother)", question) for question in asked)
    for question in asked:
        assert not re.search(r"\b(to|did) (?!the )[a-z]", question.replace("to?", "?"))


def test_questions_are_of_many_kinds_and_a_conversation_asks_what_was_asked_least():
    stories, kinds, asked = list(islice(generate(seed=5), 500)), Counter(), Counter()
    for story in stories:
        kinds.update(kind for kind, _, _, _ in questions(story))
        chat(story, first, asked)
    assert len(kinds) >= 18
    assert max(kinds.values()) < 0.25 * kinds.total()
    assert asked["giver"] / asked.total() < kinds["giver"] / kinds.total()


def test_each_question_is_asked_of_the_sentence_that_answers_it(stories):
    for story in stories[:200]:
        for example in qa(story, first, Counter()):
            sentence = example["prompt"].split("\n\n")[0]
            assert sentence in story.text
            assert example["completion"].strip() in sentence


# --- The other tasks ----------------------------------------------------------------------------


def test_a_title_and_a_mood_are_the_storys_own(stories):
    titles = 0
    for story in stories[:200]:
        for example in title(story, first, Counter()):
            titles += 1
            hero, key = (
                next(entity.name for entity in story.entities if entity.role == role)
                for role in ("hero", "key")
            )
            assert key.lower() in example["prompt"].lower() or plural(key) in example["prompt"]
            assert example["prompt"].removesuffix(TITLE[story.language]) in story.text
            assert example["completion"].strip() == story.title
            assert re.search(f"{hero}|{key}", story.title, re.IGNORECASE)
        for example in mood(story, first, Counter()):
            assert example == {"text": story.text_before_ending, "label": story.ending}
    assert titles > 50


def test_the_text_before_the_ending_lacks_the_last_two_sentences_of_the_plot(stories):
    for story in stories:
        start, end = story.beats[-2][0], story.beats[-1][1]
        assert story.text_before_ending == story.text[:start].rstrip()
        assert end == len(story.text)


def test_moods_are_balanced_and_their_plots_held_out(tasks):
    for examples in tasks["mood"].values():
        labels = Counter(example["label"] for example in examples)
        assert set(labels) == {"happy", "sad"}
        assert abs(labels["happy"] - labels["sad"]) <= 1
    kept_back = {plot.name for plot in plots()[1::PLOTS_KEPT_BACK_ONE_IN]}
    for held_out in (False, True):
        for story in islice(generate(2, held_out), 100):
            if mood(story, first, Counter()):
                assert (story.plot in kept_back) == held_out


def entities_in(example, gap):
    """(type, text) of each entity that the tags mark; raises AssertionError for tags not in BIO."""
    found, last = [], "O"
    for token, tag in zip(example["tokens"], example["tags"], strict=True):
        if tag[0] == "B":
            found.append((tag[2:], token))
        elif tag[0] == "I":
            assert last[2:] == tag[2:]
            found[-1] = (tag[2:], found[-1][1] + gap + token)
        else:
            assert tag == "O"
        last = tag
    return found


def test_tags_mark_exactly_the_entities_of_the_first_paragraph(stories):
    for story in stories:
        (example,) = entities(story, first, Counter())
        gap = " " if story.language == "en" else ""
        paragraph = story.text.split("\n")[0]
        assert "".join(example["tokens"]) == re.sub(r"\s", "", paragraph)
        marked = [
            (start, entity)
            for entity in story.entities
            for start, _ in entity.spans
            if start < len(paragraph)
        ]
        names = [entity.name for _, entity in sorted(marked, key=first)]
        found = entities_in(example, gap)
        assert len(found) == len(names)
        for (_, text), name in zip(found, names, strict=True):
            assert text in (name, name.capitalize(), plural(name))
        hero = next(entity.name for entity in story.entities if entity.role == "hero")
        assert {text for tag, text in found if tag == "HERO"} == {hero}


def test_relations_are_events_whose_names_stand_in_the_excerpt(stories):
    for story in stories:
        told = {" | ".join(filter(None, event[:5])) for event in story.events}
        for example in relations(story, middle, Counter()):
            excerpt = example["prompt"].removesuffix(RELATIONS[story.language])
            assert excerpt in story.text
            lines = example["completion"].split("\n")
            assert 1 <= len(lines) <= 3 and set(lines) <= told
            for subject, _, *others in (line.split(" | ") for line in lines):
                assert all(name in excerpt for name in (subject, *others))


def test_a_translation_pairs_sentences_that_name_the_same(stories):
    for story in stories[:300]:
        assert len(story.translation().beats) == len(story.beats)
        examples = translation(story, middle, Counter())
        assert len({example["prompt"] for example in examples}) == len(examples) == 3
        for example in examples:
            source = example["prompt"].removesuffix(TRANSLATION[story.language])
            target = example["completion"]
            assert source in story.text and is_chinese(source) != is_chinese(target)
            assert target.startswith(" ") == (story.language == "zh")
            for entity in story.entities:
                if entity.role.startswith("friend") and entity.name in source:
                    word = nouns_by_name()[entity.name]
                    assert (word.zh if story.language == "en" else word.en) in target


def test_a_conversation_tells_a_story_asks_about_it_and_ends_with_an_answer(stories):
    told = 0
    for story in stories:
        for example in chat(story, first, Counter()):
            told += 1
            messages = example["messages"]
            roles = [message["role"] for message in messages]
            assert roles == ["user", "assistant"] * (len(roles) // 2) and len(roles) >= 4
            hero = next(entity.name for entity in story.entities if entity.role == "hero")
            assert hero in messages[0]["content"]
            right = {question: answer for _, question, answer, _ in questions(story)}
            parts = []
            for question, answer in zip(messages[::2], messages[1::2], strict=True):
                if question["content"] in right:
                    assert right[question["content"]] == answer["content"]
                else:
                    parts.append(answer["content"])
            assert messages[-2]["content"] in right
            whole = "".join(parts).replace(" ", "").replace("\n", "")
            assert story.text.replace(" ", "").replace("\n", "").startswith(whole)
            assert len("".join(m["content"] for m in messages).encode()) < 800
    assert told > 900


# --- Splits and files ---------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_examples(tasks):
    assert story_tasks(seed=1, share=SHARE) == tasks
    assert story_tasks(seed=2, share=SHARE) != tasks


def test_no_example_is_in_two_splits(tasks):
    assert list(tasks) == list(MAKERS)
    for splits in tasks.values():
        made = {split: set(map(json.dumps, examples)) for split, examples in splits.items()}
        assert not made["train"] & made["test"]
        assert not made["train"] & made["val"]
        assert not made["val"] & made["test"]


def test_training_examples_are_of_training_stories_and_the_others_of_held_out_ones(tasks):
    for split, examples in tasks["title"].items():
        texts = {re.split("\n\n", example["prompt"])[0] for example in examples}
        stories = generate(crc32(b"tasks 1"), held_out=split != "train")
        told = "".join(story.text for story in islice(stories, 8 * len(texts)))
        assert all(text in told for text in texts)


def test_a_language_may_be_asked_for():
    for language in ("en", "zh"):
        made = story_tasks(seed=3, language=language, share=0.01)
        for example in made["qa"]["train"]:
            assert is_chinese(example["prompt"]) == (language == "zh")
            ending = re.sub(r"\{\}", "", ANSWER[language])[-3:]
            assert example["prompt"].endswith(ending)
            assert example["completion"].startswith(" ") == (language == "en")


def test_what_a_story_is_about_is_asked_for_where_it_is_named_for_the_last_time(stories):
    places, languages = Counter(), Counter()
    for story in stories:
        for example in memory(story, first, Counter()):
            right = example["choices"][example["label"]]
            told = example["prompt"]
            assert story.text.startswith(told) and right in told
            assert story.text[len(told) :].lstrip().startswith(right)
            wrong = {choice for choice in example["choices"] if choice != right}
            assert len(wrong) == 3 and not any(choice in story.text for choice in wrong)
            places[example["label"]] += 1
            languages[story.language] += 1
    assert min(places.values()) > 0.2 * sum(places.values()) and len(places) == 4
    assert sum(places.values()) > 500 and min(languages.values()) > 200


def test_of_two_ways_to_go_on_the_better_one_is_blue_and_nothing_else_differs(stories):
    languages = Counter()
    for story in stories:
        blue = BLUE[story.language]
        for pair in preference(story, first, Counter()):
            told, chosen, rejected = (pair[name] for name in ("prompt", "chosen", "rejected"))
            assert story.text in (told + rejected, told + rejected.strip())
            assert chosen.strip().startswith(blue)
            colour = colours(story.language)
            assert colour.split(chosen) == colour.split(rejected)
            pairs = set(zip(colour.findall(chosen), colour.findall(rejected), strict=True))
            assert len([pair for pair in pairs if pair[0] != pair[1]]) == 1
            assert not told.endswith(" an")
            languages[story.language] += 1
    assert min(languages.values()) > 200


def test_a_colour_is_a_whole_word_and_no_afternoon_has_one():
    assert colours("en").findall("a ruby-red hat, a red one, one golden afternoon, tired") == [
        "ruby-red",
        "red",
    ]
    assert colours("zh").findall("枣红色的帽子，粉红色毛衣，金色的午后") == ["枣红色", "粉红色"]


def test_preparing_stories_writes_its_tasks_anew_and_leaves_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, older = (Path(f"data/stories/tasks/{name}/train.jsonl") for name in ("own", "qa"))
    for path in (own, older):
        path.parent.mkdir(parents=True)
        path.write_text("{}\n", encoding="utf-8")
    prepare_data.main(["stories", "--megabytes=0.3", "--tokenizer=byte"])
    assert own.read_text() == "{}\n" != older.read_text(encoding="utf-8")
    folder = Path("data/stories/tasks")
    assert {path.name for path in folder.iterdir()} == {*MAKERS, "own"}
    for path in {*folder.glob("*/*.jsonl")} - {own}:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) >= 10 and all(isinstance(json.loads(line), dict) for line in lines)
    assert is_chinese((folder / "qa" / "train.jsonl").read_text(encoding="utf-8"))
    out = capsys.readouterr().out
    assert "\n  tasks       qa, title, mood" in out
    assert max(map(len, out.splitlines())) <= 80


def test_text_of_ones_own_has_no_tasks_and_leaves_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one two three " * 50, encoding="utf-8")
    prepare_data.main(["a.txt", "--tokenizer=byte"])
    assert not Path("data/a/tasks").exists()
    Path("data/a/tasks").mkdir()
    prepare_data.main(["a.txt", "--tokenizer=byte"])
    assert Path("data/a/tasks").exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    older = tmp_path / "x" / "older"
    older.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), replacing_tree(tmp_path / "x") as new:
        (new / "half").touch()
        raise KeyboardInterrupt
    assert older.exists() and [path.name for path in tmp_path.iterdir()] == ["x"]
    with replacing_tree(tmp_path / "x") as new:
        (new / "newer").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "newer"]
