"""On an NVIDIA GPU everything must be as on a CPU. Skipped where there is none."""

import json
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import CONTESTANTS
from model import IGNORED, Block, fused_next_token_loss
from sample import Context, generate, generate_speculatively, next_token_distribution
from support import recorded_passes
from support.fp8 import multiplies_fp8
from support.fused_blocks import fused_block
from support.processes import compiled, open_world
from support.quantize import Int8Linear, replace_linears
from support.recorded_passes import RecordedPasses, Recording
from support.recording import CudaGraph
from support.report import read_log
from tests.conftest import call
from tests.test_bench import SMALL
from tests.test_model import VARIANTS, make, scrambled, some_tokens
from tests.test_sample import GREEDY, make_model
from tests.test_train import last
from train import accumulate_gradients, add_gradients

GPU = "cuda"
PROMPTS = ([[1, 2, 3]], [[1, 2, 3], [4, 5, 6, 7, 8], [9]])
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # a compiler's and a driver's are not ours to mend
]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """float32 in full: with TensorFloat-32 the comparisons would have to be loose."""
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)


@pytest.fixture(autouse=True)
def recorded_whether_it_pays_or_not(monkeypatch):
    monkeypatch.setattr(recorded_passes, "HELD_UP", 0.0)  # other tests may keep the GPU busy
    monkeypatch.setattr(recorded_passes, "FASTER", float("inf"))


def gradients(model, tokens, forward=None):
    """{name: gradient} of predicting the tokens (B, T + 1), and the loss; both on the CPU."""
    device = model.token_embedding.weight.device
    inputs, targets = tokens[:, :-1].to(device), tokens[:, 1:].to(device)
    model.zero_grad()
    _, loss = (model if forward is None else forward)(inputs, targets)
    loss.backward()
    return {name: p.grad.to("cpu", copy=True) for name, p in model.named_parameters()}, loss.cpu()


def assert_alike(mine, theirs, share):
    """The tensors of two dicts differ by at most this share of their norms."""
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (mine[name] - expected).norm() <= share * expected.norm() + 1e-6, name


# --------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_has_the_same_loss_and_gradients(variant):
    tokens, model = some_tokens(length=17), scrambled(make(variant))
    expected, loss = gradients(model, tokens)
    mine, my_loss = gradients(model.to(GPU), tokens)
    torch.testing.assert_close(my_loss, loss, rtol=1e-4, atol=1e-4)
    assert_alike(mine, expected, 1e-3)


@pytest.mark.parametrize("variant", ["nanogpt", "fast", "ngrams"])
def test_compiled_it_has_the_same_gradients(variant):
    with open_world(GPU, "float32") as world:
        tokens, model = some_tokens(length=17), scrambled(make(variant)).to(world.device)
        expected, _ = gradients(model, tokens)
        example = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        fast = compiled(model, True, world, example, None)
        assert fast is not model
        assert_alike(gradients(model, tokens, fast)[0], expected, 1e-3)


@pytest.mark.parametrize("rows", [5, 512])
def test_the_loss_in_pieces_is_that_of_a_cpu(monkeypatch, rows):
    monkeypatch.setattr("model.rows_per_piece", lambda *_: rows)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 7, 8), torch.randn(50, 8)
    targets = torch.randint(50, (2, 7))
    targets[0, :3] = IGNORED
    results = []
    for device in ("cpu", GPU):
        leaves = [t.to(device).requires_grad_() for t in (hidden, weight)]
        loss = fused_next_token_loss(*leaves, targets.to(device), 5.0, 0.1)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for mine, expected in zip(results[1], results[0]):
        torch.testing.assert_close(mine.cpu(), expected)


# ------------------------------------------------------------------------------- training


def losses():
    records = read_log(Path("out/tiny/log.jsonl"))
    return [record["val_loss"] for record in records if "val_loss" in record]


