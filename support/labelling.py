"""Text for models that answer with labels: of a whole text, or of each of its words."""

from itertools import chain

import regex

HAN = r"\p{Han}"
WORD = regex.compile(rf"{HAN}|[\p{{L}}\p{{N}}\p{{M}}_]+(?:['’-][\p{{L}}]+)*|[^\s]")
LABEL = "\n\nLabel:"  # stands between a text and its label where the model writes it
CLOSING = regex.compile(r"[,.!?;:%)\]}»”’。，、！？；：）》」』…]|['’]\p{L}+|n't")
OPENING = regex.compile(r"[(\[{«“‘（《「『]")


def words_of(text, blanks=False):
    """The words, Chinese characters and punctuation marks of a text, in order.

    blanks: Chinese between blanks is a word, where there are blanks at all.
    """
    parts = text.split()
    if not blanks or len(parts) < 2:
        return WORD.findall(text.strip())
    words = ([part] if regex.search(HAN, part) else WORD.findall(part) for part in parts)
    return list(chain.from_iterable(words))


def is_chinese_word(word):
    """Whether a word has several Chinese characters, which `words_of` would take for as many."""
    return len(regex.findall(HAN, word)) > 1


def gaps(words):
    """What stands before each word in running text: a blank or nothing."""
    found = []
    for last, word in zip(["", *words], words):
        joined = not last or CLOSING.fullmatch(word) or OPENING.fullmatch(last)
        found.append("" if joined or is_han(last) or is_han(word) else " ")
    return found


def is_han(word):
    """Whether a word borders on others without a blank, as Chinese does."""
    return bool(regex.search(rf"[{HAN}。，、！？；：”“]", word))


def word_tokens(words, tokenizer):
    """(tokens, where the last token of each word is among them)."""
    tokens, ends = [], []
    for gap, word in zip(gaps(words), words):
        tokens += tokenizer.encode(tokenizer.known(gap + word)).tolist()
        ends.append(max(0, len(tokens) - 1))
    return tokens, ends


def pieces(words, tokenizer, first, block_size):
    """(tokens, where words end among them) of as many words as fit the context, and so on.

    Every piece begins with the tokens `first`; a word that does not fit alone is cut.
    """
    while words:
        tokens, ends = word_tokens(words, tokenizer)
        tokens, ends = [*first, *tokens] or [0], [len(first) + end for end in ends]
        n = max(1, sum(end < block_size for end in ends))
        ends = [min(end, block_size - 1) for end in ends[:n]]
        yield tokens[: ends[-1] + 1], ends
        words = words[n:]
