"""Task metrics of finetune.py: how good the answers are.

They compare labels, tags and texts, wherever these come from; nothing here depends on a model. The
libraries take about a second to import, so each is imported where it is used.
"""

from collections import Counter
from types import SimpleNamespace
from unicodedata import east_asian_width, normalize

import numpy as np
import regex

from support.files import replacing_figure

# A word, or a single Chinese character, which counts as a word; punctuation does not match.
WORD = regex.compile(r"(?V1)\p{Han}|[\p{L}\p{M}\p{N}--\p{Han}]+")
CHINESE = regex.compile(r"\p{Han}")

ROUNDING = 1e-4  # of log-probabilities
COLUMNS = 80
LABEL_COLUMNS = COLUMNS - 4 * 11  # for the names in a table; the rest is for four numbers
PICTURED_COLUMNS = 20  # for a label in a figure
PICTURED_CLASSES = 40  # with more, a figure has colors alone, and names some of the labels
NO_LABEL = "(none of these)"


def check_pairs(gold, predicted):
    """Raise ValueError unless there is one answer for each example."""
    if not gold or len(gold) != len(predicted):
        raise ValueError(
            f"{len(predicted)} predictions for {len(gold)} examples: "
            "expected one for each, and at least one"
        )


def shares(common, predicted, gold):
    """Precision, recall and F1 from three counts; 0 where the denominator is 0."""
    precision = common / predicted if predicted else 0.0
    recall = common / gold if gold else 0.0
    return precision, recall, 2 * common / (predicted + gold) if predicted + gold else 0.0


def table(rows):
    """Rows (name, precision, recall, F1, support) as text of at most 80 columns."""
    names = [cut(row[0], LABEL_COLUMNS) for row in rows]
    columns = max(map(width, names))
    lines = [" " * columns + f"{'precision':>11}{'recall':>11}{'F1':>11}{'support':>11}"]
    for name, (_, precision, recall, f1, support) in zip(names, rows):
        numbers = f"{precision:>11.4f}{recall:>11.4f}{f1:>11.4f}{support:>11,}"
        lines.append(name + " " * (columns - width(name)) + numbers)
    return "\n".join(lines)


def width(text):
    """The columns that a text takes in a terminal: two for a Chinese character."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def cut(text, columns):
    """The text cut to this many columns, ending in … if it is too long."""
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


# ---------------------------------------------------------------------------- multiple choice


def choice_numbers(lines, scores):
    """{"accuracy", "acc_norm"} of choosing the text with the highest log-probability.

    lines: dicts with "choices" and the index "label" of the right one; scores: a list for each line
    with the log-probability of each choice. For acc_norm they are divided by the number of the
    choice's characters, as in lm-evaluation-harness: else a long choice is seldom the likeliest.
    """
    check_pairs(lines, scores)
    right = right_by_length = 0
    for line, of_line in zip(lines, scores):
        by_length = [score / len(text) for score, text in zip(of_line, line["choices"])]
        right += of_line.index(max(of_line)) == line["label"]
        right_by_length += by_length.index(max(by_length)) == line["label"]
    return {"accuracy": right / len(lines), "acc_norm": right_by_length / len(lines)}


def preference_numbers(answers, beta):
    """{"accuracy", "margin", "likelier"} of pairs of answers, the better one first.

    answers: dicts with "gains", a pair; accuracy: how often the better answer has the larger gain
    (ties count half); margin: the mean difference of the rewards, which are beta times the gains.
    And where they have "log_probabilities", how often the better one is the likelier to be written.
    """
    check_pairs(answers, answers)
    margins = [better - worse for better, worse in (answer["gains"] for answer in answers)]
    numbers = {"accuracy": sum(map(wins, margins)) / len(margins)}
    scores = [answer["log_probabilities"] for answer in answers if "log_probabilities" in answer]
    if scores:
        mean = sum(margins) / len(margins)
        numbers["margin"] = beta * mean if abs(mean) >= ROUNDING else 0.0
        numbers["likelier"] = sum(wins(better - worse) for better, worse in scores) / len(scores)
    return numbers


def wins(margin):
    """1 if it is positive, 0.5 if there is none beyond rounding."""
    return 0.5 if abs(margin) < ROUNDING else float(margin > 0)


# ---------------------------------------------------------------------------- classification


def class_numbers(gold, predicted, labels):
    """{"accuracy", "macro_f1", "micro_f1", "weighted_f1"} of predicted labels, from 0 to 1.

    gold, predicted: lists of str; labels: all labels. A prediction that is not one of them is a
    false negative of the gold class and a false positive of none. The macro average weights all
    labels equally; one without examples counts as 0. Raises ValueError if the lists differ in
    length or a gold label is not in labels.
    """
    from sklearn.metrics import accuracy_score

    gold_numbers, predicted_numbers = in_numbers(gold, predicted, labels)
    scores = {"accuracy": float(accuracy_score(gold_numbers, predicted_numbers))}
    for average in ("macro", "micro", "weighted"):
        _, _, f1, _ = class_scores(gold_numbers, predicted_numbers, labels, average)
        scores[f"{average}_f1"] = float(f1)
    return scores


def class_report(gold, predicted, labels):
    """A table of each class and of the averages, as text of at most 80 columns.

    The classes are numbered, as in a confusion matrix whose figure cannot show their names.
    """
    gold_numbers, predicted_numbers = in_numbers(gold, predicted, labels)
    digits = len(str(len(labels)))
    names = [f"{number:>{digits}} {label}" for number, label in enumerate(labels, start=1)]
    rows = list(zip(names, *class_scores(gold_numbers, predicted_numbers, labels)))
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = class_scores(gold_numbers, predicted_numbers, labels, average)
        rows.append((f"{average} average", precision, recall, f1, len(gold)))
    right = sum(a == b for a, b in zip(gold, predicted))
    lines = [table(rows), f"accuracy {right / len(gold):.4f}: {right:,} of {len(gold):,} correct"]
    unknown = [text for text, number in zip(predicted, predicted_numbers) if number == len(labels)]
    if unknown:
        start = f"predictions that are not among the labels: {len(unknown):,}, such as "
        lines.append(start + cut(repr(unknown[0]), COLUMNS - len(start)))
    return "\n".join(lines)


def in_numbers(gold, predicted, labels):
    """Both lists of labels as lists of indices; a prediction not in labels becomes len(labels)."""
    check_pairs(gold, predicted)
    number = {label: n for n, label in enumerate(labels)}
    unknown = sorted(set(gold) - set(labels))
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} of an example is not among {labels}")
    return [number[text] for text in gold], [number.get(text, len(labels)) for text in predicted]


def class_scores(gold, predicted, labels, average=None):
    """scikit-learn's precision, recall, F1 and support, of each class or averaged."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = range(len(labels))
    return precision_recall_fscore_support(
        gold, predicted, labels=classes, average=average, zero_division=0
    )


