"""A checkpoint is one whole file, holds everything, and reading one executes nothing."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from support import files
from support.checkpoint import (
    find_checkpoint,
    load_model,
    read_checkpoint,
    save_checkpoint,
    set_aside,
)
from support.files import replacing, replacing_tree

CONTENTS = {"model_config": {}, "step": 3}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    weight = torch.randn(3)
    save_checkpoint(tmp_path / "new" / "ckpt.pt", {**CONTENTS, "model": {"weight": weight}})
    back = read_checkpoint(tmp_path / "new" / "ckpt.pt")
    assert torch.equal(back["model"]["weight"], weight)
    assert back["step"] == 3
    assert back["versions"]["torch"].startswith("2.")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as file:
        file.write(b"half of the n")
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path, "w") as file:
        file.write("新")
    assert path.read_text(encoding="utf-8") == "新"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as slow:
        slow.write(b"begun first, ")
        with replacing(path) as fast:
            fast.write(b"short")
        assert path.read_bytes() == b"short"
        slow.write(b"ended last")
    assert path.read_bytes() == b"begun first, ended last"
    assert list(tmp_path.iterdir()) == [path]


def test_on_windows_a_file_that_another_program_has_open_is_waited_for(tmp_path, monkeypatch):
    replace, refused = os.replace, iter([True, True, False])

    def replace_if_free(old, new):
        if next(refused, True):
            raise PermissionError("in use by another program")
        replace(old, new)

    path = tmp_path / "file"
    monkeypatch.setattr(os, "replace", replace_if_free)
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    save_checkpoint(path, CONTENTS)
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    with pytest.raises(PermissionError):
        save_checkpoint(path, CONTENTS | {"step": 4})
    assert read_checkpoint(path)["step"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_is_set_aside_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("ckpt.pt", "best.pt", "log.jsonl"):
        (tmp_path / name).write_text(name)
    replace = os.replace

    def replace_or_fail(old, new):
        if Path(old).name == "log.jsonl":
            raise PermissionError("in use by another program")
        replace(old, new)

    monkeypatch.setattr(os, "replace", replace_or_fail)
    with pytest.raises(PermissionError):
        set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt.pt", "best.pt", "log.jsonl"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a").write_text("old")
    replace = os.replace

    def replace_or_fail(old, new):
        if Path(old).name == "new":
            raise OSError("disk full")
        replace(old, new)

    (tmp_path / "folder.old").mkdir()  # somebody's, and none of ours
    monkeypatch.setattr(os, "replace", replace_or_fail)
    with pytest.raises(OSError, match="disk full"), replacing_tree(path) as new:
        (new / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt), replacing_tree(path):
        raise KeyboardInterrupt
    assert (path / "a").read_text() == "old"
    with replacing_tree(path) as new:
        (new / "a").write_text("new")
    assert (path / "a").read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder.old"]


def test_a_folder_stands_for_its_best_checkpoint_then_its_last(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"")
    assert find_checkpoint(tmp_path).name == "ckpt.pt"
    (tmp_path / "best.pt").write_bytes(b"")
    assert find_checkpoint(tmp_path).name == "best.pt"
    assert find_checkpoint(tmp_path, ["ckpt.pt"]).name == "ckpt.pt"


class Malicious:
    """Would make a file, if anybody unpickled it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def write_malicious_torch(path):
    torch.save({"model_config": {}, "step": Malicious()}, path)


def write_malicious_pickle(path):
    path.write_bytes(pickle.dumps(Malicious()))


def write_truncated(path):
    save_checkpoint(path, {**CONTENTS, "model": {"weight": torch.randn(1000)}})
    path.write_bytes(path.read_bytes()[:2000])


def write_flipped(path):
    save_checkpoint(path, {**CONTENTS, "model": {"weight": torch.zeros(1000)}})
    whole = bytearray(path.read_bytes())
    middle = whole.index(bytes(1000)) + 500
    whole[middle] = 255
    path.write_bytes(whole)


def write_text(path):
    path.write_text("not a checkpoint", encoding="utf-8")


def write_empty(path):
    path.write_bytes(b"")


def write_other_tensors(path):
    torch.save({"weight": torch.zeros(3)}, path)


def write_newer(path):
    torch.save({**CONTENTS, "format": 99}, path)


@pytest.mark.parametrize(
    "write",
    [
        write_malicious_torch,
        write_malicious_pickle,
        write_truncated,
        write_flipped,
        write_text,
        write_empty,
        write_other_tensors,
        write_newer,
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_and_executes_nothing(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit) as stop:
        load_model(tmp_path)
    assert "ckpt.pt" in str(stop.value)
    assert len(str(stop.value)) < 300
    assert not Path("executed").exists()


def test_a_missing_checkpoint_is_told_with_the_command_to_type(tmp_path):
    with pytest.raises(SystemExit, match=r"no run was saved there yet"):
        find_checkpoint(tmp_path)
    with pytest.raises(SystemExit, match=r"train one with: python train.py"):
        find_checkpoint(tmp_path / "none")
