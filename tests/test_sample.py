"""What is drawn, and how it reaches the reader."""

import io
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.backends import mkldnn
from torch.fx.experimental.proxy_tensor import make_fx

import sample
from model import KVCache, ModelConfig, Transformer
from sample import (
    Context,
    SampleConfig,
    TextStream,
    checked,
    draw,
    first_tokens,
    generate,
    generate_speculatively,
    next_token_distribution,
    prompt_lookup,
)
from support import quantize
from support.config import load_config
from support.processes import open_world
from support.quantize import HalfLinear, Int8Linear, replace_linears
from support.recording import CudaGraph, Trace
from support.tokenizer import byte_tokenizer, char_tokenizer
from tests.conftest import REPOSITORY, TINY, call

GREEDY = partial(next_token_distribution, temperature=0)
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5]])


def make_model(block_size=32, vocab_size=50, position="rope"):
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            vocab_size=vocab_size,
            block_size=block_size,
            n_layer=2,
            n_head=2,
            n_embd=16,
            position=position,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # decided opinions, so that ties are no matter
    return model.eval()


def continuation(model, prompts, n, distribution=GREEDY, seed=0, vocab_size=50):
    """n new tokens for each prompt: lists."""
    generator = torch.Generator().manual_seed(seed)
    steps = list(generate(model, prompts, n, distribution, vocab_size, generator))
    return [list(row) for row in zip(*steps)]


# ---------------------------------------------------------------------------- the distribution


def test_temperature_zero_is_greedy():
    assert next_token_distribution(LOGITS, temperature=0).tolist() == [[1, 0, 0, 0, 0]]


def test_temperature_one_is_the_softmax():
    torch.testing.assert_close(next_token_distribution(LOGITS), LOGITS.softmax(dim=1))


def test_a_high_temperature_evens_out_and_a_low_one_sharpens():
    wild, plain, sharp = (
        next_token_distribution(LOGITS, temperature=t)[0, 0].item() for t in (5.0, 1.0, 0.2)
    )
    assert wild < plain < sharp


def test_top_k_keeps_the_k_likeliest():
    kept = next_token_distribution(LOGITS, top_k=3)[0]
    assert (kept > 0).tolist() == [True, True, False, False, True]
    assert kept.sum() == pytest.approx(1)
    assert kept[0] / kept[1] == pytest.approx(torch.tensor(1.0).exp().item())


def test_a_top_k_beyond_the_vocabulary_keeps_all():
    torch.testing.assert_close(next_token_distribution(LOGITS, top_k=99), LOGITS.softmax(dim=1))


@pytest.mark.parametrize("top_p", [0.2, 0.7, 0.95])
def test_top_p_ranks_as_many_tokens_as_it_needs(top_p, monkeypatch):
    logits = 2 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    few_ranked = []
    monkeypatch.setattr(sample, "RANKED_AT_FIRST", 5)
    for row in logits.split(1):  # of some 5 tokens are enough, of others not
        few_ranked.append(next_token_distribution(row, top_p=top_p))
    monkeypatch.setattr(sample, "RANKED_AT_FIRST", 50)
    assert torch.equal(torch.cat(few_ranked), next_token_distribution(logits, top_p=top_p))


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.5, 2), (0.79, 3), (0.999, 5), (1.0, 5)])
def test_top_p_keeps_the_smallest_set(top_p, kept):
    # sorted, the probabilities are 0.45 0.27 0.17 0.06 0.02 (rounded), their sums 0.45 0.73 0.90 …
    probabilities = next_token_distribution(LOGITS, top_p=top_p)[0]
    assert (probabilities > 0).sum() == kept


def test_min_p_leaves_out_what_is_far_less_likely_than_the_best():
    kept = next_token_distribution(LOGITS, min_p=0.5)[0]
    assert (kept > 0).tolist() == [True, False, False, False, True]


def test_a_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    seen = torch.tensor([[True, False, False, True, False]])
    plain = next_token_distribution(LOGITS, seen)[0]
    penalised = next_token_distribution(LOGITS, seen, repetition_penalty=1.5)[0]
    assert (penalised < plain).tolist() == [True, False, False, True, False]


# ------------------------------------------------------------------------------- generating


