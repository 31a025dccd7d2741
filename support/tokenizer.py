"""Text to token ids and back: by characters, by bytes, by byte-pair encoding (ours and others').

Every tokenizer has the methods of `CharTokenizer`. Where a text that is encoded continues another
one, it is `inside`: Llama 2's tokenizer (support/sentencepiece.py) puts no space before it then.

A byte-pair encoding starts from the 256 bytes and has a list of merges: "these two neighbours
become one new token". `train_bpe` learns them, and is worth reading; applying them is left to
`tiktoken`. With no merges it is the byte tokenizer; GPT-2's 50,000 use the same class.
"""

import base64
import hashlib
import heapq
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from zlib import crc32

import numpy as np
import regex
import tiktoken
from tiktoken_ext import openai_public

# The last ids of every tokenizer made here. No text is ever encoded as one of them.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What ends a document in other vocabularies, the most likely first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")

GPT2_VOCAB_SIZES = 50257, 50304  # GPT-2's tokens, and what nanoGPT rounds them up to

# GPT-2's definition of a word: merges never cross from one word into the next.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same pattern in tiktoken's notation.
SAME_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken's regular expressions fail near a million spaces in a row: text is passed in pieces.
# Small ones: many pieces of megabytes fragment the heap, and a large text takes ever more memory.
PIECE_CHARACTERS = 100_000
# Places that no split pattern joins across; the search runs from right to left.
SEAM = regex.compile(r"(?r)\S |[\p{L}\p{N}]\n|[\u4e00-\u9fa5][，。！？；：、]")

# Merges are learned from the most frequent words, up to this many bytes of distinct words. English
# loses nothing; Chinese, which has no spaces between words, loses 2 % of its compression: more
# bytes improve it, and training takes proportionally longer.
DISTINCT_WORD_BYTES = 300_000
SHORT_TEXT_TOKENS = 1024  # suits a short English text
OFTEN = 10  # occurrences from which a character deserves its own token
# Above this many distinct words the rarer half is dropped, so memory is bounded.
COUNTED_WORDS = 200_000
# Longer words (a row of dashes, a base64 block) are learned in parts of this many characters.
WORD_CHARACTERS = 64

CODE_POINTS = 0x110000
UNKNOWN = 0xFFFFFFFF

# Blanks as one sees them.
SPACE, LINE_END = "␣", "⏎"
VISIBLE = str.maketrans({" ": SPACE, "\n": LINE_END, "\t": "⇥", "\r": "␍"})


class CharTokenizer:
    """One token per character of the training text."""

    kind = "char"
    bos = chat_template = None
    ordinary = frozenset()
    prefix, prefixes_each = "", False

    def __init__(self, characters, special_tokens):
        """`characters` in the order of their ids, from 0 on; `special_tokens` maps text to id."""
        self.characters = characters
        self.special_tokens = special_tokens
        self.eot = special_tokens.get(SPECIAL_TOKENS[0])
        self.vocab_size = len(characters) + len(special_tokens)
        self.texts = dict(enumerate(characters)) | {i: text for text, i in special_tokens.items()}
        self.table = np.full(CODE_POINTS, UNKNOWN, np.uint32)
        self.table[code_points(characters)] = np.arange(len(characters))

    def encode(self, text, inside=False):
        """The ids, uint32 (T,). Raises ValueError that lists all unknown characters."""
        tokens = self.table[code_points(text)]
        if (tokens == UNKNOWN).any():
            unknown = ", ".join(map(repr, sorted(set(text) - set(self.characters))))
            raise ValueError(
                f"this tokenizer has no {unknown}: it has only the {len(self.characters)} "
                "characters of its training text. Leave those out, or prepare the data with "
                "--tokenizer=byte or --tokenizer=bpe, which can encode any text"
            )
        return tokens

    def encode_all(self, parts, inside=False):
        """The concatenated ids of many texts, uint32; an int among them is a token id."""
        return one_by_one(self, parts)

    def known(self, text):
        """The text without the characters that `encode` would reject."""
        is_known = self.table[code_points(text)] != UNKNOWN
        if is_known.all():
            return text
        return "".join(character for character, keep in zip(text, is_known, strict=True) if keep)

    def decode(self, tokens):
        return "".join(self.texts.get(int(token), "") for token in tokens)

    def token_bytes(self, token):
        return self.texts.get(int(token), "").encode("utf-8", "replace")

    def to_dict(self):
        """The whole tokenizer, JSON-able."""
        return {
            "kind": self.kind,
            "characters": self.characters,
            "special_tokens": self.special_tokens,
        }


