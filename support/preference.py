"""Learn from pairs of answers which one is better: direct preference optimisation, DPO.

An answer's reward is how much likelier the model finds it than the base, the model before this
training, did. The better answer of a pair shall have the higher reward (arXiv:2305.18290):

    reward = beta · (log p(answer) - log p_base(answer))
    loss = -log sigmoid(reward of the better one - reward of the worse one)

So the model need not find the better answer likely, only likelier than before, in comparison. beta
holds it to the base: the larger, the less it may change for the same loss. Half of label_smoothing
is the probability that a pair is the wrong way round.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from model import IGNORED

SHORTEST_PROMPT = 16  # tokens of a prompt that a long answer leaves in a context of at least 32


class Pair(NamedTuple):
    """The tokens of a prompt and of two answers to it; of the line `key` of the examples."""

    prompt: list
    better: list
    worse: list
    key: str

    @property
    def rows(self):
        """What the model reads: the prompt with each of the answers."""
        return self.prompt + self.better, self.prompt + self.worse

    @property
    def inputs(self):
        """The inputs of the longer row."""
        return max(self.rows, key=len)[:-1]

    @property
    def targets(self):
        """The one that there is: that the first is the better one. None if both are the same."""
        return [0 if self.better != self.worse else IGNORED]

    def end(self, size):
        """The same for at most `size` inputs: the end of the prompt, and the beginning of answers
        that leave no room for one.
        """
        kept = max(1, min(len(self.prompt), SHORTEST_PROMPT, size // 2))
        better, worse = self.better[: size + 1 - kept], self.worse[: size + 1 - kept]
        room = size + 1 - max(len(better), len(worse))
        return Pair(self.prompt[-room:], better, worse, self.key)


def batch_of_pairs(pairs, of_base):
    """What `model(**batch)` takes once it is `preferring`: two rows for each of the B pairs.

    inputs (2 B, T); answers (2 B, n), their tokens, which follow the inputs `at` (2 B, n); of_base
    (B, 2), their log-probabilities there, {key: …}; targets (B): the first of each pair.
    """
    rows = [row for pair in pairs for row in pair.rows]
    lengths = [len(answer) for pair in pairs for answer in (pair.better, pair.worse)]
    inputs = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.long)
    at = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    answers = torch.full_like(at, IGNORED)
    for i, (row, n) in enumerate(zip(rows, lengths)):
        inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
        at[i, :n] = torch.arange(len(row) - 1 - n, len(row) - 1)
        answers[i, :n] = torch.tensor(row[-n:])
    return {
        "inputs": inputs,
        "answers": answers,
        "at": at,
        "of_base": torch.tensor([of_base[pair.key] for pair in pairs]),
        "targets": torch.zeros(len(pairs), dtype=torch.long),
    }


def row_of(batch, i):
    """{"inputs", "targets"} (1, T), as in other batches, of row `i` of a batch of pairs."""
    is_answer = batch["answers"][i] != IGNORED
    at, tokens = batch["at"][i][is_answer], batch["answers"][i][is_answer]
    inputs = batch["inputs"][i, : at[-1] + 1]
    targets = torch.full_like(inputs, IGNORED)
    targets[at] = tokens
    return {"inputs": inputs[None], "targets": targets[None]}


def preferring(model, beta):
    """Let the model also compute, of a batch of pairs, (rewards (B, 2), the loss), in place."""
    plain = model.forward

    def forward(
        inputs, targets=None, cache=None, segments=None, at=None, answers=None, of_base=None
    ):
        if answers is None:
            return plain(inputs, targets, cache, segments, at)
        logits, _ = plain(inputs, at=at)  # (2 B, n, V)
        log_p = -F.cross_entropy(
            logits.flatten(0, 1).float(), answers.flatten(), ignore_index=IGNORED, reduction="none"
        )
        rewards = beta * (log_p.view_as(answers).sum(dim=1).view(-1, 2) - of_base)
        smoothing = model.config.label_smoothing if model.training else 0.0
        return rewards, F.cross_entropy(rewards, targets, label_smoothing=smoothing)

    model.forward = forward
