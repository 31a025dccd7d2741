"""Task metrics: what they are by hand, and what the known libraries say; and what guessing is."""

import random
from itertools import pairwise

import numpy as np
import pytest
import sacrebleu
import seqeval.metrics
from matplotlib import pyplot
from matplotlib.figure import Figure
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score

from support.metrics import (
    choice_numbers,
    class_numbers,
    class_report,
    confusion,
    draw_confusion,
    entities,
    entity_numbers,
    entity_report,
    text_numbers,
    width,
    words,
)

TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-地点"]
VERSES = [
    "The cat sat on the mat.",
    "It's 3.5 km to St. Ives, isn't it?",
    "A dog -- an old one -- slept!",
    "where the cat and the dog met",
    "",
]


def random_tags(number, seed):
    """Sequences of any tags in any order, as long for each seed."""
    lengths, draws = random.Random(0), random.Random(seed)
    return [draws.choices(TAGS, k=lengths.randint(1, 12)) for _ in range(number)]


# --- Classification -----------------------------------------------------------------------------


def test_class_numbers_are_those_worked_out_by_hand():
    numbers = class_numbers(["a", "a", "b", "c"], ["a", "b", "b", "what?"], ["a", "b", "c"])
    # F1 of a, b, c: 2/3, 2/3, 0; right 2, among the labels 3 predictions and 4 examples
    expected = {"accuracy": 2 / 4, "macro_f1": 4 / 9, "micro_f1": 4 / 7, "weighted_f1": 1 / 2}
    assert numbers == pytest.approx(expected)


@pytest.mark.parametrize("labels", [["yes", "no"], ["正面", "负面", "中性"], list("abcdefghijk")])
def test_class_numbers_are_those_of_scikit_learn(labels):
    draws = random.Random(len(labels))
    gold, predicted = draws.choices(labels, k=200), draws.choices([*labels, "?", ""], k=200)
    numbers = class_numbers(gold, predicted, labels)
    assert numbers.pop("accuracy") == pytest.approx(accuracy_score(gold, predicted))
    for name, number in numbers.items():
        average = name.removesuffix("_f1")
        expected = f1_score(gold, predicted, labels=labels, average=average, zero_division=0)
        assert number == pytest.approx(expected)


def test_a_label_that_nobody_has_or_predicts_counts_nothing_in_the_macro_average():
    numbers = class_numbers(["a"], ["a"], ["a", "b"])
    assert numbers == {"accuracy": 1, "macro_f1": 0.5, "micro_f1": 1, "weighted_f1": 1}


def test_one_class_and_one_example_are_enough():
    assert set(class_numbers(["猫"], ["猫"], ["猫"]).values()) == {1.0}
    assert set(class_numbers(["猫"], [""], ["猫"]).values()) == {0.0}


def test_a_prediction_outside_the_labels_each_time_is_no_warning():
    gold, predicted = ["a", "b"] * 20, [f"I would say {n}" for n in range(40)]
    assert set(class_numbers(gold, predicted, ["a", "b"]).values()) == {0.0}


def test_predictions_must_be_as_many_as_examples():
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        class_numbers(["a", "a"], ["a"], ["a"])
    with pytest.raises(ValueError, match="0 predictions for 0 examples"):
        text_numbers([], [])


def test_a_gold_label_outside_the_labels_is_told():
    with pytest.raises(ValueError, match="the label 'c' of an example is not among"):
        class_numbers(["a", "c"], ["a", "a"], ["a", "b"])


def test_a_class_report_has_each_class_the_averages_and_what_else_was_said():
    report = class_report(["正面", "正面", "负面"], ["正面", "负面", "不知道"], ["正面", "负面"])
    assert report.splitlines() == [
        "                  precision     recall         F1    support",
        "1 正面               1.0000     0.5000     0.6667          2",
        "2 负面               0.0000     0.0000     0.0000          1",
        "macro average        0.5000     0.2500     0.3333          3",
        "micro average        0.5000     0.3333     0.4000          3",
        "weighted average     0.6667     0.3333     0.4444          3",
        "accuracy 0.3333: 1 of 3 correct",
        "predictions that are not among the labels: 1, such as '不知道'",
    ]