def full_greedy(model, prompt, n):
    """Greedy tokens without any cache."""
    tokens = list(prompt)
    for _ in range(n):
        logits, _ = model(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_generation_with_a_cache_is_generation_without(position):
    model = make_model(position=position)
    assert continuation(model, [[1, 2, 3]], 20) == [full_greedy(model, [1, 2, 3], 20)]


def test_a_long_context_costs_memory_only_as_far_as_it_is_used(monkeypatch):
    shapes = []
    model = make_model(block_size=100_000, position="rope")
    monkeypatch.setattr(sample, "KVCache", lambda *args: shapes.append(args[-1]) or KVCache(*args))
    continuation(model, [[1, 2, 3], [4]], 5)
    assert shapes == [8]


def test_prompts_of_different_lengths_go_on_as_each_would_alone():
    model = make_model()
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7]]
    together = continuation(model, prompts, 15)
    assert together == [full_greedy(model, prompt, 15) for prompt in prompts]


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_text_may_be_longer_than_the_context(position):
    model = make_model(block_size=8, position=position)
    (tokens,) = continuation(model, [[1, 2, 3]], 40)
    assert len(tokens) == 40
    # Once full, the context starts again from its last half.
    everything = [1, 2, 3, *tokens]
    assert tokens[:5] == full_greedy(model, [1, 2, 3], 5)
    assert tokens[6:9] == full_greedy(model, everything[5:9], 3)


def test_a_prompt_longer_than_the_context_is_read_from_its_end():
    model = make_model(block_size=8)
    long = list(range(30))
    assert continuation(model, [long], 3) == continuation(model, [long[-8:]], 3)


