"""Ops on grids: rows [H·W, C], row y·W + x is the cell at (x, y).

patchify            patch x patch cells become one row, channels in the order (py, px, c)
unpatchify          the inverse
add_grid_positions  y = x + sines and cosines of the cell's column, then of its row
                    (arXiv 2212.09748, with PixArt's base size and interpolation scale)
concat              y = [a, b], rows side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .quant import F32


def patchify(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, C] -> float32 [H/p * W/p, p * p * C]."""
    p, channels = attrs["patch"], inputs[0].shape[1]
    cells = inputs[0].reshape(attrs["height"] // p, p, attrs["width"] // p, p, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(-1, p * p * channels)


def unpatchify(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, p * p * C] -> float32 [p H * p W, C]."""
    p, height, width = attrs["patch"], attrs["height"], attrs["width"]
    cells = inputs[0].reshape(height, width, p, p, -1)
    return cells.transpose(0, 2, 1, 3, 4).reshape(height * p * width * p, -1)


def position_table(
    height: int, width: int, channels: int, *, base: int, interpolation: float
) -> F32:
    """What `add_grid_positions` adds: float32 [H * W, C], half of C for columns, then rows."""
    quarter = channels // 4
    omega = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    halves = []
    for count, axis in ((width, 1), (height, 0)):
        place = np.arange(count, dtype=np.float64) / (count / base) / interpolation
        angle = place[:, None] * omega
        wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        halves.append(np.broadcast_to(np.expand_dims(wave, 1 - axis), (height, width, 2 * quarter)))
    return np.concatenate(halves, axis=-1).reshape(height * width, channels).astype(np.float32)


def add_grid_positions(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """x float32 [H * W, C] -> float32 [H * W, C]."""
    (x,) = inputs
    return x + position_table(
        attrs["height"], attrs["width"], x.shape[1],
        base=attrs["base"], interpolation=attrs["interpolation"],
    )  # fmt: skip


def concat(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """a float32 [N, A], b float32 [N, B] -> float32 [N, A + B]."""
    return np.concatenate([inputs[0], inputs[1]], axis=1)


REFERENCE = {
    "patchify": patchify, "unpatchify": unpatchify,
    "add_grid_positions": add_grid_positions, "concat": concat,
}  # fmt: skip