def test_no_line_of_a_class_report_is_wider_than_80_columns_and_the_table_is_even():
    labels = ["很长的标签" * 9, "a long label " * 9, *map(str, range(10))]
    lines = class_report(labels, [*labels[:-1], "完全不同" * 30], labels).splitlines()
    assert max(map(width, lines)) == 80
    assert {width(line) for line in lines[: 1 + 12 + 3]} == {80}
    assert lines[1].startswith(" 1 很长的标签")
    assert "…" in lines[1] and "…" in lines[2] and lines[-1].endswith("…")


# --- The picture --------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function that draws a confusion matrix and returns the axes of the picture."""
    monkeypatch.setattr(pyplot, "close", lambda figure: None)

    def draw(*answers):
        draw_confusion(tmp_path / "confusion.png", *answers)
        assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
        return pyplot.gcf().axes[0]

    yield draw
    monkeypatch.undo()
    pyplot.close("all")


def written(axes, which):
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def test_a_confusion_matrix_has_gold_rows_and_predicted_columns():
    gold, predicted = ["a", "a", "a", "b"], ["a", "b", "b", "b"]
    assert confusion(gold, predicted, ["a", "b"]).tolist() == [[1, 2], [0, 1]]
    predicted = ["a", "b", "?", "b"]
    assert confusion(gold, predicted, ["a", "b"]).tolist() == [[1, 1, 1], [0, 1, 0]]


def test_the_picture_shows_labels_and_counts(drawn):
    axes = drawn(["$^$", "$^$", "$2"], ["$2", "$2", "no"], ["$^$", "$2"])  # no formulas
    assert written(axes, "x") == ["$^$", "$2", "(none of these)"]
    assert written(axes, "y") == ["$^$", "$2"]
    assert [text.get_text() for text in axes.texts] == ["2", "1"]


def test_chinese_labels_are_never_boxes(drawn):  # matplotlib would warn, and a warning is an error
    axes = drawn(["正面", "负面"], ["负面", "负面"], ["正面", "负面"])
    assert written(axes, "x") in (["正面", "负面"], ["1", "2"])


def test_labels_that_no_font_has_are_numbers(drawn, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    axes = drawn(["正面", "负面"], ["别的", "负面"], ["正面", "负面"])
    assert written(axes, "x") == ["1", "2", "(none of these)"]
    assert written(axes, "y") == ["1", "2"]


def test_a_file_that_is_no_font_is_passed_over(drawn, monkeypatch, tmp_path):
    (tmp_path / "no.ttf").write_text("not a font", encoding="utf-8")
    fonts = [str(tmp_path / "no.ttf"), str(tmp_path / "gone.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: fonts)
    assert written(drawn(["猫"], ["猫"], ["猫"]), "x") == ["1"]


def test_twenty_classes_get_twenty_rows_and_nothing_lies_on_another(drawn, monkeypatch):
    labels = [f"class number {n}" for n in range(20)]
    monkeypatch.setattr("support.metrics.confusion", lambda *_: np.full((20, 20), 9000))
    axes = drawn(labels, labels, labels)
    boxes = [text.get_window_extent() for text in axes.texts]
    rows = [boxes[start : start + 20] for start in range(0, 400, 20)]
    assert all(a.x1 < b.x0 for row in rows for a, b in pairwise(row))
    assert all(a[0].y0 > b[0].y1 for a, b in pairwise(rows))  # the first row stands on top
    names = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(names))


def test_hundreds_of_classes_are_colors_with_some_of_their_names(drawn):
    labels = [f"class number {n}" for n in range(300)]
    axes = drawn(labels, labels, labels)
    assert not axes.texts and written(axes, "y") == labels[::8]
    assert max(axes.figure.get_size_inches()) < 25
    names = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(names))


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_confusion(path, ["a"], ["a"], ["a"])
    pyplot.close("all")
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]
    assert path.read_bytes() == b"old"


