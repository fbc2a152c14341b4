"""Ops on grids: rows [H·W, C], row y·W + x is the cell at (x, y).

patchify            patch x patch cells become one row, channels in the order (py, px, c)
unpatchify          the inverse
add_grid_positions  y = x + sines and cosines of the cell's column, then of its row
                    (arXiv 2212.09748, with PixArt's base size and interpolation scale)
concat              y = [a, b], rows side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .elementwise import COPY
from .lowering import Builder, Lower, Word
from .onnx_tools import Call, EmitContext
from .operands import operands
from .quant import F32

# cells: rows of the grid that is cut into patches, or put together; across: patches of a line.
PATCHES = operands(
    "cells", "cell_stride", "rows", "row_stride", "across", "patch", "channels",
)  # fmt: skip
POSITIONS = operands("x", "y", "stride", "across", "half", "columns", "lines")
CONCAT = operands("a", "a_stride", "a_width", "b", "b_stride", "b_width", "y", "y_stride")


def patchify(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, C] -> float32 [H/p * W/p, p * p * C]."""
    p, channels = attrs["patch"], inputs[0].shape[1]
    cells = inputs[0].reshape(attrs["height"] // p, p, attrs["width"] // p, p, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(-1, p * p * channels)


def unpatchify(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, p * p * C] -> float32 [p H * p W, C]."""
    p, height, width = attrs["patch"], attrs["height"], attrs["width"]
    cells = inputs[0].reshape(height, width, p, p, -1)
    return cells.transpose(0, 2, 1, 3, 4).reshape(height * p * width * p, -1)


def side_table(count: int, channels: int, attrs: Mapping[str, Any]) -> F32:
    """Sines and cosines of `count` places along one side of a grid: float32 [count, C / 2]."""
    quarter = channels // 4
    omega = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    place = np.arange(count, dtype=np.float64) / (count / attrs["base"])
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd scales
        angle = (place / attrs["interpolation"])[:, None] * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def position_table(height: int, width: int, channels: int, attrs: Mapping[str, Any]) -> F32:
    """What `add_grid_positions` adds: float32 [H * W, C], half of C for columns, then rows."""
    whole = (height, width, channels // 2)
    columns = np.broadcast_to(side_table(width, channels, attrs)[None], whole)
    lines = np.broadcast_to(side_table(height, channels, attrs)[:, None], whole)
    return np.concatenate([columns, lines], axis=-1).reshape(height * width, channels)


def add_grid_positions(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """x float32 [H * W, C] -> float32 [H * W, C]."""
    (x,) = inputs
    return x + position_table(attrs["height"], attrs["width"], x.shape[1], attrs)


def concat(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """a float32 [N, A], b float32 [N, B] -> float32 [N, A + B]."""
    return np.concatenate([inputs[0], inputs[1]], axis=1)


def columns(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C] -> its columns [start, start + count), float32 [N, count]."""
    return inputs[0][:, attrs["start"] : attrs["start"] + attrs["count"]]


def _patch_words(b: Builder, node: Any, cells: str, rows: str, across: int) -> dict[str, Word]:
    return {
        "cells": cells, "cell_stride": b.stride(cells), "rows": rows, "row_stride": b.stride(rows),
        "across": across, "patch": b.attrs(node)["patch"], "channels": b.width(cells),
    }  # fmt: skip


def lower_patchify(b: Builder, node: Any) -> None:
    """patchify by rows of patches."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words = _patch_words(b, node, x, y, attrs["width"] // attrs["patch"])
    b.step("patchify", PATCHES, y, [x], words)


def lower_unpatchify(b: Builder, node: Any) -> None:
    """unpatchify by rows of patches."""
    x, y = node.inputs[0], b.floats(node.output)
    words = _patch_words(b, node, y, x, b.attrs(node)["width"])
    b.step("unpatchify", PATCHES, y, [x], words, rows=b.rows(x))


def lower_positions(b: Builder, node: Any) -> None:
    """add_grid_positions over a constant table for each side of the grid."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    width = b.width(y)
    words: dict[str, Word] = {
        "x": x, "y": y, "stride": b.stride(y), "across": attrs["width"], "half": width // 2,
        "columns": b.constant(side_table(attrs["width"], width, attrs)),
        "lines": b.constant(side_table(attrs["height"], width, attrs)),
    }  # fmt: skip
    in_place = x if b.is_last_use(x, y) else ""
    b.step("add_positions", POSITIONS, y, [x], words, in_place=in_place)


def lower_concat(b: Builder, node: Any) -> None:
    """concat by rows."""
    (left, right), y = node.inputs, b.floats(node.output)
    words: dict[str, Word] = {
        "a": left, "a_stride": b.stride(left), "a_width": b.width(left),
        "b": right, "b_stride": b.stride(right), "b_width": b.width(right),
        "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("concat", CONCAT, y, [left, right], words)


def lower_columns(b: Builder, node: Any) -> None:
    """copy_rows from the place of the first column."""
    x, y, first = node.inputs[0], b.floats(node.output), f"{node.output}#first"
    b.view(first, x, 4 * b.attrs(node)["start"])
    words: dict[str, Word] = {
        "x": first, "x_stride": b.stride(x), "y": y, "y_stride": b.stride(y), "width": b.width(y),
    }  # fmt: skip
    b.step("copy_rows", COPY, y, [x], words)


LOWER: dict[str, Lower] = {
    "patchify": lower_patchify, "unpatchify": lower_unpatchify,
    "add_grid_positions": lower_positions, "concat": lower_concat, "columns": lower_columns,
}  # fmt: skip
REFERENCE = {
    "patchify": patchify, "unpatchify": unpatchify,
    "add_grid_positions": add_grid_positions, "concat": concat, "columns": columns,
}  # fmt: skip


def _regrouped(ctx: EmitContext, call: Call, split: list[int], width: int) -> None:
    """Rows seen as [a, b, c, d, channels], the middle axes changed places, and rows again."""
    lead, perm = [-1] * ctx.batch, [0, 2, 1, 3, 4]
    cells = ctx.op("Reshape", [call.inputs[0], ctx.ints(*lead, *split)])
    perm = [0, *(axis + 1 for axis in perm)] if ctx.batch else perm
    turned = ctx.op("Transpose", [cells], perm=perm)
    ctx.op("Reshape", [turned, ctx.ints(*[0] * ctx.batch, -1, width)], call.output)


def emit_patchify(ctx: EmitContext, call: Call) -> None:
    """Reshape, Transpose, Reshape."""
    p, channels = call.attrs["patch"], int(call.shapes[0][1])
    split = [call.attrs["height"] // p, p, call.attrs["width"] // p, p, channels]
    _regrouped(ctx, call, split, p * p * channels)


def emit_unpatchify(ctx: EmitContext, call: Call) -> None:
    """Reshape, Transpose, Reshape."""
    p, channels = call.attrs["patch"], int(call.shapes[0][1]) // call.attrs["patch"] ** 2
    split = [call.attrs["height"], call.attrs["width"], p, p, channels]
    _regrouped(ctx, call, split, channels)


def emit_positions(ctx: EmitContext, call: Call) -> None:
    """Two Adds: waves of the columns, [1, W, C] with zeros in the second half, then of the lines,
    [H, 1, C] with zeros in the first. The tables grow with the grid's sides, not with its area."""
    height, width = call.attrs["height"], call.attrs["width"]
    channels = int(call.shapes[0][1])
    columns, lines = np.zeros((1, width, channels)), np.zeros((height, 1, channels))
    columns[0, :, : channels // 2] = side_table(width, channels, call.attrs)
    lines[:, 0, channels // 2 :] = side_table(height, channels, call.attrs)
    lead = [-1] * ctx.batch
    cells = ctx.op("Reshape", [call.inputs[0], ctx.ints(*lead, height, width, channels)])
    for table in (columns, lines):
        cells = ctx.op("Add", [cells, ctx.reals(table.astype(np.float32))])
    ctx.op("Reshape", [cells, ctx.ints(*[0] * ctx.batch, -1, channels)], call.output)


def emit_concat(ctx: EmitContext, call: Call) -> None:
    """Concat of the last axis."""
    ctx.op("Concat", call.inputs, call.output, axis=-1)


def emit_columns(ctx: EmitContext, call: Call) -> None:
    """Slice of the last axis."""
    start, count = call.attrs["start"], call.attrs["count"]
    ends = [ctx.ints(start), ctx.ints(start + count), ctx.ints(-1)]
    ctx.op("Slice", [call.inputs[0], *ends], call.output)


ONNX = {
    "patchify": emit_patchify, "unpatchify": emit_unpatchify,
    "add_grid_positions": emit_positions, "concat": emit_concat, "columns": emit_columns,
}  # fmt: skip
