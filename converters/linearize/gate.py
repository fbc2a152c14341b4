"""What a turned model is measured by, which of its layers matter most, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graph import Node
from ...kernels.ops import CATALOGUE
from ..heal.loss import TwoPieces, losses
from ..heal.ranks import Ranks
from ..torch_graph import _rotated
from ..torch_linear import ROWS, block_weights, prepared
from .greedy import choices, continuations
from .options import Ids, Text, Verdict

KL, NATS = 0.05, 0.03  # nats a token: largest divergence, or largest rise of the own loss
AGREEMENT = 0.95  # of greedy tokens
FOUND = 0.9  # of the teacher's passkeys
SHARE = 0.15  # of the weights, behind the tail
PROMPTS, PROMPT = 200, 32  # continuations that are compared, tokens of their prompts and of them
TOGETHER = 8  # sequences that are computed at once
LOOKED = 4  # sequences that weights are looked at in


def divergence(
    student: TwoPieces, teacher: TwoPieces, held: Ids, ranks: Ranks, device: str
) -> tuple[float, float, float]:
    """KL, own loss and the teacher's own loss, nats a token, on sequences [n, T]."""
    total = torch.zeros(3, dtype=torch.float64, device=device)
    own_rows = held[ranks.slice]
    for start in range(0, len(own_rows), TOGETHER):
        some = torch.from_numpy(own_rows[start : start + TOGETHER]).long().to(device)
        total += losses(student, teacher, some)
    ranks.add_up([total])
    kl, own, source = total.tolist()
    predicted = held.size - len(held)
    return kl / held.size, own / predicted, source / predicted


def ranking(
    base: float, restored: Callable[[int], float], layers: tuple[int, ...]
) -> tuple[tuple[int, ...], Mapping[int, float]]:
    """Layers by how much lower KL is with their softmax alone restored, most first; and by how
    much. base: KL with none restored. restored: KL with that layer's."""
    gains = {layer: base - restored(layer) for layer in layers}
    return tuple(sorted(layers, key=lambda layer: (-gains[layer], layer))), gains


def agreement(student: TwoPieces, teacher: TwoPieces, held: Ids, device: str) -> float:
    """Share of the tokens of the teacher's greedy continuations that the student chooses too, each
    given what stands before."""
    size = min(PROMPT, held.shape[1])
    prompts = held.reshape(-1)[: held.size // size * size].reshape(-1, size)
    prompts = prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS]
    wanted = np.stack(continuations(teacher, list(prompts), size, device))
    tokens = torch.from_numpy(np.concatenate([prompts, wanted], axis=1)).long().to(device)
    parts = [choices(student, tokens[i : i + 64]) for i in range(0, len(tokens), 64)]
    own = torch.cat(parts)[:, size - 1 : -1]
    return float((own == tokens[:, size:]).double().mean())


def passkeys(pieces: TwoPieces, asked: tuple[tuple[Ids, Ids], ...], device: str) -> float:
    """Share of (prompt, answer) whose answer is continued greedily, token by token."""
    count = max(len(answer) for _, answer in asked)
    found = continuations(pieces, [prompt for prompt, _ in asked], count, device)
    right = [
        np.array_equal(made[: len(answer)], answer)
        for made, (_, answer) in zip(found, asked, strict=True)
    ]
    return float(np.mean(right))


@torch.no_grad()
def linear_share(student: TwoPieces, held: Ids, device: str) -> float:
    """Mean share of a query's weights, in turned layers, on tokens that a folded state holds: those
    before the last whole chunk and its own, for queries from 2 chunks on. 0 where none are."""
    found: list[float] = []

    def watch(node: Node, reads: tuple[Tensor, ...]) -> None:
        if node.op == "linear_attention":
            slots = {slot: student.body.weights[name] for slot, name in node.weights.items()}
            attrs = CATALOGUE[node.op].check_attrs(node.attrs)
            found.extend(_shares(reads, slots, attrs))

    for row in held[:LOOKED]:
        tokens = torch.from_numpy(row[None]).long().to(device)
        student.body.run({student.token_name: tokens}, watch=watch)
    return float(np.mean(found)) if found else 0.0


def _shares(
    reads: tuple[Tensor, ...], slots: Mapping[str, Tensor], attrs: Mapping[str, Any]
) -> list[float]:
    chunk = attrs["chunk"]
    turn = partial(_rotated, w=slots, attrs=attrs, positions=None)
    x = prepared(reads, slots, attrs, turn)
    found, length = [], x.q.shape[3]
    for start in range(0, length, ROWS):
        weights, window = block_weights(x, start, slots, attrs)
        t = torch.arange(start, weights.shape[-1], device=x.q.device)
        old = torch.arange(weights.shape[-1], device=x.q.device) < (t[:, None] // chunk - 1) * chunk
        whole = weights.sum(-1) + (0.0 if window is None else window.sum(-1))
        share = (weights * old).sum(-1) / whole.clamp(min=1e-30)
        late = share[..., t >= 2 * chunk]
        if late.numel():
            found.append(float(late.mean()))
    return found


def judged(
    student: TwoPieces, teacher: TwoPieces, text: Text, held: Ids, ranks: Ranks, device: str
) -> Verdict:
    """All that the gate looks at. held: sequences [n, T]."""
    kl, own, source = divergence(student, teacher, held, ranks, device)
    found = {
        share: (passkeys(student, asked, device), passkeys(teacher, asked, device))
        for share, asked in text.passkeys.items()
        if asked
    }
    same = agreement(student, teacher, held, device)
    share = linear_share(student, held, device)
    return verdict(Verdict(kl, own, source, same, share, found))


def verdict(told: Verdict) -> Verdict:
    """With what does not hold, in words."""
    failed = []
    if not (told.kl <= KL or told.nats - told.teacher_nats <= NATS):
        failed.append(
            f"KL {told.kl:.4f} nats a token and loss {told.nats - told.teacher_nats:+.4f}, "
            f"expected at most {KL} or {NATS:+}"
        )
    if not told.agreement >= AGREEMENT:
        failed.append(f"{told.agreement:.1%} of greedy tokens agree, expected {AGREEMENT:.0%}")
    for share, (own, source) in told.passkeys.items():
        if not own >= FOUND * source:
            failed.append(
                f"{own:.0%} of pass keys at {share:g} of the context, the original finds "
                f"{source:.0%}, expected {FOUND:.0%} of that"
            )
    if not told.linear_share >= SHARE:
        failed.append(
            f"{told.linear_share:.3f} of the weights lie behind the tail, expected {SHARE}"
        )
    return Verdict(
        told.kl, told.nats, told.teacher_nats, told.agreement, told.linear_share, told.passkeys,
        tuple(failed),
    )  # fmt: skip


def kept_counts(layers: int) -> list[int]:
    """How many layers keep softmax, attempt by attempt: none, an eighth, a quarter, a third."""
    return sorted({0, *(min(layers - 1, math.ceil(layers / part)) for part in (8, 4, 3))})
