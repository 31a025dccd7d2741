"""Record the kernels of a step that reads a token, and replay them without Python in between.

Most of these kernels finish sooner than Python can launch the next one.
"""

import warnings
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import nn

from support.fused_blocks import fused


def recorded_step(model, cache, T):
    """A RecordedStep of `model` reading T more tokens of each row, as the cache's device allows.

    Raises RuntimeError if that is not possible.
    """
    if not cache.lengths.is_cuda:
        return Trace(model, cache, T)
    with suppress(Exception):  # of any kind: it may be due to the kernels
        return CudaGraph(model, cache, T)
    return CudaGraph(model, cache, T, own_kernels=False)


class RecordedStep:
    """`model` reading T more tokens of each row, recorded once and then replayed.

    Only kernels and the tensors they work on are recorded. Python's numbers and branches are frozen
    at their present values, so whatever changes must be in a tensor, like the cache's lengths.
    Hence a replay is compared with the model, one token later than it was recorded, and with other
    tokens: what a mixture of experts does depends on them.
    """

    ROUNDING = 0.05  # a replay may differ from the model by this share, if it uses other kernels

    def __init__(self, model, cache, T):
        self.model, self.cache = model, cache
        self.tokens = cache.lengths.new_zeros(len(cache.lengths), T)  # (B, T)
        lengths = cache.lengths.clone()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a compiler's: the reader of a text can do nothing
                self.record()
            self.compare(lengths + 1)
        finally:
            cache.truncate(lengths)

    def step(self, tokens):
        return self.model(tokens, cache=self.cache)[0]  # (B, T, V)

    def compare(self, lengths):
        """Raise RuntimeError if a replay's logits differ from the model's."""
        V = self.model.config.vocab_size
        for token in (0, V // 3, V // 2, V - 1):
            tokens = torch.full_like(self.tokens, token)
            self.cache.truncate(lengths)
            expected = self.step(tokens)
            self.cache.truncate(lengths)
            if not (self(tokens) - expected).norm() <= self.ROUNDING * expected.norm():
                raise RuntimeError("a replay differs from the model")

    def __call__(self, tokens):
        """Logits (B, T, V) of what follows each of tokens (B, T); the next call overwrites them."""
        logits = self.replay(tokens)
        self.cache.longest += tokens.size(1)
        return logits


class CudaGraph(RecordedStep):
    """On a GPU: one launch for all kernels. Shapes are static: the cache returns all positions."""

    ROUNDING = 0.15  # in 16 bits: 32 layers with random weights are 3 % from float32

    def __init__(self, model, cache, T, own_kernels=True):
        self.own_kernels = own_kernels
        self.choice = None  # the RecordedChoice of the text that is being written
        super().__init__(model, cache, T)

    def record(self):
        """Record the step, with kernels of our own where the blocks have some."""
        cache, own = self.cache, self.own_kernels
        kernels = fused(self.model, self.tokens, cache.capacity) if own else nullcontext()
        cache.static, cache.in_step = True, False
        try:
            with kernels:
                self.capture()
        finally:
            cache.static = False
        # A graph knows only where the weights are.
        self.weights = [*map(torch.detach, self.model.parameters()), *self.model.buffers()]

    def capture(self):
        """Run the step a few times, so that all one-time setup is done; then capture it."""
        lengths, stream = self.cache.lengths.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step(self.tokens)
                self.cache.lengths.copy_(lengths)
                self.cache.longest -= self.tokens.size(1)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.step(self.tokens)

    def replay(self, tokens):
        torch.clamp(tokens, min=0, out=self.tokens)  # what is no token is told only later
        self.graph.replay()
        return self.logits

    def holds(self, logits):
        """Whether these (B, V) are the ones that the last replay wrote."""
        return logits.data_ptr() == self.logits.data_ptr()

    def chosen(self, choose, generator):
        """choose(logits) -> tokens (B, 1), for the logits (B, V) of the last replay."""
        if self.choice is None or self.choice.choose is not choose:
            self.choice = RecordedChoice(choose, self.logits[:, -1], generator)
        return self.choice()


class RecordedChoice:
    """How tokens are chosen from the logits of a CudaGraph, recorded too: one launch again.

    What changes from token to token must be in tensors, as in the graph itself. A choice that waits
    for the GPU is not recorded: it could not be.
    """

    def __init__(self, choose, logits, generator):
        self.choose, self.logits, self.generator = choose, logits, generator
        self.recordable = None  # not known yet
        self.graph = None

    def __call__(self):
        """Tokens (B, 1); the next call overwrites them."""
        if self.recordable is None:
            return self.first()
        if self.recordable and self.graph is None:
            self.record()
        if not self.recordable:
            return self.choose(self.logits)
        self.graph.replay()
        return self.tokens

    def first(self):
        """The tokens of the first call, in which PyTorch refuses to wait."""
        try:
            with sync_debug_mode("error"):
                tokens = self.choose(self.logits)
            self.recordable = True
        except RuntimeError:
            self.recordable = False
        return tokens if self.recordable else self.choose(self.logits)

    def record(self):
        self.graph = torch.cuda.CUDAGraph()
        if self.generator is not None:
            self.graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(self.graph):
                self.tokens = self.choose(self.logits)
        except Exception:  # of any kind: it also works without a recording
            self.recordable = False


@contextmanager
def sync_debug_mode(mode):
    """A context in which PyTorch reports what waits for the GPU, as a warning or an error."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may overlook some ways to wait
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Trace(RecordedStep):
    """On a CPU: a list of kernels (TorchScript) that runs without Python.

    PyTorch keeps 2 to 4 MB of each one until the program ends: reuse a Context rather than making
    many.
    """

    def record(self):
        # oneDNN multiplies matrices in 16 bits; the rest of a step is faster without it.
        self.needs_onednn = self.model.token_embedding.weight.dtype != torch.float32
        step = Traceable(self)
        self.trace = torch.jit.trace(step, self.tokens, check_trace=False)  # its sizes are frozen
        step.trace = None  # otherwise the two would keep each other alive

    def replay(self, tokens):
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = before and self.needs_onednn
        try:
            return self.trace(tokens)
        finally:
            torch.backends.mkldnn.enabled = before


class Traceable(nn.Module):
    """The step of a Trace, with every tensor registered by name, as tracing requires."""

    def __init__(self, trace):
        super().__init__()
        self.trace = trace
        model, cache = trace.model, trace.cache
        tensors = cache.keys, cache.values, cache.tokens, cache.lengths
        for i, tensor in enumerate((*tensors, *model.parameters(), *model.buffers())):
            self.register_buffer(f"tensor{i}", tensor)
        values = (value for module in model.modules() for value in vars(module).values())
        for i, packed in enumerate(v for v in values if isinstance(v, torch.ScriptObject)):
            setattr(self, f"packed{i}", packed)

    def forward(self, tokens):
        cache = self.trace.cache
        cache.longest = cache.lengths.max()  # a Python number would be frozen
        return self.trace.step(tokens)
