"""Other programs compute what we compute, read what we write, and we what they write.

transformers, gguf and, where it is installed, llama.cpp itself are the judges.
"""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiktoken_ext import openai_public

from sample import generate, next_token_distribution
from support import huggingface
from support.chat import compiled_template, rendered, tokens_of
from support.checkpoint import load_model, read_checkpoint, save_checkpoint
from support.gguf_file import PATTERNS, interleaved, write_gguf
from support.huggingface import from_hub, read_model, save_json, write_model
from support.tokenizer import (
    byte_tokenizer,
    char_tokenizer,
    same_tokens,
    tokenizer_from_dict,
    train_bpe,
)
from support.tokenizer_files import (
    CHATML,
    huggingface_tokenizer,
    load_tokenizer,
    read_tokenizer,
    tokenizer_files,
)
from tests.conftest import LLAMA_KNOBS, TINY, tiny_text

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet_transformers")
V = 101
TEXTS = [
    "The cat can't see 12345 dogs!\n\n\n  Indented,\tand   blank.  ",
    "从前，小明有一只猫。他说：“你好！”……",
    "def f(x):\n    return {x: [1, 2.5, 0x1f]}  # 注释\r\n",
    "🙂👩‍👩‍👧 naïve café \u3000\u00a0 \u200b e\u0301 ﬁ Ⅷ",
    "<|endoftext|> is text here",
    "",
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2 = {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {  # what transformers is to create: (class of the config, its fields)
    "gpt2": ("GPT2Config", GPT2),
    "gpt2 with exact gelu": ("GPT2Config", GPT2 | {"activation_function": "gelu"}),
    "gpt2 with a narrow mlp": ("GPT2Config", GPT2 | {"n_inner": 60}),
    "llama": ("LlamaConfig", LLAMA),
    "llama with tied weights": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "llama 3": ("LlamaConfig", LLAMA | {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
}


def reference(name, **changes):
    """A model made by transformers, with random weights, biases and norms."""
    Config, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, Config)(**({"vocab_size": V} | fields | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(params=MODELS)
def theirs(request, tmp_path):
    """(their model, the folder it is saved in)"""
    model = reference(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs"


def greedy(model, prompt, n):
    """n tokens, each the likeliest after those before it."""
    distribution = lambda logits, seen: next_token_distribution(logits, temperature=0)  # noqa: E731
    return [row[0] for row in generate(model, [prompt], n, distribution, V)]


# ----------------------------------------------------------------------------- models from there


def test_a_model_of_transformers_gives_the_same_logits_here(theirs):
    model, folder = theirs
    ours, _ = read_model(folder)
    tokens = torch.randint(V, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens)[0], model(tokens).logits, atol=1e-4, rtol=0)


def test_a_model_of_transformers_continues_a_text_the_same_way_here(theirs):
    model, folder = theirs
    prompt = [1, 2, 3]
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=50, do_sample=False, pad_token_id=0, eos_token_id=-1
    )
    assert greedy(read_model(folder)[0], prompt, 50) == expected[0, 3:].tolist()


def test_a_model_comes_back_to_transformers_as_it_was_to_the_bit(theirs, tmp_path):
    model, folder = theirs
    write_model(tmp_path / "back", read_model(folder)[0], None)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    weights, expected = back.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    tokens = torch.randint(V, (1, 64))
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, model(tokens).logits)


def test_bfloat16_stays_bfloat16_where_asked(tmp_path):
    model = reference("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    ours, _ = read_model(tmp_path / "theirs", dtype=None)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.position.cos.dtype == torch.float32
    write_model(tmp_path / "back", ours, None)
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(written[name], w) for name, w in model.state_dict().items())


def test_sharded_weights_are_read_and_written(tmp_path, monkeypatch):
    model = reference("llama")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours, _ = read_model(tmp_path / "theirs")
    monkeypatch.setattr("support.huggingface.SHARD_BYTES", 30_000)
    write_model(tmp_path / "back", ours, None)
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in back.state_dict().items())


def test_names_may_lack_their_first_word_and_files_hold_what_is_computed(tmp_path):
    model = reference("gpt2")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): w for name, w in weights.items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    save_file(weights, tmp_path / "model.safetensors")
    tokens = torch.randint(V, (1, 9))
    with torch.no_grad():
        ours = read_model(tmp_path)[0](tokens)[0]
        torch.testing.assert_close(ours, model(tokens).logits, atol=1e-4, rtol=0)


def test_older_files_of_weights_are_read_but_nothing_in_them_is_executed(tmp_path):
    model = reference("gpt2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(
        read_model(tmp_path)[0].norm.weight, model.state_dict()["transformer.ln_f.weight"]
    )


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("llama", {"model_type": "mixtral"}, "mixtral"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ("mistral", {"sliding_window": 32}, "sliding_window=32"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"n_embd": 50}, "n_embd=50"),
        ("gpt2", {"n_layer": "two"}, "wrong kind"),
        ("gpt2", {"n_layer": 10**9}, "1000000000 layers"),
        ("llama", {"intermediate_size": 96}, "wrong shape"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, name, change, named):
    reference(name).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    if "rope_scaling" in change:
        del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(SystemExit, match=named):
        read_model(tmp_path)


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    reference("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=r"missing: model\.norm\.weight"):
        read_model(tmp_path)
    weights |= {"model.norm.weight": torch.ones(48), "model.extra": torch.ones(3)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=r"unexpected: model\.extra"):
        read_model(tmp_path)


class Malicious:
    """Would make a file, if anybody unpickled it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def hostile_folder(kind, folder):
    """A folder with one thing in it that must not be believed."""
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    if kind == "cut off":
        weights.write_bytes(raw[: len(raw) // 2])
    elif kind == "lies about offsets":
        weights.write_bytes(raw.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1))
    elif kind == "a header without end":
        weights.write_bytes((2**60).to_bytes(8, "little") + raw[8:])
    elif kind == "a pickle":
        weights.write_bytes(pickle.dumps(Malicious()))
    elif kind == "a pickle under its own name":
        weights.unlink()
        torch.save({"weight": Malicious()}, folder / "pytorch_model.bin")
    elif kind == "points outside":
        weights.rename(folder.parent / "outside.safetensors")
        index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "no object":
        (folder / "config.json").write_text("[]")
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "clashing ids":
        files = tokenizer_files(train_bpe([tiny_text()], 300), 64)
        files["tokenizer.json"]["added_tokens"][0]["id"] = 7
        (folder / "tokenizer.json").write_text(json.dumps(files["tokenizer.json"]))


@pytest.mark.parametrize(
    "kind",
    [
        "cut off",
        "lies about offsets",
        "a header without end",
        "a pickle",
        "a pickle under its own name",
        "points outside",
        "no object",
        "no JSON",
        "clashing ids",
    ],
)
def test_hostile_files_give_one_sentence_and_execute_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    reference("llama").save_pretrained("theirs")
    hostile_folder(kind, Path("theirs"))
    with pytest.raises(SystemExit, match=r"theirs cannot be read: \S"):
        read_model("theirs")
    assert not Path("executed").exists()


def test_a_tokenizer_in_sentencepieces_own_format_is_refused_with_a_sentence(tmp_path):
    reference("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(SystemExit, match=r"in a tokenizer\.model alone.*save_pretrained"):
        read_model(tmp_path)


def test_a_name_on_the_hub_is_answered_offline_with_one_sentence(monkeypatch):
    with pytest.raises(SystemExit, match="nobody/nothing is not a file or folder here"):
        from_hub("nobody/nothing")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match="pip install huggingface_hub"):
        from_hub("nobody/nothing")


# ------------------------------------------------------------------------------------ tokenizers


def save_tokenizer(folder, tokenizer, **options):
    Path(folder).mkdir(exist_ok=True)
    for name, content in tokenizer_files(tokenizer, 64, **options).items():
        (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("make", [lambda t: train_bpe(t, 600), lambda t: byte_tokenizer()])
def test_transformers_reads_our_tokenizers_and_gives_the_same_ids(tmp_path, make):
    tokenizer = make([*TEXTS, tiny_text()])
    save_tokenizer(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:4]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eot
    assert theirs.chat_template is None  # it has marks for one, and was not taught to use them


def test_transformers_reads_characters_too(tmp_path):
    tokenizer = char_tokenizer(TEXTS)
    save_tokenizer(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:4]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text)) == text


def test_a_token_before_every_text_is_written_and_read(tmp_path):
    tokenizer = train_bpe([tiny_text()], 300)
    save_tokenizer(tmp_path, tokenizer, bos=tokenizer.eot)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the cat")["input_ids"] == [tokenizer.eot, *tokenizer.encode("the cat")]
    assert huggingface_tokenizer(tmp_path).bos == tokenizer.eot


def test_a_tokenizer_survives_the_way_there_and_back(tmp_path):
    tokenizer = train_bpe([*TEXTS, tiny_text()], 600)
    save_tokenizer(tmp_path, tokenizer)
    back = read_tokenizer(tmp_path)
    assert back.ranks == tokenizer.ranks
    assert back.special_tokens == tokenizer.special_tokens
    assert (back.pattern, back.eot, back.bos) == (tokenizer.pattern, tokenizer.eot, None)
    assert back.chat_template is None


def test_gpt2s_older_pair_of_files_is_read(tmp_path):
    tokenizer = train_bpe([*TEXTS, tiny_text()], 600)
    content = tokenizer_files(tokenizer, 64)["tokenizer.json"]["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
    vocab = {token: i for token, i in content["vocab"].items() if i <= tokenizer.eot}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    back = read_tokenizer(tmp_path)
    assert back.eot == tokenizer.eot
    assert all(back.encode(t).tolist() == tokenizer.encode(t).tolist() for t in TEXTS)


# ------------------------------------------------------------------------- our models, over there

QWEN2_KNOBS, QWEN3_KNOBS = LLAMA_KNOBS + " --qkv_bias=True", LLAMA_KNOBS + " --qk_norm=True"
FAMILIES = ["", LLAMA_KNOBS, QWEN2_KNOBS, QWEN3_KNOBS]


@pytest.mark.parametrize("knobs", FAMILIES)
def test_a_model_trained_here_writes_the_same_text_in_transformers(trained, run, capsys, knobs):
    trained(*knobs.split())
    run("convert.py", "out/tiny", "--to=hf", "--out=there")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("there")
    reader = transformers.AutoTokenizer.from_pretrained("there")
    ours, tokenizer, _ = load_model("out/tiny")
    ids = reader("the cat")["input_ids"]
    assert ids == [tokenizer.eot, *tokenizer.encode("the cat").tolist()]
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0]
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, expected, atol=1e-4, rtol=0)
    text = theirs.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0)
    capsys.readouterr()
    greedy_sample = ["--start=the cat", "--temperature=0", "--max_new_tokens=30", "--num_samples=1"]
    run("sample.py", "--out_dir=out/tiny", *greedy_sample)
    ours = capsys.readouterr().out
    assert reader.decode(text[0], skip_special_tokens=True) == ours.removesuffix("\n")
    run("sample.py", "--init_from=there", *greedy_sample)  # and back again
    assert capsys.readouterr().out == ours
    assert "val loss: " in Path("there/README.md").read_text()


def test_a_model_that_no_architecture_equals_is_refused_with_the_knobs_to_train_with(trained, run):
    trained(*LLAMA_KNOBS.split(), "--mlp=relu2", "--softcap=15")
    with pytest.raises(SystemExit, match=r"trained with --mlp=swiglu --softcap=0\.0 could"):
        run("convert.py", "out/tiny", "--to=hf", "--out=there")
    with pytest.raises(SystemExit, match="nanoGPT only supports models trained with --n_kv_head"):
        run("convert.py", "out/tiny", "--to=nanogpt", "--out=there")
    assert not Path("there").exists()


def test_a_model_with_vectors_for_ngrams_stays_here(trained, run):
    trained("--ngrams=3", "--ngram_rows=100")
    with pytest.raises(SystemExit, match=r"trained with --ngrams=1 could be written"):
        run("convert.py", "out/tiny", "--to=hf", "--out=there")
    with pytest.raises(SystemExit, match=r"trained with .*--ngrams=1"):
        run("convert.py", "out/tiny", "--to=nanogpt", "--out=there")


def test_a_field_of_a_readers_own_is_not_exported_as_if_it_were_not_there(
    trained, run, monkeypatch
):
    trained("--norm_eps=1e-3")
    monkeypatch.setattr(huggingface, "WRITTEN", huggingface.WRITTEN - {"norm_eps"})
    for format in ("hf", "gguf"):
        with pytest.raises(SystemExit, match=r"trained with --norm_eps=1e-05 could be written"):
            run("convert.py", "out/tiny", f"--to={format}", "--out=there")
    assert not Path("there").exists()


def test_what_is_there_is_never_overwritten(trained, run):
    trained()
    Path("there").mkdir()
    Path("there/mine.txt").write_text("mine")
    for format in ("hf", "nanogpt", "shiftgpt", "gguf"):
        with pytest.raises(SystemExit, match="there already exists"):
            run("convert.py", "out/tiny", f"--to={format}", "--out=there")
    assert [path.name for path in Path("there").iterdir()] == ["mine.txt"]


def test_a_model_of_hugging_face_is_trained_further_here(run, tmp_path):
    reference("qwen2", vocab_size=300).save_pretrained("base")
    save_tokenizer("base", train_bpe([tiny_text()], 300))
    Path("text.txt").write_text(tiny_text(), encoding="utf-8")
    run("prepare_data.py", "text.txt", "--tokenizer=base")
    Path("defaults.py").write_text("dataset = 'text'\nout_dir = 'out/tuned'\n")
    Path("shape.py").write_text("n_layer = 7")  # of a recipe; the base settles it
    training = [option for option in TINY if not option.startswith(("--n_", "--block_size"))]
    run("train.py", "defaults.py", "shape.py", *training, "--init_from=base")
    model, tokenizer, checkpoint = load_model("out/tuned")
    assert checkpoint["step"] == 20
    assert model.config.qkv_bias
    assert tokenizer.to_dict() == read_tokenizer("base").to_dict()
    run("convert.py", "out/tuned", "--to=hf", "--out=tuned")
    back = transformers.AutoModelForCausalLM.from_pretrained("tuned")
    assert back.config.model_type == "qwen2"


# ---------------------------------------------------------------------------------------- GGUF


def weights_in_gguf(path):
    """(fields, name -> array in float32) as the gguf package reads them."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize(
    ("kind", "closeness"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3), ("q8_0", 1e-2)]
)
@pytest.mark.parametrize("knobs", FAMILIES)
def test_a_gguf_file_holds_every_weight_and_token(trained, run, knobs, kind, closeness):
    trained(*knobs.split())
    run("convert.py", "out/tiny", "--to=gguf", "--out=new/there.gguf", f"--dtype={kind}")
    model, tokenizer, _ = load_model("out/tiny")
    fields, tensors = weights_in_gguf("new/there.gguf")
    family = ["gpt2", "llama", "qwen2", "qwen3"][FAMILIES.index(knobs)]
    assert fields["general.architecture"] == family
    assert fields[f"{family}.block_count"] == 2
    assert fields["tokenizer.ggml.tokens"][tokenizer.eot] == "<|endoftext|>"
    assert len(fields["tokenizer.ggml.tokens"]) == 300
    assert len(fields["tokenizer.ggml.merges"]) == 300 - 256 - 3
    assert fields["tokenizer.ggml.add_bos_token"]
    ours = dict(model.named_parameters())
    for name, expected in (
        ("token_embd.weight", ours["token_embedding.weight"]),
        ("output_norm.weight", ours["norm.weight"]),
        ("blk.1.ffn_down.weight", ours["blocks.1.mlp.down.weight"]),
        ("blk.1.attn_output.weight", ours["blocks.1.attention.output.weight"]),
    ):
        expected = expected.detach()
        off = (torch.from_numpy(tensors[name].copy()) - expected).abs().max()
        assert off <= closeness * expected.abs().max()
    per_block = {"gpt2": 12, "llama": 9, "qwen2": 12, "qwen3": 11}[family]
    assert len(tensors) == 2 * per_block + (4 if family == "gpt2" else 3)


