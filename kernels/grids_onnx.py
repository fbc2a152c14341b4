"""ONNX emission over grids: values stay [B, C, H, W] between nodes that can read them so.

conv2d and upsample make grids. What works on values one by one, and what looks at channels, reads
them as they are; rows are made where another node, or an output, wants rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .conv_onnx import grid_rows
from .elementwise import emit_activation, emit_add
from .onnx_tools import FLOAT, Call, EmitContext, Grid

Face = Callable[[EmitContext, Call, Grid], None]
READERS = ("conv2d", "upsample")  # whose own emission asks for the grid of what they read


def _activation(ctx: EmitContext, call: Call, grid: Grid) -> None:
    emit_activation(ctx, call)


def _add(ctx: EmitContext, call: Call, grid: Grid) -> None:
    emit_add(ctx, call)


def _add_row(ctx: EmitContext, call: Call, grid: Grid) -> None:
    """Add of a row [1, C], one a picture."""
    row = ctx.op("Reshape", [call.inputs[1], ctx.ints(-1, grid.channels, 1, 1)])
    ctx.op("Add", [call.inputs[0], row], call.output)


def _concat(ctx: EmitContext, call: Call, grid: Grid) -> None:
    ctx.op("Concat", call.inputs, call.output, axis=1)


def _group_norm(ctx: EmitContext, call: Call, grid: Grid) -> None:
    """InstanceNormalization of [B, groups, rest] in float32, then scale and shift by channel."""
    groups = call.attrs["groups"]
    x = ctx.cast(call.inputs[0], ctx.float_type, FLOAT)
    flat = ctx.op("Reshape", [x, ctx.ints(0, groups, -1)])
    ones, zeros = (ctx.table(np.full(groups, value, np.float32)) for value in (1, 0))
    unit = ctx.op("InstanceNormalization", [flat, ones, zeros], epsilon=call.attrs["eps"])
    cells = ctx.op("Reshape", [unit, ctx.ints(0, grid.channels, grid.height, grid.width)])
    weight, bias = (
        ctx.tensor(call.weights[slot].name, dims=(grid.channels, 1, 1))
        for slot in ("weight", "bias")
    )
    out = None if ctx.half else call.output
    shifted = ctx.op("Add", [ctx.op("Mul", [cells, weight]), bias], out)
    if ctx.half:
        ctx.op("Cast", [shifted], call.output, to=ctx.float_type)


FACES: dict[str, Face] = {
    "activation": _activation, "add": _add, "add_row": _add_row, "concat": _concat,
    "group_norm": _group_norm,
}  # fmt: skip


def emit_on_grid(ctx: EmitContext, op: str, call: Call) -> bool:
    """Emit a node over the grids of what it reads, if they are there; else see that their rows
    are. Returns whether it was emitted."""
    if not ctx.fused:
        return False
    rows = call.inputs[:1] if op == "add_row" else call.inputs
    grids = [ctx.grids[name] for name in rows if name in ctx.grids]
    if op not in FACES or len(grids) < len(rows):
        if op not in READERS:
            for name in call.inputs:
                make_rows(ctx, name)
        return False
    for name in call.inputs[len(rows) :]:
        make_rows(ctx, name)
    made, channels = f"{call.output}.grid", sum(grid.channels for grid in grids)
    inputs = (*(grid.name for grid in grids), *call.inputs[len(rows) :])
    FACES[op](ctx, replace(call, inputs=inputs, output=made), grids[0])
    channels = channels if op == "concat" else grids[0].channels
    ctx.keep_grid(call.output, replace(grids[0], name=made, channels=channels))
    return True


def make_rows(ctx: EmitContext, name: str) -> None:
    """The rows of a value of which there is a grid alone."""
    if name in ctx.rowless:
        ctx.rowless.discard(name)
        grid_rows(ctx, ctx.grids[name], name)
