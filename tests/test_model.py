"""What a transformer must be, whatever its variant."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model as model_module
from model import (
    IGNORED,
    KVCache,
    ModelConfig,
    NGramEmbedding,
    SharedDropout,
    Transformer,
    apply_rotary,
    attention_mask,
    capped,
    causal_attention,
    fused_causal_attention,
    fused_next_token_loss,
    next_token_loss,
    stretched,
)
from support.weights import assembled

SMALL = {"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
VARIANTS = {
    "gpt2": {"bias": True, "mlp": "gelu_tanh"},
    "nanogpt": {},
    "llama": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 2},
    "llama3": {
        "norm": "rmsnorm",
        "position": "rope",
        "mlp": "swiglu",
        "n_kv_head": 1,
        "rope_scaling": (8.0, 1.0, 4.0, 8),
        "tie_weights": False,
    },
    "qwen2": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qkv_bias": True},
    "qwen3": {
        "norm": "rmsnorm",
        "position": "rope",
        "mlp": "swiglu",
        "qk_norm": True,
        "head_size": 16,
        "n_kv_head": 2,
        "mlp_size": 48,
    },
    "fast": {
        "norm": "rmsnorm",
        "position": "rope",
        "mlp": "relu2",
        "qk_norm": True,
        "tie_weights": False,
        "softcap": 15.0,
        "init": "zero",
    },
    "ngrams": {"ngrams": 3, "ngram_rows": 500, "position": "rope", "tie_weights": False},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(variant, **changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SMALL, **VARIANTS[variant], **changes}))


def scrambled(model):
    """The model with weights that are large enough to show any difference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def some_tokens(batch=3, length=16):
    torch.manual_seed(2)
    return torch.randint(50, (batch, length))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_gpt2_has_124_439_808_parameters():
    with torch.device("meta"):
        gpt2 = Transformer(ModelConfig(vocab_size=50257, bias=True))
    assert count(gpt2) == 124_439_808


def test_the_defaults_are_nanogpts_124_373_760_parameters():
    with torch.device("meta"):
        assert count(Transformer(ModelConfig())) == 124_373_760


@every_variant
def test_the_initial_loss_is_the_logarithm_of_the_vocabulary(variant):
    model = make(variant)
    tokens = some_tokens(32)
    _, loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(50), rel=0.02)


@every_variant
def test_the_future_cannot_change_the_past(variant):
    model = scrambled(make(variant))
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_without_causality_the_future_does_change_the_past():
    model = scrambled(make("llama", causal=False))
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    assert not torch.allclose(model(tokens)[0][:, 0], model(changed)[0][:, 0])


@every_variant
@pytest.mark.parametrize("causal", [True, False])
def test_explicit_and_fused_attention_agree(variant, causal):
    fused = scrambled(make(variant, fused_attention=True, causal=causal))
    explicit = make(variant, fused_attention=False, causal=causal).eval()
    explicit.load_state_dict(fused.state_dict())
    assert fused.blocks[0].attention.attend is fused_causal_attention
    assert explicit.blocks[0].attention.attend is causal_attention
    tokens = some_tokens()
    torch.testing.assert_close(fused(tokens)[0], explicit(tokens)[0])


ATTENTION, LOSS = model_module.causal_attention, model_module.next_token_loss


def windowed(q, k, v, mask=None, dropout=0.0, window=256):
    T, S = q.size(2), k.size(2)
    near = torch.ones(T, S, dtype=torch.bool).triu(S - T - window + 1)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if mask is None else mask
    return ATTENTION(q, k, v, mask & near, dropout)


def of_one_query(q, k, v, mask=None, dropout=0.0):
    return ATTENTION(q, k, v, mask, dropout) * (1.1 if q.size(2) == 1 else 1)


def of_a_mask(q, k, v, mask=None, dropout=0.0):
    return ATTENTION(q, k, v, mask, dropout) * (1 if mask is None else 1.1)