def test_llama_cpp_pairs_neighbouring_channels(tmp_path):
    weight = torch.arange(8.0)[:, None]  # two heads of four channels: 0 turns with 2, 1 with 3
    assert interleaved(weight, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_llama_cpp_is_told_of_stretched_rotations(tmp_path):
    reference("llama 3", vocab_size=300).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", train_bpe([tiny_text()], 300))
    model, tokenizer = read_model(tmp_path / "base")
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    _, tensors = weights_in_gguf(tmp_path / "model.gguf")
    factors = tensors["rope_freqs.weight"]
    assert factors[0] == 1
    assert factors[-1] == 8


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(trained, run, kind):
    trained(tokenizer=kind)
    with pytest.raises(SystemExit, match="--tokenizer=bpe"):
        run("convert.py", "out/tiny", "--to=gguf", "--out=there.gguf")
    assert not Path("there.gguf").exists()


@pytest.mark.parametrize("knobs", FAMILIES)
def test_llama_cpp_writes_the_same_text(trained, run, capsys, knobs):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs: pip install llama-cpp-python")
    trained(*knobs.split(), "--max_iters=60")
    run("convert.py", "out/tiny", "--to=gguf", "--out=there.gguf", "--dtype=float32")
    capsys.readouterr()
    greedy_sample = ["--start=the cat", "--temperature=0", "--max_new_tokens=30", "--num_samples=1"]
    run("sample.py", "--out_dir=out/tiny", *greedy_sample)
    ours = capsys.readouterr().out.removesuffix("\n")
    llama = llama_cpp.Llama("there.gguf", n_ctx=64, verbose=False)
    done = llama("the cat", max_tokens=30, temperature=0, repeat_penalty=1.0)
    assert "the cat" + done["choices"][0]["text"] == ours


# ------------------------------------------------------------------------------------- nanoGPT


def test_a_run_goes_to_nanogpt_and_back_with_its_optimizer(trained, run):
    trained("--bias=True", tokenizer="char")
    run("convert.py", "out/tiny", "--to=nanogpt", "--out=nano")
    theirs = torch.load("nano/ckpt.pt", weights_only=True)
    assert theirs["iter_num"] == 20
    assert list(theirs["model"])[:3] == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.h.0.ln_1.weight",
    ]
    assert theirs["model"]["transformer.h.0.attn.c_attn.weight"].shape == (96, 32)
    matrices, vectors = theirs["optimizer"]["param_groups"]
    assert len(matrices["params"]) == 2 + 2 * 4
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    theirs["model"] = {f"_orig_mod.{name}": w for name, w in theirs["model"].items()}
    theirs["model"]["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    torch.save(theirs, "nano/ckpt.pt")
    run("convert.py", "nano", "--to=shiftgpt", "--out=out/back")
    before, after = read_checkpoint("out/tiny/ckpt.pt"), read_checkpoint("out/back/ckpt.pt")
    for name, weight in after["model"].items():
        assert torch.equal(weight, before["model"][name])
    assert before["optimizer"].keys() == after["optimizer"].keys()
    for name, state in after["optimizer"].items():
        assert all(torch.equal(state[key], before["optimizer"][name][key]) for key in state)
    assert after["tokenizer"]["characters"] == before["tokenizer"]["characters"]
    theirs["model"]["ahead.weight"] = torch.ones(2)
    torch.save(theirs, "nano/ckpt.pt")
    with pytest.raises(SystemExit, match=r"its model\.py is not nanoGPT's: it has ahead\.weight"):
        run("sample.py", "--out_dir=nano")


def test_a_run_that_comes_from_nanogpt_goes_on_as_it_would_have(trained, run):
    trained("--lr_decay_iters=30", "--max_iters=30", tokenizer="char")
    alone = read_checkpoint("out/tiny/ckpt.pt")
    trained("--lr_decay_iters=30", "--max_iters=20", "--out_dir=out/half", tokenizer="char")
    run("convert.py", "out/half", "--to=nanogpt", "--out=nano")
    with pytest.raises(SystemExit, match="--to=shiftgpt"):
        run("train.py", "--init_from=resume", "--out_dir=nano")
    run("convert.py", "nano", "--to=shiftgpt", "--out=out/back")
    contents = read_checkpoint("out/back/ckpt.pt")
    special = contents["tokenizer"]  # nanoGPT's meta.pkl knows characters alone
    assert special["special_tokens"] == {}
    contents["tokenizer"] = None
    save_checkpoint("out/back/ckpt.pt", contents)
    run("train.py", "--init_from=resume", "--out_dir=out/back", "--max_iters=30", "--dtype=float32")
    back = read_checkpoint("out/back/ckpt.pt")
    assert all(torch.equal(w, alone["model"][name]) for name, w in back["model"].items())


def test_adamws_memory_is_left_out_where_muon_trained(trained, run, capsys):
    trained("--optimizer=muon", tokenizer="char")
    run("convert.py", "out/tiny", "--to=nanogpt", "--out=nano")
    assert "optimizer" not in torch.load("nano/ckpt.pt", weights_only=True)
    assert "not resume it" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- describing


def test_any_of_these_can_be_described(trained, run, capsys):
    trained(tokenizer="char")
    run("convert.py", "out/tiny", "--to=hf", "--out=there")
    run("convert.py", "out/tiny", "--to=nanogpt", "--out=nano")
    torch.save({"weight": torch.ones(2, 3)}, "weights.bin")
    for source, shown in (
        ("out/tiny", ["step 20", "char, ", "blocks.0.mlp.up.weight", "128×32", "float32"]),
        ("there", ["a gpt2 in Hugging Face's format", "n_embd=32", "transformer.wte.weight"]),
        ("nano", ["nanoGPT", "step 20"]),
        ("there/model.safetensors", ["without a config", "transformer.h.1.mlp.c_fc.weight"]),
        ("weights.bin", ["6 in 0.0 MB", "2×3", "2.449"]),
    ):
        capsys.readouterr()
        run("convert.py", source)
        out = capsys.readouterr().out
        assert all(words in out for words in shown), out
    for source in ("nothing", "lines.jsonl", "data/lines/train.bin"):
        with pytest.raises(SystemExit, match=source):
            run("convert.py", source)


def test_impossible_knobs_are_refused_by_name(run, capsys):
    for options in (["--to=hf"], ["--to=hf", "--out=x", "--dtype=q8_0"], ["--to=onnx"]):
        with pytest.raises(SystemExit):
            run("convert.py", "out/tiny", *options)
        told = capsys.readouterr().err
        assert "--out" in told or "dtype=q8_0" in told or "gguf" in told


# ------------------------------------------------------------- tokenizers that `tokenizers` trained

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"


def trained_by_others(family, folder):
    """A tokenizer.json as GPT-2, Llama 3, Qwen 2 and SmolLM have it, small."""
    tokenizers = pytest.importorskip("tokenizers")
    pre, Regex = tokenizers.pre_tokenizers, tokenizers.Regex
    splits = {
        "gpt2": [pre.ByteLevel(add_prefix_space=False)],
        "smollm": [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)],
    }
    for name, digits in (("llama3", "{1,3}"), ("qwen2", "")):
        split = pre.Split(Regex(CONTRACTIONS + WORDS % digits), "isolated")
        splits[name] = [split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = (
        pre.Sequence(splits[family]) if splits[family][1:] else splits[family][0]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    special = {"gpt2": ["<|endoftext|>"], "llama3": ["<|begin_of_text|>", "<|end_of_text|>"]}
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special.get(family, chat),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, tiny_text()] * 3, trainer)
    if family == "llama3":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen2", "smollm"])
