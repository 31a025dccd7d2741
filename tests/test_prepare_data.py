"""Text becomes a data folder, or nothing changes at all."""

import errno
import itertools
import json
import random
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from prepare_data import BATCH_CHARACTERS, main
from support import corpora
from support import tokenizer as tokenizer_module
from support.config import load_config
from support.token_files import open_dataset
from support.tokenizer import (
    BytePairTokenizer,
    byte_tokenizer,
    char_tokenizer,
    fingerprint,
    tokenizer_from_dict,
)
from tests.conftest import REPOSITORY
from train import TrainConfig

WORDS = (
    "the a cat dog sees finds loves old new big 猫 狗 看见 很 大 and then they went home".split()
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in: data/ is made there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(n_words, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=n_words)) + ".\n"


def save(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def save_lines(name, texts):
    return save(name, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def result(dataset):
    """(meta, tokenizer, train ids, val ids) of a data folder."""
    meta = json.loads(Path("data", dataset, "meta.json").read_text(encoding="utf-8"))
    splits = [
        np.fromfile(f"data/{dataset}/{split}.bin", meta["dtype"]) for split in ("train", "val")
    ]
    return meta, tokenizer_from_dict(meta["tokenizer"]), *splits


def documents(tokens, tokenizer):
    """The texts between the ends of text."""
    pieces = tokenizer.decode(tokens).split("<|endoftext|>")
    assert pieces.pop() == ""
    return pieces


def error_of(*arguments):
    """The message with which the script ends; its status is 1 and there is no traceback."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, str)
    return stop.value.code


# ---------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_text_comes_back_from_its_tokens(tokenizer):
    whole = text(3000)
    main([save("a.txt", whole), "--dataset=x", f"--tokenizer={tokenizer}"])
    meta, used, train, val = result("x")
    assert used.decode(train) + used.decode(val) == whole + "<|endoftext|>"
    assert used.kind == tokenizer
    assert meta["tokenizer_sha256"] == fingerprint(used)
    assert (meta["vocab_size"], meta["eot"]) == (used.vocab_size, used.eot)


def test_the_counts_in_meta_are_those_of_the_files():
    texts = [text(30, seed) for seed in range(200)]
    main([save_lines("a.jsonl", texts), "--tokenizer=byte"])
    meta, tokenizer, *splits = result("a")
    for split, tokens in zip(("train", "val"), splits, strict=True):
        told = meta["splits"][split]
        assert told["tokens"] == len(tokens) == Path(f"data/a/{split}.bin").stat().st_size // 2
        assert told["documents"] == (tokens == tokenizer.eot).sum()
        assert told["bytes"] == len(tokens) - told["documents"]
    assert meta["splits"]["train"]["documents"] + meta["splits"]["val"]["documents"] == 200
    assert meta["format"] == 1 and meta["source"] == ["a.jsonl"]


def test_the_training_script_opens_what_is_written():
    main([save("a.txt", text(2000)), "--dataset=x"])
    dataset = open_dataset("x")
    assert len(dataset.train) == result("x")[0]["splits"]["train"]["tokens"]
    assert dataset.tokenizer.kind == "bpe"


def test_ids_take_two_bytes_where_they_fit_and_else_four():
    ranks = {bytes([i]): i for i in range(256)}
    for last, dtype in ((2**16 - 1, "uint16"), (2**16, "uint32")):
        tokenizer = BytePairTokenizer("bpe", ranks, {"<|endoftext|>": last}, eot=last)
        save("t/meta.json", json.dumps({"tokenizer": tokenizer.to_dict()}))
        main([save("a.txt", text(300)), "--dataset=x", "--tokenizer=t"])
        meta, _, _, val = result("x")
        assert meta["dtype"] == dtype
        assert val[-1] == last


def test_an_end_of_text_in_a_text_is_text():
    main([save("a.txt", "<|endoftext|>" * 50), "--dataset=x"])
    _, tokenizer, train, val = result("x")
    assert (np.concatenate([train, val]) == tokenizer.eot).sum() == 1


def test_preparing_twice_gives_the_same_files():
    save_lines("a.jsonl", [text(50, seed) for seed in range(300)])
    written = []
    for _ in range(2):
        main(["a.jsonl", "--dataset=x"])
        written.append([path.read_bytes() for path in sorted(Path("data/x").iterdir())])
    assert written[0] == written[1]


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(prepare_data, "BATCH_CHARACTERS", 100)
    save_lines("a.jsonl", [text(50, seed) for seed in range(300)])
    written = []
    for threads in (1, 5):
        monkeypatch.setattr(prepare_data.os, "cpu_count", lambda threads=threads: threads)
        main(["a.jsonl", "--dataset=x"])
        written.append(Path("data/x/train.bin").read_bytes())
    assert written[0] == written[1]


def test_a_text_of_many_pieces_is_encoded_as_a_whole():
    whole = text(BATCH_CHARACTERS // 2)
    assert len(whole) > 1.5 * BATCH_CHARACTERS
    main([save("a.txt", whole), "--dataset=x", "--tokenizer=bpe", "--vocab_size=300"])
    meta, tokenizer, train, _ = result("x")
    assert np.array_equal(train, tokenizer.encode(whole[: int(len(whole) * (1 - 0.1))]))
    assert [split["documents"] for split in meta["splits"].values()] == [1, 1]


# ------------------------------------------------------------------------------------------- splits


def test_one_text_is_split_where_nanogpt_splits_it():
    main([save("a.txt", text(3000)), "--tokenizer=char"])
    _, tokenizer, train, val = result("a")
    n = len(text(3000))
    assert len(train) == int(n * 0.9)
    assert len(val) == n - int(n * 0.9) + 1
    assert val[-1] == tokenizer.eot


def test_a_few_documents_are_split_at_the_end_of_the_text():
    texts = [text(100, seed) for seed in range(20)]
    main([save_lines("a.jsonl", texts), "--tokenizer=char", "--val_fraction=0.25"])
    meta, tokenizer, train, val = result("a")
    *whole, cut_off = tokenizer.decode(train).split("<|endoftext|>")
    rest, *others = documents(val, tokenizer)
    assert [*whole, cut_off + rest, *others] == texts
    n = sum(map(len, texts))
    assert len("".join(whole) + cut_off) == int(n * 0.75)
    assert "last 0.25 of the text" in meta["split_rule"]


def test_many_documents_are_split_whole_and_about_as_asked():
    texts = [text(20, seed) for seed in range(1000)]
    main([save_lines("a.jsonl", texts), "--tokenizer=char", "--val_fraction=0.2"])
    _, tokenizer, train, val = result("a")
    train, val = documents(train, tokenizer), documents(val, tokenizer)
    assert sorted(train + val) == sorted(texts)
    assert 150 < len(val) < 250


def test_a_document_keeps_its_split_whatever_stands_around_it():
    def validation(name, texts):
        main([save_lines(name, texts), "--tokenizer=byte", "--dataset=x"])
        _, tokenizer, _, val = result("x")
        return set(documents(val, tokenizer))

    texts = [text(20, seed) for seed in range(400)]
    assert validation("b.jsonl", texts[:0:-2]) <= validation("a.jsonl", texts)


def test_copies_are_dropped_and_never_straddle_the_split(capsys):
    texts = [text(20, seed) for seed in range(200)]
    main([save_lines("a.jsonl", texts + texts[:50]), "--tokenizer=char"])
    _, tokenizer, train, val = result("a")
    found = Counter(documents(train, tokenizer) + documents(val, tokenizer))
    assert found == Counter(texts)
    assert "50 duplicate documents" in capsys.readouterr().out


def test_a_copy_of_a_file_in_pieces_is_found_too(monkeypatch):
    monkeypatch.setattr(corpora, "CHUNK_BYTES", 100)
    for name in ("texts/a.txt", "texts/b.txt"):
        save(name, text(500))
    save("texts/c.txt", text(500) + "x")
    main(["texts", "--tokenizer=byte"])
    _, tokenizer, train, val = result("texts")
    assert tokenizer.decode([*train, *val]) == f"{text(500)}<|endoftext|>{text(500)}x<|endoftext|>"


def test_memory_for_copies_is_bounded_and_never_takes_two_texts_for_one(monkeypatch):
    monkeypatch.setattr(prepare_data, "REMEMBERED", 4)
    texts = [text(20, seed) for seed in range(200)]
    main([save_lines("a.jsonl", texts), "--tokenizer=byte"])
    meta, *_ = result("a")
    assert sum(split["documents"] for split in meta["splits"].values()) == 200


def test_empty_documents_are_passed_over():
    main([save_lines("a.jsonl", ["", text(100), "", text(100, 1)]), "--tokenizer=byte"])
    _, tokenizer, train, val = result("a")
    assert tokenizer.decode([*train, *val]).count("<|endoftext|>") == 2


# ------------------------------------------------------------------------------ corpora with a name


class Stories:
    """Stands for support.stories: as many as asked for, half a bit for each byte."""

    @staticmethod
    def generate(seed, held_out=False, language=None):
        for number in itertools.count():
            words = text(20, f"{seed} {held_out} {number}") + ("held out" if held_out else "told")
            yield types.SimpleNamespace(text=words)

    @staticmethod
    def floor_bits_per_byte(stories):
        return 0.5


@pytest.fixture
def stories(monkeypatch):
    monkeypatch.setitem(sys.modules, "support.stories", Stories)


def test_without_arguments_stories_are_made(stories, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--megabytes=0.2"])
    main()
    meta, tokenizer, train, val = result("stories")
    assert all(story.endswith("told") for story in documents(train, tokenizer))
    assert all(story.endswith("held out") for story in documents(val, tokenizer))
    assert 0.19e6 < meta["splits"]["train"]["bytes"] <= 0.2e6
    assert meta["floor_bits_per_byte"] == pytest.approx({"train": 0.5, "val": 0.5})
    assert capsys.readouterr().out.endswith("Next: python train.py\n")


def test_too_few_stories_are_answered_with_a_knob_that_they_have(stories):
    assert error_of("--megabytes=0.001").endswith("use more --megabytes")


def test_text_that_nobody_generated_has_no_floor():
    main([save("a.txt", text(500))])
    assert "floor_bits_per_byte" not in result("a")[0]


@pytest.fixture
def shards(monkeypatch):
    """Small shards of llm.c's in place of the downloads of FineWeb-Edu."""
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256}
    gpt2 = BytePairTokenizer("gpt2", ranks, {"<|endoftext|>": 257}, eot=257)
    files = {}
    for split, numbers in (("val", [0]), ("train", [1, 2])):
        files[split] = [Path(f"data/fineweb_edu/finewebedu_{split}_{i:06d}.bin") for i in numbers]
        for path in files[split]:
            tokens = np.array([257, *gpt2.encode(f"this is the {split}")], "<u2")
            header = np.zeros(256, "<i4")
            header[:3] = 20240520, 1, len(tokens)
            save(path, header.tobytes() + tokens.tobytes())
    monkeypatch.setattr(prepare_data, "tiktoken_tokenizer", lambda name: gpt2)
    monkeypatch.setattr(prepare_data, "fineweb_edu_shards", lambda folder, n: files)
    return files


def test_fineweb_edu_is_described_and_left_in_its_shards(shards, capsys):
    main(["fineweb_edu", "--shards=2"])
    meta = json.loads(Path("data/fineweb_edu/meta.json").read_text(encoding="utf-8"))
    assert meta["splits"]["train"] == {
        "files": ["finewebedu_train_000001.bin", "finewebedu_train_000002.bin"],
        "tokens": 2 * (1 + len("this is the train") - 2),
        "bytes": 2 * len("this is the train"),
        "documents": 2,
    }
    assert "python train.py config/gpt2_124m.py" in capsys.readouterr().out
    dataset = open_dataset("fineweb_edu")
    assert len(dataset.train) == meta["splits"]["train"]["tokens"]
    assert dataset.tokenizer.decode(dataset.val.shards[0]) == "<|endoftext|>this is the val"


def test_a_damaged_shard_is_named(shards):
    shards["train"][0].write_bytes(shards["train"][0].read_bytes()[:-2])
    assert "finewebedu_train_000001.bin is damaged" in error_of("fineweb_edu")


def test_fineweb_edu_has_the_tokenizer_that_it_has():
    assert "leave --tokenizer out" in error_of("fineweb_edu", "--tokenizer=char")


# --------------------------------------------------------------------------------------- tokenizers


def test_the_vocabulary_grows_with_the_text(monkeypatch):
    monkeypatch.setattr(prepare_data, "VOCAB_SIZES", ((5000, 270), (float("inf"), 290)))
    monkeypatch.setattr(tokenizer_module, "SHORT_TEXT_TOKENS", 0)
    for words, size in ((100, 270), (4000, 290)):
        main([save("a.txt", text(words)), "--dataset=x"])
        assert result("x")[0]["vocab_size"] == size


def test_frequent_chinese_characters_find_room_in_the_vocabulary(monkeypatch, capsys):
    monkeypatch.setattr(tokenizer_module, "SHORT_TEXT_TOKENS", 300)
    often = "".join(chr(0x4E00 + i) for i in range(50))
    shuffled = ["".join(random.Random(i).sample(often, 50)) for i in range(20)]
    Path("zh.txt").write_text("\n".join([*shuffled, "龍鳳龜鶴"]), encoding="utf-8")
    monkeypatch.setattr(prepare_data, "VOCAB_SIZES", ((float("inf"), 300),))
    main(["zh.txt", "--dataset=x"])
    assert result("x")[0]["vocab_size"] == 350
    assert "--tokenizer=char" not in capsys.readouterr().err  # 50 are not many
    main(["zh.txt", "--dataset=x", "--vocab_size=320"])
    assert result("x")[0]["vocab_size"] == 320
    monkeypatch.setattr(prepare_data, "VOCAB_SIZES", ((float("inf"), 260),))
    monkeypatch.setattr(prepare_data, "FEWEST", 260)
    monkeypatch.setattr(tokenizer_module, "SHORT_TEXT_TOKENS", 350)
    main(["zh.txt", "--dataset=x"])
    assert "learns more from characters: --tokenizer=char" in capsys.readouterr().err


def test_a_vocabulary_that_the_text_cannot_fill_is_smaller_and_told(capsys):
    main([save("a.txt", "abcabc " * 30), "--vocab_size=5000"])
    meta, *_ = result("a")
    assert meta["vocab_size"] < 300
    out, err = capsys.readouterr()
    assert "the text has no more pairs to merge: the vocabulary is smaller than 5,000" in err
    assert f"{meta['vocab_size']:,} entries" in out


def test_a_large_text_is_sampled_evenly_for_its_merges(monkeypatch):
    monkeypatch.setattr(prepare_data, "TRAINING_BYTES", 1000)
    texts = ["ab " * 100 if number % 2 else "cd " * 100 for number in range(10)]
    texts = [f"{number} {words}" for number, words in enumerate(texts)]
    corpus = corpora.Corpus("x", list, sum(map(len, texts)), [])
    config = prepare_data.PrepareConfig(vocab_size=262)
    seen = []

    def train(texts, vocab_size, at_least):
        seen.extend(texts)
        return byte_tokenizer()

    monkeypatch.setattr(prepare_data, "train_bpe", train)
    prepare_data.make_tokenizer(config, corpus, iter(texts))
    assert seen == texts[::4]


def test_text_for_fine_tuning_takes_the_tokenizer_of_an_older_folder():
    main([save("a.txt", text(3000)), "--dataset=first", "--vocab_size=300"])
    main([save("b.txt", text(900, 1)), "--dataset=second", "--tokenizer=data/first"])
    assert result("first")[0]["tokenizer_sha256"] == result("second")[0]["tokenizer_sha256"]


def test_unknown_characters_are_dropped_and_counted(capsys):
    tokenizer = char_tokenizer([text(1000)])
    save("t/meta.json", json.dumps({"tokenizer": tokenizer.to_dict()}))
    main([save("a.txt", "the cat ☃☃ sees the dog\n" * 20), "--dataset=x", "--tokenizer=t"])
    meta, _, train, val = result("x")
    assert tokenizer.decode([*train, *val]) == "the cat  sees the dog\n" * 20 + "<|endoftext|>"
    assert meta["splits"]["train"]["bytes"] + meta["splits"]["val"]["bytes"] == 22 * 20
    told = " ".join(capsys.readouterr().out.split())
    assert "40 unknown characters (8% of all: another --tokenizer would know more)" in told


def test_a_name_on_the_hub_may_bring_the_tokenizer(monkeypatch):
    from support import huggingface

    main([save_lines("a.jsonl", ["hello you"] * 200), "--dataset=old", "--tokenizer=byte"])
    monkeypatch.setattr(huggingface, "from_hub", {"somebody/model": "data/old"}.__getitem__)
    main([save_lines("b.jsonl", ["hello me"] * 200), "--dataset=new", "--tokenizer=somebody/model"])
    assert result("new")[0]["tokenizer_sha256"] == result("old")[0]["tokenizer_sha256"]


def test_a_tokenizer_without_an_end_of_text_writes_none(capsys):
    save(
        "t/meta.json",
        json.dumps({"tokenizer": {"kind": "char", "characters": "ab", "special_tokens": {}}}),
    )
    main([save("a.txt", "abba" * 100), "--dataset=x", "--tokenizer=t"])
    meta, _, train, val = result("x")
    assert meta["eot"] is None
    assert len(train) + len(val) == 400
    hint = "nothing separates one document from the next"
    assert hint not in capsys.readouterr().err
    main([save_lines("b.jsonl", ["ab" * 100, "ba" * 100]), "--dataset=y", "--tokenizer=t"])
    assert hint in capsys.readouterr().err


# -------------------------------------------------------------------------------------- the report


def test_the_report_fits_a_terminal_and_says_what_to_type_next(capsys):
    main([save("a.txt", text(3000)), "--dataset=my_text"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("documents", "bytes", "tokens", "per token", "dropped", "split", "vocabulary"):
        assert f"\n  {word}" in out
    assert "python train.py --dataset=my_text --out_dir=out/my_text" in out


def test_the_glimpse_of_chinese_counts_two_columns_for_a_character():
    tokenizer = char_tokenizer(["中文ab"])
    tokens = tokenizer.encode("中a文b中a文b")
    assert prepare_data.glimpse(tokens, tokenizer, 9) == "中 a 文 b"


def test_the_tokens_at_the_beginning_are_shown(capsys):
    main([save("a.txt", "one\ntwo " * 90), "--dataset=x", "--tokenizer=char"])
    assert "o n e ⏎ t w o" in capsys.readouterr().out


# ------------------------------------------------------------------------ mistakes, and bad moments


@pytest.fixture
def older():
    """A function that tells whether data/ still holds what it held before, and nothing else."""
    main([save("older.txt", text(500)), "--dataset=x", "--tokenizer=byte"])
    before = {path: path.read_bytes() for path in Path("data/x").iterdir()}

    def is_intact():
        now = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
        return now == before

    return is_intact


BAD_FILES = {
    "empty.txt": (b"", "no text in empty.txt"),
    "binary.txt": (b"\x00\x01\x02", "binary.txt is a binary file"),
    "latin.txt": (b"caf\xe9 au lait", "latin.txt is not UTF-8: byte 3"),
    "wide.txt": ("text".encode("utf-16"), "wide.txt is UTF-16"),
    "broken.jsonl": (b'{"text": "a"}\n{"tex', "broken.jsonl, line 2: not JSON"),
    "other.jsonl": (b'{"story": "a"}\n', "other.jsonl, line 1: expected"),
    "packed.txt.gz": (b"not packed", "packed.txt.gz is not a complete .gz"),
    "short.txt": (b"a", "too little text for two splits"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_changes_nothing(name, older):
    content, message = BAD_FILES[name]
    assert message in error_of(save(name, content), "--dataset=x")
    assert older()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "there is no file or folder nowhere.txt"),
        (["older.txt", "--tokenizer=bep"], "tokenizer=bep: expected gpt2"),
        (["older.txt", "--tokenizer=data/none"], "tokenizer=data/none: expected gpt2"),
        (["older.txt", "--tokenizer=byte", "--vocab_size=500"], "leave --vocab_size out"),
        (["older.txt", "--vocab_size=100"], "vocab_size=100 is too small"),
        (["older.txt", "--val_fraction=1.5"], "val_fraction=1.5: expected"),
        (["older.txt", "--dataset=../x"], "dataset=../x: expected a name"),
        (["stories", "--megabytes=0"], "megabytes=0.0: expected"),
        (["older.txt", "--megabytes=3"], "megabytes=3.0 is only for stories: leave it out"),
        (["older.txt", "--language=zh"], "language=zh is only for stories"),
        (["stories", "--shards=2"], "shards=2 is only for fineweb_edu"),
        (
            ["stories", "--encoding=big5"],
            "encoding=big5 is not for stories, which has its own: leave it out",
        ),
        (
            ["older.txt", "--encoding=gb1"],
            "encoding=gb1: expected utf-8 or another, such as gb18030",
        ),
        (
            ["stories", "--val_fraction=0.2"],
            "val_fraction=0.2 is not for stories, which has its own",
        ),
        (["older.txt", "--val_fraction=1e-17"], "val would have"),
        (["older.txt", "--tokenizer=older.txt"], "older.txt is not a JSON file"),
        ([".", "stories"], "stories is a corpus of its own"),
        ([""], "nothing to prepare"),
        (
            ["fineweb_edu", "--vocab_size=5000"],
            "vocab_size=5000 is not for fineweb_edu, which has its own: leave it out",
        ),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(arguments, message, older):
    assert message in error_of("--dataset=x", *arguments)
    assert older()


def test_a_folder_without_text_is_named_and_changes_nothing(older):
    Path("pictures").mkdir()
    assert "pictures contains no" in error_of("pictures", "--dataset=x")
    assert older()


class Faulty(BytePairTokenizer):
    """Gives an id that it does not have."""

    def encode_all(self, parts, inside=False):
        return np.full(len(parts), 70_000, np.uint32)


def test_an_id_that_does_not_fit_is_refused_and_changes_nothing(older, monkeypatch):
    ranks = byte_tokenizer().ranks
    monkeypatch.setattr(prepare_data, "byte_tokenizer", lambda: Faulty("byte", ranks, {}))
    message = error_of("older.txt", "--dataset=x", "--tokenizer=byte")
    assert "the id 70,000" in message
    assert older()


def fail_after(n_calls, function, error):
    """The function, which raises the error when it is called once more than so many times."""
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > n_calls:
            raise error
        return function(*arguments)

    return failing


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; nothing was changed"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (KeyboardInterrupt(), "stopped; nothing was changed"),
    ],
)
@pytest.mark.parametrize("dataset", ["x", "new"])
@pytest.mark.parametrize("moment", ["encode", "fsync"])
def test_a_run_that_breaks_off_changes_nothing(error, message, dataset, moment, older, monkeypatch):
    save_lines("long.jsonl", [text(20, seed) for seed in range(200)])
    if moment == "encode":
        monkeypatch.setattr(prepare_data, "BATCH_CHARACTERS", 100)
        monkeypatch.setattr(prepare_data, "encode", fail_after(20, prepare_data.encode, error))
    else:
        monkeypatch.setattr(prepare_data.os, "fsync", fail_after(1, prepare_data.os.fsync, error))
    assert message in error_of("long.jsonl", f"--dataset={dataset}")
    assert older()
    assert not Path("data/new").exists()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("dataset", "moment"), [*(("x", i) for i in range(6)), *(("new", i) for i in range(3))]
)
def test_a_file_that_cannot_take_its_place_changes_nothing(
    error, dataset, moment, older, monkeypatch
):
    replace, calls = prepare_data.os.replace, itertools.count()

    def fail_once(*paths):
        if next(calls) == moment:
            raise error
        replace(*paths)

    monkeypatch.setattr(prepare_data.os, "replace", fail_once)
    message = error_of(save("long.txt", text(1000)), f"--dataset={dataset}")
    assert "nothing was changed" in message
    assert older()
    assert [path.name for path in Path("data").iterdir()] == ["x"]
    assert len(list(Path("data/x").iterdir())) == 3


def test_two_preparations_of_one_dataset_do_not_mix(monkeypatch):
    save_lines("long.jsonl", [text(20, seed) for seed in range(200)])
    encode = prepare_data.encode

    def encode_while_another_run_finishes(*arguments):
        monkeypatch.setattr(prepare_data, "encode", encode)
        main([save("other.txt", text(500)), "--dataset=x", "--tokenizer=char"])
        return encode(*arguments)

    monkeypatch.setattr(prepare_data, "encode", encode_while_another_run_finishes)
    main(["long.jsonl", "--dataset=x", "--tokenizer=byte"])
    meta, _, train, val = result("x")
    assert meta["source"] == ["long.jsonl"]
    assert [split["tokens"] for split in meta["splits"].values()] == [len(train), len(val)]
    assert len(list(Path("data/x").iterdir())) == 3


def test_chinese_text_in_an_older_encoding_is_told_which(tmp_path):
    text = tmp_path / "old.txt"
    text.write_bytes("从前有座山，山上有座庙。\n".encode("gb18030") * 50)
    with pytest.raises(SystemExit, match="--encoding=gb18030"):
        prepare_data.main([str(text)])
    text.write_bytes("從前有座山，山上有座廟，廟裏有個老和尚在講故事。\n".encode("cp950") * 50)
    with pytest.raises(SystemExit, match="--encoding=cp950"):
        prepare_data.main([str(text)])
    text.write_bytes("小猫喝水\n".encode("gb18030"))  # none of the commonest characters
    with pytest.raises(SystemExit, match="--encoding=gb18030"):
        prepare_data.main([str(text)])
    text.write_bytes("Café, s'il vous plaît.\n".encode("latin-1") * 50)
    with pytest.raises(SystemExit, match="--encoding=windows-1252"):
        prepare_data.main([str(text)])
    text.write_bytes("Die Straße über die Brücke".encode("latin-1"))
    with pytest.raises(SystemExit, match="--encoding=windows-1252"):
        prepare_data.main([str(text)])


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "cp950"])
def test_a_broken_byte_in_chinese_text_is_told_as_such(encoding):
    whole = "從前有座山，山上有座廟。\n".encode(encoding) * 50
    Path("old.txt").write_bytes(whole + b"\xff" + whole)
    told = error_of("old.txt", f"--encoding={encoding}")
    assert f"is not {encoding.upper()}: byte {len(whole):,} is 0xff; a few bytes are broken" in told
    assert f"iconv -c -f {encoding}" in told


