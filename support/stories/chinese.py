"""How Chinese words bend: measure words, places, pronouns, and the verbs that go with a thing."""

from functools import cache

SENTENCE_GAP = ""  # between two sentences of a paragraph
PRONOUNS = {"他"}  # in a template, `{他}` alone is the hero's
# Forms that are written with their noun after or before them; the others stand for themselves.
WITH_NOUN_AFTER = {"一"}
WITH_NOUN_BEFORE = {"里"}

GENDERED = {
    "he": {"他": "他", "孩": "男孩"},
    "she": {"他": "她", "孩": "女孩"},
    "it": {"他": "它"},
}
PLAYING = {  # what one does to an instrument
    **dict.fromkeys(("flute", "trumpet", "harmonica", "horn", "oboe"), "吹"),
    **dict.fromkeys(("violin", "cello", "accordion"), "拉"),
    **dict.fromkeys(("guitar", "harp", "lute", "zither"), "弹"),
    **dict.fromkeys(("drum", "xylophone"), "敲"),
}
WEARING = {  # what one does to a piece of clothing other than 穿
    **dict.fromkeys(("hat", "cap"), "戴"),
    **dict.fromkeys(("cloak", "shawl"), "披"),
    **dict.fromkeys(("scarf", "apron"), "围"),
}


@cache
def forms(word):
    """Every form of a Word that a template may ask for, by name."""
    return {
        "": word.zh,
        "一": "一" + word.measure,
        "只": word.measure,
        "里": word.within,
        "吹": PLAYING.get(word.en, ""),
        "穿": WEARING.get(word.en, "穿"),
        "done": word.done[1],
        **GENDERED[word.pronoun],
    }
