"""The optimizers: AdamW for most weights, Muon for the inner matrices of a model.

They have the interface of PyTorch's, which can replace them in `make_optimizers` of train.py.
These start a second sooner, since PyTorch's import its compiler, and Muon makes far fewer calls.
"""

from collections import defaultdict

import torch

from support.processes import pick_dtype


class Optimizer:
    """The base class: groups of parameters, each with its learning rate, and their state."""

    def __init__(self, groups, **settings):
        self.param_groups = [settings | group for group in groups]
        self.state = defaultdict(dict)  # parameter -> {name: tensor}

    def zero_grad(self):
        """Set all gradients to None."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self):
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.change(params, group)


class AdamW(Optimizer):
    """Adam with decoupled weight decay: a step size per weight (arXiv:1412.6980, 1711.05101).

        m = beta1 m + (1 - beta1) g              moving average of the gradient
        v = beta2 v + (1 - beta2) g²             moving average of its square
        w = w - lr decay w - lr m' / (√v' + eps)

    where m' and v' correct for the start at 0: m' = m / (1 - beta1^t) after t steps. PyTorch does
    the arithmetic, fused into one pass over memory.
    """

    def __init__(self, groups, betas=(0.9, 0.95), eps=1e-8):
        super().__init__(groups, betas=betas, eps=eps)

    def change(self, params, group):
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


# Newton-Schulz iteration: x -> a x + b x³ + c x⁵ takes x in (0.002, 1] to about 1 in five steps.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
REPETITIONS = 5


def newton_schulz(matrices):
    """Approximately the nearest matrices with orthonormal rows: (N, rows, columns ≥ rows).

    The Newton-Schulz iteration applies an odd polynomial, which acts on a matrix's singular values
    alone: it needs no decomposition, only products, batched for matrices of equal shape. Half
    precision is enough for them, where the machine multiplies it fast.
    """
    a, b, c = COEFFICIENTS
    norms = matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = (matrices / norms).to(pick_dtype("auto", matrices.device))  # no singular value is above 1
    for _ in range(REPETITIONS):
        gram = x @ x.mT
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b x xᵀ + c (x xᵀ)²
        x = torch.baddbmm(x, powers, x, beta=a)
    return x


def wide(matrix):
    """The matrix, transposed if it is taller than wide."""
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix


class Muon(Optimizer):
    """SGD with momentum that orthogonalises each matrix's step by a Newton-Schulz iteration.

    The gradient of a matrix is dominated by a few directions. Muon keeps the directions and gives
    them all the same length: rare ones count as much as common ones (Keller Jordan, 2024,
    https://kellerjordan.github.io/posts/muon/). It is for the inner matrices of a model;
    embeddings, heads and vectors use AdamW.

    The learning rate of a matrix taller than wide is scaled by √(rows / columns): its step then
    changes its outputs as much as a square matrix's would. Only two things differ from
    `torch.optim.Muon`: matrices of one shape are stacked, and the precision of their products.
    """

    def __init__(self, groups, momentum=0.95):
        super().__init__(groups, momentum=momentum)

    def change(self, params, group):
        by_shape = defaultdict(list)
        for p in params:
            by_shape[wide(p).shape].append(p)
        for stack in by_shape.values():
            self.change_together(stack, group["lr"], group["weight_decay"], group["momentum"])

    def change_together(self, params, lr, weight_decay, momentum):
        """One step of matrices that have the same shape, some perhaps transposed."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        gradients = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov momentum
        steps = newton_schulz(torch.stack([wide(matrix) for matrix in updates]))
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        for p, step in zip(params, steps, strict=True):
            rows, columns = p.shape
            upright = step.mT if rows > columns else step
            p.add_(upright, alpha=-lr * max(1, rows / columns) ** 0.5)
