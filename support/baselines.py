"""What guessing would reach: the simple answers that finetune.py shows beside a model's.

They look at the training examples and at what is asked, never at the answers of the test.
"""

from collections import Counter
from math import ceil
from warnings import catch_warnings, filterwarnings

import regex

from support.metrics import words

CHINESE_PAIR = regex.compile(r"\p{Han}{2}")
MOST_PROMPTS = 5000  # of the training data, to look for the most similar one
PROMPTS_AT_ONCE = 256  # compared with all of those: 10 MB of similarities
TAIL = 12  # words at the end of a prompt, where the question stands


def most_common(things):
    """The one that is there most often; of several the first."""
    return Counter(things).most_common(1)[0][0]


def bag(text):
    """Words and pairs of Chinese characters of a text; something also where there are none."""
    return words(text) + CHINESE_PAIR.findall(text, overlapped=True) or [""]


def ending(text):
    """The last words of a text, where a prompt asks its question."""
    return words(text)[-TAIL:] or [""]


def baseline_labels(train, test):
    """Labels for test by two simple ways: {name of the way: list of str}.

    train, test: lists of {"text", "label"}; the labels of test are not looked at.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = [example["label"] for example in train]
    by_count = by_words = [most_common(labels)] * len(test)
    if len(set(labels)) > 1 and test:
        counter = CountVectorizer(analyzer=bag)
        seen = counter.fit_transform([example["text"] for example in train])
        with catch_warnings():  # few examples of many classes are no regression
            filterwarnings("ignore", "The number of unique classes", UserWarning)
            classifier = LogisticRegression(max_iter=10_000).fit(seen, labels)
        unseen = counter.transform([example["text"] for example in test])
        by_words = classifier.predict(unseen).tolist()
    return {"most common label": by_count, "bag of words": by_words}


def baseline_answers(train, test):
    """Answers for test by three simple ways: {name of the way: list of str}.

    train, test: lists of {"prompt", "completion"}; the completions of test are not looked at. Of
    more than 5,000 prompts to compare with, evenly spaced ones are taken.
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
    """For each text the place of the known one most like it, as a whole and at its end alike."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import linear_kernel

    views = TfidfVectorizer(analyzer=bag), TfidfVectorizer(analyzer=ending)
    ours = hstack([view.fit_transform(known) for view in views], format="csr")
    places = []
    for start in range(0, len(texts), PROMPTS_AT_ONCE):
        part = texts[start : start + PROMPTS_AT_ONCE]
        theirs = hstack([view.transform(part) for view in views], format="csr")
        places += linear_kernel(theirs, ours).argmax(axis=1).tolist()
    return places


def baseline_tags(train, test):
    """Tags for test by three simple ways: {name of the way: list of sequences of tags}.

    train, test: lists of {"tokens", "tags"}; the tags of test are not looked at. A token that was
    not seen between such neighbours gets its most common tag, and one never seen gets O.
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
    """{a token with its neighbours up to so far: the tag it has most often}."""
    counts = Counter(
        pair
        for example in examples
        for pair in zip(windows(example["tokens"], reach), example["tags"])
    )
    return {
        seen: tag for (seen, tag), _ in reversed(counts.most_common())
    }  # the most common is last


def windows(tokens, reach):
    """Each token with as many on either side, as tuples; None stands beyond the ends."""
    padded = [None] * reach + list(tokens) + [None] * reach
    return list(zip(*(padded[start:] for start in range(2 * reach + 1))))