def test_a_run_is_the_run_of_a_cpu(train_tiny):
    train_tiny()
    expected = last()["model"], losses()
    train_tiny(f"--device={GPU}", "--compile=False")
    assert losses() == pytest.approx(expected[1], rel=1e-3)
    assert_alike(last()["model"], expected[0], 0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("options", [[], ["--optimizer=muon", "--gradient_checkpointing=True"]])
def test_in_16_bits_and_compiled_it_learns_nearly_the_same(train_tiny, capsys, dtype, options):
    train_tiny(*options)
    expected = losses()
    train_tiny(f"--device={GPU}", f"--dtype={dtype}", "--compile=True", *options)
    told = capsys.readouterr().out
    assert "not possible" not in told and "skipped" not in told
    assert losses() == pytest.approx(expected, rel=0.03)


def test_it_continues_where_it_stopped(train_tiny):
    on_gpu = f"--device={GPU}", "--compile=False"
    train_tiny(*on_gpu)
    expected = last()["model"]
    train_tiny(*on_gpu, "--max_iters=10", "--lr_decay_iters=20")
    train_tiny(*on_gpu, "--init_from=resume", "--max_iters=20", "--lr_decay_iters=20")
    assert last()["step"] == 20
    assert_alike(last()["model"], expected, 0.02)


def test_8_bit_products_learn_nearly_the_same(train_tiny, capsys):
    pytest.importorskip("torchao")
    if not multiplies_fp8(torch.device(GPU)):
        pytest.skip("needs a GPU with float8 products")
    train_tiny()
    expected = losses()
    train_tiny(f"--device={GPU}", "--dtype=bfloat16", "--compile=True", "--fp8=True")
    told = capsys.readouterr().out
    assert "emulated" not in told and "not possible" not in told
    assert losses() == pytest.approx(expected, rel=0.05)


def test_gradients_are_made_without_waiting_for_the_gpu():
    with open_world(GPU, "bfloat16") as world:
        model, tokens = make("fast").to(world.device), some_tokens(length=17)
        batches = [{"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}] * 2
        scaler = torch.amp.GradScaler(GPU, enabled=False)
        add = partial(add_gradients, model, world, scaler)
        accumulate_gradients(add, batches, [0.5, 0.5], world, [0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            accumulate_gradients(add, batches, [0.5, 0.5], world, [0])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_run_of_recorded_passes_is_the_run_without(
    train_tiny, monkeypatch, capsys, dtype, compile
):
    replays = []

    class Counted(Recording):
        def __call__(self, *inputs):
            replays.append(1)
            return super().__call__(*inputs)

    monkeypatch.setattr(recorded_passes, "Recording", Counted)
    runs = []
    for record in (False, True):
        train_tiny(
            *f"--device={GPU} --dtype={dtype} --compile={compile} --record={record}".split(),
            *"--dropout=0.2 --optimizer=muon --gradient_accumulation_steps=2".split(),
            *"--ema_decay=0.9 --document_mask=True --ngrams=2".split(),
        )
        runs.append((losses(), last()["model"]))
    assert len(replays) == 2 * 20 - recorded_passes.PASSES_BEFORE
    assert "not possible" not in capsys.readouterr().out
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-3)
    assert_alike(runs[1][1], runs[0][1], 0.1 if compile else 0.02)


def recorded_sum(function, n=1):
    """(RecordedPasses of the sum of `function(weight, batch)`, the weight, of n ones)."""
    weight = torch.nn.Parameter(torch.ones(n, device=GPU))

    def add_gradients(batch, share, more_to_come=False):
        loss = function(weight, batch).sum() * share
        loss.backward()
        return loss.detach()

    return RecordedPasses(add_gradients, torch.nn.ParameterList([weight])), weight


@pytest.mark.parametrize("shapes", [1, 3])
def test_recorded_gradients_are_added_to_earlier_ones(shapes):
    with open_world(GPU, "float32"):
        passes, weight = recorded_sum(lambda weight, batch: weight * batch["inputs"].sum(), 2)
        for step in range(40):
            expected = 0
            for i in range(4):
                length, share = 1 + i % shapes, 0.25 * (i + step)
                loss = passes({"inputs": torch.ones(length, device=GPU)}, share)
                expected += length * share
                assert loss == 2 * length * share
            assert weight.grad.tolist() == [expected] * 2
            weight.grad = None
        assert len(passes.recordings) == shapes and passes.is_possible


def growing(weight, batch):
    growing.factor += 1
    return weight * batch["inputs"] * growing.factor


def waiting(weight, batch):
    return weight * batch["inputs"] if weight.sum() > 0 else -weight


@pytest.mark.parametrize(
    ("function", "reason"), [(growing, "differs from the model"), (waiting, "waits for the GPU")]
)
def test_what_depends_on_python_is_not_recorded(function, reason, capsys):
    growing.factor, made = 0, []
    with open_world(GPU, "float32"):
        passes, weight = recorded_sum(function)
        for _ in range(20):
            loss = passes({"inputs": torch.ones(1, device=GPU)}, 1.0)
            assert loss == weight.grad
            made.append(loss.item())
            weight.grad = None
    assert made == [1] * 20 if function is waiting else made == sorted(set(made))
    assert reason in capsys.readouterr().out


def synchronizing(weight, batch):
    torch.cuda.synchronize()
    return torch.dropout(weight * batch["inputs"], 0.5, train=True)


def try_to_record_what_synchronizes():
    with open_world(GPU, "float32"):
        passes, weight = recorded_sum(synchronizing, 1000)
        try:
            for _ in range(20):
                passes({"inputs": torch.ones(1000, device=GPU)}, 1.0)
        except SystemExit as stop:
            assert "--record=False" in str(stop)
        else:
            assert not passes.recordings and 0.8 < weight.grad.mean() / 20 < 1.2


def test_a_pass_that_synchronizes_goes_on_or_says_how_to():
    # In a process of its own: afterwards PyTorch may be of no use in it.
    process = multiprocessing.get_context("spawn").Process(target=try_to_record_what_synchronizes)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_what_keeps_the_gpu_busy_anyway_is_not_recorded(monkeypatch):
    monkeypatch.setattr(recorded_passes, "HELD_UP", 0.8)
    with open_world(GPU, "float32"):
        passes, _ = recorded_sum(lambda weight, batch: weight * (batch["inputs"] @ batch["inputs"]))
        for _ in range(20):
            passes({"inputs": torch.ones(8192, 8192, device=GPU)}, 1.0)
        assert passes.is_possible and not passes.recordings


@pytest.mark.parametrize("options", [[], ["--method=lora", "--merge"]])
def test_a_model_is_fine_tuned_and_writes(trained, run, capsys, options):
    trained()
    lines = [{"prompt": f"{i} ", "completion": f"home {i}"} for i in range(20)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tune = "--init_from=out/tiny --out_dir=out/tuned --dataset=pairs.jsonl --task=completion"
    steps = "--max_iters=4 --batch_size=4 --eval_interval=2 --warmup_iters=0"
    run("finetune.py", *tune.split(), *steps.split(), f"--device={GPU}", *options)
    run("sample.py", "--out_dir=out/tuned", "--start=7 ", f"--device={GPU}")
    assert "7 " in capsys.readouterr().out


# ------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_recorded_step_writes_what_the_model_does(prompts, position):
    model = make_model(position=position).to(GPU)
    texts = []
    for recorded in (False, True):
        context = Context(model, recorded)
        texts.append(list(generate(model, prompts, 60, GREEDY, 50, context=context)))
        assert [type(step) for step in context.steps.values()] == [CudaGraph] * recorded
    assert texts[0] == texts[1]


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("recorded", [False, True])
def test_it_writes_what_a_cpu_does(prompts, recorded):
    model = make_model()
    expected = list(generate(model, prompts, 60, GREEDY, 50))
    model.to(GPU)
    assert list(generate(model, prompts, 60, GREEDY, 50, context=Context(model, recorded))) == (
        expected
    )
    guessed = generate_speculatively(
        model, prompts, 60, GREEDY, 50, context=Context(model, recorded)
    )
    assert list(guessed) == expected


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_is_computed_by_its_kernels(variant, int8):
    model = scrambled(make(variant, block_size=300)).to(GPU)
    if int8:
        replace_linears(model, Int8Linear)
    assert all(fused_block(model, block, 300) for block in model.blocks)


def test_a_block_of_your_own_is_kept():
    class Louder(Block):
        def forward(self, x, *more):
            return super().forward(x, *more) * 1.01

    model = make("nanogpt").to(GPU)
    model.blocks[1].__class__ = Louder
    assert fused_block(model, model.blocks[0], 16) and not fused_block(model, model.blocks[1], 16)


def test_several_tokens_are_recorded_before_a_single_one():
    model = make_model(block_size=128)
    prompts = [list(range(40)) * 2]
    expected = list(generate(model, prompts, 40, GREEDY, 50))
    context = Context(model.to(GPU), recorded=True)
    for _ in range(2):
        made = generate_speculatively(model, prompts, 40, GREEDY, 50, context=context)
        assert list(made) == expected
    assert len(context.steps) == 2


@pytest.mark.parametrize("recorded", [False, True])
def test_chance_is_drawn_on_the_gpu(recorded):
    model = make_model(block_size=64).to(GPU)
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator(GPU).manual_seed(seed)
        every_rule = partial(
            next_token_distribution, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1
        )
        how = [[1], [2, 3]], 40, every_rule, 50, generator, Context(model, recorded)
        draws.append(list(generate(model, *how)))
    assert draws[0] == draws[1] != draws[2]


def test_a_rule_that_waits_for_the_gpu_is_not_recorded():
    def waiting(logits, seen):
        return GREEDY(logits, seen) if (logits < 0).any() else GREEDY(-logits, seen)

    model = make_model(block_size=64).to(GPU)
    expected = list(generate(model, [[1, 2]], 40, waiting, 50))
    context = Context(model, recorded=True)
    assert list(generate(model, [[1, 2]], 40, waiting, 50, context=context)) == expected
    assert context.graph.choice.recordable is False


@pytest.mark.parametrize("recorded", [False, True])
def test_scores_that_are_not_numbers_end_with_a_message(recorded):
    def none_at_last(logits, seen):
        enough = seen.sum() > 20
        return torch.where(enough, torch.nan, torch.softmax(logits * 1e-3, dim=1))

    model = make_model(block_size=64).to(GPU)
    with pytest.raises(SystemExit, match="nan or infinite"):
        list(generate(model, [[1, 2]], 60, none_at_last, 50, context=Context(model, recorded)))


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_eight_bits_multiply_as_on_a_cpu(rows, dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    x = torch.randn(1, rows, 64)
    expected = linear(x)
    layer = Int8Linear(linear.to(GPU)).to(dtype)
    y = layer(x.to(GPU, dtype))
    assert y.dtype == dtype
    assert (y.float().cpu() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("quantize", ["no", "int8"])
def test_a_checkpoint_writes_on_the_gpu(train_tiny, run, capsys, quantize):
    train_tiny()
    options = f"--out_dir=out/tiny --device={GPU} --quantize={quantize} --max_new_tokens=100"
    run("sample.py", *options.split(), "--start=the cat")
    told = capsys.readouterr()
    assert "the cat" in told.out and "not possible" not in told.err


# ------------------------------------------------------------------------------- the benchmark


@pytest.mark.parametrize("what", ["train", "sample"])
def test_every_contestant_can_be_measured(what, monkeypatch, capsys):
    pytest.importorskip("transformers")
    for name in CONTESTANTS[what]:
        if name.startswith("nanoGPT") or "fp8" in name:
            continue
        call(monkeypatch, "bench.py", what, f"--only={name}", *SMALL, f"--device={GPU}")
        numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert numbers["tokens_per_second"] > 0 and numbers["peak_bytes"] > 0