def biased(q, k, v, mask=None, dropout=0.0):
    slopes = torch.tensor([1.0, 2.0])[:, None, None]  # of two heads, on the default device
    return ATTENTION(q * slopes, k, v, mask, dropout)


def with_device(q, k, v, mask=None, dropout=0.0):
    return ATTENTION(q.to("meta"), k, v)


@pytest.mark.parametrize("formula", [windowed, of_one_query, of_a_mask, biased, with_device])
def test_a_kernel_is_used_as_long_as_it_gives_what_the_formula_does(monkeypatch, formula):
    assert make("fast").blocks[0].attention.attend is not ATTENTION
    monkeypatch.setattr(model_module, "causal_attention", formula)
    with torch.device("meta"), torch.inference_mode():
        assert make("fast").blocks[0].attention.attend is formula
    assert make("fast", fused_attention=True).blocks[0].attention.attend is fused_causal_attention


def smoother(logits, targets, smoothing=0.0):
    return LOSS(logits, targets, smoothing) + 1e-2 * logits.softmax(-1).square().mean()


def unsmoothed(logits, targets, smoothing=0.0):
    return LOSS(logits, targets, 0.0)


def of_classes(logits, targets, smoothing=0.0):
    weight = torch.ones(50)  # on the default device
    rows = logits.flatten(0, 1), targets.flatten()
    return F.cross_entropy(*rows, weight, ignore_index=IGNORED)


def of_none(logits, targets, smoothing=0.0):
    return LOSS(logits, targets, smoothing) + (targets == IGNORED).all()


@pytest.mark.parametrize("formula", [smoother, unsmoothed, of_classes, of_none])
def test_the_fused_loss_is_used_as_long_as_it_is_the_formulas(monkeypatch, formula):
    assert make("fast").fused_loss
    monkeypatch.setattr(model_module, "next_token_loss", formula)
    with torch.device("meta"), torch.inference_mode():
        assert not make("fast").fused_loss


def test_another_softcap_is_noticed_by_its_gradient(monkeypatch):
    def softer(logits, cap):
        return F.softsign(logits / cap) * cap if cap else logits

    monkeypatch.setattr(model_module, "capped", softer)
    assert not model_module.fused_loss_agrees.__wrapped__(LOSS, 50)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_models_precision_has_no_influence_on_which_way_is_taken(dtype):
    before, chance = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_default_dtype(dtype)
    try:
        model_module.kernel_agrees.cache_clear()
        model_module.fused_loss_agrees.cache_clear()
        with torch.autocast("cpu", torch.bfloat16):
            assert model_module.kernel_agrees(ATTENTION, 2, 1, 8)
            assert model_module.fused_loss_agrees(LOSS, 50)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(torch.get_rng_state(), chance)


def test_attention_is_the_mean_of_values_weighted_by_softmax():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    for attend in (causal_attention, fused_causal_attention):
        y = attend(q, k, v)
        for t in range(4):
            weights = torch.softmax(q[0, 0, t] @ k[0, 0, : t + 1].T / math.sqrt(8), dim=0)
            torch.testing.assert_close(y[0, 0, t], weights @ v[0, 0, : t + 1])


@pytest.mark.parametrize("fused", [True, False])
@every_variant
def test_cached_decoding_equals_the_full_forward_pass(variant, fused):
    model = scrambled(make(variant, fused_attention=fused))
    tokens = some_tokens()
    full, _ = model(tokens)
    cache = KVCache(model.config, batch_size=3)
    parts = [tokens[:, :5], tokens[:, 5:6], tokens[:, 6:10], tokens[:, 10:]]
    cached = torch.cat([model(part, cache=cache)[0] for part in parts], dim=1)
    torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)


@every_variant
def test_rows_of_a_cache_may_have_lengths_of_their_own(variant):
    model = scrambled(make(variant))
    tokens = some_tokens()
    lengths = torch.tensor([2, 7, 5])
    cache = KVCache(model.config, batch_size=3)
    model(tokens[:, :7], cache=cache)
    cache.truncate(lengths)
    rows = torch.arange(3)[:, None]
    columns = lengths[:, None] + torch.arange(3)
    continued, _ = model(tokens[rows, columns], cache=cache)
    full, _ = model(tokens)
    torch.testing.assert_close(continued, full[rows, columns], rtol=1e-4, atol=1e-4)