def test_the_same_seed_gives_the_same_text_and_another_another():
    model = make_model()
    first, again, other = (
        continuation(model, [[1]], 20, next_token_distribution, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_samples_of_one_batch_differ():
    rows = continuation(make_model(), [[1], [1]], 20, next_token_distribution)
    assert rows[0] != rows[1]


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([[0.5, 0.0, 0.2, 0.3, 0.0]])
    generator = torch.Generator().manual_seed(0)
    drawn = draw(probabilities.expand(20_000, 5), generator).flatten()
    shares = drawn.bincount(minlength=5) / len(drawn)
    torch.testing.assert_close(shares, probabilities[0], rtol=0, atol=0.01)
    assert shares[1] == shares[4] == 0


def test_the_greatest_chance_draws_the_last_possible_token(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.ones(shape))
    assert draw(torch.tensor([[0.1, 0.2, 0.7, 0.0]]), None).tolist() == [[2]]


def test_scores_that_are_not_numbers_end_with_a_message():
    with pytest.raises(SystemExit, match="nan or infinite"):
        checked(draw(torch.tensor([[0.5, float("nan")]]), None).flatten().tolist())


# --------------------------------------------------------------------- one text after another


@pytest.fixture
def counted(monkeypatch):
    """How many positions models have read in each pass."""
    widths, forward = [], Transformer.forward

    def counting(model, inputs, *args, **options):
        widths.append(inputs.size(1))
        return forward(model, inputs, *args, **options)

    monkeypatch.setattr(Transformer, "forward", counting)
    return widths


@pytest.mark.parametrize("make", [generate, partial(generate_speculatively, n_draft=3)])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_what_two_prompts_have_in_common_is_read_once(position, make, counted):
    model = make_model(position=position, block_size=64)
    context = Context(model)
    answer = [t for (t,) in make(model, [[1, 2, 3, 4, 5]], 6, GREEDY, 50, context=context)]
    for later in ([6, 7], [8]):  # a turn of a conversation, and another one in its place
        prompt = [1, 2, 3, 4, 5, *answer[:-1], *later]
        counted.clear()
        made = [t for (t,) in make(model, [prompt], 12, GREEDY, 50, context=context)]
        assert counted[0] == len(later)
        assert made == continuation(model, [prompt], 12)[0]


def test_another_number_of_prompts_and_a_longer_text_find_room():
    model = make_model(block_size=64)
    context = Context(model)
    for prompts, n in (([[1, 2]], 3), ([[1, 2], [3]], 3), ([[1, 2], [1]], 9), ([[1, 2], [1]], 60)):
        together = list(generate(model, prompts, n, GREEDY, 50, context=context))
        assert [list(row) for row in zip(*together)] == continuation(model, prompts, n)


def test_a_text_that_was_left_in_the_middle_can_be_gone_on_with():
    model = make_model(block_size=64)
    context = Context(model, recorded=True)
    steps = generate(model, [[1, 2]], 50, GREEDY, 50, context=context)
    begun = [next(steps)[0] for _ in range(5)]
    steps.close()
    steps, prompt = dict(context.steps), [1, 2, *begun, 9]
    made = [t for (t,) in generate(model, [prompt], 20, GREEDY, 50, context=context)]
    assert made == continuation(model, [prompt], 20)[0]
    assert steps and context.steps == steps  # nothing is recorded twice


# ------------------------------------------------------------------------------ recorded steps


class StandIn(CudaGraph):
    """What a CUDA graph does, on a CPU: a trace of static shapes, which knows nothing of Python."""

    STATE = "keys", "values", "tokens", "lengths"

    def record(self):
        cache = self.cache
        real = {name: getattr(cache, name) for name in self.STATE}

        def step(tokens, state):
            vars(cache).update(state)
            logits = self.step(tokens)
            vars(cache).update(real)
            return logits

        cache.static, cache.in_step = True, False
        graph = make_fx(step)(self.tokens, real)
        cache.static = False
        self.graph = lambda tokens: graph(tokens, real)

    def replay(self, tokens):
        self.logits = self.graph(tokens.clamp(min=0))
        return self.logits

    def chosen(self, choose, generator):
        return choose(self.logits[:, -1])


@pytest.fixture(params=[StandIn, Trace])
def recorded(request, monkeypatch):
    """As `continuation`, recorded step by step; with a list of what was recorded."""
    steps = []

    def record(model, cache, T):
        steps.append(request.param(model, cache, T))
        return steps[-1]

    monkeypatch.setattr(sample, "recorded_step", record)

    def write(model, prompts, n, make=generate):
        context = Context(model, recorded=True)
        rows = list(make(model, prompts, n, GREEDY, 50, context=context))
        return [list(row) for row in zip(*rows)]

    return write, steps


@pytest.mark.parametrize(("position", "n"), [("rope", 3), ("learned", 31), ("rope", 80)])
def test_recorded_steps_write_what_single_ones_do(position, n, recorded):
    model = make_model(position=position)
    write, steps = recorded
    batches = [[1, 2, 3]], [[1, 2, 3], [4, 5, 6, 7, 8], [9]], [[1] * 40, [2], [3, 4]]
    for prompts in batches:
        assert write(model, prompts, n) == continuation(model, prompts, n)
    assert len(steps) == 3  # each was recorded once, however often its context was full


@pytest.mark.parametrize("fused", [True, False])
def test_n_grams_and_shared_keys_can_be_recorded(fused, recorded):
    torch.manual_seed(0)
    shape = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=16, position="rope", qk_norm=True)
    config = ModelConfig(50, 32, ngrams=3, ngram_rows=64, fused_attention=fused, **shape)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    write, steps = recorded
    for prompts in ([[1, 2, 3], [4, 5]], [[6, 7]]):
        assert write(model, prompts, 50) == continuation(model, prompts, 50)
    assert len(steps) == 2


@pytest.mark.parametrize("Light", [HalfLinear, Int8Linear])
def test_lighter_weights_can_be_recorded(Light):
    model = replace_linears(make_model(), Light)
    steps = generate(model, [[1, 2]], 30, GREEDY, 50, context=(context := Context(model, True)))
    assert [token for (token,) in steps] == continuation(model, [[1, 2]], 30)[0]
    assert isinstance(context.steps[1, True], Trace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_leave_out_onednn_where_it_multiplies_nothing(dtype):
    context = Context(make_model().to(dtype), recorded=True)
    context.read([[1, 2]], 8)
    context.read_on(torch.tensor([[3]]))
    step = context.steps[1, True]
    trace, heard = step.trace, []
    step.trace = lambda tokens: heard.append(mkldnn.enabled) or trace(tokens)
    context.read_on(torch.tensor([[4]]))
    assert (heard, mkldnn.enabled) == ([dtype == torch.bfloat16], True)


class CountingInPython(Transformer):
    """A reader's idea that a replay would get wrong: a number that changes, outside of a tensor."""

    def forward(self, inputs, cache=None, **more):
        n = int(cache.longest)
        logits, _ = super().forward(inputs, cache=cache, **more)
        return logits.roll(n, -1), None


def test_a_replay_that_differs_from_the_model_is_not_used(capsys):
    torch.manual_seed(0)
    model = CountingInPython(make_model().config).eval()
    context = Context(model, recorded=True)
    tokens = list(generate(model, [[1, 2]], 20, GREEDY, 50, context=context))
    assert tokens == [[token] for token in continuation(model, [[1, 2]], 20)[0]]
    assert "a replay differs from the model" in capsys.readouterr().err


class Routed(Transformer):
    """A reader's mixture of experts: which way a token goes is decided in Python."""

    def forward(self, inputs, cache=None, **more):
        logits, _ = super().forward(inputs, cache=cache, **more)
        return logits.flip(-1) if inputs[0, -1] > 20 else logits, None


def test_a_path_that_depends_on_the_token_is_not_replayed(capsys):
    torch.manual_seed(0)
    model = Routed(make_model().config).eval()
    tokens = list(generate(model, [[1, 2]], 20, GREEDY, 50, context=Context(model, recorded=True)))
    assert tokens == [[token] for token in continuation(model, [[1, 2]], 20)[0]]
    assert "record: not possible here" in capsys.readouterr().err


def test_a_replay_that_breaks_off_is_gone_on_with_in_python(capsys):
    model = make_model()
    context = Context(model, recorded=True)
    steps = generate(model, [[1, 2]], 20, GREEDY, 50, context=context)
    tokens = [next(steps)[0] for _ in range(5)]

    def fail(tokens):
        raise RuntimeError("failed in the TorchScript interpreter\nTraceback\nRuntimeError: shape")

    context.steps[1, True].trace = fail
    tokens += [token for (token,) in steps]
    assert tokens == continuation(model, [[1, 2]], 20)[0]
    assert capsys.readouterr().err == "\nrecord: not possible here (RuntimeError: shape)\n"


def test_what_cannot_be_recorded_is_told_and_done_step_by_step(monkeypatch, capsys):
    def fail(model, cache, T):
        raise RuntimeError("operation not permitted\nmore that nobody reads")

    monkeypatch.setattr(sample, "recorded_step", fail)
    model = make_model()
    tokens = list(generate(model, [[1]], 9, GREEDY, 50, context=Context(model, recorded=True)))
    assert tokens == [[token] for token in continuation(model, [[1]], 9)[0]]
    assert capsys.readouterr().err == "\nrecord: not possible here (operation not permitted)\n"


# --------------------------------------------------------------------------- guessing ahead


def guessed(model, prompts, n, distribution=GREEDY, seed=0, n_draft=4):
    generator = torch.Generator().manual_seed(seed)
    steps = generate_speculatively(model, prompts, n, distribution, 50, generator, n_draft=n_draft)
    return [list(row) for row in zip(*steps)]


def test_a_guess_is_what_followed_the_same_tokens_the_last_time():
    assert prompt_lookup([7, 1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]
    assert prompt_lookup([2, 8, 6, 2, 9, 6, 5, 2], 3) == [9, 6, 5]  # the latest of two
    assert prompt_lookup([1, 2, 3], 4) == []
    assert prompt_lookup([1], 4) == []
    assert prompt_lookup([1, 2, 1], 0) == []


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("n_draft", [1, 3, 6])
@pytest.mark.parametrize("n", [1, 20, 31, 32, 80])
def test_greedy_text_with_guesses_is_the_text_without(position, n_draft, n):
    model = make_model(position=position)
    for prompts in ([[1, 2, 3]], [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1, 2]], [[1] * 40, [2], [3, 4]]):
        expected = continuation(model, prompts, n)
        assert guessed(model, prompts, n, n_draft=n_draft) == expected


@pytest.mark.parametrize("Light", [HalfLinear, Int8Linear])
def test_greedy_text_with_guesses_is_the_text_without_for_lighter_weights_too(Light):
    model = replace_linears(make_model(block_size=64), Light)
    for first in range(8):
        prompts = [[first, first + 1, first, first + 2]]
        assert guessed(model, prompts, 50) == continuation(model, prompts, 50)


@pytest.mark.parametrize(("n_draft", "n"), [(1, 20), (3, 80)])
def test_passes_with_guesses_can_be_recorded(n_draft, n, recorded):
    model = make_model(block_size=64)
    write, steps = recorded
    batches = [[1, 2, 3]], [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1, 2]], [[1] * 40, [2], [3, 4]]
    make = partial(generate_speculatively, n_draft=n_draft)
    for prompts in batches:
        assert write(model, prompts, n, make) == continuation(model, prompts, n)
    assert {step.tokens.size(1) for step in steps} == {1, 1 + n_draft}


def test_right_guesses_save_passes(monkeypatch):
    model = make_model(block_size=256)
    passes = []
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: passes.append(1) or Transformer.forward(model, *a, **k)
    )
    text = guessed(model, [[1, 2, 3]], 200)[0]
    assert len(set(text[100:])) < 50, "the text does not repeat itself: nothing can be saved"
    assert len(passes) < 150


