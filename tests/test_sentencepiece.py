"""Tokenizers as Llama 2's: the same ids as transformers and llama.cpp, wherever a text is cut."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sample import TextStream
from support.chat import conversation, opening
from support.gguf_file import write_gguf
from support.huggingface import read_model
from support.sentencepiece import BYTES
from support.tokenizer import same_tokens, tokenizer_from_dict, visible
from support.tokenizer_files import huggingface_tokenizer
from tests.conftest import tiny_text
from tests.test_convert import TEXTS, reference

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] "
    "+ eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SCHEMES = {  # where ▁ is put before a text: behind every special token, or only at its beginning
    "llama 2": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
    },
    "mistral": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
    },
}


@pytest.fixture(scope="module")
def learned():
    """The content of a tokenizer.json with 256 bytes, three special tokens and some merges."""
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    pre = tokenizers.pre_tokenizers  # Llama 2 has no token that contains a line end
    library.pre_tokenizer = pre.Sequence([pre.Split("\n", "isolated"), pre.Metaspace()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *BYTES], show_progress=False
    )
    library.train_from_iterator([tiny_text(), *TEXTS[:3]], trainer)
    content = json.loads(library.to_str())
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    content["added_tokens"] = content["added_tokens"][: len(special)]
    return content


@pytest.fixture(params=SCHEMES)
def folder(learned, request, tmp_path):
    """A Hugging Face folder with such a tokenizer and a Llama with random weights."""
    folder = tmp_path / "theirs"
    content = learned | SCHEMES[request.param]
    reference("llama", vocab_size=len(content["model"]["vocab"])).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA2}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def theirs_in(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def restored(tokenizer):
    """The tokenizer after it was stored in a checkpoint."""
    return tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))


def test_texts_have_the_ids_that_transformers_gives_them_and_come_back(folder):
    ours, theirs = restored(huggingface_tokenizer(folder)), theirs_in(folder)
    assert (ours.bos, ours.eot, ours.vocab_size) == (1, 2, len(theirs))
    for text in [*TEXTS, tiny_text(), "two  spaces"]:
        tokens = ours.encode(text)
        assert tokens.dtype == np.uint32
        assert [ours.bos, *tokens] == theirs(text)["input_ids"]
        assert ours.decode(tokens) == text
        assert b"".join(map(ours.token_bytes, tokens)).decode().removeprefix(" ") == text


def test_a_special_token_in_a_text_is_text(folder):
    ours = huggingface_tokenizer(folder)
    assert ours.eot not in ours.encode("the cat</s>")
    assert ours.decode(ours.encode("the cat</s>")) == "the cat</s>"
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize("text", [tiny_text() * 30, "看见，狗跑。" * 40000, "x y\n" * 60000])
def test_a_long_text_is_encoded_in_pieces_and_has_the_same_ids(folder, text):
    ours, theirs = huggingface_tokenizer(folder), theirs_in(folder)
    assert len(text) > 150_000
    assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


def test_what_continues_a_text_has_no_space_before_it(folder):
    ours = huggingface_tokenizer(folder)
    whole = ours.encode("the cat saw a dog").tolist()
    parts = [*ours.encode("the cat"), *ours.encode(" saw a dog", inside=True)]
    assert parts == whole
    assert ours.encode_all([1, "the cat", " saw a dog", 2]).tolist() == [1, *whole, 2]
    assert ours.encode_all([" saw a dog"], inside=True).tolist() == whole[-len(parts) + 2 :]
    again = ours.encode_all(["the cat", 2, "the cat"]).tolist()
    assert again[:2] == again[3:]


def test_prepared_texts_are_those_that_transformers_would_prepare(folder, run):
    documents = [tiny_text() * 30, *tiny_text().splitlines()]  # the first is read in pieces
    lines = [json.dumps({"text": text}) for text in documents]
    Path("lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run("prepare_data.py", "lines.jsonl", f"--tokenizer={folder}")
    there = theirs_in(folder)
    expected = {(*there(text)["input_ids"], 2) for text in documents}
    files = (np.fromfile(f"data/lines/{split}.bin", np.uint16) for split in ("train", "val"))
    ids = np.concatenate(list(files))
    assert {tuple(each) for each in np.split(ids, np.flatnonzero(ids == 2) + 1)} == {(), *expected}


@pytest.mark.parametrize("template", [LLAMA2, ZEPHYR])
def test_conversations_have_the_ids_that_transformers_gives_them(folder, template):
    ours, theirs = huggingface_tokenizer(folder), theirs_in(folder)
    ours.chat_template = theirs.chat_template = template
    ours.chat_template = "{%- set eos_token = '</s>' -%}" + template
    messages = [
        {"role": "user", "content": "the cat saw a dog"},
        {"role": "assistant", "content": "看见狗"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "it ran home"},
    ]
    ((tokens, learned),) = conversation(messages, ours)
    assert tokens == theirs.apply_chat_template(messages)["input_ids"]
    said = ours.decode([t for t, is_learned in zip(tokens, learned) if is_learned])
    assert said.replace(" ", "") == "看见狗</s>itranhome</s>"
    begun = opening(messages[:1], ours)
    assert begun == tokens[: len(begun)]


def test_a_text_is_written_without_the_space_before_it(folder):
    ours = huggingface_tokenizer(folder)
    tokens = ours.encode("the cat 🐈").tolist()
    stream, inside = TextStream(ours, begins=True), TextStream(ours)
    assert "".join([*map(stream.push, tokens), stream.finish()]) == "the cat 🐈"
    assert "".join([*map(inside.push, tokens), inside.finish()]) == " the cat 🐈"
    assert visible(ours, tokens[0]) == "␣the"
    assert visible(ours, tokens[-1]) == "<88>"


def test_its_model_writes_the_text_that_transformers_writes(folder, run, capsys):
    theirs, model = theirs_in(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours = huggingface_tokenizer(folder)
    for start in ("the cat", ""):
        asked = theirs(start, return_tensors="pt")
        tokens = model.generate(**asked, max_new_tokens=20, do_sample=False, eos_token_id=-1)
        options = ["--temperature=0", "--num_samples=1", "--max_new_tokens=20", "--until_eot=False"]
        run("sample.py", f"--init_from={folder}", f"--start={start}", *options)
        assert capsys.readouterr().out == ours.decode(tokens[0, 1:]).rstrip("�") + "\n"


def test_it_is_fine_tuned_and_written_for_transformers(folder, run):
    lines = [{"prompt": f"the cat saw {i}", "completion": f" dog {i % 2}"} for i in range(40)]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    lora = ["--method=lora", "--optimizer=adamw", "--learning_rate=1e-2", "--merge=True"]
    short = ["--max_iters=3", "--eval_interval=3", "--batch_size=4", "--device=cpu"]
    task = [f"--init_from={folder}", "--dataset=lines.jsonl", "--task=completion"]
    Path("none.py").write_text("")
    run("finetune.py", "none.py", *task, *lora, *short, "--out_dir=out/odd", "--compile=False")
    run("convert.py", "out/odd/merged.pt", "--to=hf", "--out=written")
    run("convert.py", "out/odd", "--to=peft", "--out=lora")
    before = theirs_in(folder)
    for back in ("written", "lora"):
        for text in [*TEXTS, "two  spaces"]:
            assert theirs_in(back)(text)["input_ids"] == before(text)["input_ids"]
            assert theirs_in(back).decode(before(text)["input_ids"]) == before.decode(
                before(text)["input_ids"]
            )
    assert theirs_in("written").eos_token == "</s>"


def test_llama_cpp_is_told_the_order_of_the_merges(folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    model, tokenizer = read_model(folder)
    write_gguf(tmp_path / "model.gguf", model, tokenizer, bos=tokenizer.bos)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    # In conversations, which begin with a special token, Mistral's puts no space anywhere.
    assert fields["tokenizer.ggml.add_space_prefix"].contents() == tokenizer.prefixes_each
    tokens = fields["tokenizer.ggml.tokens"].contents()
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"].contents()))
    merged = ["".join(pair) for pair in tokenizer.merges]
    assert sorted(merged, key=scores.get, reverse=True) == merged
    kinds = dict(zip(tokens, fields["tokenizer.ggml.token_type"].contents()))
    wanted = {"</s>": "CONTROL", "<0x0A>": "BYTE", merged[0]: "NORMAL"}
    assert {token: gguf.TokenType(kinds[token]).name for token in wanted} == wanted


def test_llama_cpp_gives_texts_the_same_ids(folder, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs: pip install llama-cpp-python")
    model, tokenizer = read_model(folder)
    tokenizer.chat_template = None  # it continues texts
    write_gguf(tmp_path / "model.gguf", model, tokenizer, bos=tokenizer.bos)
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in [*TEXTS[:4], tiny_text()]:
        there = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert there == tokenizer.encode(text).tolist()


def test_a_tokenizer_that_changes_text_is_not_for_llama_cpp(folder, tmp_path):
    pytest.importorskip("gguf")
    model, tokenizer = read_model(folder)
    tokenizer.form = "NFKC"
    with pytest.raises(ValueError, match="in a way unknown to"):
        write_gguf(tmp_path / "model.gguf", model, tokenizer)


def test_a_plain_model_is_taught_to_converse_with_tokens_of_its_own(folder, run, capsys):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    said = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "the cat 猫"}]
    Path("chats.jsonl").write_text("\n".join([json.dumps({"messages": said})] * 3))
    for split in ("train", "val", "test"):
        Path("chats").mkdir(exist_ok=True)
        (Path("chats") / f"{split}.jsonl").write_text(Path("chats.jsonl").read_text())
    Path("none.py").write_text("")
    short = ["--max_iters=2", "--eval_interval=2", "--device=cpu", f"--init_from={folder}"]
    task = ["none.py", "--task=chat", "--dataset=chats", *short]
    with pytest.raises(SystemExit, match="has no special tokens for chat"):
        run("finetune.py", *task, "--method=lora")
    run("finetune.py", *task, "--out_dir=out/talks")
    run("convert.py", "out/talks", "--to=hf", "--out=written")
    _, ours = read_model("written")
    ((tokens, learned),) = conversation(said, ours)
    assert tokens == theirs_in("written").apply_chat_template(said)["input_ids"]
    assert ours.decode([t for t, is_learned in zip(tokens, learned) if is_learned]) == (
        "the cat 猫<|im_end|>"
    )


def test_without_the_package_the_line_that_installs_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit, match="pip install tokenizers"):
        huggingface_tokenizer(folder)


def changed(folder, **parts):
    """The tokenizer in a folder after these parts of its file were changed."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, part in parts.items():
        content[name] = content[name] | part if name == "model" else part
    path.write_text(json.dumps(content), encoding="utf-8")
    return huggingface_tokenizer(folder)