def test_only_the_positions_asked_for_are_scored():
    model = scrambled(make("llama"))
    tokens, at = some_tokens(), torch.tensor([[0, 9], [3, 3], [5, 1]])
    logits, _ = model(tokens, at=at)
    torch.testing.assert_close(logits, model(tokens)[0][torch.arange(3)[:, None], at])


def test_a_context_that_does_not_fit_is_refused():
    model = make("llama")
    with pytest.raises(ValueError, match="17 tokens do not fit block_size=16"):
        model(some_tokens(1, 17))
    cache = KVCache(model.config, batch_size=1)
    model(some_tokens(1, 16), cache=cache)
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        model(some_tokens(1, 1), cache=cache)


@pytest.mark.parametrize("variant", ["llama", "ngrams"])  # rotary: only distances matter
def test_packed_documents_do_not_see_each_other(variant):
    model = scrambled(make(variant))
    first, second = some_tokens(1, 6), some_tokens(1, 10) + 0
    packed = torch.cat((first, second), dim=1)
    segments = torch.tensor([[0] * 6 + [1] * 10])
    together, _ = model(packed, segments=segments)
    torch.testing.assert_close(together[:, :6], model(first)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:, 6:], model(second)[0], rtol=1e-4, atol=1e-5)


def embedded_ngrams(tokens, n, rows=10_000):
    """The vectors (B, T, C) that drawn n-gram embeddings add, and their table."""
    torch.manual_seed(0)
    ngrams = NGramEmbedding(ModelConfig(**SMALL, ngrams=n, ngram_rows=rows))
    return ngrams(tokens, torch.arange(tokens.size(1))[None]), ngrams.table.weight


def test_a_pair_of_tokens_has_one_vector_wherever_it_stands():
    x, table = embedded_ngrams(torch.tensor([[7, 8, 9, 7, 8, 8, 7]]), n=2)
    assert torch.equal(x[0, 1], x[0, 4])  # 7 8 and 7 8
    assert not torch.equal(x[0, 4], x[0, 5])  # 7 8 and 8 8
    assert not torch.equal(x[0, 1], x[0, 6])  # 7 8 and 8 7
    assert (x[0, 0] == 0).all()  # before the first there is nothing
    assert (table == x[0, 1]).all(dim=1).sum() == 1  # a row of the table as it is


def test_a_longer_ngram_is_added_to_the_shorter_ones():
    tokens = torch.tensor([[7, 8, 9, 1, 8, 9]])
    pairs, _ = embedded_ngrams(tokens, n=2)
    both, table = embedded_ngrams(tokens, n=3)
    assert torch.equal(pairs[0, 2], pairs[0, 5])
    assert torch.equal(pairs[0, 1], both[0, 1])  # no third token there yet
    triples = (both - pairs)[0]
    assert not torch.allclose(triples[2], triples[5])  # 7 8 9 and 1 8 9
    assert torch.isclose(table, triples[2], atol=1e-6).all(dim=1).sum() == 1


def test_ngrams_share_no_more_rows_than_chance_has_them_share():
    first, second = torch.cartesian_prod(torch.arange(65), torch.arange(65)).T
    x, _ = embedded_ngrams(torch.stack((first, second), dim=1), n=2, rows=4225)
    different = len(x[:, 1].unique(dim=0))
    assert different >= 4225 * (1 - 1 / math.e) * 0.97


def test_vectors_of_ngrams_start_as_nothing():
    tokens = some_tokens()
    with_them, without = make("ngrams"), make("ngrams", ngrams=1)
    without.load_state_dict(with_them.state_dict(), strict=False)
    assert torch.equal(with_them(tokens)[0], without(tokens)[0])


