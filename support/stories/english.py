"""How English words bend: articles, plurals, pronouns, capitals."""

from functools import cache

SENTENCE_GAP = " "  # between two sentences of a paragraph
PRONOUNS = {"he", "him", "his", "himself"}  # in a template, `{he}` alone is the hero's
# Forms that are written with their noun after or before them; the others stand for themselves.
WITH_NOUN_AFTER = {"a", "at"}
WITH_NOUN_BEFORE = set()

GENDERED = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "boy": "boy"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "boy": "girl"},
    "it": {"he": "it", "him": "it", "his": "its", "himself": "itself"},
}
IRREGULAR = {
    "deer": "deer",
    "fish": "fish",
    "goose": "geese",
    "knife": "knives",
    "mouse": "mice",
    "ox": "oxen",
    "scarf": "scarves",
    "sheep": "sheep",
    "wolf": "wolves",
}


def article(text):
    """The indefinite article that `text` takes, by its first letter."""
    return "an " if text[0] in "aeiou" else "a "


def plural(noun):
    """The plural of a noun; of several words, that of the last."""
    head, space, last = noun.rpartition(" ")
    if last in IRREGULAR:
        return head + space + IRREGULAR[last]
    if last.endswith("y") and last[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if last.endswith(("s", "x", "z", "ch", "sh", "to", "go")) else "s")


def title(text):
    """`text` with capitals as in a title."""
    return " ".join(word if word in ("a", "of") else word.capitalize() for word in text.split())


@cache
def forms(word):
    """Every form of a Word that a template may ask for, by name; with a capital under "^name"."""
    bent = {
        "": word.en,
        "a": article(word.en) if word.kind == "phrase" else word.article,
        "at": word.at,
        "done": word.done[0],
        "s": plural(word.en),
        "title": title(word.en),
        **GENDERED[word.pronoun],
    }
    return bent | {"^" + form: text[:1].upper() + text[1:] for form, text in bent.items()}
