"""Text becomes ids and comes back, merges are learned as defined, strange files do no harm."""

import base64
import json
import pickle
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import regex
import tiktoken
from tiktoken_ext import openai_public

from support import tokenizer as module
from support.tokenizer import (
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    byte_tokenizer,
    char_tokenizer,
    cut,
    fingerprint,
    tiktoken_tokenizer,
    tokenizer_from_dict,
    train_bpe,
)
from support.tokenizer_files import (
    BYTE_OF_CHARACTER,
    DIGITS_PATTERN,
    huggingface_tokenizer,
    load_tokenizer,
    split_in_two,
    tokenizer_from_nanogpt,
)

ENGLISH = "the cat sat on the mat; the other cat didn't.\n\nThey'll all meet in the hat at 12:30 "
CHINESE = "今天天气很好，我们一起去公园玩。小猫在树下睡觉。"
TRICKY = (
    "a  b   c\t\td \r\n\r\n e\n\n\n  f12345 6789 x'll Y'S ₂½ 12,345.67!!! --- ...\u00a0\u3000z "
    "é e\u0301 Ä ß ﬁ 中文，中文。\n日本語 한국어 עברית 🙂👩‍👩‍👧 \x1c\x85 <|endoftext|> <|im_end|>"
)
# What tiktoken has for cl100k_base and o200k_base: rules that, unlike GPT-2's, look at line ends.
LATER_PATTERNS = [
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"""
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"""
    r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([ENGLISH * 20, CHINESE * 20, TRICKY], 400)


@pytest.fixture(params=["char", "byte", "bpe"])
def tokenizer(request, bpe):
    return {
        "char": char_tokenizer([ENGLISH, CHINESE, TRICKY]),
        "byte": byte_tokenizer(),
        "bpe": bpe,
    }[request.param]


def soup(n, seed=0):
    """Random text out of all that split patterns treat differently."""
    parts = [
        *" \n\t1aéZ!。，中文🙂'<|",
        "  ",
        "\r\n",
        "'s",
        "'LL",
        "12345",
        "e\u0301",
        "\u00a0",
        "word",
    ]
    return "".join(random.Random(seed).choices(parts, k=n))


# ------------------------------------------------------------------------- what all of them promise


def test_text_comes_back_as_it_was(tokenizer):
    for text in (ENGLISH, CHINESE, TRICKY, "", "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_special_tokens_are_the_last_ids_in_their_order(tokenizer):
    last = range(tokenizer.vocab_size - 3, tokenizer.vocab_size)
    assert tokenizer.special_tokens == dict(zip(SPECIAL_TOKENS, last, strict=True))
    assert tokenizer.eot == last[0]


def test_text_never_becomes_a_special_token(tokenizer):
    tokens = tokenizer.encode("".join(SPECIAL_TOKENS) if tokenizer.kind != "char" else TRICKY)
    assert tokens.max() < tokenizer.eot


@pytest.mark.parametrize(
    "texts",
    [
        [ENGLISH, None, CHINESE, None],
        [None, ENGLISH, None, "", None, ENGLISH],  # begins in a document, ends in another
        [ENGLISH, " the cat", None, CHINESE],  # a document in two parts
        [ENGLISH, None, "a text that says <|endoftext|>", None, CHINESE, None],
        ["half of it: <|endof", "text|>", None, "<|endof", None, "text|>", None],
        ["<|im_end|>", None, None, "<|im_start|>"],
        [],
    ],
)
def test_many_texts_at_once_are_what_they_are_one_by_one(texts, bpe):
    for tokenizer in (bpe, byte_tokenizer(), char_tokenizer([*filter(None, texts)])):
        alone = [[tokenizer.eot] if t is None else tokenizer.encode(t).tolist() for t in texts]
        together = tokenizer.encode_all([tokenizer.eot if t is None else t for t in texts])
        assert together.dtype == np.uint32
        assert together.tolist() == [token for tokens in alone for token in tokens]


def test_special_tokens_are_shown_as_their_text(tokenizer):
    tokens = [*tokenizer.encode("cat").tolist(), tokenizer.eot]
    assert tokenizer.decode(tokens) == "cat<|endoftext|>"
    assert tokenizer.token_bytes(tokenizer.eot) == b"<|endoftext|>"


def test_token_bytes_add_up_to_the_text(tokenizer):
    tokens = tokenizer.encode(TRICKY)
    assert b"".join(map(tokenizer.token_bytes, tokens)) == TRICKY.encode()


def test_ids_without_an_entry_are_nothing(tokenizer):
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_a_saved_tokenizer_comes_back_the_same(tokenizer, tmp_path):
    saved = json.loads(json.dumps(tokenizer.to_dict()))
    restored = tokenizer_from_dict(saved)
    assert np.array_equal(restored.encode(TRICKY), tokenizer.encode(TRICKY))
    assert fingerprint(restored) == fingerprint(tokenizer)
    assert (restored.kind, restored.eot) == (tokenizer.kind, tokenizer.eot)


def test_other_tokenizers_have_other_fingerprints(bpe):
    others = [byte_tokenizer(), char_tokenizer(["ab"]), char_tokenizer(["abc"]), bpe]
    assert len({fingerprint(other) for other in others}) == len(others)


def test_an_unknown_kind_of_tokenizer_is_named():
    with pytest.raises(ValueError, match="'sentences'"):
        tokenizer_from_dict({"kind": "sentences"})


# -------------------------------------------------------------------------------------- characters


def test_characters_are_numbered_by_code_point():
    tokenizer = char_tokenizer(["cab", "中a"])
    assert tokenizer.encode("abc中").tolist() == [0, 1, 2, 3]
    assert tokenizer.vocab_size == 4 + 3


def test_every_unknown_character_is_named_with_a_way_out():
    with pytest.raises(ValueError, match=r"'x', '中'.*--tokenizer=byte"):
        char_tokenizer(["ab"]).encode("ax中b中")


def test_known_leaves_out_what_encode_would_refuse(tokenizer):
    if tokenizer.kind == "char":
        assert tokenizer.known("cat\u2603 at") == "cat at"
        tokenizer.encode(tokenizer.known("cat\u2603 at"))
    else:
        assert tokenizer.known("cat\u2603 at") == "cat\u2603 at"


# ---------------------------------------------------------------------------------------- learning


def slow_bpe(words, n_merges):
    """The definition, counted anew before each merge: what `learn_merges` must agree with."""
    words = {tuple(word): count for word, count in words.items()}
    merges = []
    while len(merges) < n_merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, count in words.items():
            merged[tuple(module.merge(list(word), best, 255 + len(merges)))] += count
        words = merged
    return merges


@pytest.mark.parametrize(
    "text", [ENGLISH, CHINESE, TRICKY, "aaaa aaaaa aaa baaab abab ababa", soup(400)]
)
def test_merges_agree_with_their_definition(text):
    words = module.most_frequent(module.count_words([text]), float("inf"))
    assert module.learn_merges(words, 150) == slow_bpe(words, 150)


def test_the_most_frequent_pair_is_merged_first():
    tokenizer = train_bpe(["ab ab ab cd cd"], 259 + 1)
    assert tokenizer.ranks[b"ab"] == 256


def test_of_equally_frequent_pairs_the_lower_ids_win():
    tokenizer = train_bpe(["zx\nba"], 259 + 1)
    assert tokenizer.ranks[b"ba"] == 256


def test_merges_stay_inside_words(bpe):
    for part in bpe.ranks:
        text = part.decode("utf-8", "ignore")
        assert len(regex.findall(GPT2_PATTERN, text)) <= 1


def test_the_vocabulary_has_the_size_asked_for(bpe):
    assert bpe.vocab_size == 400 == 256 + len(SPECIAL_TOKENS) + 141


def test_a_short_text_gives_a_smaller_vocabulary():
    assert train_bpe(["ab"], 1000).vocab_size == 259 + 1
    assert train_bpe([], 1000).vocab_size == 259


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size=258 is too small.*259"):
        train_bpe([ENGLISH], 258)
    assert train_bpe([ENGLISH], 259).vocab_size == 259


def test_training_twice_gives_the_same():
    texts = [soup(3000), ENGLISH, CHINESE]
    assert fingerprint(train_bpe(texts, 500)) == fingerprint(train_bpe(iter(texts), 500))


def test_only_the_most_frequent_words_are_learned_from():
    words = Counter({"aa": 5, "bb": 4, "cc": 3})
    assert module.most_frequent(words, 4) == {b"aa": 5, b"bb": 4}


def test_the_count_of_words_stays_bounded(monkeypatch):
    monkeypatch.setattr(module, "COUNTED_WORDS", 50)
    texts = [" often" * 100 + "".join(f" {letter}{i}" for i in range(100)) for letter in "abcdefg"]
    words = module.count_words(texts)
    assert len(words) <= 50
    assert words[" often"] == 700


def test_long_words_are_learned_from_in_parts():
    words = module.count_words(["-" * 1000])
    assert words == {"-" * 64: 15, "-" * 40: 1}


# ---------------------------------------------------------------------------------------- encoding


def test_a_merge_goes_by_rank_and_not_by_place():
    tokenizer = train_bpe(["bc bc bc ab ab"], 259 + 2)
    assert [tokenizer.token_bytes(token) for token in tokenizer.encode("abc")] == [b"a", b"bc"]


def test_bytes_are_their_own_ids():
    assert byte_tokenizer().encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert byte_tokenizer().vocab_size == 259


def test_half_a_character_is_shown_as_a_replacement():
    assert byte_tokenizer().decode([97, 0xC3]) == "a\ufffd"


def test_lone_surrogates_are_repaired(bpe):
    assert bpe.decode(bpe.encode("a\ud83db")) == "a\ufffdb"
    assert bpe.decode(bpe.encode("a\ud83d\ude42b")) == "a🙂b"


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, DIGITS_PATTERN, *LATER_PATTERNS])
def test_text_encoded_in_pieces_equals_text_encoded_whole(bpe, pattern):
    across_lines = {b"!\n": 400, b"|\n": 401, b"\n\n": 402, b"  ": 403}
    tokenizer = module.BytePairTokenizer("bpe", bpe.ranks | across_lines, {}, pattern)
    for text in (soup(4000), soup(4000, seed=1), (TRICKY + CHINESE + ENGLISH) * 9):
        for limit in (500, 137, 60):
            parts = [tokenizer.encode(piece) for piece in cut([text], limit)]
            assert np.array_equal(np.concatenate(parts), tokenizer.encode(text))


