"""Mixed precision: which of its candidates each tensor gets, so that all fit in a byte budget and
lose as little as possible together.

    chosen = choose({"l0.qkv": [Candidate("int3-g64", 100, 0.2), Candidate("int4-g32", 140, 0.1)]},
                    budget=120)          # {"l0.qkv": Candidate("int3-g64", 100, 0.2)}

The multiple-choice knapsack problem. First by Lagrange multipliers: of each tensor only the lower
convex hull of (bytes, loss) counts, and steps along the hulls are taken by loss saved a byte while
they fit. Then repair with what the budget still holds: single changes and exchanges of two
tensors, candidates inside the hulls included, as long as one lowers the loss. The same candidates
in the same order give the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ...errors import ConvertError

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
