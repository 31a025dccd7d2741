"""The tokenizers of Llama 2, Mistral 7B and TinyLlama, encoded by the package `tokenizers`.

They are byte-pair encodings too, but of characters: a text is not split into words first, a space
is written as ▁, a text begins with one, and a character without a token becomes its bytes:

    "A cat 🐈"      ▁A ▁cat ▁ <0xF0> <0x9F> <0x90> <0x88>
"""

import copy
import json
from functools import cached_property

import numpy as np

from support.tokenizer import cut, repair

SPACE = "▁"  # U+2581, which stands for a space
BYTES = {f"<0x{i:02X}>": bytes([i]) for i in range(256)}
KEPT = "added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"  # of a tokenizer.json


class SentencePieceTokenizer:
    """The tokenizer in a Hugging Face `tokenizer.json`, as long as it is of this kind.

    `content` is that of the file. Raises ValueError, with the reason, if it is not.
    """

    kind = "sentencepiece"

    def __init__(self, content, eot=None, bos=None, chat_template=None):
        self.content = {name: content.get(name) for name in KEPT}
        self.eot, self.bos, self.chat_template = eot, bos, chat_template
        added = content.get("added_tokens") or []
        self.special_tokens = {token["content"]: token["id"] for token in added}
        special = {token["content"] for token in added if token.get("special", True)}
        self.ordinary = frozenset(self.special_tokens.keys() - special)
        self.ids = content["model"]["vocab"] | self.special_tokens
        self.texts = {i: text for text, i in self.ids.items()}
        self.vocab_size = max(self.texts) + 1
        if missing := BYTES.keys() - self.ids.keys():
            raise ValueError(f"its vocabulary lacks the byte {min(missing)}")
        steps = self.content["normalizer"], self.content["pre_tokenizer"]
        if SPACE not in json.dumps(steps, ensure_ascii=False):
            raise ValueError(f"it does not write spaces as {SPACE}")

    @cached_property
    def whole(self):
        """The library's tokenizer for a text from its beginning."""
        return in_library(self.content)

    @cached_property
    def inside(self):
        """The same for what continues a text: no ▁ is put before it."""
        return in_library(self.content | without_prefix(self.content))

    @property
    def prefix(self):
        """What is put before a text: a space, or nothing."""
        return " " if without_prefix(self.content) else ""

    @property
    def prefixes_each(self):
        """Whether it is put behind every special token, not only at the beginning of a text."""
        metaspace = [part for part in parts_of(self.content["pre_tokenizer"]) if is_prefix(part)]
        return bool(self.prefix) and all(p.get("prepend_scheme") != "first" for p in metaspace)

    def encode(self, text, inside=False):
        """The ids, uint32 (T,); `inside`: the text continues another one.

        Text that looks like a special token is encoded as text. A long text is encoded in pieces,
        cut where tokens end: before a space, a line end or a Chinese punctuation mark.
        """
        ids = []
        for piece in cut([text]):
            library = self.inside if inside else self.whole
            ids += library.encode(repair(piece), add_special_tokens=False).ids
            inside = True
        return np.array(ids, np.uint32)

    def encode_all(self, parts, inside=False):
        """The concatenated ids of texts; an int among them is a token id, behind which a text
        begins. Behind a text, the next one continues it.
        """
        encoded = [np.zeros(0, np.uint32)]
        for part in parts:
            is_text = isinstance(part, str)
            encoded.append(self.encode(part, inside) if is_text else np.array([part], np.uint32))
            inside = is_text
        return np.concatenate(encoded)

    def known(self, text):
        """The text itself: bytes can encode every character."""
        return text

    def decode(self, tokens):
        """The text, without the space that was put before it."""
        text = b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")
        return text.removeprefix(self.prefix)

    def token_bytes(self, token):
        text = self.texts.get(int(token), "")
        if text in self.special_tokens:
            return text.encode()
        return BYTES.get(text) or text.replace(SPACE, " ").encode()

    def to_dict(self):
        """The whole tokenizer, JSON-able."""
        rest = {"eot": self.eot, "bos": self.bos, "chat_template": self.chat_template}
        return {"kind": self.kind, "content": self.content, **rest}


def is_plain(content):
    """Whether all that is done to a text is to write spaces as ▁, perhaps with one before it."""
    steps = [*parts_of(content["normalizer"]), *parts_of(content["pre_tokenizer"])]
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}.items()
    return all(
        not step or step == blank or step.get("type") == "Prepend" or metaspace <= step.items()
        for step in steps
    )


def in_library(content):
    """A tokenizer of the package `tokenizers`, which encodes special tokens in a text as text."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise SystemExit(
            "this model's tokenizer is SentencePiece's, as Llama 2's: pip install tokenizers"
        ) from None
    library = Tokenizer.from_str(json.dumps(content))
    library.encode_special_tokens = True
    return library


def parts_of(step):
    """The steps that a normalizer or pre-tokenizer consists of."""
    step = step or {}
    return step.get("normalizers") or step.get("pretokenizers") or [step]


def is_prefix(part):
    """Whether a step puts ▁ before a text."""
    scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    return part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and scheme != "never")


def without_prefix(content):
    """{part of a tokenizer.json: the same without a prefix}, for the parts that put one there."""
    changed = {}
    for name, several in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = copy.deepcopy(parts_of(content[name]))
        if any(map(is_prefix, steps)):
            for step in steps:
                if is_prefix(step) and step["type"] == "Metaspace":
                    step["prepend_scheme"] = "never"
            rest = [step for step in steps if step["type"] != "Prepend"]
            changed[name] = {"type": "Sequence", several: rest} if rest else None
    return changed
