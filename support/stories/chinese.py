"""How Chinese words bend: measure words, places, pronouns, and the verbs that go with a thing."""

from functools import cache

# Forms that stand before or after a noun; the others replace it.
BEFORE = {"一", "两", "几", "那", "这", "只"}
AFTER = {"里"}
PRONOUNS = {"他"}  # in a template, `{他}` alone is the hero's

GENDERED = {
    "he": {"他": "他", "孩": "男孩"},
    "she": {"他": "她", "孩": "女孩"},
    "it": {"他": "它", "孩": "小家伙"},
}
PLAYING = {  # what one does to an instrument
    **dict.fromkeys(("flute", "trumpet", "harmonica", "horn"), "吹"),
    **dict.fromkeys(("violin", "cello", "accordion"), "拉"),
    **dict.fromkeys(("guitar", "harp", "lute"), "弹"),
    **dict.fromkeys(("drum", "xylophone"), "敲"),
}
WEARING = {  # what one does to a piece of clothing
    **dict.fromkeys(("coat", "sweater", "jacket", "shirt", "waistcoat", "raincoat", "robe"), "穿"),
    **dict.fromkeys(("hat", "cap"), "戴"),
    **dict.fromkeys(("cloak", "shawl"), "披"),
    "scarf": "围",
}


@cache
def forms(word):
    """Every form of a word that a template may ask for."""
    bent = {"": word.zh, "里": word.within, "只": word.measure, "done": word.done[1]}
    bent |= {number: number + word.measure for number in "一两几那这"}
    bent |= {"吹": PLAYING.get(word.en, ""), "穿": WEARING.get(word.en, "")}
    return bent | GENDERED[word.pronoun]