def test_the_same_tokens_in_another_notation_are_the_same(folder):
    before = huggingface_tokenizer(folder)
    merges = [" ".join(pair) for pair in before.merges]
    special = [
        {"id": i, "content": text, "special": True, "normalized": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for text, i in before.special_tokens.items()
    ]
    after = changed(folder, model={"merges": merges}, added_tokens=special, decoder=None)
    assert same_tokens(before.to_dict(), after.to_dict())
    assert not same_tokens(before.to_dict(), before.to_dict() | {"prefix_rule": "never"})


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"model": {"dropout": 0.5}}, "dropout=0.5"),
        ({"model": {"merges": [["t", "zzz"]]}}, "merge 't' 'zzz' is not of its tokens"),
        ({"model": {"merges": None}}, "tokenizer.json"),
        ({"model": {"vocab": {"a": 0}}}, "lacks the byte <0x00>"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": {"type": "Prepend", "prepend": "_"}}, "'_'"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "WhitespaceSplit"),
        ({"normalizer": None, "pre_tokenizer": None}, "does not write spaces as ▁"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(folder, part, reason):
    with pytest.raises(ValueError, match=reason):
        changed(folder, **part)


OLD_METASPACE = {"type": "Metaspace", "replacement": "▁"}


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ({"pre_tokenizer": OLD_METASPACE | {"add_prefix_space": True}}, "always"),
        ({"pre_tokenizer": OLD_METASPACE | {"add_prefix_space": False}}, "never"),
        (
            {
                "normalizer": SCHEMES["llama 2"]["normalizer"]["normalizers"][1],
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious",
                    "invert": False,
                },
            },
            "never",
        ),
    ],
)
def test_other_ways_to_write_spaces_are_read(folder, steps, rule):
    ours = changed(folder, **{"normalizer": None} | steps)
    assert ours.prefix_rule == rule
    assert ours.prefix == ("" if rule == "never" else " ")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if "add_prefix_space" in content["pre_tokenizer"]:
        content["pre_tokenizer"]["prepend_scheme"] = rule
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in TEXTS:
        tokens = ours.encode(text)
        assert tokens.tolist() == library.encode(text, add_special_tokens=False).ids
        assert ours.decode(tokens) == text


def test_ordinary_tokens_are_found_in_texts(folder):
    more = [{"id": 500, "content": "<think>", "special": False}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    old = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ours = restored(changed(folder, added_tokens=[*old, *(token | flags for token in more)]))
    assert ours.encode("a<think>b").tolist().count(500) == 1
    assert ours.vocab_size == 501
    assert ours.decode(ours.encode("a<think>")) == "a<think>"