def test_with_guesses_tokens_are_distributed_as_without():
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(4)
    warm = partial(next_token_distribution, top_k=3)
    counts = []
    for how in (continuation, guessed):
        rows = [how(model, [[5, 6, 7, 5, 6]] * 100, 2, warm, seed) for seed in range(30)]
        pairs = list(map(tuple, chain.from_iterable(rows)))
        counts.append({pair: pairs.count(pair) / len(pairs) for pair in set(pairs)})
    for pair in counts[0] | counts[1]:
        assert counts[0].get(pair, 0) == pytest.approx(counts[1].get(pair, 0), abs=0.04)


def test_ids_that_the_tokenizer_lacks_are_never_drawn():
    model = make_model(vocab_size=64)
    with torch.no_grad():
        model.token_embedding.weight[50:] *= 50
    rows = continuation(model, [[1]] * 20, 20, next_token_distribution, vocab_size=50)
    assert max(map(max, rows)) < 50


# -------------------------------------------------------------------------------- streaming


def stream_of(text, **options):
    stream = TextStream(byte_tokenizer(), **options)
    parts = [stream.push(token) for token in byte_tokenizer().encode(text)]
    return [*parts, stream.finish()]


def test_no_character_is_shown_before_all_its_bytes_are_there():
    parts = stream_of("a你好😀!")
    assert [part for part in parts if part] == ["a", "你", "好", "😀", "!"]
    assert "\ufffd" not in "".join(parts)


