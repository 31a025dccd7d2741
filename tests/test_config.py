"""From files and options to one typed config: what is understood, and what a mistake is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from finetune import FinetuneConfig
from support.config import load_config, show_config
from tests.conftest import REPOSITORY
from train import TrainConfig


@dataclass
class Knobs:
    """Some knobs."""

    learning_rate: float = 6e-4  # how fast
    batch_size: int = 12  # how many
    compile: bool | Literal["auto"] = "auto"  # whether
    bias: bool = False  # whether
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # which
    start: str = "\n"  # from where
    stop: tuple[str, ...] = ()  # until where
    rope_scaling: tuple[float, float] | None = None  # how far
    schedule: str = "cosine"  # how
    warmup_iters: int = 2000  # how long
    out_dir: str = "out"  # where to
    log_to: str = "file"  # what else

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


def load(*argv, **settings):
    return load_config(Knobs, list(argv), **settings)


def file_with(tmp_path, text, name="x.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def message_of(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        load(*argv)
    told = str(stop.value.code) + capsys.readouterr().err
    return " ".join(told.replace("│", " ").split())


def test_later_beats_earlier_whether_file_or_option(tmp_path):
    path = file_with(tmp_path, "batch_size = 3\nlearning_rate = 1e-3\n")
    assert load(path, "--batch_size=4").batch_size == 4
    assert load("--batch_size=4", path).batch_size == 3
    assert load(path).learning_rate == 1e-3


def test_the_value_behind_an_option_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = file_with(tmp_path, "batch_size = 3\n", name="train.py")
    knobs = load("--start", "train", "--out_dir", "FILE:asked.py", "--bias", path)
    assert (knobs.start, knobs.out_dir) == ("train", "FILE:asked.py")
    with pytest.raises(SystemExit) as stop:
        load("-h")
    assert stop.value.code == 0
    assert (knobs.bias, knobs.batch_size) == (True, 3)
    assert load("--rope-scaling", "8", "1.5").rope_scaling == (8, 1.5)
    knobs = load("--stop", "The end", "train", path)  # several values, then a file that is there
    assert (knobs.stop, knobs.batch_size) == (("The end", "train"), 3)
    assert load(path, "--start", path).start == path
    with pytest.raises(SystemExit, match="--bias takes True or False, not no"):
        load("--bias", "no")
    with pytest.raises(SystemExit, match=r"train is neither an option.*did you mean train.py"):
        load("train")
    file_with(tmp_path, "从前有座山", name="小说.txt")
    with pytest.raises(SystemExit, match=r"python prepare_data.py 小说.txt --dataset=NAME"):
        load("小说.txt")


def test_a_config_file_may_compute_and_import(tmp_path):
    text = "import math\n_half = 6\nbatch_size = 2 * _half\ndef twice(x): return 2 * x\n"
    assert load(file_with(tmp_path, text)).batch_size == 12


def test_a_config_file_may_compute_from_what_is_typed(tmp_path):
    text = "batch_size = int(_typed.get('batch_size', 2))\nlearning_rate = 1 / batch_size\n"
    path = file_with(tmp_path, text)
    assert load(path).learning_rate == 0.5
    assert load(path, "--batch_size=8").learning_rate == 0.125
    both = load(path, "--batch_size=8", "--learning_rate=3")
    assert (both.batch_size, both.learning_rate) == (8, 3)


@pytest.mark.parametrize("typed", ["--batch_size 4", "--batch-size=4", "--batch-size 4"])
def test_a_config_file_sees_what_is_typed_in_any_form(tmp_path, typed):
    computing = file_with(tmp_path, "start = 'n' * int(_typed.get('batch_size', 1))")
    assert load(computing, *typed.split()).start == "nnnn"


def test_the_depth_settles_everything_else():
    path = str(REPOSITORY / "config" / "depth.py")
    shallow, deep = (load_config(TrainConfig, [path, f"--n_layer={depth}"]) for depth in (2, 6))
    assert (shallow.n_layer, deep.n_layer) == (2, 6)
    for name in ("n_embd", "n_head", "batch_size", "max_iters"):
        assert getattr(shallow, name) < getattr(deep, name)
    assert shallow.learning_rate > deep.learning_rate
    assert deep.n_embd == 64 * deep.n_head
    typed = load_config(TrainConfig, [path, "--n_layer=6", "--max_iters=5"])
    assert (typed.max_iters, typed.n_embd) == (5, deep.n_embd)


def test_config_files_are_read_as_utf8(tmp_path):
    assert load(file_with(tmp_path, "start = '从前'  # 开头\n")).start == "从前"


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("--learning_rate=1", "learning_rate", 1.0),
        ("--start=123", "start", "123"),
        ("--start=a=b", "start", "a=b"),
        ("--start=-x", "start", "-x"),
        ("--start=", "start", ""),
        ("--compile=False", "compile", False),
        ("--compile=auto", "compile", "auto"),
        ("--batch-size=5", "batch_size", 5),
    ],
)
def test_what_people_type_is_understood(typed, name, value):
    found = getattr(load(typed), name)
    assert found == value
    assert type(found) is type(value)


def test_a_value_may_follow_after_a_space():
    assert load("--learning_rate", "1e-3").learning_rate == 1e-3


def test_several_values_go_into_a_tuple(tmp_path):
    assert load("--stop", "a", "b").stop == ("a", "b")
    assert load(file_with(tmp_path, "stop = ['c', 'd e']")).stop == ("c", "d e")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--lerning_rate=1", "--learning_rate"),
        ("--batch_size=twelve", "Error parsing --batch_size"),
        ("--norm=batchnorm", "Expected one of ('layernorm', 'rmsnorm')"),
        ("--batch_size=0", "batch_size=0 must be at least 1"),
        ("--lr=1", "--lr is called --learning_rate here"),
        ("--output_dir=x", "--output_dir is called --out_dir here"),
        ("--decay_lr=maybe", "expected --decay_lr=True or False"),
        ("config/none.py", "there is no config file config/none.py"),
        (
            "stray",
            "stray is neither an option nor a config file; to give a prompt: --start=",
        ),
        ("--warmup_iter=3", "--warmup_iter is unknown; did you mean --warmup_iters?"),
        ("--outdir=x", "--outdir is unknown; did you mean --out_dir?"),
        ("config/没有.py", "there is no config file config/没有.py"),
        ("config/finetune_qa.py", "is for finetune.py: python finetune.py config/finetune_qa.py"),
        ("tests/test_config.json", "is neither an option nor a config file"),
        (str(REPOSITORY / "tests"), "; did you mean --out_dir="),
        ("--start=\udcc3\udcc5", "is not UTF-8: set the terminal to UTF-8"),
    ],
)
def test_a_mistake_is_answered_with_what_was_expected(capsys, typed, told):
    assert told in message_of(capsys, typed)


def test_a_mistake_in_a_file_names_the_file(tmp_path, capsys):
    path = file_with(tmp_path, "lerning_rate = 1e-3\n")
    told = message_of(capsys, path)
    assert "x.py: --lerning_rate is unknown; did you mean --learning_rate?" in told


def test_a_file_that_is_nearly_there_is_suggested(tmp_path, capsys):
    file_with(tmp_path, "", name="shakespeare_char.py")
    told = message_of(capsys, str(tmp_path / "shakespear_char.py"))
    assert "did you mean" in told
    assert "shakespeare_char.py" in told


def test_a_crash_inside_a_config_file_keeps_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load(file_with(tmp_path, "batch_size = 1 // 0\n"))


def test_the_default_file_is_read_only_when_no_other_is_named(tmp_path, capsys):
    default = file_with(tmp_path, "batch_size = 7\n", name="default.py")
    other = file_with(tmp_path, "learning_rate = 1.0\n", name="other.py")
    assert load("--bias=True", default_file=default).batch_size == 7
    assert "default.py" in capsys.readouterr().out
    assert load(other, default_file=default).batch_size == 12
    assert "default.py" not in capsys.readouterr().out


def test_scripts_that_take_paths_do_not_run_them(tmp_path, capsys):
    path = file_with(tmp_path, "raise RuntimeError\n")
    with pytest.raises(SystemExit):
        load(path, takes_files=False)


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("--decay_lr=False", "schedule", "constant"),
        ("--decay_lr=True", "schedule", "cosine"),
        ("--wandb_log=True", "log_to", "wandb"),
        ("--wandb_log=False", "log_to", "file"),
        ("--always_save_checkpoint=False", "log_to", "file"),
        ("--backend=nccl", "log_to", "file"),
    ],
)
def test_nanogpts_old_names_are_translated(typed, name, value):
    assert getattr(load(typed), name) == value


NANOGPT_DEFAULTS = {
    "out_dir": "out",
    "eval_interval": 2000,
    "log_interval": 1,
    "eval_iters": 200,
    "eval_only": False,
    "init_from": "scratch",
    "dataset": "openwebtext",
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 6e-4,
    "max_iters": 600000,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "warmup_iters": 2000,
    "min_lr": 6e-5,
}


def test_the_defaults_are_nanogpts():
    config = TrainConfig()
    assert {name: getattr(config, name) for name in NANOGPT_DEFAULTS} == NANOGPT_DEFAULTS
    assert config.mlp == "gelu"  # exact, not OpenAI's approximation
    assert config.lr_decay_iters is None  # max_iters, which there is the default too


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # the words of nanoGPT's config/train_shakespeare_char.py
            "out_dir = 'out-shakespeare-char'\neval_interval = 250\neval_iters = 200\n"
            "log_interval = 10\nalways_save_checkpoint = False\nwandb_log = False\n"
            "wandb_project = 'shakespeare-char'\nwandb_run_name = 'mini-gpt'\n"
            "dataset = 'shakespeare_char'\ngradient_accumulation_steps = 1\nbatch_size = 64\n"
            "block_size = 256\nn_layer = 6\nn_head = 6\nn_embd = 384\ndropout = 0.2\n"
            "learning_rate = 1e-3\nmax_iters = 5000\nlr_decay_iters = 5000\nmin_lr = 1e-4\n"
            "beta2 = 0.99\nwarmup_iters = 100\n",
            {"n_embd": 384, "dropout": 0.2, "lr_decay_iters": 5000, "log_to": "file"},
        ),
        (  # of config/finetune_shakespeare.py
            "import time\nout_dir = 'out-shakespeare'\nwandb_log = False\n"
            "wandb_run_name = 'ft-' + str(time.time())\ninit_from = 'gpt2-xl'\n"
            "always_save_checkpoint = False\nbatch_size = 1\ngradient_accumulation_steps = 32\n"
            "max_iters = 20\nlearning_rate = 3e-5\ndecay_lr = False\n",
            {"init_from": "gpt2-xl", "schedule": "constant", "warmup_iters": 0},
        ),
        (  # of config/eval_gpt2.py
            "batch_size = 8\neval_iters = 500\neval_only = True\nwandb_log = False\n"
            "init_from = 'gpt2'\n",
            {"eval_only": True, "eval_iters": 500},
        ),
    ],
)
def test_nanogpts_own_config_files_mean_the_same(tmp_path, text, expected):
    config = load_config(TrainConfig, [file_with(tmp_path, text)])
    assert {name: getattr(config, name) for name in expected} == expected


def test_every_config_of_ours_is_understood():
    files = sorted((REPOSITORY / "config").glob("*.py"))
    assert len(files) >= 6
    for path in files:
        Config = FinetuneConfig if path.name.startswith("finetune_") else TrainConfig
        config = load_config(Config, [str(path)])
        assert config.dataset != TrainConfig().dataset or path.name == "gpt2_124m.py"


def test_what_differs_from_the_defaults_stands_out(capsys):
    show_config(load("--batch_size=5"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["batch_size", "=", "5", "(12)"]
    assert "learning_rate=0.0006" in " ".join(lines[2:])
    assert "batch_size" not in " ".join(lines[2:])
    assert max(map(len, lines)) <= 80


def test_help_shows_the_comment_behind_each_field(capsys):
    with pytest.raises(SystemExit):
        load("--help")
    told = capsys.readouterr().out
    assert "how fast" in told
    assert "--learning_rate" in told
    assert "--no-bias" not in told


def test_a_path_is_shown_as_typed_here(tmp_path, monkeypatch):
    from support.config import as_typed

    monkeypatch.chdir(tmp_path)
    assert as_typed(tmp_path / "config" / "x.py") == str(Path("config/x.py"))


@pytest.mark.parametrize("option", ["--eval_only", "--eval-only", "--eval-only=True"])
def test_a_switch_needs_no_value_however_it_is_written(option):
    assert load_config(TrainConfig, [option, "--n-layer", "3"]).eval_only