class BytePairTokenizer:
    """Bytes joined by merges: ours, tiktoken's and Hugging Face's byte-level vocabularies.

    `ranks` maps the bytes of each token to its id; of two possible merges, the lower id goes first.
    """

    prefix, prefixes_each = "", False

    def __init__(
        self,
        kind,
        ranks,
        special_tokens,
        pattern=GPT2_PATTERN,
        eot=None,
        form=None,
        bos=None,
        chat_template=None,
        ordinary=(),
    ):
        self.kind = kind
        self.ranks = ranks
        self.special_tokens = special_tokens
        self.pattern = GPT2_PATTERN if pattern == SAME_PATTERN else pattern
        self.eot = eot
        self.form = form  # Unicode normal form applied to text first, such as "NFC"
        self.bos = bos  # id that every text begins with, such as Llama's <|begin_of_text|>
        self.chat_template = chat_template  # Hugging Face's format of conversations, in Jinja
        self.ordinary = frozenset(ordinary)  # special tokens allowed in text: Qwen 3's <think>
        self.bytes_of = {i: part for part, i in ranks.items()}
        self.bytes_of |= {i: text.encode() for text, i in special_tokens.items()}
        self.vocab_size = max(self.bytes_of) + 1
        self.encoding = tiktoken.Encoding(
            kind, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    def encode(self, text, inside=False):
        """The ids, uint32 (T,). Text that looks like a special token is encoded as text."""
        parts = [self.encode_piece(piece) for piece in cut([text])]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint32), *parts])

    def encode_all(self, parts, inside=False):
        """The concatenated ids of many texts, uint32; an int among them is a special token's id.

        Texts separated by such a token are encoded in one call: a thread in `tiktoken` runs without
        the GIL, and has to wait for it on return.
        """
        runs = [[]]
        for part in parts:
            if isinstance(part, str) and runs[-1] and isinstance(runs[-1][-1], str):
                runs.append([])  # adjacent texts are not one text
            runs[-1].append(part)
        return np.concatenate([self.encode_run(run) for run in runs])

    def encode_run(self, parts):
        """The ids of texts separated by special tokens."""
        shown = {p: self.token_bytes(p).decode() for p in parts if not isinstance(p, str)}
        joined = "".join(self.normal(p) if isinstance(p, str) else shown[p] for p in parts)
        allowed = self.ordinary.union(shown.values())
        tokens = self.encoding.encode_to_numpy(
            joined, allowed_special=allowed, disallowed_special=()
        )
        if all(np.count_nonzero(tokens == p) == parts.count(p) for p in shown):
            return tokens
        return one_by_one(self, parts)  # a text contains such a token as plain text

    def normal(self, text):
        return unicodedata.normalize(self.form, text) if self.form else text

    def encode_piece(self, text):
        text = self.normal(text)
        special = {"allowed_special": self.ordinary, "disallowed_special": ()}
        try:
            return self.encoding.encode_to_numpy(text, **special)
        except UnicodeEncodeError:
            return self.encoding.encode_to_numpy(repair(text), **special)

    def known(self, text):
        """The text itself: bytes can encode every character."""
        return text

    def decode(self, tokens):
        """The text; bytes that are not UTF-8, such as an incomplete character, become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token):
        return self.bytes_of.get(int(token), b"")

    def to_dict(self):
        """The whole tokenizer, JSON-able; the ranks are in tiktoken's file format."""
        ranks = sorted(self.ranks.items(), key=lambda item: item[1])
        rest = {"bos": self.bos, "chat_template": self.chat_template}
        rest["ordinary"] = sorted(self.ordinary) or None
        return {
            "kind": self.kind,
            "pattern": self.pattern,
            "form": self.form,
            "special_tokens": self.special_tokens,
            "eot": self.eot,
            "ranks": "\n".join(f"{base64.b64encode(part).decode()} {i}" for part, i in ranks),
        } | {name: value for name, value in rest.items() if value is not None}