# --- Tagging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("O I-PER I-PER", [("PER", 1, 3)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("B-大-小 I-大-小 I-大", [("大-小", 0, 2), ("大", 2, 3)]),
    ],
)
def test_entities_are_found_as_conll_counts_them(tags, expected):
    assert entities(tags.split()) == expected


def test_entities_of_any_tags_are_those_of_seqeval():
    for tags in random_tags(2000, seed=1):
        assert [(kind, start, end - 1) for kind, start, end in entities(tags)] == get_entities(tags)


@pytest.mark.parametrize("number", [1, 3, 500])
def test_entity_numbers_are_those_of_seqeval(number):
    for seed in range(1, 6):
        gold, predicted = random_tags(number, seed), random_tags(number, seed + 100)
        numbers = entity_numbers(gold, predicted)
        for name in ("precision", "recall", "f1"):
            score = getattr(seqeval.metrics, f"{name}_score")
            expected = score(gold, predicted, zero_division=0)
            assert numbers[f"entity_{name}"] == pytest.approx(expected)


def test_entity_numbers_are_those_worked_out_by_hand():
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "B-PER"], ["I-LOC", "I-LOC"]]  # one right of 3, one of 2 found
    expected = {"entity_precision": 1 / 3, "entity_recall": 1 / 2, "entity_f1": 2 / 5}
    assert entity_numbers(gold, predicted) == pytest.approx(expected)


def test_the_same_entity_in_another_sentence_is_not_right():
    gold, predicted = [["B-PER"], ["O"]], [["O"], ["B-PER"]]
    assert set(entity_numbers(gold, predicted).values()) == {0.0}


def test_without_any_entities_all_numbers_are_0():
    assert set(entity_numbers([["O", "O"]], [["O", "O"]]).values()) == {0.0}
    assert len(entity_report([["O"]], [["O"]]).splitlines()) == 2


def test_tags_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="sequence 1: 2 tags for 1 tokens"):
        entity_numbers([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        entity_numbers([["O"], ["O"]], [["O"]])


def test_an_entity_report_has_each_type_that_is_there_or_was_said():
    gold = [["B-人", "I-人", "O", "B-人"]]
    predicted = [["B-人", "I-人", "B-LOC", "O"]]
    assert entity_report(gold, predicted).splitlines() == [
        "               precision     recall         F1    support",
        "LOC               0.0000     0.0000     0.0000          0",
        "人                1.0000     0.5000     0.6667          2",
        "micro average     0.5000     0.5000     0.5000          2",
    ]


# --- Text ---------------------------------------------------------------------------------------


def test_words_are_in_lower_case_without_punctuation_and_chinese_characters_alone():
    assert words("The CAT's 2nd hat_box, café!") == ["the", "cat", "s", "2nd", "hat", "box", "café"]
    assert words("“猫”有3只，叫Tom猫。") == ["猫", "有", "3", "只", "叫", "tom", "猫"]
    assert words("cafe\u0301 𠀀") == ["café", "𠀀"]  # an accent of its own; a rare character
    assert words("１２３元 ＡＢ") == ["123", "元", "ab"]  # full width
    assert words(" …!") == []


def test_words_of_plain_english_are_those_of_rouge():
    for text in VERSES:
        assert words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_text_numbers_are_those_worked_out_by_hand():
    numbers = text_numbers(["The cat sat.", " yes "], ["the cat ran home", "yes"])
    # Of 3 and 4 words 2 are shared, of 2 and 3 pairs 1; "yes" has no pair.
    assert numbers["exact_match"] == 1 / 2
    for name in ("token_f1", "rouge1", "rougeL"):
        assert numbers[name] == pytest.approx((4 / 7 + 1) / 2)
    assert numbers["rouge2"] == pytest.approx((2 / 5 + 0) / 2)
    assert "line_f1" not in numbers


def test_text_numbers_of_chinese_are_those_worked_out_by_hand():
    numbers = text_numbers(["猫在家。"], ["猫不在家"])
    for name in ("token_f1", "rouge1", "rougeL"):
        assert numbers[name] == pytest.approx(6 / 7)
    assert numbers["rouge2"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("pair", [("a b c d e", "a b c d f"), ("猫在家里睡", "猫在家里吃")])
def test_bleu_is_the_one_worked_out_by_hand(pair):
    bleu = text_numbers([pair[0]], [pair[1]])["bleu"]
    assert bleu == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))


def test_repeated_words_count_as_often_as_both_have_them():
    assert text_numbers(["no no yes"], ["no no no no"])["token_f1"] == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [(VERSES, "13a"), (["小猫坐在垫子上。", "the dog 看见了一只猫。"], "zh")],
)
def test_bleu_and_chrf_are_those_of_sacrebleu(references, tokenizer):
    answers = [reference[:-3] + " dog 猫。" for reference in references]
    stripped = [answer.strip() for answer in answers]
    bleu = sacrebleu.corpus_bleu(stripped, [references], tokenize=tokenizer).score
    chrf = sacrebleu.corpus_chrf(stripped, [references]).score
    numbers = text_numbers(references, answers)
    assert (numbers["bleu"], numbers["chrf"]) == pytest.approx((bleu, chrf))
    assert 0 < bleu < 100


