"""Distillation: learn not only the right answer, but how likely a larger model finds all others."""

import torch
from torch.nn import functional as F

from model import IGNORED
from support.checkpoint import load_model
from support.tokenizer import same_tokens


def taught_by(model, teacher, config):
    """Add the teacher's logits to the model's training loss, in place; returns the model.

    (1 - w) · cross-entropy + w · T² · KL(teacher || model), with both softened by the temperature T
    (Hinton et al., 2015, arXiv:1503.02531), over the targets that are not ignored.
    """
    plain, T, w = model.forward, config.teacher_temperature, config.teacher_weight
    teacher.requires_grad_(False)

    def forward(inputs, targets=None, cache=None, segments=None, at=None):
        if targets is None or not model.training:
            return plain(inputs, targets, cache, segments, at)
        counts = targets != IGNORED
        with torch.no_grad():
            soft, _ = teacher(inputs, segments=segments)
        logits, _ = plain(inputs, segments=segments)
        n = min(logits.size(-1), soft.size(-1))  # either vocabulary may be padded
        logits, soft = logits[counts].float(), soft[counts][:, :n].float()  # (N, V)
        n_targets = max(1, len(logits))
        smoothing = model.config.label_smoothing
        right = F.cross_entropy(logits, targets[counts], reduction="sum", label_smoothing=smoothing)
        distance = F.kl_div(
            (logits[:, :n] / T).log_softmax(dim=1),
            (soft / T).log_softmax(dim=1),
            reduction="sum",
            log_target=True,
        )
        return None, ((1 - w) * right + w * T**2 * distance) / n_targets

    model.forward = forward
    return model


def load_teacher(config, start, world):
    """Load the teacher; exits unless it has the same tokens or labels as the model."""
    teacher, tokenizer, checkpoint = load_model(config.teacher, world.device)
    known, needed = checkpoint.get("task", {}).get("labels", []), start.task.labels
    if list(needed) != list(known):
        raise SystemExit(
            f"teacher={config.teacher} has the labels {', '.join(known) or '(none)'}, these "
            f"examples have {', '.join(needed) or '(none)'}: fine-tune it on them first"
        )
    ours, same_end = start.metadata["tokenizer"], {"eot": 0}  # in a chat, `eot` ends a turn
    if tokenizer and not same_tokens(tokenizer.to_dict() | same_end, ours | same_end):
        raise SystemExit(f"teacher={config.teacher} has different tokens from the model's")
    if teacher.config.block_size < config.block_size:
        raise SystemExit(
            f"teacher={config.teacher} has a context of {teacher.config.block_size} tokens; "
            f"type --block_size={teacher.config.block_size}"
        )
    return teacher
