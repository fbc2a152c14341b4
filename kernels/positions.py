"""What rows get of where they stand in their sequence, besides what attention does.

add_learned_positions   y[t] = x[t] + weight[p_t]                               (GPT-2's table)
scale_by_position       y[t, :width] = x[t, :width] * weight[p_t // every]      (Ministral 3)

The other columns stay as they are. p is the first axis of a row's position. It is below the rows of
the table, or below `every` times the factors: a graph's context, and positions that come with a
feed, are checked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lowering import Builder, Lower, Word, rows_of, stride_of, weight
from .onnx_ports import Dialect, NodePorts, Port
from .onnx_tools import Call, EmitContext
from .operands import operands
from .quant import F32

ADD_LEARNED = operands("x", "y", "stride", "width", "table", "row_bytes", "positions")
SCALE_BY = operands("x", "y", "stride", "width", "scaled", "factors", "every", "positions")
Positions = NDArray[np.int64]


def add_learned_positions(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], p: Positions
) -> F32:
    """x float32 [T, C], weight float32 [P, C], p int [T] -> float32 [T, C]."""
    out: F32 = inputs[0] + weights["weight"][p]
    return out


def scale_by_position(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], p: Positions
) -> F32:
    """x float32 [T, C], weight float32 [K], p int [T] -> float32 [T, C]."""
    scaled, rest = np.split(inputs[0], [attrs["width"]], axis=1)
    factors = weights["weight"][p // attrs["every"]]
    return np.concatenate([scaled * factors[:, None], rest], axis=1)


def _lower(b: Builder, node: Any, kernel: str, kind: Any, more: dict[str, Word]) -> None:
    x, y = node.inputs[0], b.floats(node.output)
    words = {
        "x": x, "y": y, "stride": b.stride(y), "width": b.width(y), "positions": "@positions",
    } | more  # fmt: skip
    b.step(kernel, kind, y, [x], words, in_place=x if b.is_last_use(x, y) else "")


def lower_add_learned_positions(b: Builder, node: Any) -> None:
    """add_learned_positions, in place where nothing else reads its input."""
    more: dict[str, Word] = {
        "table": rows_of(node, "weight"), "row_bytes": stride_of(b.width(node.output)),
    }  # fmt: skip
    _lower(b, node, "add_learned_positions", ADD_LEARNED, more)


def lower_scale_by_position(b: Builder, node: Any) -> None:
    """scale_by_position, in place where nothing else reads its input."""
    attrs = b.attrs(node)
    more: dict[str, Word] = {
        "scaled": attrs["width"], "factors": weight(node, "weight"), "every": attrs["every"],
    }  # fmt: skip
    _lower(b, node, "scale_by_position", SCALE_BY, more)


LOWER: dict[str, Lower] = {
    "add_learned_positions": lower_add_learned_positions,
    "scale_by_position": lower_scale_by_position,
}
REFERENCE = {"add_learned_positions": add_learned_positions, "scale_by_position": scale_by_position}


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """The rows' positions."""
    return NodePorts((Port("positions", "int32" if dialect.standard else "int64", ("B", "S")),))


def _looked_up(ctx: EmitContext, call: Call, every: int) -> str:
    """weight[p // every] of each row. Rows that pad a step may stand past the table."""
    kind = np.int32 if ctx.standard else np.int64
    stored = call.weights["weight"]
    place = "positions"
    if every > 1:
        place = ctx.op("Div", [place, ctx.const(np.array(every, kind))])
    place = ctx.op("Min", [place, ctx.const(np.array(stored.shape[0] - 1, kind))])
    return ctx.op("Gather", [ctx.floats(stored.name), place])


def emit_add_learned_positions(ctx: EmitContext, call: Call) -> None:
    """Gather and Add."""
    ctx.op("Add", [call.inputs[0], _looked_up(ctx, call, 1)], call.output)


def emit_scale_by_position(ctx: EmitContext, call: Call) -> None:
    """Gather of the rows' factors, Mul of the first columns."""
    width, whole = call.attrs["width"], int(call.shapes[0][-1])
    factors = ctx.op("Unsqueeze", [_looked_up(ctx, call, call.attrs["every"]), ctx.ints(-1)])
    if width == whole:
        ctx.op("Mul", [call.inputs[0], factors], call.output)
        return
    cuts = ctx.ints(width, whole - width)
    scaled, rest = ctx.ops("Split", [call.inputs[0], cuts], [None, None], axis=-1)
    ctx.op("Concat", [ctx.op("Mul", [scaled, factors]), rest], call.output, axis=-1)


ONNX = {
    "add_learned_positions": emit_add_learned_positions,
    "scale_by_position": emit_scale_by_position,
}
PORTS = {"add_learned_positions": ports, "scale_by_position": ports}
