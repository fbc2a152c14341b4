"""What some layers do to rows by other rows, or by parts.

gate         y = x act(gate)         act: identity | silu | sigmoid; a gate a value, or a row
head_norm    y = x / sqrt(mean(x^2) + eps) * weight, over parts of `size` columns: heads, or the
             groups of a gated norm (arXiv 2405.21060). One weight for all parts, or of all columns.
mix_streams  y_i = sum_j by_ij x_j   over the `streams` parts x_j of a row (AltUp, arXiv 2301.13310)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .cpu.layout import GATES
from .elementwise import activate
from .lowering import Builder, Lower, Word, weight
from .norm import emit_norm_by, normalise
from .onnx_tools import Call, EmitContext
from .operands import operands
from .quant import F32

# one: whether a gate has one column, which counts for its whole row.
GATE = operands("x", "gate", "y", "stride", "gate_stride", "one", "act")
HEAD_NORM = operands(
    "x", "x_stride", "width", "size", "weight", "weight_step", "eps", "y", "y_stride"
)
MIX_STREAMS = operands(
    "x", "x_stride", "by", "by_stride", "streams", "made", "width", "y", "y_stride"
)


def gate(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], gate float32 [N, C] or [N, 1] -> float32 [N, C]."""
    x, by = inputs
    if attrs["act"] == "silu":
        return x * activate(by, "silu")
    if attrs["act"] == "sigmoid":
        with np.errstate(over="ignore"):
            out: F32 = x / (1 + np.exp(-by))
            return out
    return x * by


def head_norm(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], weight float32 [size] or [C] -> float32 [N, C]."""
    (x,), size = inputs, attrs["size"]
    parts = x.reshape(*x.shape[:-1], -1, size)
    return normalise(parts, weights["weight"].reshape(-1, size), attrs["eps"]).reshape(x.shape)


def mix_streams(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, J * C], by float32 [N, I * J] -> float32 [N, I * C]."""
    (x, by), count = inputs, attrs["streams"]
    made: F32 = by.reshape(len(by), -1, count) @ x.reshape(len(x), count, -1)
    return made.reshape(len(x), -1)


def lower_gate(b: Builder, node: Any) -> None:
    """gate, in place where nothing else reads x."""
    (x, by), y = node.inputs, b.floats(node.output)
    words = {
        "x": x, "gate": by, "y": y, "stride": b.stride(y), "gate_stride": b.stride(by),
        "one": int(b.width(by) == 1), "act": GATES[b.attrs(node)["act"]],
    }  # fmt: skip
    in_place = x if x != by and b.is_last_use(x, y) else ""
    b.step("gate_rows", GATE, y, [x, by], words, in_place=in_place)


def lower_head_norm(b: Builder, node: Any) -> None:
    """head_norm by rows."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    (columns,) = b.weight_shape(node.weights["weight"])
    words = {
        "x": x, "x_stride": b.stride(x), "width": b.width(y), "size": attrs["size"],
        "weight": weight(node, "weight"),
        "weight_step": 4 * attrs["size"] if columns > attrs["size"] else 0,
        "eps": attrs["eps"], "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("head_norm", HEAD_NORM, y, [x], words)


def lower_mix_streams(b: Builder, node: Any) -> None:
    """mix_streams, columns shared out."""
    (x, by), y, count = node.inputs, b.floats(node.output), b.attrs(node)["streams"]
    words: dict[str, Word] = {
        "x": x, "x_stride": b.stride(x), "by": by, "by_stride": b.stride(by), "streams": count,
        "made": b.width(by) // count, "width": b.width(x) // count, "y": y,
        "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("mix_streams", MIX_STREAMS, y, [x, by], words)


LOWER: dict[str, Lower] = {
    "gate": lower_gate, "head_norm": lower_head_norm, "mix_streams": lower_mix_streams,
}  # fmt: skip
REFERENCE = {"gate": gate, "head_norm": head_norm, "mix_streams": mix_streams}


def emit_gate(ctx: EmitContext, call: Call) -> None:
    """Mul, with Sigmoid."""
    x, by = call.inputs
    act = call.attrs["act"]
    if act != "identity":
        share = ctx.op("Sigmoid", [by])
        by = ctx.op("Mul", [by, share]) if act == "silu" else share
    ctx.op("Mul", [x, by], call.output)


def emit_head_norm(ctx: EmitContext, call: Call) -> None:
    """RmsNorm over the last axis of [B, S, parts, size]."""
    size, stored = call.attrs["size"], call.weights["weight"]
    width = int(call.shapes[0][-1])
    apart = ctx.op("Reshape", [call.inputs[0], ctx.ints(0, 0, width // size, size)])
    dims = (width // size, size) if stored.shape == (width,) else (size,)
    by_part = ctx.tensor(stored.name, dims=dims)
    by_part = ctx.cast(by_part, ctx.placed(stored.name).dtype, ctx.float_type)
    made = emit_norm_by(ctx, apart, by_part, call.attrs["eps"], None)
    ctx.op("Reshape", [made, ctx.ints(0, 0, width)], call.output)


def emit_mix_streams(ctx: EmitContext, call: Call) -> None:
    """MatMul of [B, S, I, J] and [B, S, J, C]."""
    (x, by), count = call.inputs, call.attrs["streams"]
    width, made = (int(shape[-1]) // count for shape in call.shapes)
    streams = ctx.op("Reshape", [x, ctx.ints(0, 0, count, width)])
    shares = ctx.op("Reshape", [by, ctx.ints(0, 0, made, count)])
    mixed = ctx.op("MatMul", [shares, streams])
    ctx.op("Reshape", [mixed, ctx.ints(0, 0, made * width)], call.output)


ONNX = {"gate": emit_gate, "head_norm": emit_head_norm, "mix_streams": emit_mix_streams}
