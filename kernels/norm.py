"""Normalisations of rows, and the sizes that they are divided by.

rms_norm    y = x / sqrt(mean(x^2) + eps) * weight, over the last axis            (arXiv 1910.07467)
layer_norm  y = (x - mean(x)) / sqrt(var(x) + eps) (* weight + bias), last axis   (arXiv 1607.06450)
row_rms     y = sqrt(max(mean((x - m)^2), floor)), one value a row; 1 / y with `inverse`; m is
            mean(x) where `centred`, else 0. The op `gate` gives a row the size of another by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .lowering import Builder, Lower, Word, only_quantized, weight
from .modulation import lower_affine
from .onnx_tools import FLOAT, MICROSOFT, Body, Call, EmitContext, StoredWeight
from .operands import operands
from .quant import F32

RMS_NORM = operands("x", "x_stride", "width", "weight", "eps", "y", "y_stride")
ROW_RMS = operands("x", "x_stride", "width", "floor", "centred", "inverse", "y", "y_stride")


def normalise(x: F32, weight: F32, eps: float) -> F32:
    """Root-mean-square normalisation of the last axis, float32 in and out."""
    mean = np.mean(np.square(x, dtype=np.float32), axis=-1, keepdims=True)
    out: F32 = x / np.sqrt(mean + np.float32(eps)) * weight
    return out


def rms_norm(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [..., C], weight float32 [C] -> float32 [..., C]."""
    return normalise(inputs[0], weights["weight"], attrs["eps"])


def layer_norm(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], weight and bias float32 [C] or absent -> float32 [N, C]."""
    (x,) = inputs
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    out: F32 = centred / np.sqrt(variance + np.float32(attrs["eps"]))
    if "weight" in weights:
        out = out * weights["weight"]
    return out + weights["bias"] if "bias" in weights else out


def row_rms(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C] -> float32 [N, 1]."""
    (x,), floor = inputs, np.float32(attrs["floor"])
    if attrs["centred"]:
        x = x - x.mean(axis=-1, keepdims=True)
    root: F32 = np.sqrt(np.maximum(np.square(x).mean(axis=-1, keepdims=True), floor))
    return np.reciprocal(root) if attrs["inverse"] else root


def lower_rms_norm(b: Builder, node: Any) -> None:
    """rms_norm, unless every reader is a product that norms as it quantizes its input."""
    if only_quantized(b, node.output):
        return
    x, y = node.inputs[0], b.floats(node.output)
    words = {
        "x": x, "x_stride": b.stride(x), "width": b.width(y), "weight": weight(node, "weight"),
        "eps": b.attrs(node)["eps"], "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("rms_norm", RMS_NORM, y, [x], words)


def lower_layer_norm(b: Builder, node: Any) -> None:
    """layer_norm, unless a modulation or products take it in."""
    reader = b.only_reader(node.output)
    if reader is not None and reader.op == "modulate" and reader.inputs[1] != node.output:
        return
    if only_quantized(b, node.output):
        return
    lower_affine(b, "layer_norm", node.inputs[0], node.output, norm=node)


def lower_row_rms(b: Builder, node: Any) -> None:
    """row_rms by rows."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words: dict[str, Word] = {
        "x": x, "x_stride": b.stride(x), "width": b.width(x), "floor": attrs["floor"],
        "centred": int(attrs["centred"]), "inverse": int(attrs["inverse"]),
        "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("row_rms", ROW_RMS, y, [x], words)


LOWER: dict[str, Lower] = {
    "rms_norm": lower_rms_norm, "layer_norm": lower_layer_norm, "row_rms": lower_row_rms,
}  # fmt: skip
REFERENCE = {"rms_norm": rms_norm, "layer_norm": layer_norm, "row_rms": row_rms}


def _norm_body(body: Body) -> None:
    """The chain that onnxruntime recognises and fuses to SimplifiedLayerNormalization."""
    x = body.op("Cast", ["x"], to=FLOAT) if body.half else "x"
    square = body.op("Pow", [x, body.const(2.0)])
    mean = body.op("ReduceMean", [square, body.const([-1])], keepdims=1)
    root = body.op("Sqrt", [body.op("Add", [mean, body.attribute("eps")])])
    body.op("Mul", [body.activation(body.op("Div", [x, root])), "weight"], "y")


def emit_norm(ctx: EmitContext, x: str, weight: StoredWeight, eps: float, out: str | None) -> str:
    """Function RmsNorm over the last axis, with float32 statistics."""
    return emit_norm_by(ctx, x, ctx.floats(weight.name), eps, out)


def emit_norm_by(ctx: EmitContext, x: str, weight: str, eps: float, out: str | None) -> str:
    """The same with a weight that is a value, which the shape of x stretches."""
    signature = (["x", "weight"], ["eps"])
    return ctx.call("RmsNorm", [x, weight], out, _norm_body, signature, eps=eps)


def emit_rms_norm(ctx: EmitContext, call: Call) -> None:
    """One RmsNorm."""
    emit_norm(ctx, call.inputs[0], call.weights["weight"], call.attrs["eps"], call.output)


def emit_add_norm(ctx: EmitContext, add: Call, norm: Call) -> None:
    """An add and the rms_norm of its sum as one SkipSimplifiedLayerNormalization."""
    ctx.ops(
        "SkipSimplifiedLayerNormalization",
        [*add.inputs, ctx.floats(norm.weights["weight"].name)],
        [norm.output, "", "", add.output],
        domain=MICROSOFT,
        epsilon=norm.attrs["eps"],
    )


def emit_layer_norm(ctx: EmitContext, call: Call) -> None:
    """LayerNormalization, whose statistics are float32 in half precision, too."""
    width = int(call.shapes[0][-1])
    scale = ctx.floats(call.weights["weight"].name) if call.weights else ctx.ones(width)
    bias = [ctx.floats(call.weights["bias"].name)] if "bias" in call.weights else []
    ctx.op(
        "LayerNormalization", [call.inputs[0], scale, *bias], call.output,
        axis=-1, epsilon=call.attrs["eps"], stash_type=FLOAT,
    )  # fmt: skip


def _row_rms_body(*, centred: bool, inverse: bool) -> Callable[[Body], None]:
    def define(body: Body) -> None:
        x = body.op("Cast", ["x"], to=FLOAT) if body.half else "x"
        if centred:
            x = body.op("Sub", [x, body.op("ReduceMean", [x, body.const([-1])], keepdims=1)])
        mean = body.op("ReduceMean", [body.op("Mul", [x, x]), body.const([-1])], keepdims=1)
        root = body.op("Sqrt", [body.op("Clip", [mean, body.attribute("floor")])])
        root = body.op("Div", [body.const(1.0), root]) if inverse else root
        body.op("Identity", [body.activation(root)], "y")

    return define


def emit_row_rms(ctx: EmitContext, call: Call) -> None:
    """Function RowRms, RowDeviation where centred, each with or without Inverse, in float32."""
    centred, inverse = call.attrs["centred"], call.attrs["inverse"]
    name = f"{'Inverse' * inverse}{'RowDeviation' if centred else 'RowRms'}"
    body = _row_rms_body(centred=centred, inverse=inverse)
    signature = (["x"], ["floor"])
    ctx.call(name, call.inputs, call.output, body, signature, floor=call.attrs["floor"])


ONNX = {"rms_norm": emit_rms_norm, "layer_norm": emit_layer_norm, "row_rms": emit_row_rms}
