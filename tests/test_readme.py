"""What the READMEs say is so: their commands run, their knobs and files exist."""

import doctest
import io
import json
import re
import shlex
import shutil
import sys
import sysconfig
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import BenchConfig
from compare import CompareConfig
from convert import ConvertConfig
from explain import ExplainConfig
from finetune import FinetuneConfig
from model import ModelConfig, Transformer
from prepare_data import PrepareConfig
from sample import SampleConfig
from serve import ServeConfig
from support import corpora
from support.api_server import Server
from support.config import load_config
from support.huggingface import write_model
from support.tokenizer import train_bpe
from tests.conftest import REPOSITORY, call, tiny_text
from train import TrainConfig

READMES = ["README.md", "README.zh.md"]
CONFIGS = {
    "train.py": TrainConfig,
    "finetune.py": FinetuneConfig,
    "sample.py": SampleConfig,
    "serve.py": ServeConfig,
    "prepare_data.py": PrepareConfig,
    "convert.py": ConvertConfig,
    "bench.py": BenchConfig,
    "compare.py": CompareConfig,
    "explain.py": ExplainConfig,
}
# Typed behind the README's own options, these make any run small.
SHORTER = {
    "train.py": "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=2 --max_iters=3 "
    "--gradient_accumulation_steps=1 --eval_iters=1 --sample_tokens=3 --device=cpu "
    "--compile=False",
    "finetune.py": "--block_size=64 --batch_size=2 --gradient_accumulation_steps=1 --max_iters=2 "
    "--eval_iters=1 --eval_interval=2 --device=cpu",
    "sample.py": "--max_new_tokens=5 --device=cpu",
    "serve.py": "--port=0 --device=cpu",
    "prepare_data.py": "",
    "convert.py": "",
    "compare.py": "",
    "explain.py": "--tokens=5",
}
NEEDS_NETWORK = {
    "shakespeare",
    "tinystories",
    "fineweb_edu",
    "--init_from=gpt2",
    "--init_from=Qwen/Qwen3-0.6B",
}
CORPORA = "shakespeare", "tinystories", "fineweb_edu"


def commands(readme):
    """The commands in the code blocks of a README and in its running text, without comments."""
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines() + re.findall(r"`(python \w+\.py[^`]*)`", text)
    lines = [line.partition(" > ")[0] for line in lines]  # the shell's part
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_of_a_readme_have_no_comments(readme):
    """zsh, the shell of a Mac, would take them for arguments."""
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        assert not re.search(r"(^|\s)#\s", block), block


def is_script(words):
    return words[0] == "python" and words[1].endswith(".py")


def tiny_gpt2(folder):
    """A Hugging Face folder with a small GPT-2 in it."""
    tokenizer = train_bpe([tiny_text()], 300)
    shape = ModelConfig(300, 64, 2, 2, 32, bias=True, mlp="gelu_tanh")
    write_model(folder, Transformer(shape), tokenizer)


