"""All that is done for a token, without Python between one kernel and the next.

Most of these kernels end sooner than Python can start another one.
"""

import warnings

import torch
from torch import nn

ROUNDING = 0.05  # a replay may differ from the model by this share, where it takes other kernels


def recorded_step(model, cache, T):
    """`model` reading T more tokens of each row, recorded as the cache's device can: RecordedStep.

    Raises RuntimeError where that is not possible.
    """
    return (CudaGraph if cache.lengths.is_cuda else Trace)(model, cache, T)


class RecordedStep:
    """`model` reading T more tokens of each row, recorded once and then replayed.

    What is recorded are kernels and the tensors that they work on, nothing of Python, whose numbers
    and decisions stay as they are now: whatever changes must be in a tensor, as the cache's lengths
    are. So a replay is compared with the model, one token later than it was recorded, and with
    other tokens: what a mixture of experts does depends on them.
    """

    def __init__(self, model, cache, T):
        self.model, self.cache = model, cache
        self.tokens = cache.lengths.new_zeros(len(cache.lengths), T)  # (B, T)
        lengths = cache.lengths.clone()
        try:
            self.record()
            self.compare(lengths + 1)
        finally:
            cache.truncate(lengths)

    def step(self, tokens):
        return self.model(tokens, cache=self.cache)[0]  # (B, T, V)

    def compare(self, lengths):
        """Raise RuntimeError where a replay says something else than the model."""
        rows = self.model.config.vocab_size
        for token in (0, rows // 3, rows // 2, rows - 1):
            tokens = torch.full_like(self.tokens, token)
            self.cache.truncate(lengths)
            expected = self.step(tokens)
            self.cache.truncate(lengths)
            if not (self(tokens) - expected).norm() <= ROUNDING * expected.norm():
                raise RuntimeError("a replay says something else than the model")

    def __call__(self, tokens):
        """What may follow each of tokens (B, T): logits (B, T, V), overwritten by the next."""
        logits = self.replay(tokens)
        self.cache.longest += tokens.size(1)
        return logits


class CudaGraph(RecordedStep):
    """On a GPU: one launch for all. Shapes stay as they are: the cache hands out all positions."""

    def record(self):
        """Run the step a few times, so that all that is made once is there; then record it."""
        cache, lengths = self.cache, self.cache.lengths.clone()
        cache.static, cache.in_step = True, False
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self.step(self.tokens)
                    cache.lengths.copy_(lengths)
                    cache.longest -= self.tokens.size(1)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self.step(self.tokens)
        finally:
            cache.static = False

    def replay(self, tokens):
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits


class Trace(RecordedStep):
    """On a CPU: a list of kernels (TorchScript), which no Python goes through.

    PyTorch keeps 2 to 4 MB of each one as long as the program runs: go on with a Context, rather
    than make many.
    """

    def record(self):
        # oneDNN multiplies matrices in 16 bits; the rest of a step is faster without it.
        self.needs_onednn = self.model.token_embedding.weight.dtype != torch.float32
        step = Traceable(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to be removed one day; that sizes stay is meant
            self.trace = torch.jit.trace(step, self.tokens, check_trace=False)
        step.trace = None  # else the two would keep each other in memory

    def replay(self, tokens):
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = before and self.needs_onednn
        try:
            return self.trace(tokens)
        finally:
            torch.backends.mkldnn.enabled = before


class Traceable(nn.Module):
    """The step of a Trace, with all tensors under a name, as tracing wants it."""

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
        cache.longest = cache.lengths.max()  # a number would stay what it is now
        return self.trace.step(tokens)