def test_pieces_do_not_depend_on_how_the_text_came_in():
    text = soup(5000)
    in_chunks = (text[i : i + 77] for i in range(0, len(text), 77))
    pieces = list(cut(in_chunks, 300))
    assert pieces == list(cut([text], 300))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 300


def test_text_without_a_seam_is_cut_all_the_same():
    assert list(map(len, cut(["a" * 1000], 300))) == [300, 300, 300, 100]


def test_a_million_blanks_before_a_letter_can_be_encoded():
    text = " " * 1_000_000 + "a"
    assert byte_tokenizer().decode(byte_tokenizer().encode(text)) == text


# ----------------------------------------------------------------------- vocabularies of tiktoken's


@pytest.fixture
def published(monkeypatch):
    """What is asked of tiktoken's loader, which has a small vocabulary in place of a download."""
    asked = []
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257}

    def load(url, expected_hash=None):
        asked.append(url)
        return ranks

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", load)
    return asked


def test_gpt2_is_one_download_and_keeps_its_own_special_token(published):
    tokenizer = tiktoken_tokenizer("gpt2")
    assert len(published) == 1 and published[0].endswith("r50k_base.tiktoken")
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    assert (tokenizer.kind, tokenizer.eot, tokenizer.vocab_size) == ("gpt2", 50256, 50257)


