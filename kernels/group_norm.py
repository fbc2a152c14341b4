"""group_norm: rows normalised over all of them and the channels of a group.

    y[n, c] = (x[n, c] - mean) / sqrt(var + eps) * weight[c] + bias[c]

mean and var are those of all x[:, c] with c in the same group (arXiv 1803.08494).

On the CPU: means and squared deviations of blocks of rows in float32, put together in float64
(Chan, Golub and LeVeque, 1979). Blocks have a fixed size, so threads change no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .conv_lower import FOLDED
from .cpu.layout import MOMENT_ROWS
from .lowering import Builder, Lower, Word, weight
from .onnx_tools import FLOAT, Call, EmitContext
from .operands import operands
from .quant import F32

# moments: float32 [blocks][2][stride]: means and sums of squared deviations, of each channel.
MOMENTS = operands("x", "x_stride", "width", "moments", "ctrl")
# factors: float32 [3][stride]: y = (x - factors[0]) * factors[1] + factors[2].
FACTORS = operands(
    "moments", "x_stride", "width", "groups", "eps", "weight", "bias", "factors", "scratch",
    "scratch_bytes",
)  # fmt: skip
SCALE_ROWS = operands("x", "stride", "factors", "y", "act", "ctrl")


def group_norm(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], weight and bias float32 [C] -> float32 [N, C]."""
    (x,) = inputs
    grouped = x.reshape(len(x), attrs["groups"], -1)
    centred = grouped - grouped.mean(axis=(0, 2), keepdims=True, dtype=np.float64)
    variance = np.square(centred).mean(axis=(0, 2), keepdims=True)
    unit = (centred / np.sqrt(variance + attrs["eps"])).reshape(x.shape)
    out: F32 = (unit * weights["weight"] + weights["bias"]).astype(np.float32)
    return out


def lower_group_norm(b: Builder, node: Any) -> None:
    """group_norm; a relu or silu right after it becomes part of it."""
    x, y, act = node.inputs[0], node.output, ""
    reader = b.only_reader(y)
    if reader is not None and reader.op == "activation" and b.attrs(reader)["act"] in FOLDED:
        y, act = reader.output, b.attrs(reader)["act"]
        b.skip(y)
    stride, width, attrs = b.stride(x), b.width(x), b.attrs(node)
    rows = b.rows(x)
    if rows.isdecimal():
        blocks, each = str(-(-int(rows) // MOMENT_ROWS)), 2 * stride
        moments = b.buffer(f"{node.output}#moments", blocks, each)
    else:
        moments = b.buffer(f"{node.output}#moments", rows, 2 * stride)
    factors = b.buffer(f"{node.output}#factors", "1", 3 * stride)
    words: dict[str, Word] = {"x": x, "x_stride": stride, "width": width, "moments": moments}
    b.step("group_moments", MOMENTS, moments, [x], {**words, "ctrl": "@ctrl"}, rows=rows)
    words = {
        "moments": moments, "x_stride": stride, "width": width, "groups": attrs["groups"],
        "eps": attrs["eps"], "weight": weight(node, "weight"), "bias": weight(node, "bias"),
        "factors": factors, "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.step("group_factors", FACTORS, factors, [moments], words, rows=rows)
    b.floats(y)
    words = {
        "x": x,
        "stride": stride,
        "factors": factors,
        "y": y,
        "act": FOLDED[act],
        "ctrl": "@ctrl",
    }
    b.step(
        "scale_rows", SCALE_ROWS, y, [x, factors], words,
        in_place=x if b.is_last_use(x, y) else "",
    )  # fmt: skip


LOWER: dict[str, Lower] = {"group_norm": lower_group_norm}
REFERENCE = {"group_norm": group_norm}


def emit_group_norm(ctx: EmitContext, call: Call) -> None:
    """Means over rows and channels of groups in float32, then scale and shift by channel."""
    groups, channels = call.attrs["groups"], int(call.shapes[0][-1])
    batched = ctx.leads(call.shapes[0])
    lead = (0, 0) if batched else (1, -1)
    x = ctx.cast(call.inputs[0], ctx.float_type, FLOAT)
    grouped = ctx.op("Reshape", [x, ctx.ints(*lead, groups, channels // groups)])
    mean = ctx.op("ReduceMean", [grouped, ctx.ints(1, 3)], keepdims=1)
    centred = ctx.op("Sub", [grouped, mean])
    square = ctx.op("Mul", [centred, centred])
    variance = ctx.op("ReduceMean", [square, ctx.ints(1, 3)], keepdims=1)
    eps = ctx.const(np.array(call.attrs["eps"], np.float32))
    unit = ctx.op("Div", [centred, ctx.op("Sqrt", [ctx.op("Add", [variance, eps])])])
    rows = ctx.op("Reshape", [unit, ctx.ints(*(lead if batched else lead[1:]), channels)])
    scaled = ctx.op("Mul", [rows, ctx.tensor(call.weights["weight"].name)])
    out = None if ctx.half else call.output
    shifted = ctx.op("Add", [scaled, ctx.tensor(call.weights["bias"].name)], out)
    if ctx.half:
        ctx.op("Cast", [shifted], call.output, to=ctx.float_type)


ONNX = {"group_norm": emit_group_norm}
