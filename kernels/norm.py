"""rms_norm: y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (arXiv 1910.07467)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .quant import F32


def normalise(x: F32, weight: F32, eps: float) -> F32:
    """Root-mean-square normalisation of the last axis, float32 in and out."""
    mean = np.mean(np.square(x, dtype=np.float32), axis=-1, keepdims=True)
    return x / np.sqrt(mean + np.float32(eps)) * weight


def rms_norm(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [..., C], weight float32 [C] -> float32 [..., C]."""
    return normalise(inputs[0], weights["weight"], attrs["eps"])


REFERENCE = {"rms_norm": rms_norm}