def test_tokenizers_of_others_give_the_same_ids_here_and_after_the_way_back(tmp_path, family):
    theirs = trained_by_others(family, tmp_path / "theirs")
    ours = read_tokenizer(tmp_path / "theirs")
    save_tokenizer(tmp_path / "back", ours, bos=ours.bos)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in [*TEXTS[:4], *TEXTS[5:], tiny_text(), " \n\n\t 12345678  \u3000\r\n" * 3]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text).tolist() == expected
        assert back(text, add_special_tokens=False)["input_ids"] == expected
    assert ours.special_tokens == {
        token.content: i for i, token in theirs.get_added_tokens_decoder().items()
    }
    for token, i in ours.special_tokens.items():
        assert back.convert_tokens_to_ids(token) == i
        assert back(f"a{token}b", add_special_tokens=False)["input_ids"].count(i) == 1
    assert (ours.bos is not None) == (family == "llama3")
    if ours.bos is not None:
        assert back("hi")["input_ids"] == theirs.encode("hi").ids


def test_special_tokens_keep_their_ids_over_gaps(tmp_path):
    saved = train_bpe([tiny_text()], 300).to_dict()
    saved["special_tokens"] = {"<|endoftext|>": 320, "<|fim|>": 310}
    tokenizer = tokenizer_from_dict(saved | {"eot": 320})
    save_tokenizer(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(["<|endoftext|>", "<|fim|>"]) == [320, 310]
    assert theirs.eos_token_id == 320
    assert theirs("the cat")["input_ids"] == tokenizer.encode("the cat").tolist()


def test_gpt2s_tokens_are_the_same_whoever_published_them(tmp_path):
    saved = train_bpe([tiny_text()], 300).to_dict() | {"pattern": openai_public.r50k_pat_str}
    ours = tokenizer_from_dict(saved | {"kind": "gpt2"})
    save_tokenizer(tmp_path, ours)
    theirs = read_tokenizer(tmp_path)
    assert theirs.kind == "huggingface"
    assert same_tokens(saved | {"kind": "gpt2"}, theirs.to_dict())
    assert not same_tokens(saved, theirs.to_dict() | {"bos": 3})
    assert PATTERNS[ours.pattern] == "gpt-2"


def test_a_byte_order_mark_before_a_config_does_no_harm(tmp_path):
    reference("gpt2").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert read_model(tmp_path)[0].config.n_layer == 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", '{"model_type": "llama", "rope_parameters": "x", %s', "of the wrong kind"),
        ("tokenizer.json", "[" * 100_000, "not a JSON file"),
        ("model.safetensors.index.json", "[]", "not an object in braces"),
        ("model.safetensors.index.json", "{}", "no weight_map"),
    ],
)
def test_files_of_settings_with_nonsense_are_told(tmp_path, name, content, told):
    reference("llama").save_pretrained(tmp_path)
    rest = (tmp_path / "config.json").read_text().replace('"model_type"', '"_"').lstrip("{")
    rest = rest.replace('"rope_parameters"', '"_rope"')
    (tmp_path / name).write_text(content.replace("%s", rest))
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=told):
        read_model(tmp_path)


