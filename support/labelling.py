"""Models that predict labels, for a whole text or for each word: their text, and its labels."""

from itertools import chain

import regex
import torch

from support.tokenizer_files import tokens_before

HAN = r"\p{Han}"
LETTERS = r"[\p{L}\p{N}\p{M}_--\p{Han}]+"
JOINT = r"(?:['’./@&-]|(?<=\d)[,:](?=\d))"  # as in Mei's, 1996-08-22, 10.5, 1,000 or a@b.com
WORD = regex.compile(
    rf"(?V1){HAN}|{LETTERS}(?:{JOINT}{LETTERS})*(?:(?<=\.\p{{L}})\.)?|\S"  # U.S. with its dots
)
LABEL = "\n\nLabel:"  # between a text and its label where the model generates it
CLOSING = regex.compile(r"[,.!?;:%)\]}»”’。，、！？；：）》」』…]|['’]\p{L}+|n't")
OPENING = regex.compile(r"[(\[{«“‘（《「『]")


def words_of(text, blanks=False):
    """The words, Chinese characters and punctuation marks of a text, in order.

    blanks: Chinese between spaces is one word, if there are any spaces.
    """
    parts = text.split()
    if not blanks or len(parts) < 2:
        return WORD.findall(text.strip())
    words = ([part] if regex.search(HAN, part) else WORD.findall(part) for part in parts)
    return list(chain.from_iterable(words))


def is_chinese_word(word):
    """Whether a word has several Chinese characters, which `words_of` would split into words."""
    return len(regex.findall(HAN, word)) > 1


def gaps(words):
    """What precedes each word in running text: a space or nothing."""
    found = []
    for last, word in zip(["", *words], words):
        joined = not last or CLOSING.fullmatch(word) or OPENING.fullmatch(last)
        found.append("" if joined or is_han(last) or is_han(word) else " ")
    return found


def is_han(word):
    """Whether a word is written without spaces around it, as in Chinese."""
    return bool(regex.search(rf"[{HAN}。，、！？；：”“]", word))


def word_tokens(words, tokenizer):
    """(tokens, index of the last token of each word)."""
    tokens, ends = [], []
    for gap, word in zip(gaps(words), words):
        # A word without any known character is one token too, as each has its own tag.
        known = tokenizer.known(gap + word)
        tokens += tokenizer.encode(known, inside=bool(tokens)).tolist() or [0]
        ends.append(len(tokens) - 1)
    return tokens, ends


def pieces(words, tokenizer, first, block_size):
    """Yield (tokens, indices of the words' last tokens) of as many words as fit the context.

    Every piece begins with the tokens `first`; a word that does not fit on its own is cut.
    """
    while words:
        tokens, ends = word_tokens(words, tokenizer)
        tokens, ends = [*first, *tokens], [len(first) + end for end in ends]
        n = max(1, sum(end < block_size for end in ends))
        ends = [min(end, block_size - 1) for end in ends[:n]]
        yield tokens[: ends[-1] + 1], ends
        words = words[n:]


def to_continue(text, task):
    """The text that a model continues: as it is or, where it writes labels, as in training."""
    return text.strip() + LABEL if task.get("generative") else text


# ---------------------------------------------------------------------------------- their labels


def how_it_read(model, tokenizer, checkpoint):
    """(the tokens before a text, how many tokens at once) as in the training of a classifier."""
    before = tokens_before(tokenizer, checkpoint["data"].get("train_documents", 0))
    return before, min(model.config.block_size, checkpoint["train_config"]["block_size"])


@torch.no_grad()
def label_scores(model, rows):
    """The scores (T, L) of the labels at each of the T tokens of each row, computed at once."""
    inputs = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    segments = torch.full_like(inputs, -1)  # of what fills up the shorter rows
    for i, row in enumerate(rows):
        inputs[i, : len(row)], segments[i, : len(row)] = torch.tensor(row), 0
    device = model.token_embedding.weight.device
    hidden = None if model.config.causal else segments.to(device)
    logits, _ = model(inputs.to(device), segments=hidden)
    return [scores[: len(row)] for scores, row in zip(logits.float().cpu(), rows)]


def tags_of(model, tokenizer, texts, checkpoint):
    """The tags of the words of each text."""
    before, size = how_it_read(model, tokenizer, checkpoint)
    parts = [list(pieces(words, tokenizer, before, size)) for words in texts]
    rows = [tokens for of_text in parts for tokens, _ in of_text]
    scores = iter(label_scores(model, rows) if rows else ())
    labels = checkpoint["task"]["labels"]
    return [
        [labels[i] for (_, ends), row in zip(of_text, scores) for i in row[ends].argmax(1).tolist()]
        for of_text in parts
    ]


def chances_of(model, tokenizer, texts, checkpoint):
    """[(probability, label)] of each text in tokens, the most likely first."""
    before, size = how_it_read(model, tokenizer, checkpoint)
    rows = [[*before, *tokens][-size:] or [0] for tokens in texts]
    chances = [scores[-1].softmax(dim=0).tolist() for scores in label_scores(model, rows)]
    return [sorted(zip(each, checkpoint["task"]["labels"]), reverse=True) for each in chances]
