"""Lowering of conv2d.

Float weights: one kernel that reads the cells under its outputs where they stand (`cpu/conv.py`).
All others: bands of the picture, whose patches become the rows of an ordinary product.

An add and an activation (relu, silu) right after it become part of it, an upsample before it is
read through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import isa
from .cpu.layout import CHUNK, GROUP, SPAN, TILE, TOKEN_BLOCK, WINOGRAD_TILES, blocks_of, groups_of
from .linear import LINEAR
from .lowering import Builder, Lower, Word, stride_of, weight
from .operands import operands

# Of conv_f32 and conv_f16. depth: input channels. zeros: a row of them, for cells outside. factor:
# of the upsampling that is read through; height, width: the grid that is stored.
CONV = operands(
    "weights", "groups", "depth", "x", "x_stride", "y", "y_stride", "bias", "residual", "act",
    "height", "width", "out_width", "kernel", "stride", "before", "factor", "zeros",
    "scratch", "scratch_bytes", "ctrl",
)  # fmt: skip
# Of patch_rows and quantize_patches: outputs from `first` on. y: float rows, or int8 tiles as those
# of `quantize`; y_stride: between rows, or between the threads' copies of a single one.
CONV_PATCHES = operands(
    "x", "x_stride", "depth", "height", "width", "out_width", "kernel", "stride", "before",
    "factor", "first", "y", "y_stride", "blocks", "offset", "scratch", "scratch_bytes",
)  # fmt: skip
WINOGRAD = operands("weights", "groups", "depth", "transformed")
FOLDED = {"": 0, "relu": 1, "silu": 2}  # activations that a product with float weights applies
WIDE, MANY = 32, 1024  # input channels and outputs from which on transforms pay
BAND_BYTES = 4 << 20  # of patches that exist at a time


class _Tail(NamedTuple):
    """What follows a convolution as a part of it: the value it makes, a summand, an activation."""

    output: str
    residual: str = ""
    act: str = ""


def lower_conv2d(b: Builder, node: Any) -> None:
    """conv2d with what can be folded into it."""
    encoding = b.encoding(node.weights["weight"])
    direct = encoding.kernel in ("f32", "f16")
    tail = _tail(b, node, acts=direct)
    if direct:
        _direct(b, node, tail, encoding.kernel)
    else:
        _by_bands(b, node, tail)


def _tail(b: Builder, node: Any, *, acts: bool) -> _Tail:
    tail = _Tail(node.output)
    reader = b.only_reader(node.output)
    if reader is not None and reader.op == "add":
        other = next((name for name in reader.inputs if name != node.output), "")
        if b.exists(other) and b.stride(other) == stride_of(b.width(node.output)):
            tail = _Tail(reader.output, other)
            b.skip(reader.output)
            reader = b.only_reader(reader.output)
        else:
            reader = None
    if acts and reader is not None and reader.op == "activation":
        act = str(b.attrs(reader)["act"])
        if act in FOLDED:
            tail = tail._replace(output=reader.output, act=act)
            b.skip(reader.output)
    return tail


def _grid_words(b: Builder, node: Any) -> dict[str, Word]:
    """Where the cells of a convolution's input are."""
    attrs, x, factor = b.attrs(node), node.inputs[0], 1
    depth = b.width(x)
    height, width = attrs["height"], attrs["width"]
    out = (width + attrs["pad_before"] + attrs["pad_after"] - attrs["kernel"]) // attrs["stride"]
    producer = b.producer(x)
    if producer is not None and producer.op == "upsample" and not b.exists(x):
        x, factor = producer.inputs[0], b.attrs(producer)["factor"]
        height, width = height // factor, width // factor
    return {
        "x": x, "x_stride": b.stride(x), "depth": depth, "height": height, "width": width,
        "out_width": out + 1, "kernel": attrs["kernel"], "stride": attrs["stride"],
        "before": attrs["pad_before"], "factor": factor,
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip


def _direct(b: Builder, node: Any, tail: _Tail, kernel: str) -> None:
    grid, y, residual = _grid_words(b, node), b.floats(tail.output), tail.residual
    side, depth = int(grid["kernel"]), int(grid["depth"])
    b.scratch(CHUNK * (8 * (side * side + 2 * side) + 64 * SPAN))  # addresses and sums
    zeros = b.made("zeros", depth)
    if not zeros:
        zeros = b.make("zeros", depth, b.constant(np.zeros(stride_of(depth) // 4, np.float32)))
    words: dict[str, Word] = {
        **grid, "weights": weight(node, "weight"), "y": y, "y_stride": b.stride(y),
        "groups": groups_of(b.width(y)), "bias": weight(node, "bias"), "residual": residual,
        "act": FOLDED[tail.act], "zeros": zeros, "ctrl": "@ctrl",
    }  # fmt: skip
    reads = [str(grid["x"]), *filter(None, [residual])]
    if side == 3 and grid["stride"] == 1 and depth >= WIDE and int(b.rows(y)) >= MANY:
        words["weights"] = _transformed(b, node, words, kernel)
        reads.append(str(words["weights"]))
        kernel = "winograd"
        b.scratch(256 + WINOGRAD_TILES * 16 * (4 * 64 + stride_of(depth)))
    b.step(
        f"conv_{kernel}", CONV, y, reads, words,
        in_place=residual if residual and b.is_last_use(residual, y) else "",
    )  # fmt: skip


def _transformed(b: Builder, node: Any, conv: Mapping[str, Word], kernel: str) -> str:
    """The weights as `cpu/winograd.py` reads them, made anew in every run."""
    groups, depth = int(conv["groups"]), int(conv["depth"])
    made = b.buffer(f"{node.output}#weights", "1", 16 * groups * depth * 64)
    words: dict[str, Word] = {
        "weights": conv["weights"], "groups": groups, "depth": depth, "transformed": made,
    }  # fmt: skip
    b.step(f"winograd_{kernel}", WINOGRAD, made, [], words, rows="1")
    return made


def _by_bands(b: Builder, node: Any, tail: _Tail) -> None:
    matrix, y = node.weights["weight"], b.floats(tail.output)
    encoding, (n, depth) = b.encoding(matrix), b.weight_shape(matrix)
    grid, total, blocks = _grid_words(b, node), int(b.rows(y)), blocks_of(depth)
    tiles = encoding.offset is not None
    row_bytes = blocks * TOKEN_BLOCK if tiles else stride_of(depth)
    private = -(-row_bytes // 64) * 64
    count = min(total, max(BAND_BYTES // row_bytes // TILE, 1) * TILE)
    made = b.buffer(f"{node.output}#patches", str(count), row_bytes, least=b.threads * private)
    b.scratch(4096 + 2 * TILE * 64 + encoding.input_scratch * blocks * GROUP)
    b.scratch(1024 + stride_of(depth) + stride_of(int(grid["depth"])))
    for first in range(0, total, count):
        rows = str(min(count, total - first))
        words: dict[str, Word] = {
            **grid, "first": first, "y": made, "y_stride": private if tiles else row_bytes,
            "blocks": blocks, "offset": encoding.offset or 0,
        }  # fmt: skip
        kernel = "quantize_patches" if tiles else "patch_rows"
        b.step(kernel, CONV_PATCHES, made, [str(grid["x"])], words, rows=rows)
        part, at = f"{node.output}#band{first}", first * b.stride(y)
        other = f"{part}+" if tail.residual else ""
        b.view(part, y, at)
        if tail.residual:
            b.view(other, tail.residual, at)
        words = {
            "weights": weight(node, "weight"), "depth": blocks if tiles else depth,
            "groups": groups_of(n), "x": made, "x_stride": private if tiles else row_bytes,
            "y": part, "y_stride": b.stride(y), "bias": weight(node, "bias"), "residual": other,
            "act": 0, "scratch": "@scratch", "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
            "past": int(isa.reads_past_caches()), "every": encoding.every, "kept": encoding.kept,
        }  # fmt: skip
        reads = [made, *filter(None, [tail.residual])]
        b.step(f"linear_{encoding.kernel}", LINEAR, y, reads, words, rows=rows)


LOWER: dict[str, Lower] = {"conv2d": lower_conv2d}
