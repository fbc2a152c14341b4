"""ONNX emission of conv2d: Conv over [B, C, H, W], with transposes on both sides.

onnxruntime moves and cancels the transposes between neighbouring grid ops by itself. Weights in
codes are dequantized by blocks, in both dialects; activations stay float.
"""

from __future__ import annotations

from .encodings import ENCODINGS
from .linear_onnx import dequantized, inlined
from .onnx_tools import Call, EmitContext, Grid


def grid_of(ctx: EmitContext, x: str, height: int, width: int, channels: int) -> str:
    """Rows [H * W, C] as [1, C, H, W]; those of a batch as [B, C, H, W]."""
    if x in ctx.grids:
        return ctx.grids[x].name
    lead = -1 if ctx.batch else 1
    cells = ctx.op("Reshape", [x, ctx.ints(lead, height, width, channels)])
    return ctx.op("Transpose", [cells], perm=[0, 3, 1, 2])


def grid_rows(ctx: EmitContext, grid: Grid, out: str) -> None:
    """The inverse."""
    cells = ctx.op("Transpose", [grid.name], perm=[0, 2, 3, 1])
    ctx.op("Reshape", [cells, ctx.ints(*[0] * ctx.batch, -1, grid.channels)], out)


def grid_made(ctx: EmitContext, grid: Grid, out: str) -> None:
    """Rows of a grid that a node made; where nodes are fused they wait until they are wanted."""
    if ctx.fused:
        ctx.keep_grid(out, grid)
    else:
        grid_rows(ctx, grid, out)


def emit_conv2d(ctx: EmitContext, call: Call) -> None:
    """Conv."""
    attrs, w = call.attrs, call.weights["weight"]
    channels, side, outputs = int(call.shapes[0][-1]), attrs["kernel"], w.shape[0]
    if ENCODINGS[w.encoding].dense:
        w = inlined(ctx, w)
    dims = (outputs, side, side, channels)
    if ENCODINGS[w.encoding].plain:
        placed = ctx.placed(w.name)
        kernel = ctx.cast(ctx.tensor(w.name, dims=dims), placed.dtype, ctx.float_type)
    else:
        kernel = ctx.op("Reshape", [dequantized(ctx, w), ctx.ints(*dims)])
    kernel = ctx.op("Transpose", [kernel], perm=[0, 3, 1, 2])
    inputs = [grid_of(ctx, call.inputs[0], attrs["height"], attrs["width"], channels), kernel]
    if "bias" in call.weights:
        inputs.append(ctx.floats(call.weights["bias"].name))
    before, after = attrs["pad_before"], attrs["pad_after"]
    made = ctx.op(
        "Conv", inputs, kernel_shape=[side, side], strides=[attrs["stride"]] * 2,
        pads=[before, before, after, after],
    )  # fmt: skip
    room, stride = before + after - side, attrs["stride"]
    height, width = ((attrs[name] + room) // stride + 1 for name in ("height", "width"))
    grid_made(ctx, Grid(made, outputs, height, width), call.output)


ONNX = {"conv2d": emit_conv2d}
