"""Mixed precision: which of its candidates each tensor gets, so that all fit in a byte budget and
lose as little as possible together.

    chosen = choose({"l0.qkv": [Candidate("int3-g64", 100, 0.2), Candidate("int4-g32", 140, 0.1)]},
                    budget=120)          # {"l0.qkv": Candidate("int3-g64", 100, 0.2)}

The multiple-choice knapsack problem, in three passes that each begin with what the last one found:

1. Lagrange multipliers: of each tensor only the lower convex hull of (bytes, loss) counts, and
   steps along the hulls are taken by loss saved a byte while they fit.
2. Repair: with what the budget still holds, single changes and exchanges of two tensors, candidates
   inside the hulls included, as long as one lowers the loss.
3. Proof: all choices, tensor by tensor, without those that others beat in bytes and loss, and those
   which the hulls of the remaining tensors cannot make better than what is known. It ends with the
   best of all choices, or is given up at STATES choices at a time: with hundreds of tensors, where
   the second pass is next to the best.

The same candidates give the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError

STATES = 20000
EPSILON = 1e-12  # of the loss: what counts as lower


class Candidate(NamedTuple):
    """A way to store a tensor. loss: measured, and added up over tensors."""

    encoding: str
    nbytes: int
    loss: float


class _Move(NamedTuple):
    """Of one tensor to another candidate: what it costs and what it loses more."""

    nbytes: int
    loss: float
    tensor: int
    to: int


def choose(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> dict[str, Candidate]:
    """The candidate of each tensor. Raises ConvertError where even the smallest do not fit, for
    tensors without candidates and losses that are no numbers."""
    tables = [_checked(name, rows) for name, rows in candidates.items()]
    least = sum(rows[0].nbytes for rows in tables)
    if least > budget:
        raise ConvertError(
            f"the smallest candidates of {len(tables)} tensors take {least} bytes together, "
            f"expected at most {budget}",
            code="budget",
            hint="allow more bytes, or offer encodings with fewer bits",
        )
    chosen, spare = _by_hulls(tables, budget - least)
    _repair(tables, chosen, spare)
    chosen = _proved(tables, chosen, budget)
    return {name: tables[i][chosen[i]] for i, name in enumerate(candidates)}


def _checked(name: str, rows: Sequence[Candidate]) -> list[Candidate]:
    """Candidates by bytes, without those that another one beats in bytes and loss."""
    for row in rows:
        if not math.isfinite(row.loss) or row.nbytes < 0:
            raise ConvertError(
                f"candidate {row.encoding!r} of {name!r} has {row.nbytes} bytes and the loss "
                f"{row.loss}, expected numbers",
                code="candidates",
            )
    kept: list[Candidate] = []
    for row in sorted(rows, key=lambda row: (row.nbytes, row.loss, row.encoding)):
        if not kept or row.loss < kept[-1].loss:
            kept.append(row)
    if not kept:
        raise ConvertError(f"tensor {name!r} has no candidates", code="candidates")
    return kept


def hull(rows: Sequence[Candidate]) -> list[int]:
    """Places of the candidates on the lower convex hull, of rows by rising bytes and falling
    loss."""
    kept: list[int] = []
    for i, row in enumerate(rows):
        while len(kept) > 1:
            a, b = rows[kept[-2]], rows[kept[-1]]
            if (a.loss - b.loss) * (row.nbytes - b.nbytes) > (b.loss - row.loss) * (
                b.nbytes - a.nbytes
            ):
                break
            kept.pop()
        kept.append(i)
    return kept


def _by_hulls(tables: Sequence[Sequence[Candidate]], spare: int) -> tuple[list[int], int]:
    """Steps along the hulls by loss saved a byte; a step that does not fit ends its tensor's."""
    steps = []
    for i, rows in enumerate(tables):
        corners = hull(rows)
        for order, (a, b) in enumerate(pairwise(corners)):
            cost = rows[b].nbytes - rows[a].nbytes
            rate = (rows[a].loss - rows[b].loss) / cost
            steps.append((-rate, i, order, cost, b))
    chosen, ended = [0] * len(tables), set[int]()
    for _, i, _, cost, to in sorted(steps):
        if i in ended or cost > spare:
            ended.add(i)
            continue
        chosen[i], spare = to, spare - cost
    return chosen, spare


