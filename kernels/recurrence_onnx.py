"""The ONNX faces of recurrences with a decay: a step of up to 64 rows is one chunk.

Within it all pairs of rows are computed at once, weighted by the decay between them; the state
before it adds its part. All exponents are differences of sums of rates that are at most 0, so
nothing overflows (arXiv 2405.21060, 6). Everything is float32, in half precision, too.

Shapes: B sequences, G groups of R heads each, S rows.
"""

from __future__ import annotations

import numpy as np

from .onnx_tools import EmitContext
from .quant import F32
from .slot_rows import CHUNK, hidden, square


def left(ctx: EmitContext) -> str:
    """1 for valid rows, 0 for padding: float32 [B, S, 1]."""
    if ("valid-rows",) not in ctx.made:
        ctx.made["valid-rows",] = ctx.op("Unsqueeze", ["valid", ctx.ints(2)])
    return ctx.made["valid-rows",]


def heads_apart(ctx: EmitContext, x: str, groups: int, share: int, size: int) -> str:
    """x [B, S, G * R * size] as [B, G, R, S, size]."""
    apart = ctx.op("Reshape", [x, ctx.ints(0, 0, groups, share, size)])
    return ctx.op("Transpose", [apart], perm=[0, 2, 3, 1, 4])


def rows_together(ctx: EmitContext, y: str, width: int, out: str) -> None:
    """y [B, G, R, S, size] as [B, S, width] in the activations' dtype."""
    rows = ctx.op("Transpose", [y], perm=[0, 3, 1, 2, 4])
    if ctx.half:
        whole = ctx.op("Reshape", [rows, ctx.ints(0, 0, width)])
        ctx.op("Cast", [whole], out, to=ctx.float_type)
    else:
        ctx.op("Reshape", [rows, ctx.ints(0, 0, width)], out)


def chunk_decays(ctx: EmitContext, rate: str, groups: int, share: int) -> tuple[str, str, str, str]:
    """What rates [B, S, H], logarithms of decays, make of the chunk: from row j to row i
    [B, G, R, S, S], 0 where j > i; from before the chunk to row i [.., S, 1]; from row j to the end
    [.., S, 1]; over all of it [.., 1, 1]."""
    rate = heads_apart(ctx, rate, groups, share, 1)
    total = ctx.op("CumSum", [rate, ctx.const(np.array(3, np.int64))])
    across = ctx.op("Transpose", [total], perm=[0, 1, 2, 4, 3])
    between = ctx.op("Sub", [total, across])
    pairs = ctx.op("Exp", [ctx.op("Add", [between, square(ctx, hidden(), between)])])
    end = ctx.op("ReduceSum", [rate, ctx.ints(3)], keepdims=1)
    rest = ctx.op("Exp", [ctx.op("Sub", [end, total])])
    return pairs, ctx.op("Exp", [total]), rest, ctx.op("Exp", [end])


def inverse_of_lower(ctx: EmitContext, below: str) -> str:
    """(I + L)^-1 of matrices L [..., S, S] that are 0 on and above the diagonal.

    Blocks of 1, 2, 4, ... 32 rows are inverted already; two neighbours become one by
    [[A, 0], [L, B]]^-1 = [[A^-1, 0], [-B^-1 L A^-1, B^-1]], which as products of whole matrices
    is X - X L' X with only those L in L'. Sums stay as small as the inverse is, which powers of L
    do not.
    """
    inverse = square(ctx, np.eye(CHUNK, dtype=np.float32), below)
    size = 1
    while size < CHUNK:
        corner = ctx.op("Mul", [below, square(ctx, _corners(size), below)])
        if size > 1:
            corner = ctx.op("MatMul", [ctx.op("MatMul", [inverse, corner]), inverse])
        inverse = ctx.op("Sub", [inverse, corner])
        size *= 2
    return inverse


def _corners(size: int) -> F32:
    """1 where a row's block of `size` is the second of a pair and the column's block the first,
    [64, 64]."""
    block = np.arange(CHUNK) // size
    row, column = block[:, None], block[None, :]
    made: F32 = ((row % 2 == 1) & (column == row - 1)).astype(np.float32)
    return made
