"""How good answers are: the task metrics of finetune.py.

Labels, tags and texts are compared here, whatever they came from; nothing knows of a model. The
libraries for it take about a second to import, so each is imported where it is used.
"""

from collections import Counter
from types import SimpleNamespace
from unicodedata import east_asian_width, normalize

import numpy as np
import regex

from support.files import replacing

# A word, or a Chinese character, which is a token of its own; punctuation is neither.
WORD = regex.compile(r"(?V1)\p{Han}|[\p{L}\p{M}\p{N}--\p{Han}]+")
CHINESE = regex.compile(r"\p{Han}")

COLUMNS = 80
LABEL_COLUMNS = COLUMNS - 4 * 11  # of a table; the rest is for four numbers
PICTURED_COLUMNS = 20  # of a label beside a picture
NO_LABEL = "(none of these)"


def check_pairs(gold, predicted):
    """Nothing; raises ValueError where the answers are not one for each example."""
    if not gold or len(gold) != len(predicted):
        raise ValueError(
            f"{len(predicted)} predictions for {len(gold)} examples: "
            "expected one for each, and at least one"
        )


def shares(common, predicted, gold):
    """Precision, recall and F1 from three counts; 0 where there is nothing to divide by."""
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
    """Columns that a text takes in a terminal: a Chinese character takes two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def cut(text, columns):
    """As much of a text as this many columns hold, with … where something is missing."""
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


# ---------------------------------------------------------------------------- classification


def class_numbers(gold, predicted, labels):
    """{"accuracy", "macro_f1", "micro_f1", "weighted_f1"} of predicted labels, from 0 to 1.

    gold, predicted: lists of str; labels: all that there are. A prediction that is none of them is
    wrong: its class misses an example, and no other class is blamed for it. In the macro average
    each of the labels counts alike; one without an example counts 0. Raises ValueError where the
    lists differ in length or a gold label is not in labels.
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

    The classes are numbered, as in a confusion matrix whose picture cannot show their names.
    """
    gold_numbers, predicted_numbers = in_numbers(gold, predicted, labels)
    digits = len(str(len(labels)))
    names = [f"{number:>{digits}} {label}" for number, label in enumerate(labels, start=1)]
    rows = list(zip(names, *class_scores(gold_numbers, predicted_numbers, labels)))
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = class_scores(gold_numbers, predicted_numbers, labels, average)
        rows.append((f"{average} average", precision, recall, f1, len(gold)))
    right = sum(a == b for a, b in zip(gold, predicted))
    lines = [table(rows), f"accuracy {right / len(gold):.4f}: {right:,} of {len(gold):,} are right"]
    unknown = [text for text, number in zip(predicted, predicted_numbers) if number == len(labels)]
    if unknown:
        start = f"predictions that are none of the labels: {len(unknown):,}, such as "
        lines.append(start + cut(repr(unknown[0]), COLUMNS - len(start)))
    return "\n".join(lines)


def in_numbers(gold, predicted, labels):
    """Both lists of labels as lists of their numbers; any other prediction is len(labels)."""
    check_pairs(gold, predicted)
    number = {label: n for n, label in enumerate(labels)}
    strangers = sorted(set(gold) - set(labels))
    if strangers:
        raise ValueError(f"the label {strangers[0]!r} of an example is not among {labels}")
    return [number[text] for text in gold], [number.get(text, len(labels)) for text in predicted]


def class_scores(gold, predicted, labels, average=None):
    """scikit-learn's precision, recall, F1 and support: of each class, or an average of them."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = range(len(labels))
    return precision_recall_fscore_support(
        gold, predicted, labels=classes, average=average, zero_division=0
    )