@pytest.mark.parametrize(
    ("name", "eot", "size"), [("cl100k_base", 100257, 100277), ("o200k_base", 199999, 200019)]
)
def test_later_vocabularies_count_their_gaps(published, name, eot, size):
    tokenizer = tiktoken_tokenizer(name)
    assert (tokenizer.kind, tokenizer.eot, tokenizer.vocab_size) == (name, eot, size)


def test_a_saved_gpt2_needs_no_download(published):
    saved = json.dumps(tiktoken_tokenizer("gpt2").to_dict())
    published.clear()
    restored = tokenizer_from_dict(json.loads(saved))
    assert restored.encode("the then").tolist() == [257, 32, 257, 110]
    assert published == []


def test_a_saved_vocabulary_encodes_as_tiktoken_itself(published):
    ours = tokenizer_from_dict(tiktoken_tokenizer("cl100k_base").to_dict())
    theirs = tiktoken.Encoding(**openai_public.cl100k_base())
    assert ours.encode(TRICKY).tolist() == theirs.encode_ordinary(TRICKY)


def test_without_a_connection_the_other_choices_are_named(monkeypatch, capsys):
    def fail(url, expected_hash=None):
        raise ConnectionError("no route")

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", fail)
    with pytest.raises(ValueError, match=r"gpt2 could not be downloaded.*--tokenizer=bpe"):
        tiktoken_tokenizer("gpt2")
    assert "downloading the vocabulary gpt2" in capsys.readouterr().err


