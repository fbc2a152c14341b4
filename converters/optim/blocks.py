"""How parameters become tiles and tiles become stacks (DASH, arXiv 2602.02016).

A matrix is cut into at most four regions, each a grid of equal tiles. Tiles of one shape, from all
parameters, share one stack `[n, r, c]`; the left and right factors of one side `k` share one stack
`[m, k, k]`, so that one batched solver call serves them all. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """`nr * nc` tiles of shape `(r, c)`, the first at element `(row, col)` of its matrix."""

    row: int
    col: int
    nr: int
    nc: int
    r: int
    c: int

    @property
    def tiles(self) -> int:
        return self.nr * self.nc


class StackKey(NamedTuple):
    """Name of a tile stack. `where` numbers a (device, dtype) pair, `unit` a stacking unit."""

    unit: int
    where: int
    r: int
    c: int
    sides: int  # 2: both factors, exponent -1/4; 1: left factor only, exponent -1/2


class FactorKey(NamedTuple):
    """Name of a factor stack `[m, k, k]` whose `-1/power` root is wanted."""

    unit: int
    where: int
    k: int
    power: int


class Blocked(NamedTuple):
    """One parameter as the planner sees it: a `rows * cols` matrix (a vector is `rows * 1`)."""

    param: int
    rows: int
    cols: int
    sides: int
    where: int


class Place(NamedTuple):
    """Tiles of one region of one parameter: slots `offset ... offset + grid.tiles` of `key`."""

    param: int
    grid: Grid
    key: StackKey
    offset: int


def tile_grids(rows: int, cols: int, block: int) -> list[Grid]:
    """Cut a `rows * cols` matrix into one to four regions of equal tiles, row-major.

    `block` is the largest tile side; a side shorter than `block` is one tile, a remainder is a
    smaller tile in its own region. Raises ValueError if an argument is not positive.
    """
    if min(rows, cols, block) < 1:
        raise ValueError(f"rows, cols and block must be positive, found {rows}, {cols}, {block}")
    return [
        Grid(row, col, nr, nc, r, c)
        for row, nr, r in _cuts(rows, block)
        for col, nc, c in _cuts(cols, block)
    ]


def _cuts(size: int, block: int) -> list[tuple[int, int, int]]:
    """(start, number of tiles, side) of the full part and, if there is one, the remainder."""
    side = min(size, block)
    full = size // side
    rest = size - full * side
    return [(0, full, side)] + ([(full * side, 1, rest)] if rest else [])


def grid_view(matrix: Tensor, grid: Grid) -> Tensor:
    """The region as a strided view `[nr, nc, r, c]` of `matrix [rows, cols]`; no copy."""
    down, right = matrix.stride()
    return matrix.as_strided(
        (grid.nr, grid.nc, grid.r, grid.c),
        (grid.r * down, grid.c * right, down, right),
        matrix.storage_offset() + grid.row * down + grid.col * right,
    )


def gather(matrices: Sequence[Tensor], grids: Sequence[Grid], out: Tensor) -> None:
    """Copy one region of each matrix into `out [n, r, c]`, in order; `out` sets the dtype."""
    torch._foreach_copy_(
        _slots(out, grids), [grid_view(m, g) for m, g in zip(matrices, grids, strict=True)]
    )


def scatter(tiles: Tensor, matrices: Sequence[Tensor], grids: Sequence[Grid]) -> None:
    """The exact inverse of `gather`: write `tiles [n, r, c]` back into their regions."""
    torch._foreach_copy_(
        [grid_view(m, g) for m, g in zip(matrices, grids, strict=True)], _slots(tiles, grids)
    )


def _slots(tiles: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    parts = torch.split(tiles, [grid.tiles for grid in grids])
    return [part.view(g.nr, g.nc, g.r, g.c) for part, g in zip(parts, grids, strict=True)]


@dataclass
class Plan:
    """The index table: which tile lives where, and where its two factors live."""

    places: list[Place] = field(default_factory=list)
    sizes: dict[StackKey, int] = field(default_factory=dict)
    factors: dict[FactorKey, int] = field(default_factory=dict)
    left: dict[StackKey, tuple[FactorKey, int]] = field(default_factory=dict)
    right: dict[StackKey, tuple[FactorKey, int]] = field(default_factory=dict)

    def table(self) -> list[list[int]]:
        """The index as plain integers: param, region (6), stack key (5), offset."""
        return [[p.param, *p.grid, *p.key, p.offset] for p in self.places]


def build_plan(blocked: Iterable[Blocked], block: int, *, per_layer: bool = False) -> Plan:
    """Place every tile. `per_layer` keeps each parameter in stacks of its own.

    Left factors of a stack are consecutive slots of their factor stack, and so are right factors:
    both are slices, never gathers, while every parameter has a gradient.
    """
    plan = Plan()
    for item in blocked:
        unit = item.param + 1 if per_layer else 0
        for grid in tile_grids(item.rows, item.cols, block):
            key = StackKey(unit, item.where, grid.r, grid.c, item.sides)
            offset = plan.sizes.get(key, 0)
            plan.places.append(Place(item.param, grid, key, offset))
            plan.sizes[key] = offset + grid.tiles
    for key, count in plan.sizes.items():
        power = 4 if key.sides == 2 else 2
        plan.left[key] = _reserve(plan, FactorKey(key.unit, key.where, key.r, power), count)
        if key.sides == 2:
            plan.right[key] = _reserve(plan, FactorKey(key.unit, key.where, key.c, power), count)
    return plan


def _reserve(plan: Plan, key: FactorKey, count: int) -> tuple[FactorKey, int]:
    base = plan.factors.get(key, 0)
    plan.factors[key] = base + count
    return key, base


def assign_ranks(numels: Sequence[int], vectors: Sequence[bool], world: int) -> list[int]:
    """The rank that updates each parameter, for multi-process runs.

    Matrices go, largest first, to the least loaded rank; vectors to their index modulo `world`.
    """
    owner = [index % world for index in range(len(numels))]
    load = [0] * world
    matrices = [i for i, vector in enumerate(vectors) if not vector]
    for i in sorted(matrices, key=lambda i: -numels[i]):
        owner[i] = min(range(world), key=load.__getitem__)
        load[owner[i]] += numels[i]
    return owner
