"""Every contestant can be measured, and the table compares them the right way round."""

import json
from pathlib import Path

import pytest
import torch

import bench
from bench import CONTESTANTS, summary
from tests.conftest import call

SMALL = (
    "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=1 --steps=1 --tokens=8 "
    "--megabytes=0.2 --device=cpu"
).split()
HERE = {
    (what, name)
    for what in ("train", "sample", "prepare")
    for name in CONTESTANTS[what]
    if not name.startswith("nanoGPT") and "compiled" not in name
}


@pytest.mark.parametrize(("what", "name"), sorted(HERE))
def test_a_contestant_measured_alone_prints_its_numbers(what, name, monkeypatch, capsys):
    call(monkeypatch, "bench.py", what, f"--only={name}", *SMALL)
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    speed = "bytes_per_second" if what == "prepare" else "tokens_per_second"
    assert numbers[speed] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_contest_ends_in_a_table_and_a_file(monkeypatch, capsys, tmp_path):
    def numbers(name, config):
        speed = {"ours": 30.0, "transformers, float32": 10.0}.get(name, 20.0)
        return {"tokens_per_second": speed, "peak_bytes": 5e6, "weight_bytes": 1e6}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "measured_alone", numbers)
    call(monkeypatch, "bench.py", "sample", "--rounds=2", *SMALL)
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("transformers, float32"))
    assert row.split()[2:] == ["10.0", "5", "3.00", "x"]
    assert "GFLOP/s in float32" in shown
    written = json.loads(Path("out/bench/sample.json").read_text())
    assert written["results"]["ours"]["tokens_per_second"] == [30, 30, 30]


def test_a_contestant_that_fails_is_told_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CONTESTANTS, "sample", {"ours": None, "broken": None})
    monkeypatch.setattr(
        bench,
        "measured_alone",
        lambda name, _: {"tokens_per_second": 1.0} if name == "ours" else None,
    )
    call(monkeypatch, "bench.py", "sample", "--rounds=1", *SMALL)
    assert "broken" not in capsys.readouterr().out
    monkeypatch.setattr(bench, "measured_alone", lambda *_: None)
    with pytest.raises(SystemExit, match="ours could not be measured"):
        call(monkeypatch, "bench.py", "sample", "--rounds=1", *SMALL)


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_nobody_is_measured_in_a_precision_that_the_machine_is_slow_in(fast, monkeypatch, capsys):
    monkeypatch.setattr(bench, "pick_dtype", lambda name, device: fast)
    names = bench.contestants(bench.BenchConfig("train", device="cpu"))
    assert "transformers, float32" in names
    assert ("transformers, bf16" in names) == (fast == torch.bfloat16)
    assert ("transformers, bf16 autocast" in capsys.readouterr().out) == (fast == torch.float32)


def test_seconds_are_better_when_fewer(capsys):
    rounds = {"ours": [{"seconds": 10.0}], "nanoGPT": [{"seconds": 90.0}, {"seconds": 110.0}]}
    bench.show({name: summary(numbers) for name, numbers in rounds.items()})
    shown = capsys.readouterr().out
    assert "10.00 x" in shown
    assert "90.0 to 110.0" in shown


@pytest.mark.parametrize(
    "options", [["sample", "--tokens=2000"], ["train", "--only=nobody"], ["loss", "--peer=/none"]]
)
def test_what_cannot_be_measured_is_refused(options, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "bench.py", *options)
    told = str(stop.value) + capsys.readouterr().err
    assert options[1].removeprefix("--").partition("=")[0] in told
