"""head_linear: each head's part of a row times a matrix of its own.

    y[t, h] = W_h x[t, h]     x [T, H * I], W [H * O, I] the heads' matrices in turn, y [T, H * O]

On the CPU this is the product of stacked experts (`experts.py`), all of which every row picks, each
for its own part of the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import isa
from .encodings import rows_of
from .experts import planned, stacked_product
from .experts_onnx import values_of
from .linear import product
from .lowering import Builder, Lower, Word, stride_of
from .onnx_tools import Call, EmitContext
from .quant import F32


def head_linear(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, H * I], weight [H * O, I] in any encoding -> float32 [T, H * O]."""
    matrix, heads = weights["weight"], attrs["heads"]
    outputs, size = matrix.shape[0] // heads, matrix.shape[1]
    parts = [
        product(
            inputs[0][:, h * size : (h + 1) * size],
            rows_of(matrix, slice(h * outputs, (h + 1) * outputs)),
        )
        for h in range(heads)
    ]
    return np.concatenate(parts, axis=1)


def _plan(b: Builder, rows: str, heads: int) -> str:
    """Every row picks all heads, in turn: the plan, made once. Of equal logits the first come
    first."""
    if have := b.made("heads", (rows, heads)):
        return have
    name = f"#heads.{rows}.{heads}"
    none = b.constant(np.zeros(heads, np.float32))
    by: dict[str, Word] = {"experts": heads, "active": heads, "normalised": 1, "scale": 1.0}
    _, plan = planned(b, name, rows, (none, 0), by)
    return b.make("heads", (rows, heads), plan)


def lower_head_linear(b: Builder, node: Any) -> None:
    """The plan of all heads, and the product of stacked matrices."""
    x, y, heads = node.inputs[0], b.floats(node.output), b.attrs(node)["heads"]
    words: dict[str, Word] = {
        "experts": heads, "plan": _plan(b, b.rows(x), heads), "scratch": "@scratch",
        "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
        "past": int(isa.reads_past_caches()), "act": 0, "limit": 0.0, "shift": 0.0,
    }  # fmt: skip
    stride = stride_of(b.width(x) // heads)
    stacked_product(b, node, "weight", x, stride, 1, y, words)


LOWER: dict[str, Lower] = {"head_linear": lower_head_linear}
REFERENCE = {"head_linear": head_linear}


def emit_head_linear(ctx: EmitContext, call: Call) -> None:
    """MatMul of [B, H, S, I] and [H, I, O]; DequantizeLinear where the matrices are in codes."""
    heads, (rows, size) = call.attrs["heads"], call.weights["weight"].shape
    outputs = rows // heads
    apart = ctx.op("Reshape", [call.inputs[0], ctx.ints(0, 0, heads, size)])
    stacked = ctx.op("Reshape", [values_of(ctx, call, "weight"), ctx.ints(heads, outputs, size)])
    turned = ctx.op("Transpose", [stacked], perm=[0, 2, 1])
    y = ctx.op("MatMul", [ctx.op("Transpose", [apart], perm=[0, 2, 1, 3]), turned])
    y = ctx.op("Transpose", [y], perm=[0, 2, 1, 3])
    ctx.op("Reshape", [y, ctx.ints(0, 0, rows)], call.output)


ONNX = {"head_linear": emit_head_linear}