def test_an_encoding_that_was_typed_is_not_advised():
    Path("old.txt").write_bytes(b"a\x81b")
    assert error_of("old.txt", "--encoding=windows-1252").endswith("save it as UTF-8")


def test_json_nested_beyond_measure_is_no_traceback():
    Path("a.jsonl").write_bytes(b"[" * 100_000)
    assert "a.jsonl, line 1: not JSON" in error_of("a.jsonl")


def test_no_vocabulary_at_all_is_too_small():
    Path("a.txt").write_text("the cat sat")
    assert "vocab_size=0 is too small" in error_of("a.txt", "--vocab_size=0")


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16"])
def test_text_in_another_encoding_is_the_same_text(encoding):
    Path("old.txt").write_bytes(("山上有一座大山\n" * 900).encode(encoding))
    main(["old.txt", "--dataset=old", "--tokenizer=char", f"--encoding={encoding}"])
    meta, _, train, val = result("old")
    tokenizer = tokenizer_from_dict(meta["tokenizer"])
    told = tokenizer.decode([*train, *val]).replace("<|endoftext|>", "")
    assert told == "山上有一座大山\n" * 900


def test_a_field_of_another_name_may_hold_the_text():
    lines = [json.dumps({"正文": "山上有座山"}).encode() + b"\n"] * 300
    Path("a.jsonl").write_bytes(b"".join(lines) + json.dumps({"正文": "庙"}).encode())
    assert "if the text is in another field, use --field=NAME" in error_of("a.jsonl")
    Path("b.txt").write_text("没有字段。", encoding="utf-8")
    assert "field=正文 is for .jsonl" in error_of("b.txt", "--field=正文")
    main(["a.jsonl", "--dataset=a", "--tokenizer=char", "--field=正文", "--val_fraction=0.5"])
    assert result("a")[0]["splits"]["train"]["documents"] == 1