def small_files_of_examples():
    """The files of examples that the READMEs speak of."""
    asked = [{"instruction": f"Name {i}.", "input": "", "output": f"{i}"} for i in range(20)]
    Path("alpaca.json").write_text(json.dumps(asked), encoding="utf-8")
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(20)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    rows = [f"hello {i},{'ab'[i % 2]}" for i in range(40)]
    for name, head in (("messages.csv", "message,topic"), ("我的类别.csv", "内容,类别")):
        Path(name).write_text("\n".join([head, *rows]), encoding="utf-8")
    asked = [{"prompt": f"问：{i}？答：", "completion": f"{i}"} for i in range(20)]
    lines = [json.dumps(line, ensure_ascii=False) for line in asked]
    Path("我的问答.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Path("conll2003").mkdir()
    for split in ("train", "testa", "testb"):
        words = "EU NNP B-ORG\nsaid VBD O\nso RB O\n\n" * 4
        Path(f"conll2003/eng.{split}").write_text(words, encoding="utf-8")


def ended_at_once(server):
    """In place of a server's loop: Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A function that types a command, in a folder like a fresh clone with the user's own texts."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "config", "config")
    for name in ("my_novel.txt", "我的小说.txt", "shakespeare.txt"):
        Path(name).write_text(tiny_text(), encoding="utf-8")
    Path("my_project").mkdir()
    Path("my_project/main.py").write_text("print('hello')\n" * 100, encoding="utf-8")
    tiny_gpt2("models/gpt2")
    small_files_of_examples()
    library = tmp_path / "lib"  # the standard library, in small
    for package in ("asyncio", "email", "unittest"):
        shutil.copytree(Path(sysconfig.get_paths()["stdlib"], package), library / package)
    paths = SimpleNamespace(get_paths=lambda: {"stdlib": str(library)})
    monkeypatch.setattr(corpora, "sysconfig", paths)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(Server, "serve_forever", ended_at_once)
    call(monkeypatch, "prepare_data.py", "shakespeare.txt", "--dataset=shakespeare_char")

    def type_in(script, *options):
        shorter = SHORTER[script].split()
        if any(option.startswith("--init_from=") for option in options):  # which has a shape
            shorter = [option for option in shorter if not option.startswith("--n_")]
        call(monkeypatch, script, *options, *shorter)

    return type_in


def runs_here(words):
    """Whether a command can be run without a network, and by a test."""
    left_out = NEEDS_NETWORK | {"--help", "bench.py"}
    return is_script(words) and not left_out & set(words)


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_of_a_readme_run(readme, user):
    ran, each_once = set(), dict.fromkeys(map(tuple, filter(runs_here, commands(readme))))
    for _, script, *options in each_once:
        if script == "prepare_data.py" and set(options) <= {"stories"}:
            options.append("--megabytes=0.3")
        user(script, *options)
        ran.add(script)
    assert ran == set(SHORTER)
    assert Path("out/stories/best.pt").exists()


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_that_are_not_run_here_are_understood(readme, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for words in commands(readme):
        if words[0] == "torchrun":
            words = ["python", *words[next(i for i, w in enumerate(words) if w == "train.py") :]]
        if is_script(words) and "--help" not in words:
            takes_files = words[1] in ("train.py", "finetune.py", "sample.py", "serve.py")
            load_config(CONFIGS[words[1]], words[2:], takes_files=takes_files)
        for name in words:
            if name.startswith("requirements"):
                assert Path(name).exists()


def test_without_a_connection_a_download_offers_what_needs_none(tmp_path, monkeypatch):
    def no_connection(*_, **__):
        raise OSError("no connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_connection)
    for name in CORPORA:
        with pytest.raises(SystemExit, match="stories"):
            call(monkeypatch, "prepare_data.py", name)


@pytest.mark.parametrize("readme", READMES)
def test_every_knob_that_a_readme_names_exists(readme):
    known = {name for Config in CONFIGS.values() for name in Config.__dataclass_fields__}
    named = set(re.findall(r"`--(\w+)", (REPOSITORY / readme).read_text(encoding="utf-8")))
    assert named <= known | {"help"}


@pytest.mark.parametrize("readme", READMES)
def test_every_file_that_a_readme_points_to_exists_and_is_about_as_long_as_it_says(readme):
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)]*)\)", text):
        assert (REPOSITORY / path).exists(), path
    told = re.findall(r"\]\((\w+\.py)\) \| (\d+) \|", text)
    assert len(told) == 10
    for path, lines in told:
        length = len((REPOSITORY / path).read_text(encoding="utf-8").splitlines())
        assert int(lines) == pytest.approx(length, rel=0.03), path


def test_every_file_of_support_is_listed_there():
    listed = re.findall(r"\]\(([^)]*)\)", (REPOSITORY / "support/README.md").read_text("utf-8"))
    there = {path.name for path in (REPOSITORY / "support").glob("[!_]*.py")}
    assert set(listed) == there | {"stories", "page.html"}
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("tour", ["docs/tour.md", "docs/tour.zh.md"])
def test_the_lines_of_a_tour_do_what_it_says(tour):
    path = REPOSITORY / tour
    done = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert done.attempted > 50 and done.failed == 0
    for link in re.findall(r"\]\(([^)]*)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("readme", READMES)
def test_the_first_screen_of_a_readme_has_the_quick_start(readme):
    lines = (REPOSITORY / readme).read_text(encoding="utf-8").splitlines()
    assert lines.index("python prepare_data.py") < 15
    before = " ".join(lines[: lines.index("python prepare_data.py")])
    assert len(before.split()) < 120