# -------------------------------------------------------------------------- files of Hugging Face's


def as_huggingface(bpe, offset=0):
    """The content of a tokenizer.json that means the same as our tokenizer."""
    character_of = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}

    def spelled(part):
        return "".join(character_of[byte] for byte in part)

    merged = [part for part in bpe.ranks if len(part) > 1]
    return {
        "added_tokens": [{"id": 5000 + offset, "content": "<|endoftext|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {spelled(part): i + offset for part, i in bpe.ranks.items()},
            "merges": [" ".join(map(spelled, split_in_two(bpe.ranks, part))) for part in merged],
        },
    }


def saved_as(content, folder):
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("offset", [0, 7])
def test_a_huggingface_file_encodes_the_same(bpe, offset, tmp_path):
    tokenizer = huggingface_tokenizer(saved_as(as_huggingface(bpe, offset), tmp_path))
    assert np.array_equal(tokenizer.encode(TRICKY), bpe.encode(TRICKY) + offset)
    assert (tokenizer.kind, tokenizer.eot) == ("huggingface", 5000 + offset)
    assert tokenizer.vocab_size == 5001 + offset
    assert tokenizer_from_dict(tokenizer.to_dict()).decode(tokenizer.encode(TRICKY)) == TRICKY


def test_merges_may_be_written_as_pairs(bpe, tmp_path):
    content = as_huggingface(bpe)
    content["model"]["merges"] = [line.split(" ") for line in content["model"]["merges"]]
    tokenizer = huggingface_tokenizer(saved_as(content, tmp_path) / "tokenizer.json")
    assert np.array_equal(tokenizer.encode(ENGLISH), bpe.encode(ENGLISH))


def test_a_huggingface_file_brings_its_own_split_and_normal_form(bpe, tmp_path):
    content = as_huggingface(bpe)
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}|\P{L}"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    content["normalizer"] = {"type": "NFC"}
    tokenizer = huggingface_tokenizer(saved_as(content, tmp_path))
    assert len(tokenizer.encode("the cat")) == 7
    assert tokenizer_from_dict(tokenizer.to_dict()).decode(tokenizer.encode("e\u0301")) == "é"


def test_single_digits_are_split_as_smollm_does(bpe, tmp_path):
    content = as_huggingface(bpe)
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = huggingface_tokenizer(saved_as(content, tmp_path))
    words = regex.findall(tokenizer.pattern, "a  12 b'll  c")
    assert words == ["a", "  ", "1", "2", " b", "'ll", " ", " c"]