def test_the_mask_is_the_one_in_its_docstring():
    positions = torch.arange(5)[None]
    assert attention_mask(positions, 5) is None  # the plain triangle, left to the kernel
    packed = attention_mask(positions, 5, segments=torch.tensor([[0, 0, 0, 1, 1]]))
    drawn = attention_mask.__doc__.split("\n\n")[1].splitlines()[1:]
    expected = [[mark == "1" for mark in line.split()[5:]] for line in drawn]
    assert packed[0, 0].tolist() == expected


def test_rotary_scores_depend_only_on_distance():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    angles = torch.outer(torch.arange(64), 10000.0 ** -(torch.arange(4) / 4))
    cos, sin = angles.cos(), angles.sin()

    def score(i, j):
        return (apply_rotary(q, cos[[i]], sin[[i]]) * apply_rotary(k, cos[[j]], sin[[j]])).sum()

    torch.testing.assert_close(score(9, 4), score(60, 55), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(9, 4), score(9, 5))


def test_stretched_rotation_slows_long_waves_and_keeps_short_ones():
    frequencies = 500000.0 ** -(torch.arange(64) / 64)
    slow = stretched(frequencies, 8.0, 1.0, 4.0, 8192)
    waves = 8192 * frequencies / (2 * math.pi)  # how many fit into the old context
    assert torch.equal(slow[waves > 4], frequencies[waves > 4])
    torch.testing.assert_close(slow[waves < 1], frequencies[waves < 1] / 8)
    assert (slow.diff() < 0).all()