def test_rouge_of_plain_english_is_the_library_s_own():
    answers = [verse.replace("cat", "dog") for verse in reversed(VERSES)]
    numbers = text_numbers(VERSES, answers)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(a, b) for a, b in zip(VERSES, answers)]
    for name in ("rouge1", "rouge2", "rougeL"):
        mean = sum(score[name].fmeasure for score in scores) / len(scores)
        assert numbers[name] == pytest.approx(mean)
        assert 0 < mean < 1


def test_an_empty_answer_counts_0():
    assert set(text_numbers(["a cat"], [""]).values()) == {0.0}
    assert set(text_numbers(["一只猫"], [" \n"]).values()) == {0.0}


def test_the_reference_itself_reaches_everything():
    text = "a cat sat on a mat\n猫坐在垫子上"
    top = {"bleu": 100, "chrf": 100}
    for name, number in text_numbers([text], [f" {text}\n"]).items():
        assert number == pytest.approx(top.get(name, 1))


@pytest.mark.parametrize(("answer", "f1"), [("", 0), ("!", 0), ("a", 0), (" … ", 1)])
def test_texts_without_words_are_compared_as_they_are(answer, f1):
    assert text_numbers(["…"], [answer])["token_f1"] == f1


def test_short_answers_that_are_right_have_a_bleu_of_100():
    numbers = text_numbers(["北京", "上海"], ["北京", "上海"])
    assert numbers["bleu"] == pytest.approx(100)
    assert text_numbers(["北京", "上海"], ["北京", "广州"])["bleu"] == pytest.approx(50)


def test_lines_count_in_whatever_order_and_as_often_as_both_have_them():
    references = ["a cat\nb\nb\n\nc", "d"]
    answers = ["b \nx\na cat", "d"]  # 3 of 4 are right, of 5 that are there
    assert text_numbers(references, answers)["line_f1"] == pytest.approx(2 * 3 / (4 + 5))


def test_the_likeliest_choice_counts_in_all_and_by_its_length():
    lines = [
        {"choices": ["ab", "abcdefgh"], "label": 0},
        {"choices": ["ab", "abcdefgh"], "label": 1},
        {"choices": ["猫跑回家", "ab"], "label": 0},  # four characters
    ]
    scores = [[-4.0, -8.0], [-4.0, -8.0], [-3.0, -2.0]]
    assert choice_numbers(lines, scores) == {"accuracy": 1 / 3, "acc_norm": 2 / 3}
    with pytest.raises(ValueError, match="2 predictions for 3 examples"):
        choice_numbers(lines, scores[:2])
