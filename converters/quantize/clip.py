"""Narrower steps: the range of each group that loses least, at the price of clipping its extremes.

For each group the extremes times 1, 0.95, ..., 0.55 are tried (the grid of AWQ's clip search), and
what is left of the group's error decides: e^T M e, where M is one of

    nothing     the identity: plain mean squared error
    diagonal    of G: squared error weighted by how large inputs are
    blocks      of G on its diagonal: the group's own part of the output's error (AWQ)
"""

from __future__ import annotations

import numpy as np

from ...kernels.grid import Grid, Steps
from ...kernels.quant import F32
from .base import F64, fitted

SHRINKS = tuple(1 - i / 20 for i in range(10))
ROWS = 512  # output rows whose errors are in memory together


def clipped(grid: Grid, groups: F32, measure: F64 | None = None) -> Steps:
    """Steps of groups [N, KB, group]. measure: nothing, a diagonal [KB, group], or blocks
    [KB, group, group]."""
    parts = [_clipped(grid, groups[i : i + ROWS], measure) for i in range(0, len(groups), ROWS)]
    return Steps(
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
    )


def _clipped(grid: Grid, groups: F32, measure: F64 | None) -> Steps:
    wide = fitted(grid, groups)
    scales, zeros = wide.scales.copy(), wide.zeros.copy()
    least = np.full(groups.shape[:2], np.inf)
    for shrink in SHRINKS:
        steps = fitted(grid, groups * np.float32(shrink))
        errors = grid.decode(grid.encode(groups, steps), steps) - groups
        lost = _measured(errors, measure)
        better = lost < least
        least[better] = lost[better]
        scales[better], zeros[better] = steps.scales[better], steps.zeros[better]
    return Steps(scales, zeros)


def _measured(errors: F32, measure: F64 | None) -> F64:
    """e^T M e of each group, [N, KB]."""
    e = errors.astype(np.float64)
    lost: F64
    if measure is None:
        lost = np.einsum("nbi,nbi->nb", e, e)
    elif measure.ndim == 2:
        lost = np.einsum("nbi,nbi,bi->nb", e, e, measure)
    else:
        by_group = e.transpose(1, 0, 2)  # [KB, N, group]
        lost = np.einsum("bni,bni->nb", by_group @ measure, by_group)
    return lost


def diagonal(grid: Grid, gram: F64) -> F64:
    """The diagonal of G by groups [KB, group], 0 past K."""
    wide = np.zeros(grid.groups_of(len(gram)) * grid.group)
    wide[: len(gram)] = np.diagonal(gram)
    return wide.reshape(-1, grid.group)


def blocks(grid: Grid, gram: F64) -> F64:
    """The blocks on the diagonal of G by groups [KB, group, group], 0 past K."""
    k, size = len(gram), grid.group
    out = np.zeros((grid.groups_of(k), size, size))
    for b in range(len(out)):
        part = gram[b * size : (b + 1) * size, b * size : (b + 1) * size]
        out[b, : len(part), : len(part)] = part
    return out