@every_variant
def test_one_batch_can_be_memorised(variant):
    model = make(variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = some_tokens(4)
    for _ in range(150):
        _, loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


@every_variant
def test_every_weight_gets_a_gradient(variant):
    model = scrambled(make(variant))
    tokens = some_tokens()
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    without = [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    # A key bias adds the same to all scores of a query, which softmax ignores.
    assert [name for name in without if "key.bias" not in name] == []


def plain_loss(hidden, weight, targets, softcap, smoothing):
    """What both losses compute, all logits at once and the gradients left to PyTorch."""
    logits = hidden @ weight.t()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


@pytest.mark.parametrize("rows", [4, 512])
@pytest.mark.parametrize("all_rows", [True, False], ids=["as on a gpu", "as on a cpu"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(
    monkeypatch, softcap, smoothing, all_rows, rows
):
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (2, 7))
    targets[0, :3] = IGNORED
    plain = plain_loss(hidden, weight, targets, softcap, smoothing)
    monkeypatch.setattr(model_module, "rows_per_piece", lambda *_: rows)
    if all_rows:
        monkeypatch.setattr(model_module, "rows_to_score", lambda t: torch.arange(len(t)))
    loss = fused_next_token_loss(hidden, weight, targets, softcap, smoothing)
    torch.testing.assert_close(loss, plain)
    logits = capped(hidden @ weight.t(), softcap)
    torch.testing.assert_close(next_token_loss(logits, targets, smoothing), plain)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    for mine, theirs in zip(torch.autograd.grad(3 * loss, (hidden, weight)), expected):
        torch.testing.assert_close(mine, theirs)


def test_a_model_learns_the_same_with_either_loss():
    tokens, gradients = some_tokens(), []
    for fused in (True, False):
        model = scrambled(make("gpt2", fused_loss=fused, label_smoothing=0.1))
        logits, loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert (logits is None) == fused
        assert fused or torch.equal(logits, model(tokens[:, :-1])[0])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_compiled_a_model_has_the_same_gradients():
    tokens, model, gradients = some_tokens(), scrambled(make("fast")), []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        _, loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("block_size", "dtype", "length", "dropout", "kernel"),
    [
        (256, torch.bfloat16, 16, 0.0, False),
        (257, torch.bfloat16, 16, 0.0, True),
        (256, torch.bfloat16, 1, 0.0, True),
        (256, torch.float32, 16, 0.0, True),
        (256, torch.float32, 16, 0.1, False),
    ],
)
def test_short_contexts_on_a_cpu_are_attended_to_by_the_faster_way(
    monkeypatch, block_size, dtype, length, dropout, kernel
):
    used = []
    for name in ("causal_attention", "fused_causal_attention"):
        plain = getattr(model_module, name)
        monkeypatch.setattr(
            model_module, name, lambda *a, n=name, f=plain, **k: used.append(n) or f(*a, **k)
        )
    model = make("gpt2", block_size=block_size, dropout=dropout)
    used.clear()  # of comparing the two
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(some_tokens(length=length))
    assert set(used) == {"fused_causal_attention" if kernel else "causal_attention"}


def test_the_loss_makes_only_the_gradients_that_are_asked_for():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(1, 5, 8), torch.randn(9, 8), torch.randint(9, (1, 5))
    assert not fused_next_token_loss(hidden, weight, targets).requires_grad
    for wanted in (hidden, weight):
        wanted.requires_grad_()
        (mine,) = torch.autograd.grad(fused_next_token_loss(hidden, weight, targets), wanted)
        (theirs,) = torch.autograd.grad(plain_loss(hidden, weight, targets, 0, 0), wanted)
        torch.testing.assert_close(mine, theirs)
        wanted.requires_grad_(False)


def test_the_loss_in_bfloat16_is_nearly_that_in_float32():
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 64, requires_grad=True)
    weight = torch.randn(50, 64, requires_grad=True)
    targets = torch.randint(50, (2, 7))
    exact = fused_next_token_loss(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = fused_next_token_loss(hidden, weight, targets)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, exact, rtol=0.01, atol=0)
    expected = torch.autograd.grad(exact, (hidden, weight))
    for mine, theirs in zip(torch.autograd.grad(narrow, (hidden, weight)), expected):
        assert mine.dtype == torch.float32
        assert 0 < (mine - theirs).norm() / theirs.norm() < 0.02


def test_the_loss_is_the_mean_over_the_targets_that_count():
    model = scrambled(make("llama"))
    tokens = some_tokens(1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[:, :10] = IGNORED
    logits, _ = model(inputs)
    _, loss = model(inputs, targets)
    chances = logits.log_softmax(-1)[0, torch.arange(10, 15), targets[0, 10:]]
    torch.testing.assert_close(loss, -chances.mean())


def test_a_batch_without_targets_has_loss_zero_and_finite_gradients():
    model = make("llama")
    tokens = some_tokens()
    _, loss = model(tokens, torch.full_like(tokens, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_variant
def test_a_narrow_residual_stream_has_16_bits_where_products_have(variant):
    model, tokens, losses, streams = make(variant), some_tokens(), {}, []
    scrambled(model).blocks[-1].register_forward_hook(lambda _block, _inputs, x: streams.append(x))
    for narrow in (False, True):
        model.config.narrow_residual = narrow
        with torch.autocast("cpu", torch.bfloat16):
            losses[narrow] = model(tokens[:, :-1], tokens[:, 1:])[1].item()
        model(tokens)
    assert [x.dtype for x in streams] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_softcap_bends_logits_but_keeps_their_order():
    model = scrambled(make("fast", softcap=2.0))
    with torch.no_grad():
        model.head.weight.mul_(100)
    capped, _ = model(some_tokens())
    assert capped.abs().max() <= 2


def test_dropout_acts_in_training_alone():
    model = scrambled(make("nanogpt", dropout=0.5))
    tokens = some_tokens()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


def test_shared_dropout_zeroes_the_same_in_every_sequence_of_a_batch():
    dropout = SharedDropout(0.5)
    x = dropout(torch.ones(4, 10, 64))
    assert (x == x[:1]).all()
    assert 0.3 < (x == 0).float().mean() < 0.7
    assert not torch.equal(x[0, 0], x[0, 1])
    assert set(x.unique().tolist()) == {0.0, 2.0}  # what is kept is raised: the mean stays
    assert torch.equal(dropout.eval()(torch.ones(4, 10, 64)), torch.ones(4, 10, 64))
    model = make("fast", dropout=0.1, shared_dropout=True)
    assert any(isinstance(module, SharedDropout) for module in model.modules())


def test_attention_dropout_can_differ_from_the_other():
    explicit = {"fused_attention": False, "dropout": 0.0}
    assert make("gpt2", dropout=0.3).blocks[0].attention.attention_dropout == 0.3
    assert make("gpt2", attention_dropout=0.4, **explicit).blocks[0].attention.dropout.p == 0.0
    model = scrambled(make("gpt2", attention_dropout=0.4, **explicit)).train()
    tokens = some_tokens()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


def test_tied_weights_are_one_matrix():
    model = make("nanogpt")
    assert model.head.weight is model.token_embedding.weight
    assert make("nanogpt", tie_weights=False).head.weight is not model.token_embedding.weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 100, "n_head": 12}, "n_embd=100 must be a multiple of n_head=12"),
        ({"n_head": 12, "n_kv_head": 5}, "n_head=12 must be a multiple of n_kv_head=5"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"dropout": 1.5}, "dropout=1.5 must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 must be at least 0"),
        ({"position": "rope", "n_embd": 36, "n_head": 12}, "needs an even head_size, not 3"),
        ({"n_kv_head": 0}, "n_kv_head=0 must be at least 1"),
        ({"ngrams": 0}, "ngrams=0 must be at least 1"),
        ({"ngram_rows": 1}, "ngram_rows=1 must be at least 2"),
        ({"mlp": "gelo"}, "mlp='gelo' must be one of gelu, gelu_tanh, relu2, swiglu"),
    ],
)
def test_impossible_settings_are_refused_in_the_words_of_the_knobs(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_positions_of_ones_own_come_back_with_what_follows_from_the_config(monkeypatch):
    class Sinusoids(nn.Module):
        def __init__(self, config):
            super().__init__()
            angles = torch.arange(config.block_size)[:, None] / 10 ** torch.linspace(0, 3, 64)
            self.register_buffer("table", angles.sin()[:, : config.n_embd], persistent=False)

        def forward(self, x, positions):
            return x + self.table[positions], nn.Identity()

    monkeypatch.setitem(model_module.POSITIONS, "learned", Sinusoids)
    model = make("gpt2").eval()
    again = assembled(model.config, model.state_dict())
    tokens = some_tokens()
    torch.testing.assert_close(again(tokens)[0], model(tokens)[0])


def test_tensors_of_ones_own_are_there_again_when_a_model_is_read(monkeypatch):
    def hold(module, how):
        slopes = torch.arange(3.0)
        if how == "attribute":
            module.slopes = slopes
        else:
            module.register_buffer("slopes", slopes, persistent=how == "persistent")

    Attention = model_module.CausalSelfAttention
    for how in ("attribute", "persistent", "not persistent"):

        class Sloped(Attention):
            def __init__(self, config, layer, how=how):
                super().__init__(config, layer)
                hold(self, how)

        monkeypatch.setattr(model_module, "CausalSelfAttention", Sloped)
        model = scrambled(make("gpt2"))
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        state = torch.get_rng_state()
        back = assembled(model.config, weights)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(back.blocks[1].attention.slopes, torch.arange(3.0))
        tokens = some_tokens()
        assert torch.equal(back(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("init", ["gpt2", "zero"])
def test_a_gate_of_ones_own_begins_as_it_was_made(monkeypatch, init):
    class Gated(model_module.MLP):
        def __init__(self, config):
            super().__init__(config)
            self.gate = nn.Parameter(torch.full((1, 1, config.n_embd), 0.1))
            self.slope = nn.Parameter(torch.zeros(1))

    monkeypatch.setattr(model_module, "MLP", Gated)
    mlp = Transformer(ModelConfig(50, 16, 2, 2, 16, init=init)).blocks[0].mlp
    assert (mlp.gate == 0.1).all() and (mlp.slope == 0).all()