def test_a_model_of_hugging_faces_becomes_one_to_train_on(tmp_path, run, capsys):
    reference("qwen3").save_pretrained(tmp_path / "qwen")
    run("convert.py", str(tmp_path / "qwen"), "--to=shiftgpt", "--out=out/qwen")
    assert "train.py --init_from=out/qwen" in capsys.readouterr().out
    assert read_checkpoint("out/qwen/ckpt.pt")["step"] == 0


@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen2", "smollm"])
def test_llama_cpp_splits_words_as_their_tokenizers_do(tmp_path, family):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs: pip install llama-cpp-python")
    theirs = trained_by_others(family, tmp_path / "theirs")
    rows = theirs.get_vocab_size()
    reference("llama", vocab_size=rows).save_pretrained(tmp_path / "theirs")
    model, tokenizer = read_model(tmp_path / "theirs")
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in [*TEXTS[:3], tiny_text()]:
        there = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert there == tokenizer.encode(text).tolist()


def thinker(folder):
    """A Hugging Face folder of a Qwen 3 with ordinary tokens for thoughts and a chat template."""
    tokenizer = train_bpe(["the cat sat on the mat " * 20], 300)
    n = tokenizer.vocab_size
    saved = tokenizer.to_dict()
    saved["special_tokens"] |= {"<think>": n, "</think>": n + 1}
    saved |= {"ordinary": ["<think>", "</think>"], "chat_template": CHATML}
    tokenizer = tokenizer_from_dict(saved)
    model, _ = read_model_of("qwen3", folder / "plain", n + 2)
    write_model(folder / "theirs", model, tokenizer)
    return tokenizer


