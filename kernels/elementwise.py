"""Small ops: glu (gated activations), add, select (rows), softcap.

    glu      y = act(x[:, :F]) * x[:, F:]          act: silu | gelu | gelu_tanh (arXiv 2002.05202)
    add      y = a + b
    select   y[r] = x[rows[r]]
    softcap  y = cap * tanh(x / cap)               (Gemma 2, arXiv 2408.00118)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .quant import F32

_erf = np.vectorize(math.erf, otypes=[np.float32])


def activate(x: F32, act: str) -> F32:
    """One of the gate activations, elementwise float32."""
    if act == "silu":
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x))
    if act == "gelu":
        return (x * 0.5 * (1 + _erf(x * math.sqrt(0.5)))).astype(np.float32)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return (0.5 * x * (1 + np.tanh(inner))).astype(np.float32)


def glu(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, 2F], gate columns first -> float32 [T, F]."""
    gate, up = np.split(inputs[0], 2, axis=-1)
    return activate(gate, attrs["act"]) * up


def add(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """Two float32 arrays of one shape."""
    return inputs[0] + inputs[1]


def select(inputs: Sequence[Any], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, C], rows int32 [R] -> float32 [R, C]."""
    picked: F32 = inputs[0][inputs[1]]
    return picked


def softcap(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 of any shape."""
    cap = np.float32(attrs["cap"])
    return cap * np.tanh(inputs[0] / cap)


REFERENCE = {"glu": glu, "add": add, "select": select, "softcap": softcap}
