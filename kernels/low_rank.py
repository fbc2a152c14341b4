"""What adapters add to a product, each row by its own: y[t] += B[i] (A[i] x[t]), i = adapter of t.

LoRA (arXiv 2106.09685), with the scale inside B; several adapters in one step as in S-LoRA (arXiv
2311.03285). A matrix whose rows come from several tensors has factors for parts of its rows: their
A are stacked, h = A x has all their ranks, and a group of 16 outputs reads the ranks of its part.

The products are float32, A and B float16 or float32. Every sum is added up in one order, so a
row's bits do not depend on the other rows of the step: A's by four chains of every fourth input,
B's by one chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import ACTS, ROWS, SPAN, TILE, groups_of
from .lowering import Builder, Lent, Word
from .operands import operands
from .quant import F32

# runs: how many, then for each adapter in the step its number, the first of its rows in `order`
# and how many. table: for each adapter the addresses of A [groups][depth][16], its groups of ranks,
# and the spans of B: of each 16 outputs the address [count][16], the first rank, the count.
DOWN = operands(
    "x", "x_stride", "depth", "h", "h_stride", "table", "runs", "order", "ctrl",
)  # fmt: skip
# gated: pairs of groups of y (gate, up) become one of out; 0 adds to y.
UP = operands(
    "h", "h_stride", "y", "y_stride", "groups", "gated", "out", "out_stride", "act", "table",
    "runs", "order", "scratch", "scratch_bytes", "ctrl",
)  # fmt: skip
ENTRY = SPANNED = 24  # bytes of an adapter in `table`, and of 16 outputs in its spans


@dataclass(frozen=True)
class Factor:
    """For rows from `first` on of a matrix: a float32 [r, K], b float32 [n, r], the scale in it."""

    first: int
    a: F32
    b: F32


@dataclass(frozen=True)
class Fitted:
    """An adapter for one graph. key: hash of its content. factors: by weight."""

    key: str
    name: str
    factors: Mapping[str, tuple[Factor, ...]]


class Packed(NamedTuple):
    """The factors of a matrix as kernels read them: a [groups][K][16], b for each 16 outputs
    [count][16], spans int64 [N / 16, 3] with addresses into b."""

    a: NDArray[Any]
    b: NDArray[Any]
    spans: NDArray[np.int64]

    @property
    def groups(self) -> int:
        return len(self.a)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes + self.spans.nbytes


def low_rank(x: F32, factors: Sequence[Factor], width: int) -> F32:
    """x float32 [T, K] -> what the factors add, float32 [T, width]."""
    y = np.zeros((len(x), width), np.float32)
    for factor in factors:
        y[:, factor.first : factor.first + len(factor.b)] += (x @ factor.a.T) @ factor.b.T
    return y


def pack(factors: Sequence[Factor], width: int, dtype: Any) -> Packed:
    """Factors of a matrix of `width` outputs. dtype: float16 or float32."""
    stacked = np.concatenate([factor.a for factor in factors])
    groups = groups_of(len(stacked))
    a = np.zeros((groups * ROWS, stacked.shape[1]), np.float32)
    a[: len(stacked)] = stacked
    turned = np.zeros((groups_of(width) * ROWS, len(stacked)), np.float32)
    at, spans = 0, np.zeros((groups_of(width), 3), np.int64)
    starts = []
    for factor in factors:
        rows, ranks = len(factor.b), len(factor.a)
        turned[factor.first : factor.first + rows, at : at + ranks] = factor.b
        touched = slice(factor.first // ROWS, groups_of(factor.first + rows))
        starts.append((touched, at, at + ranks))
        at += ranks
    pieces, offset = [], 0
    for group in range(len(spans)):
        own = [(low, high) for touched, low, high in starts
               if touched.start <= group < touched.stop]  # fmt: skip
        if not own:
            continue
        low, high = min(low for low, _ in own), max(high for _, high in own)
        piece = turned[group * ROWS : (group + 1) * ROWS, low:high].T
        spans[group] = offset, low, high - low
        pieces.append(piece.reshape(-1))
        offset += piece.size
    b = np.concatenate(pieces).astype(dtype)
    used = spans[:, 2] > 0
    spans[used, 0] = b.ctypes.data + spans[used, 0] * b.itemsize
    by_group = a.reshape(groups, ROWS, -1).transpose(0, 2, 1)
    return Packed(np.ascontiguousarray(by_group, dtype), b, spans)


def lower_down(b: Builder, node: Any, lent: Lent) -> str:
    """h = A x of every row with an adapter, into a buffer of its own."""
    x, matrix = node.inputs[0], node.weights["weight"]
    h = b.buffer(f"{node.output}#h", b.rows(x), 4 * lent.rank)
    words: dict[str, Word] = {
        "x": x, "x_stride": b.stride(x), "depth": b.weight_shape(matrix)[1], "h": h,
        "h_stride": b.stride(h), **_shared(b, node),
    }  # fmt: skip
    b.step(f"low_down_{lent.kernels}", DOWN, h, [x], words, rows=b.rows(x))
    return h


def lower_up(b: Builder, node: Any, lent: Lent, h: str, y: str, gate: Any = None) -> None:
    """y += B h; with `gate`, a glu node, y has gate and up in groups that alternate, and the value
    is that node's."""
    groups = groups_of(b.weight_shape(node.weights["weight"])[0])
    out = y if gate is None else b.floats(gate.output)
    b.scratch(4096 + 2 * TILE * SPAN * 64)
    words: dict[str, Word] = {
        "h": h, "h_stride": b.stride(h), "y": y, "y_stride": b.stride(y),
        "groups": groups if gate is None else groups // 2, "gated": int(gate is not None),
        "out": out, "out_stride": b.stride(out),
        "act": 0 if gate is None else ACTS[b.attrs(gate)["act"]], **_shared(b, node),
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.step(f"low_up_{lent.kernels}", UP, out, [h, y], words, rows=b.rows(y))


def _shared(b: Builder, node: Any) -> Mapping[str, Word]:
    """Operands of both kernels."""
    rows = b.rows(node.inputs[0]).lower()
    return {
        "table": f"@low:{node.weights['weight']}", "runs": f"@runs_{rows}",
        "order": f"@order_{rows}", "ctrl": "@ctrl",
    }  # fmt: skip
