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

PASSES_BEFORE = 10  # over batches of one shape, before they are recorded
COMPARED_FIRST = 5  # replays, each with the model's pass
COMPARED_EVERY = 250  # passes after these
MOST_SHAPES = 8  # that are recorded: fine-tuning has batches of many lengths
HELD_UP = 0.8  # Python takes more than this share of a pass to launch it: recording pays
ROUNDING = 0.05  # a replay's gradients may differ by this share of their norm


def recorded_passes(add_gradients, model, world):
    """`add_gradients(batch, share, more_to_come)`, replayed where that is possible: on one GPU."""
    if world.device.type != "cuda" or world.size > 1:
        return add_gradients
    return RecordedPasses(add_gradients, model)


class RecordedPasses:
    """`add_gradients`, recorded for each shape of batches that comes often.

    Only kernels and the tensors they work on are recorded. Python's numbers and branches are frozen
    at their present values, so whatever changes from pass to pass must be in a tensor of the batch,
    or be drawn by PyTorch, like dropout. Hence replays are compared with the model, time and again.
    """

    def __init__(self, add_gradients, model):
        self.add_gradients = add_gradients
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.gradients = {}  # weight -> its gradient, at a place that the recordings know
        self.passes = Counter()  # shape of a batch -> passes so far
        self.recordings = {}  # shape of a batch -> Recording
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
        if n <= PASSES_BEFORE + COMPARED_FIRST or n % COMPARED_EVERY == 0:
            return self.compare(recording, batch, share)
        return recording(batch, share)

    def hand_out_gradients(self):
        """Zeros in these places, where the optimizer has cleared the gradients."""
        cleared = [p for p in self.gradients if p.grad is None]
        if cleared:
            torch._foreach_zero_([self.gradients[p] for p in cleared])
        for p in cleared:
            p.grad = self.gradients[p]

    def record(self, shape, batch, share):
        """Make this pass as ever, and record it for the next ones if that is possible and pays."""
        chance = states_of_chance()
        with watched() as seen:
            loss = self.add_gradients(batch, share)
        self.gradients |= {p: p.grad for p in self.weights if p.grad is not None}
        if seen.waits:
            self.give_up("a pass waits for the GPU")
        elif chance != states_of_chance():
            self.give_up("a pass draws random numbers that are not the GPU's")
        elif not (seen.is_held_up and has_room_for_a_pass(self.gradients.values())):
            self.give_up()
        else:
            pool = next((other.graph.pool() for other in self.recordings.values()), None)
            try:
                self.recordings[shape] = Recording(self.add_gradients, batch, pool)
            except Exception as error:  # of any kind: it also works without
                self.give_up(type(error).__name__)
        return loss

    def compare(self, recording, batch, share):
        """Make a pass both ways; give up if they differ."""
        gradients = list(self.gradients.values())
        before = [gradient.clone() for gradient in gradients]
        their_loss = recording(batch, share).clone()
        theirs = [gradient.clone() for gradient in gradients]
        torch._foreach_copy_(gradients, before)
        torch.manual_seed(torch.initial_seed())  # the same dropout again
        loss = self.add_gradients(batch, share)
        torch._foreach_sub_(theirs, gradients)
        torch._foreach_sub_(before, gradients)
        wrong = torch.nn.utils.get_total_norm([loss - their_loss, *theirs])
        size = torch.nn.utils.get_total_norm([loss, *before])
        if size.isfinite() and not wrong <= ROUNDING * size:  # float16 overflows now and then
            self.give_up("a replay differs from the model")
        return loss

    def give_up(self, reason=None):
        """From now on every pass is the model's."""
        self.is_possible = False
        self.recordings.clear()
        self.gradients.clear()
        if reason:
            print(f"record: not possible here ({reason}); continuing without it")


class Recording:
    """One pass over batches of one shape, as a CUDA graph; its memory is shared by those of a pool.

    Its gradients are added to those that the weights have when it is made.
    """

    def __init__(self, add_gradients, batch, pool):
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        self.share = torch.ones((), device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()  # where the gradients are made, hence recordable
        with torch.cuda.graph(self.graph, pool, stream):
            self.loss = add_gradients(self.batch, self.share)

    def __call__(self, batch, share):
        """The pass's loss, which the next call overwrites."""
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        self.share.fill_(share)
        self.graph.replay()
        return self.loss


def states_of_chance():
    """The states of Python's, NumPy's and PyTorch's random numbers on the CPU."""
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


@contextmanager
def watched():
    """A context that finds out, until its end, what in it the GPU and Python wait for."""
    seen = SimpleNamespace()
    torch.cuda.synchronize()
    mode, begun = torch.cuda.get_sync_debug_mode(), time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    launched = time.perf_counter()
    torch.cuda.synchronize()
    ended = time.perf_counter()
    seen.waits = any("called a synchronizing" in str(warning.message) for warning in told)
    seen.is_held_up = launched - begun > HELD_UP * (ended - begun)


def has_room_for_a_pass(gradients):
    """Whether the GPU can keep what a pass needs for a recording, and as much for everything else.

    A comparison needs the gradients two more times.
    """
    allocated = torch.cuda.memory_allocated()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - allocated
    a_pass = torch.cuda.max_memory_allocated() - allocated
    return 2 * (a_pass + 2 * sum(gradient.nbytes for gradient in gradients)) <= free