def _repair(tables: Sequence[Sequence[Candidate]], chosen: list[int], spare: int) -> None:
    """Single moves and exchanges of two tensors, the best first, until none lowers the loss."""
    while True:
        moves = _moves(tables, chosen)
        total = sum(rows[at].loss for rows, at in zip(tables, chosen, strict=True))
        best = _best(moves, spare)
        if not best or sum(move.loss for move in best) >= -EPSILON * abs(total):
            return
        for move in best:
            chosen[move.tensor] = move.to
            spare -= move.nbytes


def _moves(tables: Sequence[Sequence[Candidate]], chosen: Sequence[int]) -> list[_Move]:
    """Every move of one tensor, by bytes."""
    found = []
    for i, rows in enumerate(tables):
        now = rows[chosen[i]]
        for to, row in enumerate(rows):
            if to != chosen[i]:
                found.append(_Move(row.nbytes - now.nbytes, row.loss - now.loss, i, to))
    return sorted(found)


def _best(moves: Sequence[_Move], spare: int) -> tuple[_Move, ...]:
    """The one or two moves, of different tensors, that fit and lower the loss most.

    Of moves up to a size the best two of different tensors are enough: one of them is not the
    other move's tensor. So partners are looked up as the freed bytes grow.
    """
    best: tuple[_Move, ...] = ()
    least = 0.0
    tops: list[_Move] = []  # the best of the moves so far, and the best of another tensor
    at = 0
    for first in sorted(moves, key=lambda move: -move.nbytes):
        while at < len(moves) and moves[at].nbytes <= spare - first.nbytes:
            tops = _two_best([*tops, moves[at]])
            at += 1
        pairs = [(first, top) for top in tops if top.tensor != first.tensor]
        alone = [(first,)] if first.nbytes <= spare else []
        for found in [*alone, *pairs]:
            lost = sum(move.loss for move in found)
            if lost < least:
                best, least = found, lost
    return best


def _two_best(moves: Sequence[_Move]) -> list[_Move]:
    ranked = sorted(moves, key=lambda move: (move.loss, move.nbytes, move.tensor, move.to))
    others = [move for move in ranked[1:] if move.tensor != ranked[0].tensor]
    return [ranked[0], *others[:1]]


def _proved(tables: Sequence[Sequence[Candidate]], chosen: list[int], budget: int) -> list[int]:
    """The best choice of all; `chosen` where nothing is better, or where there are too many."""
    known = sum(rows[at].loss for rows, at in zip(tables, chosen, strict=True))
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for i, rows in enumerate(tables):
        size = (sizes[:, None] + np.array([row.nbytes for row in rows])).reshape(-1)
        lost = (losses[:, None] + np.array([row.loss for row in rows])).reshape(-1)
        hopeful = lost + _bound(tables[i + 1 :], budget - size) < known * (1 - EPSILON)
        kept = np.flatnonzero(hopeful)
        kept = kept[np.lexsort((lost[kept], size[kept]))]
        if len(kept):
            before = np.minimum.accumulate(np.concatenate([[np.inf], lost[kept][:-1]]))
            kept = kept[lost[kept] < before]
        if not 0 < len(kept) <= STATES:
            return chosen
        trail.append((kept // len(rows), kept % len(rows)))
        sizes, losses = size[kept], lost[kept]
    at, found = int(np.argmin(losses)), []
    for parents, picks in reversed(trail):
        found.append(int(picks[at]))
        at = int(parents[at])
    return found[::-1]


def _bound(tables: Sequence[Sequence[Candidate]], spare: NDArray[np.int64]) -> NDArray[np.float64]:
    """The least loss of tensors in each of some budgets, if they could be anywhere on their hulls;
    infinite where they do not fit."""
    least, most, steps = 0, 0.0, []
    for rows in tables:
        least, most = least + rows[0].nbytes, most + rows[0].loss
        for a, b in pairwise(hull(rows)):
            cost, saved = rows[b].nbytes - rows[a].nbytes, rows[a].loss - rows[b].loss
            steps.append((-saved / cost, cost, saved))
    steps.sort()
    places = least + np.cumsum([0, *(cost for _, cost, _ in steps)])
    values = most - np.cumsum([0.0, *(saved for _, _, saved in steps)])
    return np.where(spare >= least, np.interp(spare, places, values), np.inf)
