"""Stage 2: the logits of the whole, towards the teacher's, with all weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..heal.loss import TwoPieces, differentiate
from .options import Ids
from .training import CLIP, Keeper, Leaves, Stage, Trainer, adamw, warm_cosine
from .window import Left

WARM = 100  # steps
LEAST = 0.1  # of the peak rate, at the end
ELSEWHERE = 0.1  # of the rate, for weights outside of the turned layers' attention


def distil(
    student: TwoPieces, teacher: TwoPieces, leaves: Leaves, attention: set[str], ids: Ids,
    stage: Stage, keeper: Keeper, device: str, *, rate: float, next_token: float, bar: bool,
    left: Left,
) -> Trainer:  # fmt: skip
    """Train the leaves. attention: names of those that take the whole rate. left: windows that a
    step does without."""
    groups: list[dict[str, Any]] = [
        {"params": [leaf for name, leaf in leaves.items() if (name in attention) == whole]}
        for whole in (True, False)
    ]
    optimizer = adamw(groups, device)
    trainer = Trainer(stage, ids, leaves, optimizer, keeper, device, bar=bar)
    student.forget(set(leaves))

    def rates(progress: float, step: int) -> None:
        left.at(progress, step)
        now = rate * warm_cosine(progress, step, WARM, LEAST)
        for group, share in zip(optimizer.param_groups, (1.0, ELSEWHERE), strict=True):
            group["lr"] = now * share

    def step(tokens: Tensor, scale: float) -> Tensor:
        return differentiate(student, leaves, teacher, tokens, scale, next_token=next_token)

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(leaves.values(), CLIP)

    trainer.run(step, rates, clip)
    return trainer
