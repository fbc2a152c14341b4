"""How timesteps act on rows: their embedding, and adaptive layer norm's shifts, scales and gates.

timestep   y = [cos(t f), sin(t f)],  f_i = 10000^(-i / (dim/2 - freq_shift))     (arXiv 2006.11239)
modulate   y = x (1 + scale) + shift                                              (arXiv 2212.09748)
gated_add  y = residual + gate x
add_row    y = x + row

A modulation row m [1, k C] has k chunks of C, which attributes name by number. With a table [k, C]
chunk i is m's chunk i (or m itself, if that has one) plus row i of the table (PixArt's
scale_shift_table, arXiv 2310.00426).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .quant import F32


def chunk(m: F32, weights: Mapping[str, Any], index: int, width: int) -> F32:
    """Chunk `index` of a modulation row, float32 [C]."""
    row = m[0] if m.shape[1] == width else m[0, index * width : (index + 1) * width]
    out: F32 = row + weights["table"][index] if "table" in weights else row
    return out


def frequencies(size: int, freq_shift: float) -> F32:
    """The size / 2 frequencies of a timestep's embedding."""
    half = size // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    out: F32 = np.exp(np.float32(-np.log(10000.0)) * exponent)
    return out


def timestep(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """t float32 [N, 1] -> float32 [N, dim], cosines first."""
    angle = inputs[0] * frequencies(attrs["dim"], attrs["freq_shift"])
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)


def modulate(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], m float32 [1, k C] -> float32 [N, C]."""
    x, m = inputs
    shift = chunk(m, weights, attrs["shift"], x.shape[1])
    out: F32 = x * (1 + chunk(m, weights, attrs["scale"], x.shape[1])) + shift
    return out


def gated_add(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """residual, x float32 [N, C], m float32 [1, k C] -> float32 [N, C]."""
    residual, x, m = inputs
    out: F32 = residual + chunk(m, weights, attrs["gate"], x.shape[1]) * x
    return out


def add_row(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], row float32 [1, C] -> float32 [N, C]."""
    return inputs[0] + inputs[1]


REFERENCE = {
    "timestep": timestep, "modulate": modulate, "gated_add": gated_add, "add_row": add_row,
}  # fmt: skip
