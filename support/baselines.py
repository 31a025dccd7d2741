"""Baselines: the simple answers that finetune.py reports beside a model's.

They use the training examples and the test inputs, never the test answers.
"""

from collections import Counter
from math import ceil
from warnings import catch_warnings, filterwarnings

import regex

from support.metrics import words

CHINESE_PAIR = regex.compile(r"\p{Han}{2}")
MOST_PROMPTS = 5000  # training prompts to search for the most similar one
PROMPTS_AT_ONCE = 256  # compared with all of these: 10 MB of similarities
TAIL = 12  # words at the end of a prompt, where the question is


def most_common(things):
    """The most frequent item; the first of several."""
    return Counter(things).most_common(1)[0][0]


def bag(text):
    """Words and pairs of Chinese characters in a text; [""] if there are none."""
    return words(text) + CHINESE_PAIR.findall(text, overlapped=True) or [""]


def ending(text):
    """The last words of a text, where a prompt asks its question."""
    return words(text)[-TAIL:] or [""]


def baseline_labels(train, test):
    """Labels for test from two baselines: {name: list of str}.

    train, test: lists of {"text", "label"}; the labels of test are not used.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = [example["label"] for example in train]
    by_count = by_words = [most_common(labels)] * len(test)
    if len(set(labels)) > 1 and test:
        counter = CountVectorizer(analyzer=bag)
        seen = counter.fit_transform([example["text"] for example in train])
        with catch_warnings():  # few examples of many classes are not a regression problem
            filterwarnings("ignore", "The number of unique classes", UserWarning)
            classifier = LogisticRegression(max_iter=10_000).fit(seen, labels)
        unseen = counter.transform([example["text"] for example in test])
        by_words = classifier.predict(unseen).tolist()
    return {"most common label": by_count, "bag of words": by_words}


def baseline_choices(test):
    """Scores of choices from three baselines: {name: a list for each line, the highest is chosen}.

    test: lists of {"prompt", "choices"}. At equal scores the first is chosen.
    """
    found = {"first choice": [], "longest choice": [], "words of the prompt": []}
    for line in test:
        asked, bags = set(bag(line["prompt"])), [bag(choice) for choice in line["choices"]]
        lengths = [len(choice) for choice in line["choices"]]
        shares = [sum(word in asked for word in own) / len(own) for own in bags]
        picks = 0, lengths.index(max(lengths)), shares.index(max(shares))
        for scores, pick in zip(found.values(), picks):
            scores.append([float(i == pick) for i in range(len(lengths))])
    return found


def baseline_answers(train, test):
    """Answers for test from three baselines: {name: list of str}.

    train, test: lists of {"prompt", "completion"}; the completions of test are not used. If
    there are more than 5,000 prompts to compare with, evenly spaced ones are taken.
    """
    some = train[:: ceil(len(train) / MOST_PROMPTS)]
    prompts = [example["prompt"] for example in test]
    nearest = most_similar([example["prompt"] for example in some], prompts)
    return {
        "most common answer": [most_common(example["completion"] for example in train)] * len(test),
        "a copy of the prompt": prompts,
        "the answer of the most similar prompt": [some[n]["completion"] for n in nearest],
    }


def most_similar(known, texts):
    """For each text, the index of the known one most similar to it as a whole and in its ending."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import linear_kernel

    views = TfidfVectorizer(analyzer=bag), TfidfVectorizer(analyzer=ending)
    known_vectors = hstack([view.fit_transform(known) for view in views], format="csr")
    places = []
    for start in range(0, len(texts), PROMPTS_AT_ONCE):
        part = texts[start : start + PROMPTS_AT_ONCE]
        vectors = hstack([view.transform(part) for view in views], format="csr")
        places += linear_kernel(vectors, known_vectors).argmax(axis=1).tolist()
    return places


def baseline_tags(train, test):
    """Tags for test from three baselines: {name: list of tag sequences}.

    train, test: lists of {"tokens", "tags"}; the tags of test are not used. A token not seen
    between the same neighbours gets its most common tag, and one never seen gets O.
    """
    alone, between = most_common_tags(train, 0), most_common_tags(train, 1)
    by_token, by_neighbours = [], []
    for example in test:
        tags = [alone.get(seen, "O") for seen in windows(example["tokens"], 0)]
        seen_between = windows(example["tokens"], 1)
        by_token.append(tags)
        by_neighbours.append([between.get(seen, tag) for seen, tag in zip(seen_between, tags)])
    return {
        "no entity": [["O"] * len(tags) for tags in by_token],
        "each token's most common tag": by_token,
        "most common tag between the same neighbours": by_neighbours,
    }


def most_common_tags(examples, reach):
    """{token with `reach` neighbours on each side: its most common tag}."""
    counts = Counter(
        pair
        for example in examples
        for pair in zip(windows(example["tokens"], reach), example["tags"])
    )
    # The most common tag of a token comes last, and overwrites the others.
    return {seen: tag for (seen, tag), _ in reversed(counts.most_common())}


def windows(tokens, reach):
    """Each token with `reach` neighbours on each side, as tuples; None beyond the ends."""
    padded = [None] * reach + list(tokens) + [None] * reach
    return list(zip(*(padded[start:] for start in range(2 * reach + 1))))
