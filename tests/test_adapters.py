"""What is trained of a model, and what is put into it: nothing at first, and later only that."""

import copy

import pytest
import torch

from model import KVCache, ModelConfig, Transformer
from support.adapters import (
    ADDED,
    FrozenLinear,
    LoRA,
    adds,
    fingerprint_of,
    freeze_in_16_bits,
    merge_lora,
    put_in,
    weights_to_save,
)

SHAPE = dict(vocab_size=40, block_size=16, n_layer=3, n_head=4, n_embd=32)
SETTINGS = {
    "full": {},
    "last": {"last_blocks": 2},
    "head": {},
    "lora": {
        "lora_rank": 4,
        "lora_alpha": 8.0,
        "lora_dropout": 0.0,
        "lora_targets": ("query", "value", "up", "down", "gate"),
    },
    "adapter": {"adapter_size": 5},
    "prefix": {"prefix_length": 6},
}
SHAPES = {
    "gpt2": {},
    "llama": dict(norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, tie_weights=False),
    "gpt2 with the formula": dict(fused_attention=False),
}


def made(method, shape="llama", **changes):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SHAPE, **SHAPES[shape], **changes}))
    put_in(model, {"method": method, **SETTINGS[method]})
    return model


def tokens(rows=3, T=16):
    return torch.randint(40, (rows, T), generator=torch.Generator().manual_seed(1))


def stepped(model, steps=3):
    """The model after some steps of training."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens(), tokens().roll(-1, 1))[1].backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", SETTINGS)
def test_each_method_starts_exactly_at_the_base_models_function(method, shape):
    torch.manual_seed(0)
    base = Transformer(ModelConfig(**{**SHAPE, **SHAPES[shape]}))
    assert torch.equal(made(method, shape)(tokens())[0], base(tokens())[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", SETTINGS)
def test_only_what_the_method_trains_changes_and_all_of_it_does(method, shape):
    model = made(method, shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepped(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != weight.requires_grad, name


def trained_names(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_what_is_trained_is_what_the_name_of_the_method_says():
    names = trained_names(made("last"))
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"1", "2"}
    assert {"norm.weight", "head.weight"} <= names
    assert not any(name.startswith(("token_embedding", "blocks.0")) for name in names)
    assert trained_names(made("head")) == {"head.weight"}
    assert all("down" in name or "up" in name for name in trained_names(made("lora")))
    assert {name.split(".")[-1] for name in trained_names(made("prefix"))} == {
        "keys",
        "values",
        "gate",
    }


@pytest.mark.parametrize("method", SETTINGS)
def test_a_head_for_labels_is_trained_by_every_method(method):
    model = made(method, n_labels=3)
    assert model.head.weight.shape == (3, 32)
    assert "head.weight" in trained_names(model)


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix"])
def test_only_what_was_added_is_saved_and_brings_the_model_back(method):
    model = stepped(made(method))
    saved = weights_to_save(model)
    assert set(saved) == trained_names(model)
    everything = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in saved.values()) < 0.3 * everything
    again = made(method)
    missing, surplus = again.load_state_dict(saved, strict=False)
    assert not surplus and not set(missing) & set(saved)
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    assert adds({"method": method})


@pytest.mark.parametrize("method", ["full", "last", "head"])
def test_a_model_without_added_modules_is_saved_whole(method):
    model = made(method)
    assert set(weights_to_save(model)) == set(model.state_dict())
    assert not adds({"method": method})


def test_lora_goes_around_the_matrices_named_and_no_others():
    model = made("lora")
    around = {name for name, module in model.named_modules() if isinstance(module, LoRA)}
    assert {name.split(".")[-1] for name in around} == {"query", "value", "gate", "up", "down"}
    assert len(around) == 3 * 5


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_lora_computes_what_it_did_unmerged(shape):
    model = stepped(made("lora", shape), steps=5).eval()
    before = model(tokens())[0]
    merged = merge_lora(copy.deepcopy(model))
    assert not any(isinstance(module, ADDED) for module in merged.modules())
    assert set(merged.state_dict()) == set(made("full", shape).state_dict())
    torch.testing.assert_close(merged(tokens())[0], before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made("full", shape)(tokens())[0], before, atol=1e-3)


def test_lora_is_scaled_by_alpha_over_rank():
    linear = torch.nn.Linear(6, 5, bias=False)
    lora = LoRA(linear, rank=2, alpha=6.0, dropout=0.0)
    torch.nn.init.normal_(lora.up.weight)
    x = torch.randn(4, 6)
    expected = x @ (linear.weight + 3 * lora.up.weight @ lora.down.weight).T
    torch.testing.assert_close(lora(x), expected)


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix"])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_cache_an_adapted_model_computes_the_same(method, shape):
    model = stepped(made(method, shape)).eval()
    whole, _ = model(tokens())
    cache = KVCache(model.config, 3)
    parts = [model(part, cache=cache)[0] for part in tokens().split([5, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_a_prefix_stays_out_of_the_way_of_causality():
    model = stepped(made("prefix")).eval()
    changed = tokens().clone()
    changed[:, 8:] = 0
    assert torch.allclose(model(tokens())[0][:, :8], model(changed)[0][:, :8], atol=1e-6)


def test_a_fingerprint_differs_for_other_weights_alone():
    first, again = made("full").state_dict(), made("full").state_dict()
    assert fingerprint_of(first) == fingerprint_of(again)
    again["norm.weight"] = again["norm.weight"] + 1e-3
    assert fingerprint_of(first) != fingerprint_of(again)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["lora", "adapter", "prefix"])
def test_a_base_in_16_bits_gives_what_it_does_in_32(method, shape):
    """Its weights are numbers of 16 bits, and autocast would make them that."""
    found = []
    for in_16_bits in (False, True):
        model = made(method, shape, bias=True)
        for weight in model.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.bfloat16().float()
        if in_16_bits:
            freeze_in_16_bits(model, torch.bfloat16)
            linear = next(m for m in model.modules() if isinstance(m, FrozenLinear))
            assert linear.weight.dtype == torch.bfloat16
            assert model.token_embedding.weight.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = model(tokens(), tokens().roll(-1, 1))
        loss.backward()
        found.append((loss, [p.grad for p in model.parameters() if p.requires_grad]))
        assert model(tokens())[0].isfinite().all()  # without autocast too
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=1e-4)
    assert weights_to_save(model).keys() == weights_to_save(made(method, shape, bias=True)).keys()


def test_weights_that_are_not_numbers_of_16_bits_are_kept_as_they_are():
    model = made("lora")
    freeze_in_16_bits(model, torch.bfloat16)
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    freeze_in_16_bits(model, torch.float16)  # nor are small ones of bfloat16 numbers of float16
    assert {weight.dtype for weight in model.parameters()} <= {torch.float32, torch.float16}
