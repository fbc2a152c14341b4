"""How linear attention becomes instructions: rows of the tail, what the state adds, the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention_lower import rope_table
from .cpu.layout import BLOCK_FEATURES, BLOCK_KEYS, BLOCK_QUERIES, FOLD_FEATURES, SLABS
from .lowering import Builder, Lower, rows_of, stride_of, weight
from .operands import operands
from .ops_linear import EXP, MODES, SHARE, padded

# Heads prepared. gates: 0 for none. mode: as in `ops_linear.MODES`. scale: of queries and of keys.
# q: float32 rows [H][r], with a window [H][D] behind these. sequences, state: see
# `edgert/session/tailed.py` and `cpu/tails.py`.
LINEAR_ROWS = operands(
    "qkv", "stride", "gates", "gates_stride", "decay", "heads", "kv_heads", "size", "features",
    "rope", "half", "q_norm", "k_norm", "eps", "scale", "q_map", "k_map", "mean", "q", "q_stride",
    "sequences", "state", "mode", "window", "scratch",
)  # fmt: skip
# Of `linear_state` and `linear_read`. bounds: int32 pairs of the slabs, first i and first feature.
# partials: float32 [G][slabs][T * H / G][16 + P]: a row's sum of weights, 15 unused, its values.
# log_window: float32 [H], 0 for no window.
LINEAR_SUMS = operands(
    "q", "q_stride", "heads", "kv_heads", "size", "features", "mode", "beta", "gamma", "chunk",
    "slabs", "bounds", "sequences", "state", "partials", "y", "y_stride", "eps", "log_window",
    "scratch", "ctrl",
)  # fmt: skip

# Of `linear_exp`: all tokens stand in the tail.
LINEAR_EXP = operands(
    "q", "q_stride", "heads", "kv_heads", "size", "features", "sequences", "state", "y", "y_stride",
    "scratch", "ctrl",
)  # fmt: skip

if SHARE != BLOCK_QUERIES:
    raise ValueError(f"{SHARE} heads share a key, kernels take {BLOCK_QUERIES}")


def slab_bounds(features: int, mode: str) -> NDArray[np.int32]:
    """Where the parts begin that a head's features of second order are shared out in: [slabs + 1]
    pairs of the first index i and of the first feature. One empty part where there are none."""
    if mode in ("mamba2s", "relu"):
        return np.zeros((2, 2), np.int32)
    starts = np.concatenate([[0], np.cumsum(np.arange(features, 0, -1))])
    wanted = starts[-1] * np.arange(SLABS + 1) / SLABS
    first = np.searchsorted(starts, wanted)
    return np.stack([first, starts[first]], axis=1).astype(np.int32)


def _scratch(attrs: Mapping[str, Any]) -> int:
    """Bytes of scratch that a thread needs at most."""
    r, wide, chunk = attrs["features"], padded(attrs["head_dim"]), padded(attrs["chunk"])
    fold = 4 * (2 * r + 1 + FOLD_FEATURES) * chunk
    block = max(BLOCK_FEATURES, r) + 48
    sums = 4 * BLOCK_QUERIES * (r + 16 + block + wide + 16)
    tail, across = 2 * chunk + 16, max(r, attrs["head_dim"] if attrs["window"] else 0)
    read = 4 * (BLOCK_QUERIES * (across + 16 + tail + wide + 16) + tail * (across + 4))
    return int(max(fold, sums, read, 12 * stride_of(attrs["head_dim"]) + 8 * r)) + 4096


def lower_linear_attention(b: Builder, node: Any) -> None:
    """Rows of the tail and queries; what the state adds, by parts of its features; the rest."""
    (qkv, gates), y, attrs = node.inputs, b.floats(node.output), b.attrs(node)
    heads, groups, r = attrs["heads"], attrs["kv_heads"], attrs["features"]
    mode, state = MODES.index(attrs["mode"]), f"@state:{node.state}"
    rope, half = rope_table(b, node, attrs)
    b.scratch(_scratch(attrs))
    more = attrs["head_dim"] if attrs["window"] else 0
    queries = b.buffer(f"{node.output}#q", "T", stride_of(heads * (r + more)))
    words = {
        "qkv": qkv, "stride": b.stride(qkv), "gates": gates, "gates_stride": b.stride(gates),
        "decay": int(attrs["decay"]), "heads": heads, "kv_heads": groups, "size": attrs["head_dim"],
        "features": r, "rope": rope, "half": half, "q_norm": weight(node, "q_norm"),
        "k_norm": weight(node, "k_norm"), "eps": attrs["qk_eps"], "scale": attrs["scale"] ** 0.5,
        "q_map": rows_of(node, "q_map"), "k_map": rows_of(node, "k_map"),
        "mean": rows_of(node, "key_mean"), "q": queries, "q_stride": b.stride(queries),
        "sequences": "@sequences", "state": state, "mode": mode,
        "window": int(attrs["window"]), "scratch": "@scratch",
    }  # fmt: skip
    reads = [qkv, *filter(None, [rope]), *([gates] if gates != qkv else [])]
    b.step("linear_rows", LINEAR_ROWS, queries, reads, words, rows="T")
    if attrs["mode"] == EXP:
        _lower_exp(b, node, attrs, queries, y)
        return
    bounds = slab_bounds(r, attrs["mode"])
    step = 4 * (16 + padded(attrs["head_dim"]))
    partials = b.buffer(f"{node.output}#sums", "T", (len(bounds) - 1) * heads * step)
    words = {
        "q": queries, "q_stride": b.stride(queries), "heads": heads, "kv_heads": groups,
        "size": attrs["head_dim"], "features": r, "mode": mode, "beta": weight(node, "beta"),
        "gamma": weight(node, "gamma"), "chunk": attrs["chunk"], "slabs": len(bounds) - 1,
        "bounds": b.constant(bounds), "sequences": "@sequences", "state": state,
        "partials": partials, "y": y, "y_stride": b.stride(y), "eps": attrs["eps"],
        "log_window": weight(node, "log_window"), "scratch": "@scratch", "ctrl": "@ctrl",
    }  # fmt: skip
    b.step("linear_state", LINEAR_SUMS, partials, [queries], words, rows="T")
    b.step("linear_read", LINEAR_SUMS, y, [queries, partials], words)


def _lower_exp(b: Builder, node: Any, attrs: Mapping[str, Any], queries: str, y: str) -> None:
    """Rows over all tokens of their sequence."""
    r, wide = attrs["features"], padded(attrs["head_dim"])
    room = BLOCK_QUERIES * (r + 16 + BLOCK_KEYS + wide + 4) + BLOCK_KEYS * (r + 2) + 16 * r
    b.scratch(4 * room + 4096)
    words = {
        "q": queries, "q_stride": b.stride(queries), "heads": attrs["heads"],
        "kv_heads": attrs["kv_heads"], "size": attrs["head_dim"], "features": r,
        "sequences": "@sequences", "state": f"@state:{node.state}", "y": y,
        "y_stride": b.stride(y), "scratch": "@scratch", "ctrl": "@ctrl",
    }  # fmt: skip
    b.step("linear_exp", LINEAR_EXP, y, [queries], words)


LOWER: dict[str, Lower] = {"linear_attention": lower_linear_attention}
