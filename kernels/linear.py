"""linear: y[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n]).

With float weights (f32, f16) the product is a plain float one. With weights in blocks of codes
(`Encoding.blocks`) the activations are quantized too, per token and block of 32 inputs
(`quant.quantize_rows`), and

    y[t, n] = sum_b  xs[t, b] * ws[n, b] * sum_i xq[t, b, i] * wq[n, b, i]

with the inner sum exact in integers and the outer one in float32. Where weights have one scale a
row, so have activations, and a row is one block. A group of weights may be a part of a block, and
may have a minimum m, which takes m[n, b] * xs[t, b] * sum_i xq[t, b, i] off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import isa
from .before import work_before
from .cpu.layout import ACTS, CHUNK, GROUP, ROWS, SPAN, TILE, TOKEN_BLOCK, blocks_of, groups_of
from .encodings import Cpu, dequantize, encoding_of, tensors_of
from .linear_onnx import ONNX
from .low_rank import lower_down, lower_up
from .lowering import Builder, Lower, Word, stride_of, weight
from .modulation import PARTS
from .operands import operands
from .quant import F32, Matrix, quantize_rows

# Of the linear and gated kernels. groups: of 16 output rows, or pairs of such groups (gated).
# depth: blocks of 32 inputs, or inputs (float weights). x_stride: bytes between float rows, or
# between the threads' copies of a single quantized row. bias, residual: 0 for none; residual rows
# have the output's stride. past: whether to ask for weights past the outer caches, see `isa`.
# every: blocks of 32 inputs that share a scale. kept: values of a row that come with indices.
LINEAR = operands(
    "weights", "groups", "depth", "x", "x_stride", "y", "y_stride", "bias", "residual", "act",
    "scratch", "scratch_bytes", "ctrl", "past", "every", "kept",
)  # fmt: skip
# private_bytes: of the copy of a single row that each thread makes for itself, without a barrier.
# before: what is done to a row first (`before.py`), with its operands.
QUANTIZE = operands(
    "x", "x_stride", "width", "blocks", "tiles", "private_bytes", "offset", "before", "act", "eps",
    *PARTS, "scratch", "scratch_bytes",
)  # fmt: skip


__all__ = [
    "LINEAR", "LOWER", "ONNX", "QUANTIZE", "REFERENCE", "linear", "product", "product_scratch",
]  # fmt: skip


def product(x: F32, w: Matrix) -> F32:
    """float32 [T, K] times a stored matrix [N, K] -> float32 [T, N], by the formula above."""
    blocks, lows = encoding_of(w).blocks, encoding_of(w).lows
    if blocks is None:
        return x.astype(np.float32) @ dequantize(w).T
    whole = encoding_of(w).channels
    xq, xs = quantize_rows(x, whole=whole)  # [T, KB, 32], [T, KB]
    wq, ws = blocks(tensors_of(w))  # [N, KB, 32], [N, KB], or more and smaller ones
    exact: Any = np.float64 if whole else np.float32  # sums below 2^31, below 2^24
    if wq.shape[2] < xq.shape[2]:
        xs = xs.repeat(xq.shape[2] // wq.shape[2], axis=1)
        xq = xq.reshape(len(xq), -1, wq.shape[2])
    y = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for b in range(xs.shape[1]):
        dots = (xq[:, b].astype(exact) @ wq[:, b].astype(exact).T).astype(np.float32)
        y += dots * (xs[:, b, None] * ws[None, :, b])
    if lows is not None:
        y -= (xq.sum(axis=2, dtype=np.int32) * xs) @ lows(tensors_of(w)).T
    return y


def linear(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, K], weight [N, K] in any encoding, bias float32 [N] or absent -> [T, N]."""
    y = product(inputs[0], weights["weight"])
    return y + weights["bias"] if "bias" in weights else y


