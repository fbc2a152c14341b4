"""embed: x[t] = scale * weight[token[t]], one table row a token, in any weight encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quant import F32, Quantized, dequantize


def embed(
    inputs: Sequence[NDArray[np.int32]], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """tokens int32 [T], weight [V, C] in any encoding -> float32 [T, C]."""
    tokens, table = inputs[0], weights["weight"]
    if isinstance(table, Quantized):
        shape = (len(tokens), table.shape[1])
        rows = dequantize(Quantized(table.q[tokens], table.scales[tokens], shape))
    else:
        rows = table[tokens].astype(np.float32)
    return rows * np.float32(attrs["scale"])


REFERENCE = {"embed": embed}