def read_model_of(name, folder, vocab_size):
    reference(name, vocab_size=vocab_size).save_pretrained(folder)
    return read_model(folder)


def test_tokens_that_are_added_but_ordinary_stay_so(tmp_path):
    tokenizer = thinker(tmp_path)
    back = read_tokenizer(tmp_path / "theirs")
    assert back.ordinary == tokenizer.ordinary == {"<think>", "</think>"}
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    text = "<think>the cat</think> sat"
    ids = hf(text + "<|im_end|>")["input_ids"]
    assert ids == [*back.encode(text).tolist(), tokenizer.special_tokens["<|im_end|>"]]
    assert hf.decode(ids, skip_special_tokens=True) == text


def test_a_model_that_converses_ends_its_turns_in_transformers_too(tmp_path):
    tokenizer = thinker(tmp_path)
    end = tokenizer.special_tokens["<|im_end|>"]
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert hf.eos_token_id == end
    assert model.generation_config.eos_token_id == [end, tokenizer.eot]
    assert hf.pad_token == "<|endoftext|>"
    assert len({len(row) for row in hf(["the", "the cat sat"], padding=True)["input_ids"]}) == 1


def test_an_end_by_another_name_and_one_of_several_templates_are_found(tmp_path):
    thinker(tmp_path)
    folder = tmp_path / "theirs"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / file).read_text(encoding="utf-8")
        text = text.replace("<|endoftext|>", "[EOS]")
        (folder / file).write_text(text, encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    config |= {"eos_token": {"content": "[EOS]"}, "chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = read_tokenizer(folder)
    assert tokenizer.eot == tokenizer.special_tokens["[EOS]"]
    assert tokenizer.chat_template == CHATML


def test_vocab_and_merges_alone_are_enough_for_gpt2_only(tmp_path):
    folder = tmp_path / "old"
    tokenizer = train_bpe(["the cat sat on the mat " * 20], 300)
    content = tokenizer_files(tokenizer, 64)["tokenizer.json"]
    folder.mkdir()
    vocab = content["model"]["vocab"].items()
    save_json(folder / "vocab.json", {token: i for token, i in vocab if i <= tokenizer.eot})
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    assert load_tokenizer(folder).encode("the cat").tolist() == tokenizer.encode("the cat").tolist()
    save_json(folder / "config.json", {"model_type": "qwen2"})
    with pytest.raises(ValueError, match="AutoTokenizer"):
        read_tokenizer(folder)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_template_has_the_tokens_that_the_settings_name(tmp_path, as_dict):
    """Even those that no text begins or ends with outside of a conversation."""
    tokenizer = train_bpe([tiny_text()], 300)
    for name, content in tokenizer_files(tokenizer, 64).items():
        save_json(tmp_path / name, content)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for name, mark in (("bos_token", "<|im_start|>"), ("eos_token", "<|im_end|>")):
        settings[name] = {"content": mark, "__type": "AddedToken"} if as_dict else mark
    settings["chat_template"] = (
        "{{ bos_token }}{% if tools is not none %}tools{% endif %}"
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    save_json(tmp_path / "tokenizer_config.json", settings)
    messages = [{"role": "user", "content": "the cat"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert expected[0] == tokenizer.special_tokens["<|im_start|>"]
    ours = tokenizer_from_dict(read_tokenizer(tmp_path).to_dict())
    assert tokens_of(rendered(messages, ours), ours) == expected
    (tmp_path / "back").mkdir()
    for name, content in tokenizer_files(ours, 64).items():  # and back again
        save_json(tmp_path / "back" / name, content)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.apply_chat_template(messages, return_dict=True)["input_ids"] == expected
    assert read_tokenizer(tmp_path / "back").chat_template == ours.chat_template


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", "x"),
        ("{{ messages[0].content | tojson }}", '"你好 <b>"'),
        ("{{ messages[0].content | tojson(ensure_ascii=True) }}", '"\\u4f60\\u597d <b>"'),
        ("{% generation %}a{%- endgeneration -%} b", "ab"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_templates_may_use_what_transformers_gives_them(template, written):
    messages = [{"content": "你好 <b>"}, {}]
    assert compiled_template(template).render(messages=messages) == written