def test_a_character_that_is_not_whole_at_the_end_is_left_out():
    stream = TextStream(byte_tokenizer())
    assert stream.push("你".encode()[0]) == ""
    assert stream.finish() == ""


def test_a_stop_text_ends_the_stream_and_is_left_out():
    stream = TextStream(byte_tokenizer(), stop=("The end", "。"))
    text = "".join(stream.push(token) for token in byte_tokenizer().encode("He ran. The end. So"))
    assert text == "He ran. "
    assert stream.ended
    assert "".join(stream_of("他跑了。然后", stop=("。",))) == "他跑了"


def test_what_only_looks_like_a_stop_text_is_shown_after_all():
    assert "".join(stream_of("The ending", stop=("The end.",))) == "The ending"
    parts = stream_of("abcabd", stop=("abd",))
    assert "".join(parts) == "abc"


def test_the_end_of_a_document_ends_the_stream():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer, ends=[tokenizer.eot])
    assert stream.push(ord("a")) == "a"
    assert stream.push(tokenizer.eot) == ""
    assert stream.ended
    assert stream.push(ord("b")) == ""


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def trained(train_tiny):
    train_tiny("--max_iters=60", "--eval_interval=60")


def test_a_start_begins_a_document_where_the_model_knows_documents():
    tokenizer = byte_tokenizer()
    assert first_tokens(tokenizer, "hi", documents=1000) == [tokenizer.eot, *b"hi"]
    assert first_tokens(tokenizer, "", documents=1000) == [tokenizer.eot]
    assert first_tokens(tokenizer, "hi", documents=1) == list(b"hi")
    assert first_tokens(tokenizer, "", documents=1) == list(b"\n")


def test_a_prompt_that_is_cut_is_told(trained, run, capsys):
    run("sample.py", "--out_dir=out/tiny", "--start=" + "the cat " * 9, "--max_new_tokens=2")
    assert "the prompt has 72 tokens: the last 16 are read" in capsys.readouterr().err


def test_the_text_alone_goes_to_standard_output(trained, run, capsys):
    run("sample.py", "--out_dir=out/tiny", "--start=the cat", "--num_samples=1")
    shown = capsys.readouterr()
    assert shown.out.startswith("the cat")
    assert "tokens/s" not in shown.out
    assert "tokens/s" in shown.err
    assert "best.pt: step 60, best val_loss" in shown.err


