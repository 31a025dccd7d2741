"""Muon: momentum whose every matrix is made orthogonal before it becomes a step.

The gradient of a matrix is dominated by a few directions. Muon keeps the directions and gives them
all the same length: rare ones count as much as common ones (Keller Jordan, 2024,
https://kellerjordan.github.io/posts/muon/). It is for the inner matrices of a model; embeddings,
heads and vectors go to AdamW.
"""

from collections import defaultdict

import torch

# Of x -> a x + b x³ + c x⁵, which drives every x in (0, 1] to about 1 when it is done five times.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
REPETITIONS = 5


def orthogonalized(matrices):
    """The nearest matrices with orthonormal rows, about, in bfloat16: (N, rows, columns ≥ rows).

    A polynomial of odd powers of a matrix acts on its singular values alone: no decomposition is
    needed, only products, which for equal shapes are made all at once.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(REPETITIONS):
        gram = x @ x.mT
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b x xᵀ + c (x xᵀ)²
        x = torch.baddbmm(x, powers, x, beta=a)
    return x


def wide(matrix):
    """The matrix, lying on its side if it is higher than wide."""
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix


class Muon(torch.optim.Optimizer):
    """What `torch.optim.Muon` does, with matrices of one shape stacked: a tenth of the calls.

    A matrix's rate grows with √(rows / columns) where it is higher than wide: the step then changes
    its outputs as much as a square matrix's would.
    """

    def __init__(self, params, lr=0.02, weight_decay=0.0, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[wide(p).shape].append(p)
            for params in alike.values():
                self.step_together(params, group["lr"], group["weight_decay"], group["momentum"])

    def step_together(self, params, lr, weight_decay, momentum):
        """One step of matrices that have the same shape, some perhaps on their side."""
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients = [p.grad for p in params]
        memories = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(memories, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, memories, momentum)  # Nesterov's look ahead
        steps = orthogonalized(torch.stack([wide(matrix).bfloat16() for matrix in ahead]))
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        for p, step in zip(params, steps, strict=True):
            rows, columns = p.shape
            upright = step.mT if rows > columns else step
            p.add_(upright, alpha=-lr * max(1, rows / columns) ** 0.5)