def one_by_one(tokenizer, parts):
    """The result of `encode_all`, computed text by text."""
    none = np.zeros(0, np.uint32)
    encoded = (
        tokenizer.encode(part) if isinstance(part, str) else np.array([part], np.uint32)
        for part in parts
    )
    return np.concatenate([none, *encoded])


# ------------------------------------------------------------------ learning a byte-pair encoding


def train_bpe(texts, vocab_size, at_least=False, distinct_word_bytes=DISTINCT_WORD_BYTES):
    """Learn a byte-pair encoding from the texts, with `vocab_size` tokens in total.

    These are the 256 bytes, the merges and the special tokens. If a short text runs out of pairs to
    merge, there are fewer. `at_least`: there may be more, one for each frequent non-ASCII character
    on top of the 1,024 that suit a short English text. Raises ValueError if `vocab_size` is too
    small for the bytes and special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special "
            f"tokens make {smallest}, and each merge adds one; --vocab_size=1024 suits a small text"
        )
    counted = count_words(texts)
    if at_least:
        vocab_size = max(vocab_size, SHORT_TEXT_TOKENS + frequent_characters(counted))
    merges = learn_merges(most_frequent(counted, distinct_word_bytes), vocab_size - smallest)
    parts = [bytes([i]) for i in range(256)]
    for left, right in merges:
        parts.append(parts[left] + parts[right])
    return own_tokenizer("bpe", parts)


def count_words(texts):
    """Count the words: Counter of str."""
    split = regex.compile(GPT2_PATTERN)
    words = Counter()
    for text in texts:
        for word, count in Counter(split.findall(text)).items():
            for start in range(0, len(word), WORD_CHARACTERS):
                words[word[start : start + WORD_CHARACTERS]] += count
        if len(words) > COUNTED_WORDS:
            words = Counter(dict(by_frequency(words)[: COUNTED_WORDS // 2]))
    return words


def frequent_characters(words):
    """The number of non-ASCII characters that occur often enough to be learned."""
    counts = Counter()
    for word, count in words.items():
        if not word.isascii():
            for character in word:
                counts[character] += count
    return sum(n >= OFTEN and not character.isascii() for character, n in counts.items())


def by_frequency(words):
    """Pairs (word, count), most frequent first, ties in alphabetical order.

    Words that occur once, as most Chinese ones do (text between two commas), are shuffled by a hash
    instead: if not all are used, every initial letter gets its share.
    """

    def place(item):
        word, count = item
        return -count, crc32(word.encode("utf-8", "replace")) if count == 1 else 0, word

    return sorted(words.items(), key=place)


def most_frequent(words, most_bytes):
    """The most frequent words, as bytes, that fit into `most_bytes`: Counter of bytes."""
    kept, size = Counter(), 0
    for word, count in by_frequency(words):
        word = word.encode("utf-8", "replace")
        size += len(word)
        if size > most_bytes:
            break
        kept[word] += count
    return kept


def learn_merges(words, n_merges):
    """The merges as pairs of ids; each merges the pair of neighbours that is then most frequent.

    Sennrich et al., 2016, https://arxiv.org/abs/1508.07909. Of equally frequent pairs, the one with
    lower ids wins. Only words that contain the merged pair are recounted.
    """
    counts = list(words.values())
    words = [list(word) for word in words]
    pair_counts = Counter()
    where = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges = []
    while heap and len(merges) < n_merges:
        count, pair = heapq.heappop(heap)
        # A stale count in the heap is too high: push the pair again with its current count.
        if -count != pair_counts[pair]:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        token = 256 + len(merges)
        merges.append(pair)
        born = set()
        for i in where.pop(pair):
            for old in pairwise(words[i]):
                pair_counts[old] -= counts[i]
            words[i] = merge(words[i], pair, token)
            for new in pairwise(words[i]):
                pair_counts[new] += counts[i]
                if token in new:
                    where[new].add(i)
                    born.add(new)
        for new in born:
            heapq.heappush(heap, (-pair_counts[new], new))
    return merges


def merge(word, pair, token):
    """Replace every occurrence of the pair in the word, from left to right, by the token."""
    merged, i = [], 0
    while i < len(word):
        if word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]:
            merged.append(token)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


# ---------------------------------------------------------------------------- creating tokenizers


def char_tokenizer(texts):
    """A tokenizer with one token for each distinct character of the texts, in code point order."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in texts:
        seen[code_points(text)] = True
    characters = "".join(map(chr, np.flatnonzero(seen)))
    return CharTokenizer(characters, numbered(SPECIAL_TOKENS, start=len(characters)))