@pytest.mark.parametrize("name", ["a.json", "a.csv", "b.xlsx"])
def test_what_is_no_plain_text_is_refused(name):
    Path(name).write_text('[{"text": "hello"}]', encoding="utf-8")
    assert f"{name} is not plain text" in error_of(name)


def test_who_stops_reading_the_report_still_gets_the_data(tmp_path):
    (tmp_path / "a.txt").write_text(text(2000), encoding="utf-8")
    command = [sys.executable, REPOSITORY / "prepare_data.py", "a.txt"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.close()
        assert b"roken" not in process.stderr.read()
    assert process.returncode == 0
    assert (tmp_path / "data" / "a" / "meta.json").exists()


def test_files_that_are_called_alike_keep_their_data_apart():
    for name in ("novel.part1.txt", "novel.part2.txt"):
        main([save(name, text(500))])
    assert {path.name for path in Path("data").iterdir()} == {"novel.part1", "novel.part2"}


def test_a_file_does_not_pass_for_a_corpus_with_a_name(capsys):
    save("stories.txt", text(500))
    assert "--dataset=my_stories" in error_of("stories.txt")
    main(["stories.txt", "--dataset=mine"])
    main(["stories.txt", "--dataset=mine"])
    assert "replacing an older one" in capsys.readouterr().out


def test_a_folder_of_text_in_data_can_be_prepared_again():
    save("data/novel/input.txt", text(500))
    save("data/novel/part2/more.txt", text(500, 1))
    written = []
    for _ in range(2):
        main(["data/novel", "--tokenizer=char"])
        save("data/novel/tasks/qa/test.jsonl", '{"prompt": "a"}\n')
        written.append(Path("data/novel/train.bin").read_bytes())
    assert written[0] == written[1]


def test_prepared_data_and_what_runs_leave_are_no_text():
    save("project/a.py", text(500))
    save("project/data/x/train.bin", b"")
    save("project/data/x/tasks/qa/test.jsonl", '{"prompt": "a"}\n')
    save("project/out/predictions.jsonl", '{"answer": "a"}\n')
    main(["project"])
    assert result("project")[0]["splits"]["train"]["documents"] == 1


def test_a_document_begins_with_the_token_that_the_tokenizer_has_for_it(monkeypatch):
    tokenizer = byte_tokenizer()
    tokenizer.bos = tokenizer.special_tokens["<|im_start|>"]
    monkeypatch.setattr(prepare_data, "byte_tokenizer", lambda: tokenizer)
    main([save_lines("a.jsonl", [text(20, i) for i in range(200)]), "--tokenizer=byte"])
    _, _, *splits = result("a")
    for tokens in splits:
        begins = np.flatnonzero(tokens == tokenizer.bos)
        ends = np.flatnonzero(tokens == tokenizer.eot)
        assert begins[0] == 0
        assert (begins[1:] == ends[:-1] + 1).all()
        assert len(begins) == len(ends)


def test_data_in_the_tokens_of_a_run_are_for_going_on_from_it():
    Path("out/base").mkdir(parents=True)
    assert "--init_from" not in prepare_data.next_command("mine", "out/base")
    Path("out/base/best.pt").touch()
    assert prepare_data.next_command("mine", "out/base").endswith("--init_from=out/base")
    assert "--init_from" not in prepare_data.next_command("mine", "bpe")
    config = load_config(TrainConfig, [str(REPOSITORY / "config/stories.py")])
    assert config.max_iters == prepare_data.STEPS
    assert config.batch_size * config.block_size == prepare_data.TOKENS_PER_STEP
    for n_tokens, steps in ((1_000, " --max_iters=50"), (200_000, " --max_iters=260"), (10**6, "")):
        assert prepare_data.next_command("mine", "bpe", n_tokens).endswith("out/mine" + steps)
    Path("out/my base").mkdir()
    Path("out/my base/ckpt.pt").touch()
    assert prepare_data.next_command("mine", "out/my base").endswith('--init_from="out/my base"')


def test_paths_in_printed_commands_are_quoted_as_the_shell_needs_it(monkeypatch):
    assert prepare_data.in_quotes("out/小说") == "out/小说"
    assert prepare_data.in_quotes("a $b") == "'a $b'"
    monkeypatch.setattr(prepare_data, "ON_WINDOWS", True)
    assert prepare_data.in_quotes("C:\\out\\base") == "C:\\out\\base"
    assert prepare_data.in_quotes("a $b") == '"a $b"'
