"""A LoRA trained with peft works here, and one trained here works there; peft is the judge."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoint import load_model
from tests.conftest import LLAMA_KNOBS, tiny_text
from tests.test_convert import V, reference

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.filterwarnings("ignore"),  # peft's
]
GPT2_NAMES, LLAMA_NAMES = ["c_attn", "c_proj", "c_fc"], ["q_proj", "v_proj", "o_proj", "down_proj"]
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
WHOLE = "base_model.model.lm_head"
ONES, TALL = torch.ones(100, 100), torch.ones(100, 4)
ADAPTERS = {  # (the base, settings of peft's LoraConfig)
    "gpt2": ("gpt2", {"target_modules": GPT2_NAMES, "fan_in_fan_out": True}),
    "llama": ("llama", {"target_modules": LLAMA_NAMES}),
    "qwen3": ("qwen3", {"target_modules": "all-linear"}),
    "some layers": ("llama", {"target_modules": LLAMA_NAMES, "layers_to_transform": [1]}),
    "scaled by the root": ("qwen2", {"target_modules": LLAMA_NAMES, "use_rslora": True}),
    "ranks and scales of their own": (
        "llama",
        {
            "target_modules": LLAMA_NAMES,
            "rank_pattern": {"v_proj": 3},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 40, "q_proj": 5, "down_proj": 1},
        },
    ),
    "with whole weights": (
        "llama",
        {"target_modules": LLAMA_NAMES, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
}


def adapted(base, folder, **settings):
    """A base of transformers with an adapter of peft whose weights are random; both are saved."""
    reference(base).save_pretrained(folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 10} | settings)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "adapter")
    return model.eval(), folder / "adapter"


def logits_of(model, tokens):
    with torch.no_grad():
        logits = model(tokens)
    return logits[0] if isinstance(logits, tuple) else logits.logits


def assert_same(ours, theirs):
    """The two compute the same, and not what the base of the adapter does."""
    tokens = torch.randint(V, (2, 48))
    torch.testing.assert_close(
        logits_of(ours, tokens), logits_of(theirs, tokens), atol=1e-4, rtol=0
    )
    if isinstance(theirs, peft.PeftModel):
        with theirs.disable_adapter():
            assert not torch.allclose(logits_of(ours, tokens), logits_of(theirs, tokens), atol=0.01)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_peft_gives_the_same_logits_here(name, tmp_path):
    base, settings = ADAPTERS[name]
    theirs, folder = adapted(base, tmp_path, **settings)
    ours, _, checkpoint = load_model(folder)
    assert_same(ours, theirs)
    assert str(tmp_path / "base") in checkpoint["origin"]


def test_a_head_with_a_lora_and_its_own_weight_is_read(tmp_path):
    settings = {"target_modules": ["q_proj", "lm_head"]}
    theirs, folder = adapted("llama", tmp_path, **settings)
    theirs.save_pretrained(folder, save_embedding_layers=True)
    assert any("base_layer" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert_same(load_model(folder)[0], theirs)


@pytest.mark.parametrize("base", ["gpt2", "llama with tied weights"])
def test_a_tied_matrix_that_was_trained_on_one_side_alone_is_refused(base, tmp_path):
    names = {"gpt2": ("c_attn", "wte")}.get(base, ("q_proj", "embed_tokens"))
    _, folder = adapted(base, tmp_path, target_modules=names[:1], modules_to_save=names[1:])
    with pytest.raises(SystemExit, match=r"one matrix for the embedding and the head.*merge"):
        load_model(folder)


def test_an_adapter_in_an_older_file_is_read(tmp_path):
    theirs, folder = adapted(*ADAPTERS["llama"][:1], tmp_path, **ADAPTERS["llama"][1])
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert_same(load_model(folder)[0], theirs)


def test_a_base_that_has_moved_is_named(tmp_path):
    theirs, folder = adapted("llama", tmp_path, target_modules=LLAMA_NAMES)
    moved = (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match=r"base.*--init_from=BASE --adapter="):
        load_model(folder)
    assert_same(load_model(folder, base=str(moved))[0], theirs)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "bias='all'"),
        ({"base_model_name_or_path": None}, "does not name its base.*--init_from=BASE"),
        ({"base_model_name_or_path": 3}, "does not name its base"),
        ({"alpha_pattern": {"(": 3}}, "cannot be read"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(settings, named, tmp_path):
    _, folder = adapted("llama", tmp_path, target_modules=LLAMA_NAMES)
    known = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(known | settings))
    with pytest.raises(SystemExit, match=named):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.clear(), "no tensors"),
        (lambda tensors: tensors.popitem(), "but no "),
        (lambda tensors: tensors.update({f"{PREFIX}.lora_A.weight": ONES}), r"100\) and \(48"),
        (lambda tensors: tensors.update({f"{PREFIX}.lora_B.weight": ONES[0]}), r"and \(100,\)"),
        (
            lambda tensors: tensors.update({f"{PREFIX}.lora_B.weight": torch.ones(100, 4)}),
            "its base",
        ),
        (lambda tensors: tensors.update({f"{PREFIX}.lora_magnitude_vector": ONES}), "magnitude"),
        (lambda tensors: tensors.update({"base_model.model.score.weight": ONES}), "score.weight"),
        (lambda tensors: tensors.update({f"{WHOLE}.weight": ONES}), r"\(100, 100\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, named, tmp_path):
    _, folder = adapted("llama", tmp_path, target_modules=LLAMA_NAMES)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(SystemExit, match=named):
        load_model(folder)


# --------------------------------------------------------------------------------- from here there


def taught(run, base, *options):
    """Fine-tune `base` with LoRA on a few completions; the run is out/lora."""
    words = tiny_text().split()
    lines = [{"prompt": words[i], "completion": " " + words[i + 1]} for i in range(100)]
    Path("few.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    common = "--method=lora --task=completion --dataset=few.jsonl --max_iters=6 --out_dir=out/lora"
    common += " --learning_rate=0.05 --device=cpu --dtype=float32"
    run("finetune.py", f"--init_from={base}", *common.split(), *options)


@pytest.mark.parametrize(
    ("knobs", "targets"),
    [
        ([], []),  # GPT-2's shape, all matrices
        ([], ["--lora_targets", "query", "value", "down"]),
        (LLAMA_KNOBS.split(), []),
    ],
)
def test_a_lora_trained_here_is_read_by_peft_and_again_by_us(trained, run, capsys, knobs, targets):
    trained(*knobs)
    run("convert.py", "out/tiny", "--to=hf", "--out=base")
    taught(run, "base", *targets)
    run("convert.py", "out/lora", "--to=peft", "--out=there")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("there")
    ours, tokenizer, _ = load_model("out/lora")
    assert_same(ours, theirs)
    assert_same(load_model("there")[0], theirs)
    reader = transformers.AutoTokenizer.from_pretrained("there")
    assert reader("the cat")["input_ids"][1:] == tokenizer.encode("the cat").tolist()

    capsys.readouterr()
    greedy = ["--start=the", "--temperature=0", "--max_new_tokens=20", "--num_samples=1"]
    run("sample.py", "--out_dir=out/lora", *greedy)
    expected = capsys.readouterr().out
    for options in (["--adapter=there"], ["--init_from=base", "--adapter=there"]):
        run("sample.py", *options, *greedy)
        assert capsys.readouterr().out == expected
    run("convert.py", "there", "--to=hf", "--out=merged")
    assert_same(transformers.AutoModelForCausalLM.from_pretrained("merged"), ours)
    run("convert.py", "there")
    assert "LORA of peft" in capsys.readouterr().out
    taught(run, "there", "--out_dir=out/second")  # trained further
    assert Path("out/second/best.pt").exists()


def test_a_base_trained_here_is_converted_by_the_command_that_is_told(trained, run, capsys):
    trained(*LLAMA_KNOBS.split())
    taught(run, "out/tiny")
    run("convert.py", "out/lora", "--to=peft", "--out=there")
    told = capsys.readouterr().out
    command = next(line for line in told.splitlines() if "--to=hf" in line).split("convert.py ")[1]
    run("convert.py", *command.split())
    theirs = transformers.AutoModelForCausalLM.from_pretrained("there")
    assert_same(load_model("out/lora")[0], theirs)


def test_a_lora_on_a_lora_of_peft_names_a_base_that_is_written(trained, run, capsys):
    trained(*LLAMA_KNOBS.split())
    run("convert.py", "out/tiny", "--to=hf", "--out=base.v1")
    taught(run, "base.v1")
    run("convert.py", "out/lora", "--to=peft", "--out=first.v2")
    taught(run, "first.v2", "--out_dir=out/second")
    run("convert.py", "out/second", "--to=peft", "--out=second")
    told = capsys.readouterr().out
    command = next(line for line in told.splitlines() if "--to=hf" in line).split("convert.py ")[1]
    assert command == "first.v2 --to=hf --out=first.v2_hf"
    run("convert.py", *command.split())
    theirs = transformers.AutoModelForCausalLM.from_pretrained("second")
    assert_same(load_model("out/second")[0], theirs)


def test_only_a_lora_that_predicts_tokens_is_written(trained, run):
    trained()
    with pytest.raises(SystemExit, match="not a LoRA: --to=hf"):
        run("convert.py", "out/tiny", "--to=peft", "--out=there")
    run("convert.py", "out/tiny", "--to=hf", "--out=base")
    with pytest.raises(SystemExit, match=r"not a LoRA that finetune\.py trained"):
        run("convert.py", "base", "--to=peft", "--out=there")
    lines = [{"text": f"the {i}", "label": "ab"[i % 2]} for i in range(40)]
    Path("labels.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = ["--method=lora", "--task=classification", "--dataset=labels.jsonl"]
    options += ["--max_iters=2", "--device=cpu", "--out_dir=out/labels"]
    run("finetune.py", "--init_from=out/tiny", *options)
    with pytest.raises(SystemExit, match="predicts labels"):
        run("convert.py", "out/labels", "--to=peft", "--out=there")
    assert not Path("there").exists()