def byte_tokenizer():
    """A tokenizer of the 256 bytes, without merges: encodes any text and needs no training."""
    return own_tokenizer("byte", [bytes([i]) for i in range(256)])


def own_tokenizer(kind, parts):
    """The byte-pair tokenizer whose tokens are `parts`, followed by our special tokens."""
    special_tokens = numbered(SPECIAL_TOKENS, start=len(parts))
    return BytePairTokenizer(kind, numbered(parts), special_tokens, eot=len(parts))


def numbered(things, start=0):
    return {thing: start + i for i, thing in enumerate(things)}


def tiktoken_tokenizer(name):
    """OpenAI's gpt2, cl100k_base or o200k_base; tiktoken downloads each once and caches it."""
    # GPT-2's vocabulary has two names; under r50k_base it is a single file.
    published = "r50k_base" if name == "gpt2" else name
    print(f"downloading the vocabulary {name}, unless tiktoken has cached it", file=sys.stderr)
    try:
        parts = getattr(openai_public, published)()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the vocabulary {name} could not be downloaded ({type(error).__name__}). Without a "
            "connection, use --tokenizer=bpe (learned from your text), byte or char; or copy the "
            "folder TIKTOKEN_CACHE_DIR from a machine where this command has worked"
        ) from error
    special_tokens = parts["special_tokens"]
    eot = special_tokens[END_OF_TEXT[0]]
    return BytePairTokenizer(name, parts["mergeable_ranks"], special_tokens, parts["pat_str"], eot)


def tokenizer_from_dict(saved):
    """The tokenizer that `to_dict` saved."""
    if saved.get("kind") == "char":
        return CharTokenizer(saved["characters"], saved["special_tokens"])
    if saved.get("kind") == "sentencepiece":
        from support.sentencepiece import SentencePieceTokenizer  # here, as it imports this module

        return SentencePieceTokenizer(**{name: saved[name] for name in saved if name != "kind"})
    if "ranks" not in saved:
        raise ValueError(f"a tokenizer of kind {saved.get('kind')!r} is not supported")
    lines = (line.split() for line in saved["ranks"].splitlines())
    ranks = {base64.b64decode(part): int(i) for part, i in lines}
    rest = [saved[name] for name in ("special_tokens", "pattern", "eot", "form")]
    rest += [saved.get("bos"), saved.get("chat_template"), saved.get("ordinary", ())]
    return BytePairTokenizer(saved["kind"], ranks, *rest)


def same_tokens(one, other):
    """Whether two saved tokenizers have the same tokens, whoever published them."""
    ignored = "kind", "chat_template", "ordinary"
    one, other = (tokenizer_from_dict(saved).to_dict() for saved in (one, other))
    return one | dict.fromkeys(ignored) == other | dict.fromkeys(ignored)


def fingerprint(tokenizer):
    """The sha256, hexadecimal, of the whole tokenizer: equal only for equal tokenizers."""
    canonical = json.dumps(tokenizer.to_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# --------------------------------------------------------------------------------- pieces of text


def cut(chunks, limit=PIECE_CHARACTERS):
    """Yield the text in pieces of at most `limit` characters, cut where no token crosses.

    The pieces depend only on the text, not on the chunks that it came in. Text without a space,
    line end or punctuation mark for `limit` characters is cut at the limit.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > limit:
            seam = SEAM.search(rest, start, start + limit + 1)
            end = seam.start() + 1 if seam else start + limit
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def code_points(text):
    """The Unicode code points of the characters, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def repair(text):
    """The text with lone surrogates (halves of characters) joined, or replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def visible(tokenizer, token):
    """A token as text with visible blanks; bytes that are a part of a character as numbers."""
    if tokenizer is None:
        return str(token)
    text = tokenizer.token_bytes(token).decode("utf-8", "replace")
    is_part = "\ufffd" in text
    return f"<{tokenizer.token_bytes(token).hex(' ')}>" if is_part else text.translate(VISIBLE)