def draw_confusion(path, gold, predicted, labels):
    """Save the confusion matrix as a PNG file: a row for each label, a column for each prediction.

    If no installed font has the characters of the labels, their numbers in class_report are shown
    instead. Predictions that are not among the labels get a column of their own. Beyond
    PICTURED_CLASSES the figure grows no further: it has no counts, and only every n-th name.
    """
    counts = confusion(gold, predicted, labels)
    rows, columns = counts.shape
    font = font_for("".join(labels) + NO_LABEL + "…")
    names = [cut(label, PICTURED_COLUMNS) for label in labels]
    if font is None:
        names = [str(number) for number in range(1, rows + 1)]
        print(f"{path}: no installed font has the labels' characters; it has the numbers below")
    names += [NO_LABEL] * (columns - rows)
    nth = 1 + (rows - 1) // PICTURED_CLASSES
    inches = 2.5 + 0.5 * columns / nth, 2 + 0.5 * rows / nth
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    upright = {"rotation": 90} if max(map(width, names)) > 3 else {}
    as_written = {"parse_math": False, "fontproperties": font, "size": 9}  # $ is just a character
    with replacing_figure(path, inches) as axes:
        axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.argwhere(counts) if nth == 1 else []:
            color = "white" if parts[row, column] > 0.5 else "black"
            style = {"color": color, "size": 9, "ha": "center", "va": "center"}
            axes.text(column, row, counts[row, column], **style)
        axes.set_xticks(range(0, columns, nth), names[::nth], **as_written, **upright)
        axes.set_yticks(range(0, rows, nth), names[:rows:nth], **as_written)
        axes.set(xlabel="predicted", ylabel="true")


def confusion(gold, predicted, labels):
    """Counts of (label, prediction): (labels, labels), plus a column for no label if needed."""
    gold_numbers, predicted_numbers = in_numbers(gold, predicted, labels)
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    np.add.at(counts, (gold_numbers, predicted_numbers), 1)
    return counts if counts[:, -1].any() else counts[:, :-1]


def font_for(text):
    """A font with all characters of a text, preferably matplotlib's default; None if there is none.

    This searches the font files: matplotlib's cached list may be older than some of them.
    """
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts
    from matplotlib.ft2font import FT2Font

    def plainness(path):
        return [style in path for style in ("Bold", "Italic", "Light", "Thin", "Serif")], path

    for path in [findfont(FontProperties()), *sorted(findSystemFonts(), key=plainness)]:
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # not every font file is valid
            continue
        if font.scalable and all(font.get_char_index(ord(character)) for character in text):
            return FontProperties(fname=path)
    return None


# ----------------------------------------------------------------------------------- tagging


