"""Comparing runs: the table, what differs, and the plot."""

from pathlib import Path

import pytest

import compare as compare_module
from support import checkpoint
from tests.conftest import TINY


@pytest.fixture
def compare(train_tiny, run):
    """A function that compares two runs of the tiny model, the second with a wider MLP."""
    train_tiny("--out_dir=out/before")
    train_tiny("--out_dir=out/after", "--mlp_size=96", "--log_interval=5")
    return lambda *options: run("compare.py", "out/before", "out/after", *options)


def test_runs_are_compared_in_a_table_and_a_plot(compare, capsys):
    capsys.readouterr()
    compare()
    told = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in told)
    head, before, after, difference, plot = told
    assert head.split() == "steps minutes tokens/s val loss best at step".split()
    assert before.split()[:3] == ["1", "out/before", "20"]
    assert before.split()[5] == before.split()[6] != after.split()[5]  # the last is the best
    assert difference == "  mlp_size None → 96"
    assert plot == "plot: out/compare.png"
    assert Path("out/compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def fresh_code():
    """A function that makes the program read its code again, as also at the end."""
    yield checkpoint.code_in_use.cache_clear
    checkpoint.code_in_use.cache_clear()


def test_code_that_differs_is_told_and_comments_are_not(
    compare, run, capsys, monkeypatch, tmp_path, fresh_code
):
    root = tmp_path / "code"
    (root / "support").mkdir(parents=True)
    for name in checkpoint.CODE:
        text = (checkpoint.ROOT / name).read_text(encoding="utf-8") + "# a remark\n"
        if name == "model.py":
            text = text.replace("x = x + self.mlp(self.mlp_norm(x))", "x = x + self.mlp(x)")
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(checkpoint, "ROOT", root)
    fresh_code()
    run("train.py", "--init_from=resume", "--out_dir=out/after", "--max_iters=22")
    told = capsys.readouterr().out
    assert told.count("has changed since") == told.count("the code of model.py has changed") == 1
    compare()
    assert "  the code of model.py\nplot:" in capsys.readouterr().out


def test_a_metric_is_compared_over_the_minutes(compare, capsys):
    compare("--metric=bits_per_byte", "--over=minutes", "--out=pictures/new.png")
    assert "bits/byte" in capsys.readouterr().out
    assert Path("pictures/new.png").stat().st_size > 1000


def test_runs_without_the_metric_are_left_out(compare, capsys):
    log = Path("out/after/log.jsonl")
    log.write_text(log.read_text().replace("val_loss", "accuracy"), encoding="utf-8")
    capsys.readouterr()
    compare()
    told = capsys.readouterr().out
    assert told.startswith("out/after has no val_loss and is left out\n")
    assert " out/after " not in told
    compare("--metric=accuracy")
    assert "out/before has no accuracy" in capsys.readouterr().out


def test_losses_of_different_tokens_are_not_compared_silently(compare, run, capsys):
    Path("text.txt").write_text("the cat saw a dog\n" * 300, encoding="utf-8")
    run("prepare_data.py", "text.txt", "--dataset=tiny", "--tokenizer=byte")
    run("train.py", "defaults.py", *TINY, "--out_dir=out/after")
    capsys.readouterr()
    compare()
    assert "their tokens differ" in capsys.readouterr().out
    compare("--metric=bits_per_byte")
    assert "their tokens differ" not in capsys.readouterr().out


def test_what_is_no_run_is_named(compare, run):
    with pytest.raises(SystemExit, match="there is out/after, out/before"):
        run("compare.py")
    with pytest.raises(SystemExit, match=r"data/tiny is not a run.*log\.jsonl"):
        run("compare.py", "data/tiny")
    with pytest.raises(SystemExit, match=r"metric=f1.*there is bits_per_byte, perplexity"):
        compare("--metric=f1")
    with pytest.raises(SystemExit):
        compare("--out=plot.txt")


def test_of_a_long_name_the_end_is_shown():
    assert compare_module.end_of("out/an_experiment_with_depth", 10) == "…ith_depth"
    assert compare_module.end_of("out/深度与宽度", 8) == "…与宽度"