def change(content, *path, to):
    *way, last = path
    for name in way:
        content = content[name]
    content[last] = to


@pytest.mark.parametrize(
    ("path", "to", "reason"),
    [
        (("model", "type"), "WordPiece", "WordPiece"),
        (("model", "byte_fallback"), True, "splits text by {'type': 'ByteLevel'"),
        (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix"),
        (("normalizer",), {"type": "Lowercase"}, "Lowercase"),
        (("pre_tokenizer",), {"type": "Metaspace"}, "Metaspace"),
        (("pre_tokenizer", "add_prefix_space"), True, "ByteLevel"),
        (("added_tokens", 0, "content"), "   ", "whitespace"),
        (("model", "merges"), [], "is not the result of its merges"),
        (("model", "vocab", "Ġthe"), 4000, "not in the order"),
        (("model", "vocab", "你"), 4000, "'你' is not byte-level"),
        (("model", "merges", 0), "abc", "merge 'abc' is not a pair of tokens"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(bpe, tmp_path, path, to, reason):
    content = as_huggingface(bpe)
    change(content, *path, to=to)
    with pytest.raises(ValueError, match=f"tokenizer.json.*{reason}"):
        huggingface_tokenizer(saved_as(content, tmp_path))


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_rules_for_added_tokens_that_have_no_equal_are_refused(bpe, tmp_path, flag):
    content = as_huggingface(bpe)
    content["normalizer"] = {"type": "NFKC"}
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word"), False) | {"normalized": True}
    think = {"id": 5001, "content": "<think>", "special": False} | usual
    content["added_tokens"].append(think)
    assert huggingface_tokenizer(saved_as(content, tmp_path)).ordinary == {"<think>"}
    think[flag] = not think[flag]
    with pytest.raises(ValueError, match=f"'<think>' has {flag}"):
        huggingface_tokenizer(saved_as(content, tmp_path))
    think["special"] = True  # no text is encoded as this one
    assert huggingface_tokenizer(saved_as(content, tmp_path)).ordinary == frozenset()


@pytest.mark.parametrize("vocab", [{"[UNK]": 0, "a": 1}, {"a": 0, "b": 2}])
def test_a_vocabulary_of_words_does_not_pass_for_one_of_characters(vocab, tmp_path):
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}
    content = {"model": {"type": "WordLevel", "vocab": {"b": 1, "a": 0}}, "pre_tokenizer": split}
    tokenizer = huggingface_tokenizer(saved_as(content, tmp_path))
    assert tokenizer.encode("ab").tolist() == [0, 1]
    content["model"]["vocab"] = vocab
    with pytest.raises(ValueError, match=r"tokenizer\.json.*not single characters"):
        huggingface_tokenizer(saved_as(content, tmp_path))


def test_a_bad_pair_of_vocabulary_and_merges_is_named(bpe, tmp_path):
    model = as_huggingface(bpe)["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json needs a merges\.txt"):
        load_tokenizer(tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_text("\n".join(["#version: 0.2", *model["merges"], ""]), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode(ENGLISH).tolist() == bpe.encode(ENGLISH).tolist()
    merges.write_text("abc\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt cannot be used.*'abc'"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"你": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt cannot be used.*'你'"):
        load_tokenizer(tmp_path)


def test_a_token_that_no_merge_makes_is_kept_where_whole_words_go_first(bpe, tmp_path):
    content = as_huggingface(bpe)
    content["model"]["vocab"]["zqx"] = 4000
    with pytest.raises(ValueError, match=r"zqx.*is not the result of its merges"):
        huggingface_tokenizer(saved_as(content, tmp_path))
    content["model"]["ignore_merges"] = True
    tokenizer = huggingface_tokenizer(saved_as(content, tmp_path))
    assert tokenizer.encode("zqx").tolist() == [4000]
    # tiktoken would join these two halves, and Hugging Face would not.
    content["model"]["vocab"]["thethe"] = 4001
    with pytest.raises(ValueError, match=r"thethe.*is not the result of its merges"):
        huggingface_tokenizer(saved_as(content, tmp_path))


def test_a_vocabulary_without_all_bytes_is_refused(bpe, tmp_path):
    content = as_huggingface(bpe)
    del content["model"]["vocab"]["!"]
    with pytest.raises(ValueError, match="256 bytes"):
        huggingface_tokenizer(saved_as(content, tmp_path))


# ------------------------------------------------------------------------------- files of nanoGPT's


def saved_meta(folder, content):
    (folder / "meta.pkl").write_bytes(pickle.dumps(content))
    return folder


def nanogpt_meta(characters):
    stoi = {character: i for i, character in enumerate(characters)}
    itos = {i: character for character, i in stoi.items()}
    return {"vocab_size": len(stoi), "itos": itos, "stoi": stoi}


def test_nanogpts_characters_are_read(tmp_path):
    tokenizer = tokenizer_from_nanogpt(saved_meta(tmp_path, nanogpt_meta("\n abc")))
    assert tokenizer.encode("cab").tolist() == [4, 2, 3]
    assert (tokenizer.eot, tokenizer.special_tokens, tokenizer.vocab_size) == (None, {}, 5)


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_malicious_pickle_runs_nothing(tmp_path):
    saved_meta(tmp_path, {"stoi": Attack(tmp_path / "harm")})
    with pytest.raises(ValueError, match=r"nothing was run .it asks for (_?io|builtins)\.open"):
        tokenizer_from_nanogpt(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({"stoi": ["a"]})]
)
def test_what_is_no_meta_pkl_is_refused(content, tmp_path):
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a nanoGPT meta\.pkl"):
        tokenizer_from_nanogpt(tmp_path)


def test_numbers_with_gaps_and_whole_words_are_refused(tmp_path):
    for stoi in ({"a": 0, "b": 2}, {"the": 0}):
        with pytest.raises(ValueError, match="single characters"):
            tokenizer_from_nanogpt(saved_meta(tmp_path, {"stoi": stoi}))


# ----------------------------------------------------------------------- finding a tokenizer's file


def test_a_tokenizer_is_found_in_every_kind_of_folder(bpe, tmp_path):
    ours, theirs, nanogpt = (tmp_path / name for name in ("ours", "theirs", "nanogpt"))
    for folder in (ours, theirs, nanogpt):
        folder.mkdir()
    meta = {"format": 1, "tokenizer": bpe.to_dict()}
    (ours / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    saved_as(as_huggingface(bpe), theirs)
    saved_meta(nanogpt, nanogpt_meta("ab"))
    assert fingerprint(load_tokenizer(ours)) == fingerprint(load_tokenizer(ours / "meta.json"))
    assert load_tokenizer(str(theirs)).kind == "huggingface"
    assert load_tokenizer(theirs / "tokenizer.json").kind == "huggingface"
    assert load_tokenizer(nanogpt).kind == load_tokenizer(nanogpt / "meta.pkl").kind == "char"


def test_a_run_is_asked_for_its_tokenizer(monkeypatch, tmp_path):
    from support import checkpoint

    (tmp_path / "ckpt.pt").write_bytes(b"")
    monkeypatch.setattr(checkpoint, "load_tokenizer_of_run", lambda path: ("tokenizer of", path))
    assert load_tokenizer(tmp_path) == ("tokenizer of", tmp_path / "ckpt.pt")


def test_a_source_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder.*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    for content in ("{not json", "[1]", '{"a": 1}', '{"kind": "char"}'):
        (tmp_path / "x.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"x\.json is"):
            load_tokenizer(tmp_path / "x.json")


def test_ranks_are_saved_in_tiktokens_notation(bpe):
    first, *_ = bpe.to_dict()["ranks"].splitlines()
    assert first == f"{base64.b64encode(bytes([0])).decode()} 0"