def test_several_samples_are_separated(trained, run, capsys):
    run("sample.py", "--out_dir=out/tiny", "--start=猫", "--num_samples=3", "--max_new_tokens=9")
    texts = capsys.readouterr().out.split(sample.SEPARATOR + "\n")
    assert len(texts) == 3
    assert all(text.startswith("猫") for text in texts)
    assert len(set(texts)) > 1


def test_the_same_seed_writes_the_same(trained, run, capsys):
    texts = []
    for seed in (1, 1, 2):
        run("sample.py", "--out_dir=out/tiny", f"--seed={seed}", "--max_new_tokens=30")
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_the_first_sample_is_written_while_it_is_made(trained):
    from support.checkpoint import load_model

    model, tokenizer, _ = load_model("out/tiny")

    class Watched(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    out = Watched()
    config = sample.SampleConfig(num_samples=2, max_new_tokens=12, until_eot=False)
    made = sample.write_samples(
        Context(model), tokenizer, "a", tokenizer.encode("a").tolist(), config, out
    )
    assert made == 24
    assert out.flushed >= 12


def test_a_prompt_can_come_from_a_file_or_from_standard_input(trained, run, capsys, monkeypatch):
    Path("prompt.txt").write_text("看见 狗", encoding="utf-8")
    run("sample.py", "--out_dir=out/tiny", "--start=FILE:prompt.txt", "--max_new_tokens=3")
    assert capsys.readouterr().out.startswith("看见 狗")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the 狗".encode())))
    run("sample.py", "--out_dir=out/tiny", "--start=-", "--max_new_tokens=3")
    assert capsys.readouterr().out.startswith("the 狗")


def test_an_interactive_session_asks_until_an_empty_line(trained, run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the\n狗\n\n".encode())))
    options = "--interactive=True --num_samples=1 --max_new_tokens=4".split()
    run("sample.py", "--out_dir=out/tiny", *options)
    shown = capsys.readouterr()
    assert [line[:3].strip()[:1] for line in shown.out.splitlines() if line][:1] == ["t"]
    assert "\n狗" in shown.out
    assert shown.err.count("> ") == 3


def test_a_run_can_be_sampled_without_its_data(trained, run, capsys):
    shutil.rmtree("data")
    Path("out/tiny").rename("elsewhere")
    run("sample.py", "--init_from=elsewhere", "--start=the", "--max_new_tokens=3")
    assert capsys.readouterr().out.startswith("the")


def test_what_cannot_be_continued_is_told_by_name(trained, run):
    with pytest.raises(SystemExit) as stop:
        run("sample.py", "--out_dir=out/tiny", "--start=the zebra é")
    for character in ("'z'", "'b'", "'é'"):
        assert character in str(stop.value)
    with pytest.raises(SystemExit, match=r"start=FILE:none.txt cannot be read"):
        run("sample.py", "--out_dir=out/tiny", "--start=FILE:none.txt")


@pytest.mark.parametrize(
    "option", ["temperature=-1", "top_p=0", "top_p=1.5", "min_p=1", "num_samples=0", "top_k=-1"]
)
def test_impossible_knobs_are_refused_by_name(run, capsys, option):
    with pytest.raises(SystemExit):
        run("sample.py", f"--{option}")
    assert f"{option.split('=')[0]}=" in capsys.readouterr().err


def test_a_terminal_gets_utf8_whatever_its_locale_says(trained):
    command = [sys.executable, str(REPOSITORY / "sample.py"), "--out_dir=out/tiny", "--start=猫"]
    done = subprocess.run(
        [*command, "--max_new_tokens=3", "--num_samples=1"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("猫")


@pytest.mark.parametrize(
    "option", ["--quantize=int8", "--dtype=float16", "--dtype=bfloat16", "--speculate=3"]
)
def test_low_precision_and_draft_tokens_give_readable_text(option, trained, run, capsys):
    run("sample.py", "--out_dir=out/tiny", "--temperature=0", option, "--max_new_tokens=60")
    plain = capsys.readouterr().out
    words = "the cat saw a dog and ran home 猫 看见 狗 就 跑".split()
    assert sum(plain.count(word) for word in words) > 10


def test_what_eight_bits_cost_is_told_where_the_held_out_data_are(trained, run, capsys):
    options = "--out_dir=out/tiny --quantize=int8 --max_new_tokens=3".split()
    run("sample.py", *options)
    told = re.search(r"held-out tokens: ([\d.]+) before, ([\d.]+) in int8", capsys.readouterr().err)
    assert float(told[2]) == pytest.approx(float(told[1]), rel=0.05)
    Path("other.txt").write_text("pack my box with five dozen liquor jugs. " * 99, encoding="utf-8")
    run("prepare_data.py", "other.txt", "--dataset=tiny", "--tokenizer=char")  # other tokens
    run("sample.py", *options)
    shutil.rmtree("data")
    run("sample.py", *options)
    assert "perplexity" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--start=-", "--interactive=True"])
def test_input_that_is_not_utf_8_is_told(option, trained, run, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("猫在家里\n".encode("gb18030")), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit, match="standard input is not UTF-8"):
        run("sample.py", "--out_dir=out/tiny", option)


def test_a_conversation_goes_on_after_a_character_that_is_not_known(monkeypatch, capsys):
    tokenizer = char_tokenizer(["abcuser assistant\n"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("z\nabc\n\n"))
    model = make_model(block_size=64, vocab_size=tokenizer.vocab_size)
    config = SampleConfig(chat=True, max_new_tokens=3)
    out = io.StringIO()
    sample.converse(model, tokenizer, config, out)
    assert "'z'" in capsys.readouterr().err
    assert out.getvalue().endswith("\n")


def test_a_conversation_is_one_text_at_a_time_for_its_weights(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sample, "for_inference", lambda model, _, rows, __: asked.append(rows) or model
    )
    for name in ("check_converses", "begin_conversation"):
        monkeypatch.setattr(sample, name, lambda *_: None)
    for options in (["--chat"], []):
        call(monkeypatch, "sample.py", "--out_dir=out/tiny", "--max_new_tokens=2", *options)
    assert asked == [1, 3]


def precision_of(layer):
    return torch.float16 if isinstance(layer, HalfLinear) else layer.weight.dtype


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ("--num_samples=1 --dtype=float16", torch.float16),
        ("--num_samples=9 --dtype=float16", torch.float16),
        ("--dtype=bfloat16", torch.bfloat16),
        ("--dtype=auto", torch.float32),  # it is small
    ],
)
def test_the_weights_have_the_precision_asked_for(options, dtype, trained, monkeypatch):
    config = load_config(SampleConfig, ["--out_dir=out/tiny", "--device=cpu", *options.split()])
    with open_world(config.device, config.dtype, to_train=False) as world:
        model, _, _ = sample.load_for_sampling(config, world)
    assert precision_of(model.blocks[0].mlp.up) == dtype


@pytest.mark.parametrize(
    ("rows", "limit", "expected"), [(3, 10**6, [1]), (5, 10**6, []), (1, 1, [])]
)
def test_a_small_model_writes_with_one_thread(monkeypatch, rows, limit, expected):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(quantize, "SMALL", limit)
    quantize.use_few_threads(make_model(), rows)
    assert asked == expected


def test_on_a_cpu_a_large_model_is_read_in_16_bits_as_suits_the_number_of_rows(monkeypatch):
    monkeypatch.setattr(quantize, "SMALL", 0)
    config = SampleConfig(device="cpu")
    with open_world("cpu", "auto", to_train=False) as world:
        for rows, dtype in ((1, torch.float16), (3, world.dtype)):
            model = quantize.for_inference(make_model(), config, rows, world)
            assert precision_of(model.blocks[0].mlp.up) == dtype


@pytest.mark.parametrize("words", (["train.py", "--help"], ["sample.py", "--num_samples=50"]))
def test_a_reader_who_has_had_enough_causes_no_traceback(trained, words):
    command = [sys.executable, str(REPOSITORY / words[0]), *words[1:]]
    if words[0] == "sample.py":
        command.append("--out_dir=out/tiny")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Error" not in process.stderr.read().decode()
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_causes_no_traceback(trained):
    command = [sys.executable, str(REPOSITORY / "sample.py"), "--out_dir=out/tiny"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr.endswith("\nno space is left on the disk: free some, and go on\n")
    assert "Error" not in done.stderr


def test_training_shows_what_the_model_would_write(train_tiny, capsys):
    train_tiny("--max_iters=0", "--sample_tokens=12")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  | ")]
    assert len("\n".join(line[4:] for line in shown)) == 12
    assert TINY
