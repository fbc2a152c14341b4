"""What latent attention needs besides attention: its rows as those of ordinary heads, or as
queries over latents.

latent_heads   per token, with one key part for all heads (arXiv 2405.04434):
               q as it is | k_h = [shared, own_h] | v_h, padded with zeros to the size of a key
latent_rows    per token, [turning_h, still_h] of each head's query | [key, latent]: rows of
               `attention` whose keys' last channels are the values
first_columns  of each part of `size` columns the first `keep`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .lowering import Builder, Lower, Word
from .onnx_tools import Call, EmitContext
from .operands import operands
from .quant import F32

LATENT_HEADS = operands(
    "q", "q_stride", "kv", "kv_stride", "shared", "shared_stride", "heads", "shared_width", "own",
    "value", "y", "y_stride",
)  # fmt: skip
LATENT_ROWS = operands(
    "turning", "turning_stride", "still", "still_stride", "key", "key_stride", "latent",
    "latent_stride", "heads", "shared", "rank", "y", "y_stride",
)  # fmt: skip
FIRST_COLUMNS = operands("x", "x_stride", "parts", "size", "keep", "y", "y_stride")


def latent_heads(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """q float32 [T, H * (R + N)], kv float32 [T, H * (N + V)], shared float32 [T, R] -> float32
    [T, 3 * H * (R + N)], rows as `attention` reads them. R: `shared`, N: `own`, V: `value`."""
    q, kv, shared = inputs
    heads, size = attrs["heads"], attrs["shared"] + attrs["own"]
    each = kv.reshape(len(kv), heads, -1)
    turning = np.repeat(shared[:, None], heads, axis=1)
    keys = np.concatenate([turning, each[..., : attrs["own"]]], axis=-1)
    values = np.zeros_like(keys)
    values[..., : attrs["value"]] = each[..., attrs["own"] :]
    return np.concatenate([q, *(x.reshape(-1, heads * size) for x in (keys, values))], axis=1)


def first_columns(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """x float32 [N, P * size] -> float32 [N, P * keep]."""
    (x,) = inputs
    parts = x.reshape(len(x), -1, attrs["size"])
    return parts[..., : attrs["keep"]].reshape(len(x), -1)


def latent_rows(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """turning float32 [T, H * R], still [T, H * C], key [T, R], latent [T, C] -> float32
    [T, (H + 1) * (R + C)]. R: `shared`, C: `rank`."""
    turning, still, key, latent = inputs
    apart = (len(turning), attrs["heads"], -1)
    queries = np.concatenate([turning.reshape(apart), still.reshape(apart)], axis=-1)
    return np.concatenate([queries.reshape(len(turning), -1), key, latent], axis=1)


def lower_latent_rows(b: Builder, node: Any) -> None:
    """latent_rows by rows."""
    y, attrs, slots = b.floats(node.output), b.attrs(node), ("turning", "still", "key", "latent")
    words: dict[str, Word] = {key: attrs[key] for key in ("heads", "shared", "rank")}
    for slot, x in zip(slots, node.inputs, strict=True):
        words |= {slot: x, f"{slot}_stride": b.stride(x)}
    words |= {"y": y, "y_stride": b.stride(y)}
    b.step("latent_rows", LATENT_ROWS, y, list(node.inputs), words)


def lower_latent_heads(b: Builder, node: Any) -> None:
    """latent_heads by rows."""
    (q, kv, shared), y, attrs = node.inputs, b.floats(node.output), b.attrs(node)
    words: dict[str, Word] = {
        "q": q, "q_stride": b.stride(q), "kv": kv, "kv_stride": b.stride(kv), "shared": shared,
        "shared_stride": b.stride(shared), "heads": attrs["heads"],
        "shared_width": attrs["shared"], "own": attrs["own"], "value": attrs["value"],
        "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("latent_heads", LATENT_HEADS, y, [q, kv, shared], words)


def lower_first_columns(b: Builder, node: Any) -> None:
    """first_columns by rows."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words: dict[str, Word] = {
        "x": x, "x_stride": b.stride(x), "parts": b.width(x) // attrs["size"],
        "size": attrs["size"], "keep": attrs["keep"], "y": y, "y_stride": b.stride(y),
    }  # fmt: skip
    b.step("first_columns", FIRST_COLUMNS, y, [x], words)


LOWER: dict[str, Lower] = {
    "latent_heads": lower_latent_heads, "first_columns": lower_first_columns,
    "latent_rows": lower_latent_rows,
}  # fmt: skip
REFERENCE = {
    "latent_heads": latent_heads, "first_columns": first_columns, "latent_rows": latent_rows,
}  # fmt: skip


def emit_latent_heads(ctx: EmitContext, call: Call) -> None:
    """Split, and Concat of the shared part as often as there are heads; zeros are a part of the
    keys times 0."""
    q, kv, shared = call.inputs
    heads, turning, own, value = (call.attrs[k] for k in ("heads", "shared", "own", "value"))
    size = turning + own
    each = ctx.op("Reshape", [kv, ctx.ints(0, 0, heads, own + value)])
    still, values = ctx.ops("Split", [each, ctx.ints(own, value)], [None, None], axis=-1)
    part = ctx.op("Unsqueeze", [shared, ctx.ints(2)])
    keys = ctx.op("Concat", [ctx.op("Concat", [part] * heads, axis=2), still], axis=-1)
    if value < size:
        some = ctx.op("Slice", [keys, ctx.ints(0), ctx.ints(size - value), ctx.ints(-1)])
        values = ctx.op("Concat", [values, ctx.op("Mul", [some, ctx.scalar(0.0)])], axis=-1)
    rows = [ctx.op("Reshape", [x, ctx.ints(0, 0, heads * size)]) for x in (keys, values)]
    ctx.op("Concat", [q, *rows], call.output, axis=-1)


def emit_first_columns(ctx: EmitContext, call: Call) -> None:
    """Reshape, Slice, Reshape."""
    size, keep = call.attrs["size"], call.attrs["keep"]
    parts = int(call.shapes[0][-1]) // size
    each = ctx.op("Reshape", [call.inputs[0], ctx.ints(0, 0, parts, size)])
    kept = ctx.op("Slice", [each, ctx.ints(0), ctx.ints(keep), ctx.ints(-1)])
    ctx.op("Reshape", [kept, ctx.ints(0, 0, parts * keep)], call.output)


def emit_latent_rows(ctx: EmitContext, call: Call) -> None:
    """Concat by heads, and of rows."""
    turning, still, key, latent = call.inputs
    heads, shared, rank = (call.attrs[k] for k in ("heads", "shared", "rank"))
    parts = [
        ctx.op("Reshape", [x, ctx.ints(0, 0, heads, size)])
        for x, size in ((turning, shared), (still, rank))
    ]
    rows = ctx.op("Concat", parts, axis=-1)
    queries = ctx.op("Reshape", [rows, ctx.ints(0, 0, heads * (shared + rank))])
    ctx.op("Concat", [queries, key, latent], call.output, axis=-1)


ONNX = {
    "latent_heads": emit_latent_heads, "first_columns": emit_first_columns,
    "latent_rows": emit_latent_rows,
}  # fmt: skip
