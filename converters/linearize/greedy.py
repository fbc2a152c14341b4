"""Greedy continuations on torch, by whole sequences: slow and plain, for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..heal.loss import TwoPieces
from .options import Ids

TOKENS = 1 << 16  # tokens that are computed at once


@torch.no_grad()
def choices(pieces: TwoPieces, tokens: Tensor) -> Tensor:
    """The likeliest next token behind every place of tokens int [B, T]: int [B, T]."""
    rows, found = pieces.hidden(tokens), []
    size = max(1, (1 << 26) // (4 * pieces.vocabulary * len(tokens)))
    for start in range(0, tokens.shape[1], size):
        some = torch.arange(start, min(start + size, tokens.shape[1]), device=tokens.device)
        found.append(pieces.odds(rows, some).argmax(-1))
    return torch.cat(found, dim=1)


@torch.no_grad()
def continuations(
    pieces: TwoPieces, prompts: Sequence[Ids], count: int, device: str, *, ends: Sequence[int] = ()
) -> list[Ids]:
    """`count` tokens behind each prompt, or fewer where one of `ends` is among them (it is left
    out). Prompts of like length are computed together, padded behind."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Ids] = {}
    while order:
        longest = len(prompts[order[-1]]) + count
        some, order = order[-max(1, TOKENS // longest) :], order[: -max(1, TOKENS // longest)]
        lengths = torch.tensor([len(prompts[i]) for i in some], device=device)
        tokens = torch.zeros((len(some), int(lengths.max()) + count), dtype=torch.long)
        for row, i in enumerate(some):
            tokens[row, : len(prompts[i])] = torch.from_numpy(prompts[i]).long()
        made = _continued(pieces, tokens.to(device), lengths, count).cpu().numpy()
        for row, i in enumerate(some):
            stops = np.flatnonzero(np.isin(made[row], list(ends)))
            found[i] = made[row, : stops[0] if len(stops) else count].astype(np.int32)
    return [found[i] for i in range(len(prompts))]


def _continued(pieces: TwoPieces, tokens: Tensor, lengths: Tensor, count: int) -> Tensor:
    """New tokens [B, count] of padded tokens [B, T + count]."""
    each = torch.arange(len(tokens), device=tokens.device)
    first = torch.zeros(1, dtype=torch.long, device=tokens.device)
    for step in range(count):
        behind = lengths + step
        rows = pieces.hidden(tokens[:, : int(behind.max())])[each, behind - 1][:, None]
        tokens[each, behind] = pieces.odds(rows, first)[:, 0].argmax(-1)
    return torch.stack([tokens[each, lengths + step] for step in range(count)], dim=1)
