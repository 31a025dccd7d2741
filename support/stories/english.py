"""How English words bend: articles, plurals, pronouns, capitals."""

from functools import cache

# Forms that stand before or after a noun; the others replace it.
BEFORE = {"a", "at"}
AFTER = set()
PRONOUNS = {"he", "him", "his", "himself"}  # in a template, `{he}` alone is the hero's

GENDERED = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "boy": "boy"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "boy": "girl"},
    "it": {"he": "it", "him": "it", "his": "its", "himself": "itself", "boy": "little one"},
}
IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "goose": "geese",
    "ox": "oxen",
    "loaf": "loaves",
    "shelf": "shelves",
    "knife": "knives",
    "scarf": "scarves",
    "deer": "deer",
    "sheep": "sheep",
    "fish": "fish",
}


def article(text):
    """`text` after "a" or "an", by its first letter."""
    return ("an " if text[0] in "aeiou" else "a ") + text


def plural(noun):
    """The plural of a noun; of several words, that of the last."""
    head, space, last = noun.rpartition(" ")
    if last in IRREGULAR:
        return head + space + IRREGULAR[last]
    if last.endswith("y") and last[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if last.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


@cache
def forms(word):
    """Every form of a word that a template may ask for, each also with a capital under "^"."""
    bent = {"": word.en, "s": plural(word.en), "at": word.at, "done": word.done[0]}
    bent["a"] = word.article if word.kind else article(word.en)
    bent.update(GENDERED[word.pronoun])
    return bent | {"^" + form: text[:1].upper() + text[1:] for form, text in bent.items()}