def lower_linear(b: Builder, node: Any) -> None:
    """linear; a gate or a residual sum right after it becomes part of the same instruction, and
    what adapters add is added to that."""
    reader, lent = b.only_reader(node.output), b.low_rank(node.weights["weight"])
    h = lower_down(b, node, lent) if lent.rank else ""
    if reader is not None and reader.op == "glu" and _gates(b, node, reader):
        b.pair(node.weights["weight"])
        if h:  # the gate comes after what is added
            b.skip(reader.output)
            _product(b, node, node.output)
            lower_up(b, node, lent, h, node.output, gate=reader)
        else:
            _product(b, node, reader.output, gated=str(b.attrs(reader)["act"]))
        return
    y, residual = node.output, ""
    if reader is not None and reader.op == "add":
        other = next((name for name in reader.inputs if name != node.output), "")
        if b.exists(other) and b.stride(other) == stride_of(b.width(node.output)):
            y, residual = reader.output, other
    _product(b, node, y, residual=residual)
    if h:
        lower_up(b, node, lent, h, y)


def _gates(b: Builder, node: Any, reader: Any) -> bool:
    """Whether a product and the gate after it can be one instruction."""
    matrix = node.weights["weight"]
    return (
        "bias" not in node.weights
        and b.weight_shape(matrix)[0] % (2 * ROWS) == 0
        and not b.shared(matrix)
        and b.encoding(matrix).gated
    )


def _activations(b: Builder, x: str, offset: int) -> str:
    """The int8 tiles of a value, made once for each correction offset, from rows that are normed,
    modulated or activated on the way where the nodes that do so were left out."""
    if have := b.made("tiles", (x, offset)):
        return have
    width, (source, reads, first) = b.width(x), work_before(b, x)
    blocks = blocks_of(width)
    private = -(-blocks * TOKEN_BLOCK // 64) * 64
    tiles = b.make("tiles", (x, offset), f"{x}#{offset}")
    b.buffer(tiles, b.rows(x), blocks * TOKEN_BLOCK, least=b.threads * private)
    b.scratch(256 + 3 * stride_of(width))
    words: dict[str, Word] = {
        "x": source, "x_stride": b.stride(source), "width": width, "blocks": blocks,
        "tiles": tiles, "private_bytes": private, "offset": offset, **first,
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.step("quantize", QUANTIZE, tiles, reads, words, rows=b.rows(x), barrier=2)
    return tiles


def product_scratch(encoding: Cpu, depth: int) -> int:
    """Bytes of scratch that a thread needs for rows of `depth` inputs."""
    coded = 4096 + 2 * TILE * 64 + encoding.input_scratch * blocks_of(depth) * GROUP
    return max(1024 + CHUNK * SPAN * 64, coded)


def _product(b: Builder, node: Any, y: str, *, gated: str = "", residual: str = "") -> None:
    matrix, x = node.weights["weight"], node.inputs[0]
    encoding, (n, depth) = b.encoding(matrix), b.weight_shape(matrix)
    b.scratch(product_scratch(encoding, depth))
    if encoding.offset is not None:
        x, depth = _activations(b, x, encoding.offset), blocks_of(depth)
        stride = -(-depth * TOKEN_BLOCK // 64) * 64
    else:
        stride = b.stride(x)
    if y != node.output:
        b.skip(y)
    b.floats(y)
    words: dict[str, Word] = {
        "weights": weight(node, "weight"), "depth": depth,
        "groups": groups_of(n // 2 if gated else n),
        "x": x, "x_stride": stride, "y": y, "y_stride": b.stride(y),
        "bias": weight(node, "bias"), "residual": residual,
        "act": ACTS[gated] if gated else 0, "scratch": "@scratch",
        "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
        "past": int(isa.reads_past_caches()), "every": encoding.every,
        "kept": encoding.kept,
    }  # fmt: skip
    b.step(
        f"{'gated' if gated else 'linear'}_{encoding.kernel}", LINEAR, y,
        [x, *filter(None, [residual])], words,
        in_place=residual if residual and b.is_last_use(residual, y) else "",
    )  # fmt: skip


LOWER: dict[str, Lower] = {"linear": lower_linear}
REFERENCE = {"linear": linear}
