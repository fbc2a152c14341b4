"""Which rows the model sees at which step: a pure function of (seed, stage, step).

Nothing is consumed, so a resumed run reads exactly the rows an unbroken one would have read.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    text: float = 1.0  # weight of a token in the loss, where no answer stands
    answer: float = 1.0  # weight of a token of an answer; needs a mask where it differs


PRETRAIN = (
    Share("wikipedia", 0.48),
    Share("novels", 0.26),
    Share("fairytales", 0.012),
    Share("storybooks", 0.006),
    Share("stories", 0.01),
    Share("tasks", 0.02),
    Share("questions", 0.012),
    Share("everyday", 0.02),
    Share("reasoning", 0.09, text=0.5),
    Share("gsm8k", 0.02),
    Share("recall", 0.07, text=0.5, answer=8.0),
)
CHAT = (
    Share("everyday", 0.23, text=0.0),
    Share("questions", 0.04, text=0.0),
    Share("tasks", 0.03, text=0.0),
    Share("reasoning", 0.27, text=0.0),
    Share("gsm8k", 0.07, text=0.0),
    Share("recall", 0.10, text=0.0, answer=4.0),
    Share("wikipedia", 0.16),
    Share("novels", 0.10),
)


@dataclass(frozen=True)
class Batch:
    """tokens and targets int64 [B, T]; weights float32 [B, T], 0 where no loss is wanted."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor

    def pieces(self, rows: int | None) -> Iterator[Batch]:
        """The batch, `rows` rows at a time (None: all at once)."""
        step = rows or len(self.tokens)
        for i in range(0, len(self.tokens), step):
            some = slice(i, i + step)
            yield Batch(self.tokens[some], self.targets[some], self.weights[some])


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


def _weights(part: Part, share: Share, index: Tensor) -> Tensor:
    """Weights in the loss of the tokens at `index`, float32 of its shape."""
    if share.text == share.answer:
        return torch.full(index.shape, share.text, device=index.device)
    if part.mask is None:
        raise ValueError(f"part {share.part} has no mask, so its answers cannot weigh differently")
    return share.text + (share.answer - share.text) * part.mask[index].float()


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
            weights.append(_weights(part, share, index[:, 1:]))
        tokens = torch.cat(rows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.cat(weights))
