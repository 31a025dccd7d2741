"""Files of named tensors, read one tensor at a time: .safetensors, sharded or not, and .bin or .pt.

Nothing in them is ever executed.
"""

import pickle
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from support.files import read_json

WHOLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


class TensorFiles:
    """The tensors in a file, or in the weights of a Hugging Face folder, by name."""

    def __init__(self, path):
        """Raises OSError, ValueError or SafetensorError if `path` is not such a file."""
        path = Path(path)
        if path.is_dir():
            self.file_of = files_in(path)
        else:
            self.file_of = dict.fromkeys(names_in(path), path)

    def __iter__(self):
        return iter(self.file_of)

    def __len__(self):
        return len(self.file_of)

    def __getitem__(self, name):
        file = self.file_of[name]
        if file.suffix != ".safetensors":
            return unpickled(file)[name]
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)


def files_in(folder):
    """Tensor name -> file, for the weights in a folder."""
    if (folder / WHOLE).is_file():
        return dict.fromkeys(names_in(folder / WHOLE), folder / WHOLE)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ValueError(f"{INDEX} has no weight_map, which says where each tensor is")
        outside = [name for name in index.values() if Path(name).name != name or "\\" in name]
        if outside:
            raise ValueError(f"{INDEX} points outside the folder, to {outside[0]!r}")
        promised = {name: folder / file for name, file in index.items()}
        for file in sorted(set(promised.values())):
            found = set(names_in(file))
            lost = [name for name in promised if promised[name] == file and name not in found]
            if lost:
                raise ValueError(f"{file.name} lacks {lost[0]}, which {INDEX} lists")
        return promised
    if (folder / PICKLED).is_file():
        return dict.fromkeys(names_in(folder / PICKLED), folder / PICKLED)
    raise ValueError(f"it has no weights: neither {WHOLE} nor {INDEX} nor {PICKLED}")


def names_in(file):
    """The names of the tensors in a file."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    return list(unpickled(file))


@cache
def unpickled(file):
    """The tensors in a torch.save file, memory-mapped; anything else is refused."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{file.name} would execute code: refused, nothing was executed") from None
    except (RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:100]
        raise ValueError(f"{file.name} is not a file of tensors ({reason})") from None
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ValueError(f"{file.name} contains something other than named tensors")
    return content
