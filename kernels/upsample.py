"""upsample: every cell of a grid becomes factor x factor equal ones (nearest neighbour)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .conv_onnx import grid_made, grid_of
from .lowering import Builder, Lower
from .onnx_tools import Call, EmitContext, Grid
from .operands import operands
from .quant import F32

UPSAMPLE = operands("x", "stride", "y", "width", "factor")


def upsample(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, C] -> float32 [f H * f W, C]."""
    x = inputs[0].reshape(attrs["height"], attrs["width"], -1)
    factor = attrs["factor"]
    return x.repeat(factor, axis=0).repeat(factor, axis=1).reshape(-1, x.shape[2])


def lower_upsample(b: Builder, node: Any) -> None:
    """upsample, unless every reader is a convolution, which reads through it."""
    readers = b.readers(node.output)
    if readers and all(r.op == "conv2d" for r in readers) and not b.is_output(node.output):
        return
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words = {
        "x": x, "stride": b.stride(y), "y": y, "width": attrs["width"], "factor": attrs["factor"],
    }  # fmt: skip
    b.step("upsample", UPSAMPLE, y, [x], words)


LOWER: dict[str, Lower] = {"upsample": lower_upsample}
REFERENCE = {"upsample": upsample}


def emit_upsample(ctx: EmitContext, call: Call) -> None:
    """Resize, nearest."""
    attrs, channels = call.attrs, int(call.shapes[0][-1])
    x = grid_of(ctx, call.inputs[0], attrs["height"], attrs["width"], channels)
    factor = float(attrs["factor"])
    scales = ctx.const(np.array([1.0, 1.0, factor, factor], np.float32))
    made = ctx.op(
        "Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    height, width = (attrs[name] * attrs["factor"] for name in ("height", "width"))
    grid_made(ctx, Grid(made, channels, height, width), call.output)


ONNX = {"upsample": emit_upsample}
