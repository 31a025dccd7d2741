"""Compare runs: `python compare.py out/before out/after` prints their results and draws them.

A run is a folder that train.py or finetune.py wrote. Its results are in log.jsonl, its settings in
its checkpoint. Runs that are still going on can be compared too.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from support.checkpoint import BEST, LAST, changed_code, find_checkpoint, read_checkpoint
from support.config import load_config
from support.files import replacing_figure
from support.metrics import width
from support.processes import open_world
from support.report import in_columns, read_log
from train import LOWER_IS_BETTER

NAME_COLUMNS = 22  # of a run, in the table
PER_TOKEN = ("loss", "perplexity")  # endings of metrics that depend on what a token is
# Settings that have no influence on what is learned.
NO_INFLUENCE = {
    "out_dir",
    "eval_only",
    "dry_run",
    "log_interval",
    "log_to",
    "wandb_project",
    "wandb_run_name",
}


@dataclass
class CompareConfig:
    """Compare runs: their results, and the settings and code that differ from the first run's."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()  # their folders, such as out/stories
    metric: str = "val_loss"  # what to compare, a number of the evaluations
    over: Literal["step", "minutes"] = "step"  # the horizontal axis of the plot
    out: str = "out/compare.png"  # the plot: .png, .svg or .pdf

    def __post_init__(self):
        if Path(self.out).suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"out={self.out} must end in .png, .svg or .pdf")


@dataclass
class Run:
    """A run as its folder shows it. Records are lines of log.jsonl, as dicts."""

    name: str
    updates: list  # a record for each logged update
    evaluations: list  # a record for each evaluation
    settings: dict  # the fields of its config; empty before its first checkpoint
    tokenizer: str | None  # fingerprint of its data's tokenizer
    code: dict  # fingerprints of the files that computed it

    def curve(self, metric):
        """The records of the evaluations that have the metric, oldest first."""
        return [record for record in self.evaluations if record.get(metric) is not None]


def read_run(folder):
    """The Run in a folder; exits if there is none."""
    records = read_log(Path(folder) / "log.jsonl")
    if not records:
        raise SystemExit(f"{folder} is not a run of train.py or finetune.py: it has no log.jsonl")
    updates = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "loss" not in record]
    settings, data, code = {}, {}, {}
    if any((Path(folder) / name).exists() for name in (LAST, BEST)):
        checkpoint = read_checkpoint(find_checkpoint(folder, (LAST, BEST)), to_look_at=True)
        settings, data = checkpoint["train_config"], checkpoint["data"]
        code = checkpoint.get("code", {})
    return Run(str(folder), updates, evaluations, settings, data.get("tokenizer_sha256"), code)


def table(runs, metric):
    """A line for each run and, below it, the settings that differ from the first run's."""
    name = metric.replace("_per_", "/").replace("_", " ")
    lines = [" " * NAME_COLUMNS + cells("steps", "minutes", "tokens/s", name, "best", "at step")]
    for number, run in enumerate(runs, 1):
        curve = run.curve(metric)
        last = max([*run.updates, *curve], key=lambda record: (record["step"], record["minutes"]))
        choose = min if metric.endswith(LOWER_IS_BETTER) else max
        best = choose(curve, key=lambda record: record[metric])
        rates = [record["tokens_per_second"] for record in run.updates[1:]]  # the first is slow
        numbers = cells(
            f"{last['step']:,}",
            f"{last['minutes']:.2f}",
            f"{statistics.median(rates):,.0f}" if rates else "",
            f"{curve[-1][metric]:.4f}",
            f"{best[metric]:.4f}",
            f"{best['step']:,}",
        )
        label = f"{number} {end_of(run.name, NAME_COLUMNS - 3)}"
        lines.append(label + " " * (NAME_COLUMNS - width(label)) + numbers)
        if run is not runs[0]:
            others = ", ".join(differences(runs[0], run))
            lines.append(in_columns(f"  {others or 'the same settings'}"))
    return "\n".join(lines)


def end_of(name, columns):
    """The name, or as much of its end as fits."""
    while width(name) > columns:
        name = "…" + name.removeprefix("…")[1:]
    return name


def cells(*texts):
    """The texts as one row of a table, each flush right in its column."""
    return "".join(f"{text:>{9 if i < 3 else 10}}" for i, text in enumerate(texts))


def differences(first, run):
    """Yield each setting that both runs have and that differs, `n_layer 4 → 6`, and the code."""
    for name, old in first.settings.items():
        new = run.settings.get(name, old)
        if old != new and name not in NO_INFLUENCE:
            yield f"{name} {old} → {new}"
    for name in changed_code(first.code, run.code):
        yield f"the code of {name}"


def draw(runs, metric, over, path):
    """Plot the metric of each run at its evaluations; with val_loss, the training loss too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_figure(path, inches=(8, 4.5)) as axes:
        for i, run in enumerate(runs):
            color, curve = f"C{i}", run.curve(metric)
            if metric == "val_loss":
                times, losses = ([record[key] for record in run.updates] for key in (over, "loss"))
                axes.plot(times, losses, color=color, alpha=0.25, lw=0.8)
            times, values = ([record[key] for record in curve] for key in (over, metric))
            # Not every font has every letter.
            label = f"{i + 1} {run.name}" if run.name.isascii() else f"{i + 1}"
            axes.plot(times, values, color=color, marker="o", ms=4, label=label)
        later = [record[metric] for run in runs for record in run.curve(metric)[1:]]
        if len(later) > len(runs):  # curves, which what was before training would flatten
            margin = (max(later) - min(later)) / 10 or 0.1
            axes.set_ylim(min(later) - margin, max(later) + margin)
        pale = " (pale: of training)" if metric == "val_loss" else ""
        axes.set(xlabel=over, ylabel=metric.replace("_", " ") + pale)
        axes.grid(alpha=0.3)
        axes.legend()


def main():
    config = load_config(CompareConfig, takes_files=False)
    if not config.runs:
        there = sorted(str(log.parent) for log in Path("out").rglob("log.jsonl"))
        raise SystemExit(f"name the folders of runs; there is {', '.join(there) or 'none in out/'}")
    runs = [read_run(folder) for folder in config.runs]
    known = {name for run in runs for record in run.evaluations for name in record}
    if config.metric not in known:
        names = ", ".join(sorted(known - {"step", "minutes"}))
        raise SystemExit(f"metric={config.metric} was not evaluated; there is {names}")
    with open_world("cpu"):
        for run in runs:
            if not run.curve(config.metric):
                print(f"{run.name} has no {config.metric} and is left out")
        runs = [run for run in runs if run.curve(config.metric)]
        print(table(runs, config.metric))
        tokenizers = {run.tokenizer for run in runs if run.tokenizer}
        if len(tokenizers) > 1 and config.metric.endswith(PER_TOKEN):
            print("their tokens differ, and so do losses per token: try --metric=bits_per_byte")
        elif len({run.settings["dataset"] for run in runs if run.settings}) > 1:
            print("their data differ: the numbers do not measure the same thing")
        draw(runs, config.metric, config.over, Path(config.out))
        print(f"plot: {config.out}")


if __name__ == "__main__":
    main()
