"""Record the kernels of a pass, forward and backward, and replay them without Python in between.

Most kernels of a small model finish sooner than Python can launch the next one. A CUDA graph
launches all of them at once.
"""

import pickle
import random
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from support.recording import sync_debug_mode

PASSES_BEFORE = 10  # over batches of one shape, before they are recorded
COMPARED_UNTIL = 15  # passes: each of the first replays is compared with the model
COMPARED_EVERY = 250  # passes after these
MOST_SHAPES = 8  # that are recorded: fine-tuning has batches of many lengths
HELD_UP = 0.8  # launching takes more than this share of a pass: a recording may pay
FASTER = 0.8  # a replay takes less than this share of a pass: it pays
ROUNDING = 0.05  # a replay's gradients may differ by this share of their norm
PLAIN = int, float, complex, str, bool, type(None)


def recorded_passes(add_gradients, model, world, show=print):
    """`add_gradients(batch, share, more_to_come)`, replayed where that is possible: on one GPU.

    `show` prints a line. The current stream must not be the default one, as in `open_world`.
    """
    if world.device.type != "cuda" or world.size > 1:
        return add_gradients
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        return add_gradients
    return RecordedPasses(add_gradients, model, show)


class RecordedPasses:
    """`add_gradients`, recorded for each shape of batches that comes often, where that pays.

    Only kernels and the tensors they work on are recorded. Python's numbers and branches are frozen
    at their present values, so whatever changes from pass to pass must be in a tensor of the batch,
    or be drawn by PyTorch, like dropout. Hence replays are compared with the model, time and again
    (which makes these passes twice: running means of a module move twice).
    """

    def __init__(self, add_gradients, model, show=print):
        self.add_gradients, self.model, self.show = add_gradients, model, show
        self.passes = Counter()  # shape of a batch -> passes so far
        self.recordings = {}  # shape of a batch -> Recording
        self.gradients = {}  # weight -> its gradient, at a place that the recordings know
        self.modules = []  # of the model, as the recordings know it
        self.places = []  # of their weights
        self.numbers = []  # of Python's that they keep
        self.kept = 0  # bytes, by the recordings
        self.is_possible = True

    def __call__(self, batch, share, more_to_come=False):
        if not self.is_possible:
            return self.add_gradients(batch, share, more_to_come)
        self.hand_out_gradients()
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        self.passes[shape] += 1
        n, recording = self.passes[shape], self.recordings.get(shape)
        if n == PASSES_BEFORE and len(self.recordings) < MOST_SHAPES:
            return self.record(shape, batch, share)
        if recording is None:
            return self.add_gradients(batch, share)
        if self.places != places_of(self.modules):
            self.give_up("the weights are not where they were")
            return self.add_gradients(batch, share)
        if n <= COMPARED_UNTIL or n % COMPARED_EVERY == 0:
            return self.compare(shape, batch, share)
        return recording(batch, share)

    def hand_out_gradients(self):
        """Zeros in the known places, where the optimizer has cleared the gradients."""
        cleared = [p for p in self.gradients if p.grad is None]
        if cleared:
            torch._foreach_zero_([self.gradients[p] for p in cleared])
        for p in cleared:
            p.grad = self.gradients[p]

    def record(self, shape, batch, share):
        """Make this pass as ever, and record it for the next ones if that is possible and pays."""
        numbers, chance = numbers_of(self.model), states_of_chance()
        with watched() as seen:
            loss = self.add_gradients(batch, share)
        if seen.waits:
            self.give_up("a pass waits for the GPU")
        elif numbers != numbers_of(self.model):
            self.give_up("a pass changes a number of a module")
        elif chance != states_of_chance():
            self.give_up("a pass draws random numbers that are not the GPU's")
        elif seen.is_held_up and self.has_room():
            self.capture(shape, batch)
        return loss

    def has_room(self):
        """Whether the GPU can keep what a pass needs, and as much again for everything else.

        That is at most what the process has needed so far. A comparison needs the gradients two
        more times.
        """
        allocated = torch.cuda.memory_allocated()
        unused = torch.cuda.memory_reserved() - allocated - self.kept
        a_pass = torch.cuda.max_memory_allocated() - allocated
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        return 2 * (a_pass + 2 * gradients) <= torch.cuda.mem_get_info()[0] + unused

    def capture(self, shape, batch):
        """Add a Recording of a pass like the one that was just made."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        pool = next((other.graph.pool() for other in self.recordings.values()), None)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        try:
            self.recordings[shape] = Recording(self.add_gradients, batch, weights, pool)
        except Exception as error:  # of any kind: it also works without
            check_intact()
            reason, _, _ = f"{type(error).__name__}: {error}".partition("\n")
            self.give_up(reason)
            return
        self.kept += torch.cuda.memory_reserved() - before
        self.gradients |= {p: p.grad for p in weights if p.grad is not None}
        if len(self.recordings) == 1:
            self.modules = list(self.model.modules())
            self.places, self.numbers = places_of(self.modules), numbers_of(self.model)
            self.show("record: passes are replayed now; --record=False runs model.py for each")

    def compare(self, shape, batch, share):
        """Make a pass both ways; give up if they differ, or a replay takes as long."""
        gradients = list(self.gradients.values())
        before = [gradient.clone() for gradient in gradients]
        their_loss, their_seconds = timed(self.recordings[shape], batch, share)
        theirs = [gradient.clone() for gradient in gradients]
        torch._foreach_copy_(gradients, before)
        torch.manual_seed(torch.initial_seed())  # the same dropout again
        loss, seconds = timed(self.add_gradients, batch, share)
        torch._foreach_sub_(theirs, gradients)
        torch._foreach_sub_(before, gradients)
        if (
            self.numbers != numbers_of(self.model)
            or is_far(loss - their_loss, loss)
            or is_far(get_total_norm(theirs), get_total_norm(before))
        ):
            self.give_up("a replay differs from the model, perhaps since the last comparison")
        elif self.passes[shape] == COMPARED_UNTIL and their_seconds > FASTER * seconds:
            self.forget(shape)
        return loss

    def forget(self, shape):
        """Make the passes over batches of this shape without a recording."""
        del self.recordings[shape]
        if not self.recordings:
            self.kept = 0
            self.gradients.clear()

    def give_up(self, reason):
        """From now on every pass is the model's."""
        self.is_possible = False
        self.recordings.clear()
        self.gradients.clear()
        self.show(f"record: not possible here ({reason}); continuing without it")


