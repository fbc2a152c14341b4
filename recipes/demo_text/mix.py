"""Which rows the model sees at which step: a pure function of (seed, stage, step).

Nothing is consumed, so a resumed run reads exactly the rows an unbroken one would have read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A part of the prepared corpus and its share of the rows of a stage."""

    part: str
    share: float
    answers_only: bool = False  # loss on answers only; needs a mask


PRETRAIN = (
    Share("wikipedia", 0.605),
    Share("novels", 0.325),
    Share("fairytales", 0.015),
    Share("storybooks", 0.008),
    Share("stories", 0.012),
    Share("tasks", 0.02),
    Share("everyday", 0.015),
)
CHAT = (
    Share("everyday", 0.56, answers_only=True),
    Share("questions", 0.10, answers_only=True),
    Share("tasks", 0.06, answers_only=True),
    Share("wikipedia", 0.18),
    Share("novels", 0.10),
)


@dataclass(frozen=True)
class Batch:
    """tokens and targets int64 [B, T]; weights float32 [B, T], 0 where no loss is wanted."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor


class Part:
    """One part of the corpus on the device: tokens int32 [n], for dialogues also mask uint8 [n].

    Plain text is cut into rows of T tokens at an offset that changes every epoch; dialogue rows
    begin where a dialogue begins, as they do in use.
    """

    def __init__(
        self, folder: Path, name: str, context: int, seed: int, device: torch.device
    ) -> None:
        raw = np.load(folder / f"{name}.tokens.npy")
        if len(raw) < 2 * context:
            raise ValueError(f"part {name} has {len(raw)} tokens; needs at least {2 * context}")
        self.tokens = torch.from_numpy(raw.astype(np.int32)).to(device)
        self.context, self.name, self.seed = context, name, seed
        mask = folder / f"{name}.mask.npy"
        self.mask = torch.from_numpy(np.load(mask)).to(device) if mask.exists() else None
        starts = np.load(folder / f"{name}.starts.npy")
        self.starts = starts[starts + context + 1 <= len(raw)] if self.mask is not None else None
        self.rows = len(raw) // context - 1 if self.starts is None else len(self.starts)
        self._epoch = lru_cache(maxsize=2)(self._epoch_starts)

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        """First token of every row of an epoch, shuffled; int64 [rows]."""
        rng = np.random.default_rng([self.seed, epoch, *self.name.encode()])
        order = rng.permutation(self.rows)
        if self.starts is not None:
            return self.starts[order]
        return order * self.context + int(rng.integers(self.context))

    def row_starts(self, begin: int, end: int) -> np.ndarray:
        """Starts of rows number `begin` to `end` (exclusive) of the endless shuffled sequence."""
        index = np.arange(begin, end)
        epochs = index // self.rows
        pieces = [self._epoch(e)[index[epochs == e] % self.rows] for e in np.unique(epochs)]
        return np.concatenate(pieces) if pieces else index


class Mixer:
    """Batches of a stage."""

    def __init__(
        self,
        folder: Path,
        shares: tuple[Share, ...],
        *,
        rows: int,
        context: int,
        seed: int,
        device: torch.device,
    ) -> None:
        total = sum(s.share for s in shares)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"shares add up to {total}, expected 1")
        self.shares, self.rows = shares, rows
        self.parts = [Part(folder, s.part, context, seed, device) for s in shares]
        self.window = torch.arange(context + 1, device=device)
        self.device = device

    def counts(self, step: int) -> list[tuple[int, int]]:
        """Per part, the row numbers [begin, end) of this step; the first part takes the rest."""
        before, after = step * self.rows, (step + 1) * self.rows
        rest = [(int(s.share * before), int(s.share * after)) for s in self.shares[1:]]
        return [(before - sum(b for b, _ in rest), after - sum(e for _, e in rest)), *rest]

    def batch(self, step: int) -> Batch:
        """The batch of a step of this stage."""
        rows, weights = [], []
        for part, share, (begin, end) in zip(
            self.parts, self.shares, self.counts(step), strict=True
        ):
            if begin == end:
                continue
            starts = torch.from_numpy(part.row_starts(begin, end)).to(
                self.device, non_blocking=True
            )
            index = starts[:, None] + self.window  # [rows of part, T + 1]
            rows.append(part.tokens[index].long())
            if share.answers_only and part.mask is None:
                raise ValueError(
                    f"part {share.part} has no mask, so it cannot be learnt on answers only"
                )
            weights.append(
                part.mask[index[:, 1:]].float()
                if share.answers_only and part.mask is not None
                else torch.ones(index[:, 1:].shape, device=self.device)
            )
        tokens = torch.cat(rows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.cat(weights))
