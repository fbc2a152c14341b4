"""dot_attention: every query row over all key rows, nothing cached (arXiv 1706.03762).

    s[h, i, j] = scale * q[i, h] . k[j, h]  (+ relative_bias[bucket(j - i), h])
    y[i, h]    = sum_j softmax_j(s[h, i]) v[j, h]

Keys and values may be rows of another value than the queries (a caption's). causal: row i sees the
rows j <= i. relative_bias [buckets, H]: T5's, with half of the buckets for each direction where the
attention is not causal, exact distances in the first half of those, logarithmic ones up to
`max_distance` in the rest (arXiv 1910.10683).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lowering import Builder, Lower, Word, rows_of, stride_of
from .onnx_ports import Dialect, NodePorts, Port
from .onnx_tools import FLOAT, INT64, MICROSOFT, Call, EmitContext
from .operands import operands
from .quant import F32

QUERIES, KEYS = 24, 256  # rows of a tile, and keys that a tile looks at in one go
PACK_KEYS = operands("k", "v", "stride", "heads", "size", "packed", "ctrl")
# table: relative biases by rows, or 0; starts: the smallest distance of each bucket.
DOT_ATTENTION = operands(
    "q", "q_stride", "packed", "y", "y_stride", "heads", "size", "scale", "causal", "table",
    "table_stride", "buckets", "starts", "scratch", "scratch_bytes", "ctrl",
)  # fmt: skip


def bucket_of(distance: NDArray[np.int64], buckets: int, max_distance: int) -> NDArray[np.int64]:
    """Bucket of distances of 0 and more in one direction, 0 to buckets - 1."""
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
    far = exact + (ratio / math.log(max_distance / exact) * (buckets - exact)).astype(np.int64)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1))


def buckets_of(
    queries: int, keys: int, buckets: int, max_distance: int, *, causal: bool
) -> NDArray[np.int64]:
    """Bucket of each pair: int64 [queries, keys], 0 to buckets - 1."""
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    if causal:
        return bucket_of(np.maximum(-distance, 0), buckets, max_distance)
    first = np.where(distance > 0, buckets // 2, 0)
    return np.asarray(first + bucket_of(np.abs(distance), buckets // 2, max_distance), np.int64)


def starts_of(buckets: int, max_distance: int) -> NDArray[np.int32]:
    """The smallest distance of each bucket of one direction, int32 [buckets], 2^31 - 1 for none.
    As many numbers as the table has rows, however far `max_distance` is."""
    wanted = np.arange(buckets)
    low, high = np.full(buckets, -1, np.int64), np.full(buckets, (1 << 31) - 1, np.int64)
    while (high - low > 1).any():  # bucket_of(low) < wanted <= bucket_of(high)
        middle = (low + high) // 2
        reached = bucket_of(np.maximum(middle, 0), buckets, max_distance) >= wanted
        reached &= middle >= 0
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high.astype(np.int32)


def bias_of(weights: Mapping[str, Any], attrs: Mapping[str, Any], n: int, m: int) -> F32 | None:
    """What is added to the scores: float32 [H, n, m], or None."""
    if "relative_bias" not in weights:
        return None
    table: F32 = weights["relative_bias"]
    found = buckets_of(n, m, len(table), attrs["max_distance"], causal=attrs["causal"])
    return table[found].transpose(2, 0, 1)


def dot_attention(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """q float32 [N, H * D], k, v float32 [M, H * D] -> float32 [N, H * D]."""
    q, k, v = (x.reshape(len(x), attrs["heads"], -1).transpose(1, 0, 2) for x in inputs)
    scores = q @ k.transpose(0, 2, 1) * np.float32(attrs["scale"])  # [H, N, M]
    bias = bias_of(weights, attrs, q.shape[1], k.shape[1])
    if bias is not None:
        scores = scores + bias
    if attrs["causal"]:
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    out: F32 = (share @ v).transpose(1, 0, 2).reshape(len(inputs[0]), -1)
    return out


def _pack(b: Builder, node: Any, heads: int, size: int) -> str:
    """Keys and values of a node as its kernel reads them, packed once for all that share them."""
    _, k, v = node.inputs
    if have := b.made("keys", (k, v, heads)):
        return have
    row = 4 * heads * (size + stride_of(size) // 4)
    packed = b.buffer(f"{node.output}#keys", b.rows(k), row, more=64 + 16 * row)
    words: dict[str, Word] = {
        "k": k, "v": v, "stride": b.stride(k), "heads": heads, "size": size, "packed": packed,
        "ctrl": "@ctrl",
    }  # fmt: skip
    b.step("pack_keys", PACK_KEYS, packed, [k, v], words, rows=b.rows(k))
    return b.make("keys", (k, v, heads), packed)


def _scratch(size: int) -> int:
    """Bytes that a thread needs: sums and largest scores, biases, scores, values, queries."""
    tile = 4 * KEYS * QUERIES + QUERIES * (stride_of(size) + 4 * size)
    return 2 * stride_of(QUERIES) + 4 * (KEYS + 2 * QUERIES) + tile


def lower_dot_attention(b: Builder, node: Any) -> None:
    """Keys and values packed, then tiles of queries over them."""
    attrs, q, y = b.attrs(node), node.inputs[0], b.floats(node.output)
    heads, size = attrs["heads"], attrs["head_dim"]
    packed, table = _pack(b, node, heads, size), rows_of(node, "relative_bias")
    buckets, starts = 0, ""
    if table:
        buckets = b.weight_shape(node.weights["relative_bias"])[0]
        buckets = buckets if attrs["causal"] else buckets // 2
        starts = b.constant(starts_of(buckets, attrs["max_distance"]))
    words: dict[str, Word] = {
        "q": q, "q_stride": b.stride(q), "packed": packed, "y": y, "y_stride": b.stride(y),
        "heads": heads, "size": size, "scale": attrs["scale"], "causal": int(attrs["causal"]),
        "table": table, "table_stride": stride_of(heads), "buckets": buckets, "starts": starts,
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
    }  # fmt: skip
    b.scratch(_scratch(size))
    b.step("dot_attention", DOT_ATTENTION, y, [q, packed], words)


LOWER: dict[str, Lower] = {"dot_attention": lower_dot_attention}
REFERENCE = {"dot_attention": dot_attention}


def _with_batch(ctx: EmitContext, call: Call, index: int) -> str:
    """An input as [B, N, C]: rows of tokens and of batches have that axis, others are one
    sequence."""
    if ctx.leads(call.shapes[index]):
        return call.inputs[index]
    return ctx.op("Unsqueeze", [call.inputs[index], ctx.ints(0)])


def _padded(call: Call, *, batch: bool) -> bool:
    """Whether the sequences of a batch have different numbers of keys."""
    rows = call.shapes[1][0]
    return batch and isinstance(rows, str) and rows != "T"


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """Which keys of a batch are there, for keys of as many rows as a symbol says: `seen.<symbol>`
    [B, 1, 1, M], 0 where there is one, very negative where the rows are padding."""
    if not _padded(call, batch=dialect.batch):
        return NodePorts()
    rows = call.shapes[1][0]
    return NodePorts((Port(f"seen.{rows}", dialect.real, ("B", 1, 1, rows)),))


def _with_seen(ctx: EmitContext, call: Call, q: str, bias: str) -> str:
    """The bias of each pair, [B, H or 1, N, M], with keys that are not there left out."""
    (queries, _), (keys, _) = call.shapes[:2]
    key = "seen", queries, keys, bias
    if key not in ctx.made:
        seen = f"seen.{keys}"
        if not bias and isinstance(queries, int):
            bias = ctx.reals(np.zeros((1, 1, queries, 1), np.float32))
        elif not bias:
            column = ctx.op("Unsqueeze", [_places(ctx, q), ctx.ints(1)])
            none = ctx.op("Mul", [column, ctx.table(np.zeros(1, np.float32))])
            bias = ctx.cast(none, FLOAT, ctx.float_type)
        ctx.made[key] = ctx.op("Add", [bias, seen])
    return ctx.made[key]


def _places(ctx: EmitContext, x: str) -> str:
    """0, 1, ... for the rows of x [B, N, C] as float32 [N]: a running sum of ones, so that nothing
    has to be computed of shapes, which providers do on the host."""
    first = ctx.op("Slice", [x, ctx.ints(0, 0), ctx.ints(1, 1), ctx.ints(0, 2)])  # [1, N, 1]
    column = ctx.op("Reshape", [first, ctx.ints(-1)])
    none = ctx.op("Cast", [ctx.op("Less", [column, column])], to=FLOAT)  # 0, for NaN, too
    ones = ctx.op("Add", [none, ctx.table(np.ones(1, np.float32))])
    return ctx.op("CumSum", [ones, ctx.const(np.array(0, np.int64))], exclusive=1)


def _bias(ctx: EmitContext, call: Call, q: str, k: str) -> str:
    """relative_bias of each pair, [1, H, N, M]: how many buckets begin at or before a distance is
    the bucket's number. Made once for all nodes that have the table and as many rows."""
    table, causal = call.weights["relative_bias"], call.attrs["causal"]
    rows = call.shapes[0][0], call.shapes[1][0]
    key = "relative_bias", table.name, *rows, causal, call.attrs["max_distance"]
    if key in ctx.made:
        return ctx.made[key]
    buckets = table.shape[0] if causal else table.shape[0] // 2
    starts = starts_of(buckets, call.attrs["max_distance"])[1:].astype(np.float32)
    queries = ctx.op("Unsqueeze", [_places(ctx, q), ctx.ints(1)])
    distance = ctx.op("Sub", [_places(ctx, k), queries])  # [N, M], key - query
    zero = ctx.table(np.zeros(1, np.float32))
    if causal:
        away = ctx.op("Sub", [zero, distance])  # of the rest, buckets do not matter
    else:
        away = ctx.op("Abs", [distance])
    apart = ctx.op("Unsqueeze", [away, ctx.ints(2)])
    reached = ctx.op("GreaterOrEqual", [apart, ctx.table(starts)])
    found = ctx.op("ReduceSum", [ctx.op("Cast", [reached], to=FLOAT), ctx.ints(2)], keepdims=0)
    if not causal:
        later = ctx.op("Cast", [ctx.op("Less", [zero, distance])], to=FLOAT)
        later = ctx.op("Mul", [later, ctx.table(np.full(1, buckets, np.float32))])
        found = ctx.op("Add", [found, later])
    entries = ctx.op("Gather", [ctx.floats(table.name), ctx.op("Cast", [found], to=INT64)])
    bias = ctx.op("Transpose", [entries], perm=[2, 0, 1])  # [N, M, H] -> [H, N, M]
    ctx.made[key] = ctx.op("Unsqueeze", [bias, ctx.ints(0)])
    return ctx.made[key]