class Recording:
    """One pass over batches of one shape, as a CUDA graph; its memory is shared by those of a pool.

    It adds to the gradients that the weights have when it is made; raises RuntimeError where it
    would add to others.
    """

    def __init__(self, add_gradients, batch, weights, pool):
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        self.share = torch.ones((), device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        gradients = [p.grad for p in weights]
        stream = torch.cuda.current_stream()  # where the gradients are made, hence recordable
        try:
            with torch.cuda.graph(self.graph, pool, stream):
                self.loss = add_gradients(self.batch, self.share)
        finally:
            others = [(p, g) for p, g in zip(weights, gradients) if p.grad is not g]
            for p, gradient in others:
                p.grad = gradient
        if others:
            raise RuntimeError("not every pass has gradients of the same weights")

    def __call__(self, batch, share):
        """The pass's loss, which the next call overwrites."""
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        self.share.fill_(share)
        self.graph.replay()
        return self.loss


def is_far(difference, size):
    """Whether this difference is more than rounding; what is not finite proves nothing."""
    return bool(size.isfinite() and not difference.abs() <= ROUNDING * size.abs())


def places_of(modules):
    """Where weights and buffers are in memory, which of them learn, and which modules there are.

    Asked before every replay; a model's `parameters` and `buffers` take more than twice as long.
    """
    places = []
    for module in modules:
        places += map(id, module._modules.values())
        for tensors in (module._parameters.values(), module._buffers.values()):
            places += [(t.data_ptr(), t.requires_grad) for t in tensors if t is not None]
    return places


def numbers_of(model):
    """What the modules keep as Python's numbers and texts: how much dropout, or a count."""
    return [
        {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}
        for module in model.modules()
    ]


def states_of_chance():
    """The states of Python's, NumPy's and PyTorch's random numbers on the CPU."""
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


def timed(function, *inputs):
    """(its result, which stays as it is; seconds until the GPU has computed it)"""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    result = function(*inputs).clone()
    torch.cuda.synchronize()
    return result, time.perf_counter() - begun


@contextmanager
def watched():
    """A context that finds out what in it Python and the GPU wait for; known after its end."""
    seen = SimpleNamespace()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with sync_debug_mode("warn"):
            yield seen
    launched = time.perf_counter()
    torch.cuda.synchronize()
    ended = time.perf_counter()
    seen.waits = any("called a synchronizing" in str(warning.message) for warning in told)
    seen.is_held_up = launched - begun > HELD_UP * (ended - begun)


def check_intact():
    """Exit if a recording that broke off has left PyTorch in a state that it cannot go on from."""
    try:
        torch.cuda.empty_cache()
        torch.rand((), device="cuda")
    except RuntimeError:
        raise SystemExit(
            "record: this pass cannot be recorded, and PyTorch cannot go on after the attempt; "
            "type --record=False"
        ) from None