def draw_confusion(path, gold, predicted, labels):
    """Draw how often each label (a row) was taken for each (a column), as a PNG file.

    Where no font on this machine has the letters of the labels, their numbers in class_report stand
    in their place. Predictions that are none of the labels get a column of their own.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    counts = confusion(gold, predicted, labels)
    rows, columns = counts.shape
    font = font_for("".join(labels) + NO_LABEL + "…")
    names = [cut(label, PICTURED_COLUMNS) for label in labels]
    if font is None:
        names = [str(number) for number in range(1, rows + 1)]
        print(f"{path}: no font here has the labels' letters; in it they are numbered as below")
    names += [NO_LABEL] * (columns - rows)
    inches = 2.5 + 0.5 * columns, 2 + 0.5 * rows
    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if parts[row, column] > 0.5 else "black" if count else "0.75"
        axes.text(column, row, count, color=color, size=9, ha="center", va="center")
    upright = {"rotation": 90} if max(map(width, names)) > 3 else {}
    as_written = {"parse_math": False, "fontproperties": font, "size": 9}  # $ is no formula here
    axes.set_xticks(range(columns), names, **as_written, **upright)
    axes.set_yticks(range(rows), names[:rows], **as_written)
    axes.set(xlabel="predicted", ylabel="gold")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def confusion(gold, predicted, labels):
    """How often each label was taken for each: (labels, labels), one column more for no label."""
    gold_numbers, predicted_numbers = in_numbers(gold, predicted, labels)
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    np.add.at(counts, (gold_numbers, predicted_numbers), 1)
    return counts if counts[:, -1].any() else counts[:, :-1]


def font_for(text):
    """A font that has all characters of a text, matplotlib's own if it can be; None: there is none.

    The files are asked, not matplotlib's list: it was kept when some of them were not there yet.
    """
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts
    from matplotlib.ft2font import FT2Font

    def plainness(path):
        return [style in path for style in ("Bold", "Italic", "Light", "Thin", "Serif")], path

    for path in [findfont(FontProperties()), *sorted(findSystemFonts(), key=plainness)]:
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # not every file that is called a font is one
            continue
        if font.scalable and all(font.get_char_index(ord(character)) for character in text):
            return FontProperties(fname=path)
    return None


# ----------------------------------------------------------------------------------- tagging


def entities(tags):
    """The entities of a BIO sequence as (type, start, end): they are the tokens [start:end].

    Counted as CoNLL's evaluation does (Tjong Kim Sang & Buchholz 2000, conlleval): an I- that
    follows O or another type begins an entity, too.
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

    gold, predicted: lists of sequences of tags. An entity is right if its type and both ends are.
    Raises ValueError where the sequences are not of the same lengths.
    """
    totals = [counts.total() for counts in entity_counts(gold, predicted)]
    return dict(zip(("entity_precision", "entity_recall", "entity_f1"), shares(*totals)))


def entity_report(gold, predicted):
    """A table of each type of entity and of all together, as text of at most 80 columns."""
    right, said, there = entity_counts(gold, predicted)
    rows = [
        (kind, *shares(right[kind], said[kind], there[kind]), there[kind])
        for kind in sorted(said | there)
    ]
    totals = [counts.total() for counts in (right, said, there)]
    rows.append(("micro average", *shares(*totals), there.total()))
    return table(rows)


def entity_counts(gold, predicted):
    """Three Counters of types: entities that are right, that were predicted, that are there."""
    check_pairs(gold, predicted)
    right, said, there = Counter(), Counter(), Counter()
    for number, (tags, guesses) in enumerate(zip(gold, predicted)):
        if len(tags) != len(guesses):
            raise ValueError(f"sequence {number}: {len(guesses)} tags for {len(tags)} tokens")
        ours, theirs = set(entities(guesses)), set(entities(tags))
        right.update(kind for kind, _, _ in ours & theirs)
        said.update(kind for kind, _, _ in ours)
        there.update(kind for kind, _, _ in theirs)
    return right, said, there


# -------------------------------------------------------------------------------------- text


def words(text):
    """The words of a text in lower case, without punctuation; each Chinese character is one.

    What differs only in width, as １２ and 12, is the same.
    """
    return WORD.findall(normalize("NFKC", text).lower())


def text_numbers(references, predictions):
    """How much the answers are like the references, two lists of str whose blank ends don't count.

    exact_match, token_f1 (SQuAD's, arXiv:1606.05250, on `words`), rouge1, rouge2, rougeL (F1) from
    0 to 1, a mean over the examples; bleu and chrf from 0 to 100, of all as one text (sacrebleu's;
    bleu goes by words in a row, four of them or as many as the longest answer has). Where a
    reference has several lines also line_f1, over all lines of all examples, in whatever order.
    Raises ValueError where the lists differ in length.
    """
    check_pairs(references, predictions)
    pairs = [(ours.strip(), theirs.strip()) for ours, theirs in zip(references, predictions)]
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
    """F1 of the words that two texts share; of two texts without a word, whether they are equal."""
    ours, theirs = words(answer), words(reference)
    if not ours and not theirs:
        return float(normalize("NFKC", reference) == normalize("NFKC", answer))
    common = (Counter(ours) & Counter(theirs)).total()
    return shares(common, len(ours), len(theirs))[-1]


def line_f1(pairs):
    """F1 of the lines that references and answers share, over all pairs."""
    totals = np.zeros(3, dtype=int)
    for pair in pairs:
        theirs, ours = (Counter(filter(None, map(str.strip, text.splitlines()))) for text in pair)
        totals += (ours & theirs).total(), ours.total(), theirs.total()
    return float(shares(*totals)[-1])


def bleu_and_chrf(pairs):
    """sacrebleu's scores of pairs (reference, answer); Chinese is cut into characters for bleu."""
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
