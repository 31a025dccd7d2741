"""What a script runs on: the device, the precision, and the processes that share its work.

A script run alone is a world of size 1. `torchrun --nproc_per_node=N train.py …` starts N
processes, which hold the same model and each compute a part of every step.
"""

import ctypes
import errno
import inspect
import math
import os
import signal
import sys
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support.files import ON_WINDOWS, fall_silent, until_nobody_reads

# Of a path that cannot be read or written, whatever the program does.
UNUSABLE_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class World:
    """This process and its place among those that train together."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; the weights stay float32
    rank: int = 0
    size: int = 1

    @property
    def is_main(self):
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def sum(self, *numbers):
        """Each number summed over all processes: [float, …]. Does not wait for a GPU."""
        totals = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(totals)
        return totals.tolist()

    def gather(self, thing):
        """A list of every process's `thing`, returned on all of them."""
        things = [thing] * self.size
        if self.size > 1:
            dist.all_gather_object(things, thing)
        return things

    def wait(self):
        """Block until all processes have reached this point."""
        if self.size > 1:
            dist.barrier()

    def place(self, batch):
        """The tensors of a batch on the device; to a GPU they are copied while it computes."""
        return {name: self.move(tensor) for name, tensor in batch.items()}

    def move(self, tensor):
        if self.device.type == "cpu":
            return tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.contiguous().to(self.device)

    def precision(self):
        """A context in which matrix products are computed in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def data_parallel(self, model):
        """Wrap the model so that every process gets the mean of all processes' gradients."""
        if self.size == 1:
            return model
        syncs = "forward_sync_buffers", "broadcast_buffers"  # since torch 2.13, and before
        known = inspect.signature(DistributedDataParallel).parameters
        return DistributedDataParallel(model, **{next(n for n in syncs if n in known): False})

    def accumulating(self, model, more_to_come):
        """A context for backward passes in which only the last one of a step averages gradients."""
        if self.size == 1 or not more_to_come:
            return nullcontext()
        return model.no_sync()


@contextmanager
def open_world(device="auto", dtype="auto", to_train=True):
    """Yield the `World` that these knobs and torchrun's environment variables describe."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(device)
    if device.type == "cpu":
        keep_freed_memory()
        if dtype == "float16" and to_train:
            raise SystemExit("dtype=float16 is slow and overflows on a CPU; use --dtype=auto")
    if device.type == "cuda":
        local = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 for what stays float32
    if size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        with until_nobody_reads(), own_stream(device, to_train and size == 1):
            yield World(device, pick_dtype(dtype, device), rank, size)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped immediately") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            fall_silent()
            raise SystemExit("no space is left on the disk: free some, and go on") from None
        if error.errno not in UNUSABLE_PLACE:
            raise
        where = f"{error.filename}: {error.strerror}"
        close = ", close the program that has it open" if ON_WINDOWS else ""
        advice = f"make it readable and writable{close}, or choose another"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            advice = "it is not a folder: choose another"
        raise SystemExit(f"{where}; {advice}") from None
    finally:
        if size > 1:
            dist.destroy_process_group()


@contextmanager
def own_stream(device, to_record):
    """A context in which a GPU's kernels go to a stream of their own, as recording them takes."""
    if device.type != "cuda" or not to_record:
        yield
        return
    default, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(default)
    with torch.cuda.stream(stream):
        yield
    default.wait_stream(stream)


def keep_freed_memory():
    """Make Linux's allocator keep freed memory: training then takes up to a quarter less time.

    Each step frees and allocates the same large tensors. By default their pages return to the
    system, which has to clear them again for the next step.
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, most_mmaps = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(most_mmaps, 0)


def only_main_prints():
    """Under torchrun, silence the standard output of all processes but the first."""
    if int(os.environ.get("RANK", 0)) > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def pick_device(device):
    """The device of that name; `auto` picks CUDA, else Apple's MPS, else the CPU."""
    has = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        del has["mps"]  # no backend exchanges its gradients
    usable = [name for name in has if has[name]()] + ["cpu"]
    if device == "auto":
        return torch.device(usable[0])
    name, _, number = device.partition(":")
    exists = number.isdecimal() and name == "cuda" and int(number) < torch.cuda.device_count()
    if name not in usable or (number and not exists):
        raise SystemExit(f"device={device} is not usable here; expected {' or '.join(usable)}")
    return torch.device(device)


def pick_dtype(dtype, device):
    """The dtype of that name; `auto` picks bfloat16 if `device` multiplies it fast."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.12
        return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32
    return torch.float32


class StopSignal:
    """Turns the first Ctrl-C, SIGTERM or closed terminal into a flag, so that a loop ends cleanly.

    The second one ends the program immediately.
    """

    def __init__(self):
        self.requested = False
        self.before = {}

    def __enter__(self):
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP; nohup ignores it
            if number and signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, _frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = signal.Signals(number).name
        with suppress(OSError):  # the terminal may be closed
            print(f"\n{name}: saving after this step (repeat to stop immediately)", file=sys.stderr)


def compiled(model, setting, world, example, is_long):
    """`torch.compile(model)` if `setting` asks for it and it works on `example`; else the model.

    `auto` compiles on CUDA, where `is_long()`: the run is long enough to gain more than the half
    minute that the compiler takes. Compiled code may be wrong: GCC 12 on an Emerald Rapids turned
    rotary positions into nan, and torch 2.11 a loss summed in place into one without gradients.
    """
    if setting == "auto":
        setting = world.device.type == "cuda" and is_long()
    if not setting:
        return model
    compiled_model, reason = torch.compile(model), ""
    try:
        with world.precision():
            _, loss = compiled_model(**world.place(example))
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not 0 < norm < math.inf:
            reason = f"gradients of norm {norm:g}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may raise anything; go without it
        reason = type(error).__name__
    finally:
        model.zero_grad(set_to_none=True)
    if reason:
        print(f"compile: not possible here ({reason}); continuing without it")
        return model
    return compiled_model
