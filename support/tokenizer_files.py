"""Tokenizers from files: nanoGPT's, Hugging Face's, and those of our own runs."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import regex

from support.files import read_json
from support.sentencepiece import FORMS, added_tokens, from_tokenizer_json
from support.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    GPT2_VOCAB_SIZES,
    UNKNOWN,
    BytePairTokenizer,
    CharTokenizer,
    tiktoken_tokenizer,
    tokenizer_from_dict,
)

FEW_DOCUMENTS = 100  # with fewer in training, a model has hardly seen how a document begins
# The name of a model on the hub, such as Qwen/Qwen3-0.6B; out/ is for runs.
HUB_NAME = regex.compile(r"(?!out/)[\w-][\w.-]*(/[\w-][\w.-]*)?")
PADDING = "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"
ANY = {"Regex": r"[\s\S]"}  # any one character: the split of a character tokenizer
# The format of a conversation with our special tokens, in Jinja (ChatML).
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# GPT-2's definition of a word after every digit has been split off, as in SmolLM.
DIGITS_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)


def load_tokenizer(source):
    """Load the tokenizer of a data, run, Hugging Face or nanoGPT folder, or of a file in one.

    Or of a model on Hugging Face's hub, `owner/name`.
    """
    if "/" in str(source) and may_be_on_the_hub(source):
        from support.huggingface import from_hub  # here, as torch takes memory

        source = from_hub(source)
    source = Path(source)
    if source.is_dir():
        names = ("ckpt.pt", "best.pt", "meta.json", "tokenizer.json", "meta.pkl", "vocab.json")
        found = [source / name for name in names if (source / name).is_file()]
        if not found:
            refuse_sentencepieces_own(source)
            raise ValueError(f"{source} has no tokenizer: none of {', '.join(names)} is in it")
        source = found[0]
        if source.name == "vocab.json":
            return tokenizer_from_pair(source.parent)
    if not source.is_file():
        raise ValueError(f"there is no file or folder {source} to take a tokenizer from")
    if source.suffix == ".pt":
        from support.checkpoint import load_tokenizer_of_run  # here, as it imports this module

        return load_tokenizer_of_run(source)
    if source.suffix == ".pkl":
        return tokenizer_from_nanogpt(source)
    content = read_json(source)
    if "model" in content:
        return huggingface_tokenizer(source)
    try:
        return tokenizer_from_dict(content.get("tokenizer", content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} is JSON, but not a tokenizer's ({error!r})") from error


def may_be_on_the_hub(source):
    """Whether `source` is not a local path but looks like the name of a model on the hub."""
    path = Path(source)
    is_local = path.exists() or (path.parent != Path() and path.parent.is_dir())
    return not is_local and bool(HUB_NAME.fullmatch(str(source)))


def assumed_tokenizer(path, model):
    """GPT-2's tokenizer, which nanoGPT too assumes for a model without one."""
    if model.config.vocab_size not in GPT2_VOCAB_SIZES:
        raise SystemExit(f"{path} has no tokenizer: expected a tokenizer.json or meta.pkl")
    try:
        return tiktoken_tokenizer("gpt2")
    except ValueError as error:
        raise SystemExit(f"{path} has no tokenizer; GPT-2's was tried: {error}") from None


def token_before(tokenizer, documents):
    """The token to put before a text, as in training: `bos`, a previous text's `eot`, or None.

    A model of one long text has seen neither.
    """
    if tokenizer.bos is None and documents >= FEW_DOCUMENTS:
        return tokenizer.eot
    return tokenizer.bos


def tokens_before(tokenizer, documents):
    """The same as a list, which is empty if there is none."""
    before = token_before(tokenizer, documents)
    return [] if before is None else [before]


UNPICKLING_ERRORS = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, ImportError)


class PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; refuses anything that would import or call."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def tokenizer_from_nanogpt(path):
    """The character tokenizer of a nanoGPT `meta.pkl`, or of its folder; without special tokens."""
    path = Path(path)
    path = path / "meta.pkl" if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            stoi = PlainUnpickler(file).load()["stoi"]
        characters = sorted(stoi, key=stoi.get)
        is_plain = sorted(stoi.values()) == list(range(len(stoi)))
        is_plain = is_plain and all(isinstance(c, str) and len(c) == 1 for c in characters)
    except (*UNPICKLING_ERRORS, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a nanoGPT meta.pkl; nothing was run ({error})") from error
    if not is_plain:
        raise ValueError(f"{path}: expected `stoi` to number single characters from 0 on")
    return CharTokenizer("".join(characters), {})


def huggingface_tokenizer(path):
    """The tokenizer of a Hugging Face `tokenizer.json`, or of its folder.

    Raises ValueError, with the reason, for anything that our tokenizers cannot express.
    """
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    content = read_json(path)
    try:
        tokenizer = tokenizer_from_huggingface(content)
        if tokenizer.eot is None:
            tokenizer.eot = tokenizer.special_tokens.get(named_in(path.parent, "eos_token"))
        tokenizer.chat_template = self_contained(chat_template_in(path.parent), path.parent)
        return tokenizer
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a supported tokenizer.json: {error!r}") from error


def read_tokenizer(folder):
    """The tokenizer in a Hugging Face folder (tokenizer.json or GPT-2's pair of files), or None."""
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return huggingface_tokenizer(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return tokenizer_from_pair(folder)
    refuse_sentencepieces_own(folder)
    return None


def refuse_sentencepieces_own(folder):
    """Raise ValueError if a folder has a tokenizer in SentencePiece's own format."""
    if (folder / "tokenizer.model").is_file():
        raise ValueError(
            "its tokenizer is in a tokenizer.model alone; transformers writes the tokenizer.json "
            f"that is read here: AutoTokenizer.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r}) (pip install transformers sentencepiece)"
        )


def tokenizer_from_pair(folder):
    """The tokenizer of GPT-2's older pair of files, vocab.json and merges.txt."""
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if not merges_file.is_file():
        raise ValueError(f"{vocab_file} needs a merges.txt beside it, which is missing")
    if settings_in(folder, "config.json").get("model_type", "gpt2") != "gpt2":
        raise ValueError(
            "its tokenizer consists of vocab.json and merges.txt alone, which are sufficient "
            "only for GPT-2; transformers writes a tokenizer.json: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    vocab = read_json(vocab_file)
    try:
        lines = merges_file.read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        marks = [{"content": mark, "id": vocab[mark]} for mark in END_OF_TEXT if mark in vocab]
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
        gpt2 = {"type": "ByteLevel", "add_prefix_space": False}
        return tokenizer_from_huggingface(
            {"model": model, "added_tokens": marks, "pre_tokenizer": gpt2}
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{vocab_file} and merges.txt cannot be used: {error}") from error


def chat_template_in(folder):
    """The chat template of a Hugging Face folder, a Jinja string; None: it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8-sig")
    template = settings_in(folder).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {each.get("name"): each.get("template") for each in template}.get("default")
    return template if isinstance(template, str) else None


def self_contained(template, folder):
    """A chat template that itself sets the tokens whose names it takes from the settings."""
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = named_in(folder, name)
        if template and token and name in template and f"set {name} =" not in template:
            template = "{%- set " + f"{name} = {json.dumps(token)}" + " -%}" + template
    return template


def named_in(folder, name):
    """The `eos_token` or another, as a string, in tokenizer_config.json; None: it names none."""
    token = settings_in(folder).get(name)
    return token.get("content") if isinstance(token, dict) else token


def settings_in(folder, name="tokenizer_config.json"):
    """The content of a settings file in a Hugging Face folder; {} if it does not exist."""
    return read_json(folder / name) if (folder / name).is_file() else {}


def tokenizer_from_huggingface(content):
    model, added = content["model"], content.get("added_tokens", [])
    special_tokens = {token["content"]: token["id"] for token in added}
    bos = beginning(content.get("post_processor") or {}, special_tokens)
    if model.get("type") == "WordLevel" and content["pre_tokenizer"].get("pattern") == ANY:
        tokenizer = CharTokenizer(characters_of(model["vocab"]), special_tokens)
        tokenizer.bos = bos
        return tokenizer
    if model.get("type") != "BPE":
        raise ValueError(f"its model is {model.get('type')}; only BPE is supported")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ValueError(f"its model sets {option}={model[option]!r}, which is not supported")
    ordinary = [token["content"] for token in added if not token.get("special", True)]
    eot = next((special_tokens[mark] for mark in END_OF_TEXT if mark in special_tokens), None)
    form = (content.get("normalizer") or {}).get("type")
    for token in added:
        check_added(token, form)
    if model.get("byte_fallback"):
        return from_tokenizer_json(content, special_tokens, eot, bos, ordinary)
    if form not in (None, *FORMS):
        raise ValueError(f"its normalizer is {form}; only Unicode normal forms are supported")
    ranks = {as_bytes(text): i for text, i in model["vocab"].items() if text not in special_tokens}
    ids = [*ranks.values(), *special_tokens.values()]
    if len(set(ids)) < len(ids) or min(ids) < 0:
        raise ValueError("two of its tokens share an id, or one has a negative id")
    check_merges(ranks, [merge_of(line) for line in model["merges"]], model.get("ignore_merges"))
    pattern = split_pattern(content.get("pre_tokenizer") or {})
    return BytePairTokenizer(
        "huggingface", ranks, special_tokens, pattern, eot, form, bos, ordinary=ordinary
    )


def characters_of(vocab):
    """The characters of a vocabulary {character: id}, as a string; their ids count from 0."""
    characters = sorted(vocab, key=vocab.get)
    is_numbered = [vocab[character] for character in characters] == list(range(len(vocab)))
    if not is_numbered or any(len(character) != 1 for character in characters):
        raise ValueError("its vocabulary is not single characters, numbered from 0")
    return "".join(characters)


def check_added(added, form):
    """Raise ValueError if Hugging Face matches an added token in text by unsupported rules."""
    if not added["content"].strip():
        raise ValueError(f"it adds whitespace as a token of its own ({added['content']!r})")
    flags = [flag for flag in ("lstrip", "rstrip", "single_word") if added.get(flag)]
    if form in ("NFKC", "NFKD") and not added.get("normalized", True):
        flags.append("normalized=False")
    if flags and not added.get("special", True):
        raise ValueError(f"its token {added['content']!r} has {flags[0]}, which is not supported")


def beginning(post_processor, special_tokens):
    """The id of the token that a Hugging Face post-processor puts before every text, or None."""
    for step in post_processor.get("processors", [post_processor]):
        first = step["single"][0] if step.get("type") == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            return special_tokens[first["SpecialToken"]["id"]]
    return None


def split_pattern(pre_tokenizer):
    """The regular expression with which a Hugging Face pre-tokenizer splits text into words."""
    *before, byte_level = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in (*before, byte_level)]
    splits_itself = byte_level.get("use_regex", True)
    if kinds[-1] == "ByteLevel" and not byte_level.get("add_prefix_space", True):
        if len(kinds) == 1 and splits_itself:
            return GPT2_PATTERN
        if kinds[:-1] == ["Digits"] and before[0].get("individual_digits") and splits_itself:
            return DIGITS_PATTERN
        if kinds[:-1] == ["Split"] and before[0]["behavior"] == "Isolated" and not splits_itself:
            pattern = before[0]["pattern"].get("Regex", "")
            # `{1,3}+` repeats the group in Hugging Face, and is possessive in tiktoken.
            repeats = regex.search(r"\d\}\+", pattern)
            if pattern and not repeats and not before[0].get("invert"):
                return pattern
    raise ValueError(
        f"its pre-tokenizer ({', '.join(map(str, kinds))}) splits in a way that is not supported"
    )


def check_merges(ranks, merges, whole_words=False):
    """Raise ValueError unless merging by lowest id, as tiktoken does, is equivalent to `merges`.

    `whole_words`: a word that is a token is encoded as such, whatever the merges.
    """
    if not all(bytes([i]) in ranks for i in range(256)):
        raise ValueError("its vocabulary lacks some of the 256 bytes")
    order = [ranks.get(left + right, -1) for left, right in merges]
    if order != sorted(order) or -1 in order:
        raise ValueError("its merges are not in the order of their tokens' ids")
    listed = set(merges)
    for part in ranks:
        if len(part) == 1 or split_in_two(ranks, part) in listed:
            continue
        splits = [(part[:i], part[i:]) for i in range(1, len(part))]
        possible = {split for split in splits if split[0] in ranks and split[1] in ranks}
        if not (whole_words and possible <= listed):
            raise ValueError(f"its token {part!r} is not the result of its merges")


def split_in_two(ranks, part):
    """The two tokens whose merge yields this one: the state of its bytes before the last merge."""
    pieces = [part[i : i + 1] for i in range(len(part))]
    while len(pieces) > 2:
        joined = [ranks.get(left + right, UNKNOWN) for left, right in pairwise(pieces)]
        first = min(range(len(joined)), key=joined.__getitem__)
        pieces[first : first + 2] = [pieces[first] + pieces[first + 1]]
    return tuple(pieces)


def merge_of(line):
    """A merge as two byte strings; files write it as "a b" or, newer ones, as ["a", "b"]."""
    parts = line.split(" ") if isinstance(line, str) else line
    if len(parts) != 2:
        raise ValueError(f"its merge {line!r} is not a pair of tokens")
    return as_bytes(parts[0]), as_bytes(parts[1])


def as_bytes(text):
    """The bytes of a string in which a Hugging Face file has a printable character per byte."""
    if not BYTE_OF_CHARACTER.keys() >= set(text):
        raise ValueError(f"its token {text!r} is not byte-level")
    return bytes(BYTE_OF_CHARACTER[character] for character in text)


def byte_alphabet():
    """GPT-2's {character: byte}: printable ones stand for themselves, others start at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (i for i in range(256) if i not in printable)
    return {chr(i): i for i in printable} | {chr(256 + n): i for n, i in enumerate(others)}


BYTE_OF_CHARACTER = byte_alphabet()
CHARACTER_OF_BYTE = {i: character for character, i in BYTE_OF_CHARACTER.items()}


# -------------------------------------------------------------------- writing Hugging Face's files


def tokenizer_files(tokenizer, block_size, bos=None, eos=None):
    """{file name: content}, JSON-able, of a tokenizer in a Hugging Face folder.

    bos: id of the token to put before every text; eos: id of the token that ends the model's output
    (None: the end-of-text token); block_size: the maximum length.
    """
    eos = tokenizer.eot if eos is None else eos
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    if tokenizer.kind == "sentencepiece":
        parts = tokenizer.in_their_format(tokenizer.prefix_rule)
    else:
        parts = char_parts(tokenizer) if tokenizer.kind == "char" else byte_pair_parts(tokenizer)
    whole = {"version": "1.0", "truncation": None, "padding": None}
    whole |= {"added_tokens": added_tokens(tokenizer)} | parts
    if bos is not None:
        whole["post_processor"] = template(special[bos], bos)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special.get(bos),
        "eos_token": special.get(eos),
        "pad_token": special.get(padding(tokenizer, eos)),
        "unk_token": getattr(tokenizer, "unknown", None),
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    } | ({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def padding(tokenizer, eos):
    """The id of the token that fills the shorter rows of a batch; it is never attended to."""
    there = [name for name in (*PADDING, *END_OF_TEXT) if name in tokenizer.special_tokens]
    return tokenizer.special_tokens[there[0]] if there else eos


def chat_template_of(tokenizer):
    """The tokenizer's own chat template, or ChatML if it has its special tokens, or None."""
    marks = {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens)
    return tokenizer.chat_template or (CHATML if marks else None)


def byte_pair_parts(tokenizer):
    """The model section of a tokenizer.json, and those around it, for byte-pair encoding."""
    splits_in_words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    maps_bytes = splits_in_words | {"use_regex": False}
    if tokenizer.pattern == GPT2_PATTERN:
        steps = [splits_in_words | {"use_regex": True}]
    elif tokenizer.pattern == DIGITS_PATTERN:
        digits = {"type": "Digits", "individual_digits": True}
        steps = [digits, splits_in_words | {"use_regex": True}]
    else:
        # `{1,3}+` is possessive in tiktoken, but would repeat the group in Hugging Face.
        pattern = {"Regex": regex.sub(r"(\d\})\+", r"\1", tokenizer.pattern)}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps = [split, maps_bytes]
    return {
        "normalizer": tokenizer.form and {"type": tokenizer.form},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps[1:] else steps[0],
        "post_processor": None,
        "decoder": maps_bytes | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "unk_token"), None),
            **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), None),
            **dict.fromkeys(("fuse_unk", "byte_fallback"), False),
            "ignore_merges": True,  # a word that is a token is encoded as such, as in tiktoken
            # Added tokens keep their ids only if the vocabulary has them too.
            "vocab": {as_text(part): i for part, i in tokenizer.ranks.items()}
            | tokenizer.special_tokens,
            "merges": [[as_text(left), as_text(right)] for left, right in merges_of(tokenizer)],
        },
    }


def char_parts(tokenizer):
    """The same for single characters: words of one character each."""
    each = {"type": "Split", "pattern": ANY, "behavior": "Isolated"}
    vocab = {character: i for i, character in enumerate(tokenizer.characters)}
    return {
        "normalizer": None,
        "pre_tokenizer": each | {"invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # There is no token for unknown characters: they are an error there too.
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "unknown character"},
    }


def template(text, i):
    """The post-processor that puts the special token `text`, with id `i`, before every text."""
    special = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": x, "type_id": n}} for n, x in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, second],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]}},
    }


def merges_of(tokenizer):
    """The merges of a byte-pair encoding, in order: pairs of byte strings."""
    longer = sorted((i, part) for part, i in tokenizer.ranks.items() if len(part) > 1)
    pairs = (split_in_two(tokenizer.ranks, part) for _, part in longer)
    return [(left, right) for left, right in pairs if {left, right} <= tokenizer.ranks.keys()]


def as_text(part):
    """Bytes as Hugging Face's files write them: one printable character per byte."""
    return "".join(CHARACTER_OF_BYTE[i] for i in part)