def entities(tags):
    """The entities of a BIO sequence as (type, start, end), which are the tokens [start:end].

    As in CoNLL's evaluation (Tjong Kim Sang & Buchholz 2000, conlleval), an I- that follows O or
    another type also begins an entity.
    """
    found, kind, start = [], None, 0
    for place, tag in enumerate([*tags, "O"]):
        position, _, named = tag.partition("-")
        if position == "I" and named == kind:
            continue
        if kind is not None:
            found.append((kind, start, place))
        kind, start = (named if position in ("B", "I") else None), place
    return found


def entity_numbers(gold, predicted):
    """{"entity_precision", "entity_recall", "entity_f1"} over all entities, from 0 to 1.

    gold, predicted: lists of sequences of tags. An entity is correct if its type and both ends are.
    Raises ValueError if the sequences differ in length.
    """
    totals = [counts.total() for counts in entity_counts(gold, predicted)]
    return dict(zip(("entity_precision", "entity_recall", "entity_f1"), shares(*totals)))


def entity_report(gold, predicted):
    """A table of each entity type and of all together, as text of at most 80 columns."""
    right, found, true = entity_counts(gold, predicted)
    rows = [
        (kind, *shares(right[kind], found[kind], true[kind]), true[kind])
        for kind in sorted(found | true)
    ]
    totals = [counts.total() for counts in (right, found, true)]
    rows.append(("micro average", *shares(*totals), true.total()))
    return table(rows)


def entity_counts(gold, predicted):
    """Three Counters by type: entities that are correct, predicted and gold."""
    check_pairs(gold, predicted)
    right, found, true = Counter(), Counter(), Counter()
    for number, (tags, guesses) in enumerate(zip(gold, predicted)):
        if len(tags) != len(guesses):
            raise ValueError(f"sequence {number}: {len(guesses)} tags for {len(tags)} tokens")
        in_answer, in_reference = set(entities(guesses)), set(entities(tags))
        right.update(kind for kind, _, _ in in_answer & in_reference)
        found.update(kind for kind, _, _ in in_answer)
        true.update(kind for kind, _, _ in in_reference)
    return right, found, true


# -------------------------------------------------------------------------------------- text


def words(text):
    """The words of a text in lower case, without punctuation; each Chinese character is one.

    Characters that differ only in width, such as １２ and 12, are the same.
    """
    return WORD.findall(normalize("NFKC", text).lower())


def text_numbers(references, predictions):
    """Similarity of answers to references, two lists of str; surrounding whitespace is ignored.

    exact_match, token_f1 (SQuAD's, arXiv:1606.05250, on `words`), rouge1, rouge2, rougeL (F1) from
    0 to 1, averaged over the examples; bleu and chrf from 0 to 100, over the corpus (sacrebleu's;
    bleu uses n-grams of up to four words, or as many as the longest answer has). If a reference
    has several lines, also line_f1, over all lines of all examples in any order. Raises ValueError
    if the lists differ in length.
    """
    check_pairs(references, predictions)
    pairs = [(gold.strip(), answer.strip()) for gold, answer in zip(references, predictions)]
    numbers = {
        "exact_match": sum(reference == answer for reference, answer in pairs) / len(pairs),
        "token_f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
        **bleu_and_chrf(pairs),
        **rouge(pairs),
    }
    if any("\n" in reference for reference, _ in pairs):
        numbers["line_f1"] = line_f1(pairs)
    return numbers


def token_f1(reference, answer):
    """F1 of the words that two texts share; for two texts without words, whether they are equal."""
    predicted, gold = words(answer), words(reference)
    if not predicted and not gold:
        return float(normalize("NFKC", reference) == normalize("NFKC", answer))
    common = (Counter(predicted) & Counter(gold)).total()
    return shares(common, len(predicted), len(gold))[-1]


def line_f1(pairs):
    """F1 of the lines that references and answers share, over all pairs."""
    totals = np.zeros(3, dtype=int)
    for pair in pairs:
        gold, answer = (Counter(filter(None, map(str.strip, text.splitlines()))) for text in pair)
        totals += (answer & gold).total(), answer.total(), gold.total()
    return float(shares(*totals)[-1])


def bleu_and_chrf(pairs):
    """sacrebleu's scores of pairs (reference, answer); bleu splits Chinese into characters."""
    import sacrebleu

    references, answers = map(list, zip(*pairs))
    tokenizer = "zh" if any(map(CHINESE.search, references)) else "13a"
    bleu = sacrebleu.BLEU(tokenize=tokenizer, force=True, effective_order=True)
    score = bleu.corpus_score(answers, [references]).score
    return {"bleu": score, "chrf": sacrebleu.corpus_chrf(answers, [references]).score}


def rouge(pairs):
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of pairs (reference, answer), on `words`."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=SimpleNamespace(tokenize=words))
    scores = [scorer.score(*pair) for pair in pairs]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
