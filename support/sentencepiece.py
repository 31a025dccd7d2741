"""The tokenizers of Llama 2, Mistral 7B and TinyLlama, encoded by the package `tokenizers`.

They are byte-pair encodings too, but of characters: a text is not split into words first, a space
is written as ▁, a text begins with one, and a character without a token becomes its bytes:

    "A cat 🐈"      ▁A ▁cat ▁ <0xF0> <0x9F> <0x90> <0x88>

What counts is the file tokenizer.json. (transformers 5 does not always go by it: its LlamaTokenizer
puts no ▁ behind a special token, whatever the file says.)
"""

import json
from functools import cached_property

import numpy as np

from support.tokenizer import cut, repair

BLANK = "▁"  # U+2581, which stands for a space
BYTES = {f"<0x{i:02X}>": bytes([i]) for i in range(256)}
WRITTEN = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
FORMS = "NFC", "NFD", "NFKC", "NFKD"
# Where a ▁ is put: behind every special token and before a text (prepend: even if it begins with
# one); only before a text; nowhere.
PREFIXES = "prepend", "always", "first", "never"


class SentencePieceTokenizer:
    """Characters joined by merges: [[left, right], …], the earlier the sooner.

    `vocab` maps the text of each token to its id; prefix_rule is one of PREFIXES; splits: merges
    never cross from one word into the next. Raises ValueError if the tokens do not fit together.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        vocab,
        merges,
        special_tokens,
        eot=None,
        form=None,
        prefix_rule="prepend",
        splits=False,
        unknown=None,
        bos=None,
        chat_template=None,
        ordinary=(),
    ):
        self.vocab, self.merges, self.special_tokens = vocab, merges, special_tokens
        self.eot, self.bos, self.chat_template = eot, bos, chat_template
        self.form = form  # Unicode normal form applied to text first
        self.prefix_rule, self.splits = prefix_rule, splits
        self.prefix = "" if prefix_rule == "never" else " "
        self.prefixes_each = prefix_rule in ("prepend", "always")
        self.unknown = unknown  # the token that stands for characters without one; never needed
        self.ordinary = frozenset(ordinary)  # special tokens allowed in text
        self.texts = {i: text for text, i in (vocab | special_tokens).items()}
        self.vocab_size = max(self.texts) + 1
        if missing := BYTES.keys() - vocab.keys():
            raise ValueError(f"its vocabulary lacks the byte {min(missing)}")
        for left, right in merges:
            if not {left, right, left + right} <= vocab.keys():
                raise ValueError(f"its merge {left!r} {right!r} is not of its tokens")
        check_library()

    @cached_property
    def beginning(self):
        """The library's tokenizer for a text from its beginning."""
        return in_library(self.in_their_format(self.prefix_rule))

    @cached_property
    def going_on(self):
        """The same for what continues a text: no ▁ is put before it."""
        return in_library(self.in_their_format("never"))

    def encode(self, text, inside=False):
        """The ids, uint32 (T,); `inside`: the text continues another one.

        Text that looks like a special token is encoded as text. A long text is encoded in pieces,
        cut where hardly any token crosses: before a space, a line end or Chinese punctuation.
        """
        ids = []
        for piece in cut([text]):
            library = self.going_on if inside else self.beginning
            ids += library.encode(repair(piece), add_special_tokens=False).ids
            inside = True
        return np.array(ids, np.uint32)

    def encode_all(self, parts, inside=False):
        """The concatenated ids of texts; an int among them is a token id, behind which a text
        begins. Behind a text, the next one continues it.
        """
        encoded = [np.zeros(0, np.uint32)]
        for part in parts:
            if isinstance(part, str):
                encoded.append(self.encode(part, inside))
                inside = inside or bool(part)
            else:
                encoded.append(np.array([part], np.uint32))
                inside = False
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
        if text in self.special_tokens and text not in self.ordinary:
            return text.encode()
        return BYTES.get(text) or text.replace(BLANK, " ").encode()

    def to_dict(self):
        """The whole tokenizer, JSON-able."""
        names = "kind vocab merges special_tokens eot form prefix_rule splits unknown bos"
        saved = {name: getattr(self, name) for name in f"{names} chat_template".split()}
        return saved | {"ordinary": sorted(self.ordinary)}

    def in_their_format(self, prefix_rule):
        """A tokenizer.json, but for what is put before a text, that puts ▁ by this rule."""
        steps = [{"type": self.form}] if self.form else []
        if prefix_rule == "prepend":
            steps.append({"type": "Prepend", "prepend": BLANK})
        metaspace = None
        if self.prefix_rule == "prepend":
            steps.append(WRITTEN)
        else:
            metaspace = {"type": "Metaspace", "replacement": BLANK}
            metaspace |= {"prepend_scheme": prefix_rule, "split": self.splits}
        strip = {"type": "Strip", "content": " ", "start": len(self.prefix), "stop": 0}
        spaces = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
        decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
        return {
            "added_tokens": added_tokens(self),
            "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
            "pre_tokenizer": metaspace,
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "unk_token": self.unknown,
                "fuse_unk": True,
                "byte_fallback": True,
                # Added tokens keep their ids only if the vocabulary has them too.
                "vocab": self.vocab | self.special_tokens,
                "merges": self.merges,
            },
        }


def added_tokens(tokenizer):
    """The special tokens of a tokenizer as a tokenizer.json has them, in the order of their ids."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": text, "special": text not in tokenizer.ordinary} | flags
        for i, text in sorted((i, text) for text, i in tokenizer.special_tokens.items())
    ]


def from_tokenizer_json(content, special_tokens, eot, bos, ordinary):
    """The tokenizer of such a file; raises ValueError, with the reason, for one of another kind."""
    model, form, rule, splits = content["model"], None, "never", False
    is_written = False
    for step in [*parts_of(content.get("normalizer")), *parts_of(content.get("pre_tokenizer"))]:
        kind = step.get("type")
        if kind in FORMS and form is None:
            form = kind
        elif step == {"type": "Prepend", "prepend": BLANK} and not is_written:
            rule = "prepend"
        elif step == WRITTEN:
            is_written = True
        elif kind == "Metaspace" and step["replacement"] == BLANK and rule == "never":
            always = "always" if step.get("add_prefix_space", True) else "never"
            rule, splits = step.get("prepend_scheme", always), step.get("split", True)
            is_written = True
        elif not (kind == "Split" and step["pattern"] == WRITTEN["pattern"] and is_written):
            raise ValueError(f"it changes or splits text by {step}, which is not supported")
    if not is_written or rule not in PREFIXES:
        raise ValueError(f"it does not write spaces as {BLANK}")
    merges = [line.split(" ") if isinstance(line, str) else line for line in model["merges"]]
    return SentencePieceTokenizer(
        model["vocab"],
        merges,
        special_tokens,
        eot,
        form,
        rule,
        splits,
        model.get("unk_token"),
        bos,
        ordinary=ordinary,
    )


def parts_of(step):
    """The steps that a normalizer or pre-tokenizer consists of."""
    return [] if step is None else step.get("normalizers") or step.get("pretokenizers") or [step]


def check_library():
    """Exit if the package `tokenizers` is missing."""
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise SystemExit(
            "this model's tokenizer is SentencePiece's, as Llama 2's: pip install tokenizers"
        ) from None


def in_library(content):
    """A tokenizer of the package `tokenizers`, which encodes special tokens in a text as text."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(json.dumps(content))
    library.encode_special_tokens = True
    return library
