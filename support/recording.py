"""One launch for all that a GPU does for a token.

Most of its kernels are done sooner than Python can launch the next one.
"""

import torch


class RecordedStep:
    """`model` reading one more token of each row, recorded as a CUDA graph and replayed.

    What is recorded are kernels and the memory that they work on, nothing of Python: shapes must
    stay as they are, so the cache hands out all its room each time, and every number that changes
    must lie on the device, as the cache's lengths do.
    """

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.tokens = torch.zeros_like(cache.lengths)[:, None]  # (B, 1)
        lengths = cache.lengths.clone()
        cache.static, cache.in_step = True, False
        try:
            self.record(lengths)
        finally:
            cache.static = False
            cache.truncate(lengths)

    def record(self, lengths):
        """Run the step a few times, so that all that is made once is there; then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step()
                self.cache.lengths.copy_(lengths)
                self.cache.longest -= 1
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self.step()
        self.replay = graph.replay

    def step(self):
        return self.model(self.tokens, cache=self.cache)[0][:, -1]  # (B, V)

    def __call__(self, tokens):
        """What may follow tokens (B, 1): logits (B, V), which the next call overwrites."""
        self.tokens.copy_(tokens)
        self.replay()
        self.cache.longest += 1
        return self.logits
