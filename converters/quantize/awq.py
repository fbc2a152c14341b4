"""AWQ (Lin et al. 2024, arXiv 2306.00978): inputs that are large in activations get finer steps.

Columns of W are multiplied by t and the inputs divided by it, which the layer before does: nothing
is added to the model, and what is large in activations is large in W, where rounding hurts it less.

    a = sqrt(diag G)                                   how large each input is
    for ratio in 0, 1/20, ..., 19/20:
        t = max(a^ratio, 1e-4);  t /= sqrt(max t * min t)
        score = tr(E G E^T),  E = Q(W * t) / t - W
    the best t

Two things differ from the published code: a is the root mean square, not the mean magnitude, since
it comes from G; and the score is what this product's output loses, not the block around it.
Products with the same inputs (query, key and value; gate and up) must share t: give them as one
matrix, rows below each other, as families store them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...kernels.encodings import dequantize
from ...kernels.grid import Grid
from ...kernels.quant import F32, Quantized
from .base import F64, checked_gram, checked_weight, fitted, grid_of, stored
from .clip import blocks, clipped

RATIOS = tuple(i / 20 for i in range(20))


class Scaled(NamedTuple):
    """A stored W * scale and the scale, float32 [K], by which its inputs must be divided: with
    `fold_norm` or `fold_rows`. ratio: the one that was best."""

    matrix: Quantized
    scale: F32
    ratio: float


def awq(
    w: F32, gram: F64, *, bits: int, group: int, symmetric: bool = False, clip: bool = False
) -> Scaled:
    """A stored matrix of W [N, K] times a scale of its inputs, whose Gram matrix is G [K, K].

    clip: after that, narrow ranges by what each group's part of the output loses; published for all
    but query and key products. Raises ConvertError as `gptq`.
    """
    grid, w = grid_of(bits, group, symmetric), checked_weight(w)
    g = checked_gram(gram, w.shape[1])
    largest = max(float(np.diagonal(g).max()), 1e-300)
    size = np.sqrt(np.diagonal(g) / largest)
    narrow = (g / largest).astype(np.float32)
    least, best, chosen = np.inf, np.ones(w.shape[1], np.float32), 0.0
    for ratio in RATIOS:
        t = _scale(size, ratio)
        error = dequantize(_rounded(grid, w * t)) / t - w
        lost = float(np.vdot(error @ narrow, error))
        if lost < least:
            least, best, chosen = lost, t, ratio
    scaled = w * best
    if not clip:
        return Scaled(_rounded(grid, scaled), best, chosen)
    inputs = g / np.outer(best, best).astype(np.float64)
    groups = grid.grouped(scaled)
    steps = clipped(grid, groups, blocks(grid, inputs))
    return Scaled(stored(grid, w.shape, grid.encode(groups, steps), steps), best, chosen)


def _scale(size: F64, ratio: float) -> F32:
    t = np.maximum(size**ratio, 1e-4)
    scale: F32 = (t / np.sqrt(t.max() * t.min())).astype(np.float32)
    return scale


def _rounded(grid: Grid, w: F32) -> Quantized:
    groups = grid.grouped(w)
    steps = fitted(grid, groups)
    return stored(grid, w.shape, grid.encode(groups, steps), steps)


def fold_norm(weight: F32, scale: F32) -> F32:
    """The weight [K] of the norm before the product, so that it gives inputs over `scale`."""
    return weight / scale


def fold_rows(w: F32, scale: F32) -> F32:
    """The matrix [K, any] (or bias [K]) of a product whose outputs are the inputs, one by one: the
    value part before an attention's output without shared heads, the up part before a gated down.
    """
    return w / (scale[:, None] if w.ndim == 2 else scale)