def emit_dot_attention(ctx: EmitContext, call: Call) -> None:
    """contrib: MultiHeadAttention. standard: MatMul, Softmax in float32, MatMul."""
    q, k, v = (_with_batch(ctx, call, index) for index in range(3))
    bias = _bias(ctx, call, q, k) if "relative_bias" in call.weights else ""
    bias = _with_seen(ctx, call, q, bias) if _padded(call, batch=ctx.batch) else bias
    batched = ctx.leads(call.shapes[0])
    out = call.output if batched else None
    if ctx.standard:
        y = _plain(ctx, call, (q, k, v), bias, out)
    else:
        y = ctx.op(
            "MultiHeadAttention", [q, k, v, *(["", "", bias] if bias else [])], out,
            domain=MICROSOFT, num_heads=call.attrs["heads"], scale=call.attrs["scale"],
            unidirectional=int(call.attrs["causal"]),
        )  # fmt: skip
    if not batched:
        ctx.op("Reshape", [y, ctx.ints(-1, int(call.shapes[0][1]))], call.output)


def _plain(ctx: EmitContext, call: Call, rows: tuple[str, ...], bias: str, out: str | None) -> str:
    """Attention of [B, N, H * D] in standard ops."""
    heads, size = call.attrs["heads"], call.attrs["head_dim"]
    q, k, v = (ctx.op("Reshape", [x, ctx.ints(0, 0, heads, size)]) for x in rows)
    q = ctx.op(
        "Transpose", [ctx.op("Mul", [q, ctx.scalar(call.attrs["scale"])])], perm=[0, 2, 1, 3]
    )
    scores = ctx.op("MatMul", [q, ctx.op("Transpose", [k], perm=[0, 2, 3, 1])])
    if bias:
        scores = ctx.op("Add", [scores, bias])
    scores = ctx.cast(scores, ctx.float_type, FLOAT)
    if call.attrs["causal"]:
        scores = ctx.op("Add", [scores, _unseen(ctx, call, rows[0])])
    shares = ctx.op("Softmax", [scores], axis=-1)
    shares = ctx.op("Cast", [shares], to=ctx.float_type) if ctx.half else shares
    y = ctx.op("MatMul", [shares, ctx.op("Transpose", [v], perm=[0, 2, 1, 3])])
    y = ctx.op("Transpose", [y], perm=[0, 2, 1, 3])
    return ctx.op("Reshape", [y, ctx.ints(0, 0, heads * size)], out)


def _unseen(ctx: EmitContext, call: Call, x: str) -> str:
    """Very negative where a key comes after its query, 0 elsewhere: float32 [N, N]."""
    key = "unseen", call.shapes[0][0]
    if key not in ctx.made:
        places = _places(ctx, x)
        rows = ctx.op("Unsqueeze", [places, ctx.ints(1)])
        later = ctx.op("Cast", [ctx.op("Less", [rows, places])], to=FLOAT)
        ctx.made[key] = ctx.op("Mul", [later, ctx.table(np.full(1, -1e30, np.float32))])
    return ctx.made[key]


ONNX = {"dot_attention": emit_dot_attention}
PORTS = {"dot_attention": ports}
