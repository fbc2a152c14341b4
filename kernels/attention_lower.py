"""How attention becomes instructions: rotary tables, preparation of heads, attention over pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import TILE_TOKENS
from .elementwise import COPY
from .lowering import Builder, Lower, Pages, weight
from .operands import operands

# positions: int32 [3][max rows], `axis_stride` bytes apart. axes: int32 a frequency, or 0 when all
# turn by the first. growth, length: as the op has them. long_flags: int32 a row. table: float32
# [T][2][half], cosines and sines.
ROPE_TABLE = operands(
    "positions", "axis_stride", "axes", "inv_freq", "inv_freq_long", "half", "long_flags",
    "table", "scale", "long_scale", "growth", "length",
)  # fmt: skip
# kv_heads: 0 where only queries are prepared. norm_last: whether norms come behind the rotation.
# slots: int32 a row, where its key goes. tables: int64
# a row, address of its sequence's page table. k_page, v_page: bytes of a page. fresh: where pages
# are coded, int32 a page, the page of float16 that its last tokens are written to; else 0.
# values: 0 where keys are stored as rows, for their channels are the values, too.
APPEND = operands(
    "qkv", "stride", "heads", "kv_heads", "size", "rope", "half", "q_norm", "k_norm", "eps",
    "norm_last", "scale", "slots", "tables", "keys", "values", "k_page", "v_page", "element_bytes",
    "fresh",
)  # fmt: skip
# fresh, fresh_keys, fresh_values: as `APPEND` has fresh, keys and values.
CODE_PAGE = operands(
    "kv_heads", "size", "slots", "tables", "keys", "values", "k_page", "v_page", "fresh",
    "fresh_keys", "fresh_values",
)  # fmt: skip
# places: int32 a row, how many tokens it continues. visible: int64 a row, the pending rows of its
# feed that it sees as bits, -1 for all before it. tiles: address of the tile count and of how many
# segments a context has, int64 each, then int32 tiles (first row, rows). partials: results of
# segments that threads share. counters: int64 a tile and kv head. The scratch bytes of a thread
# stand in the word before the scratch. sinks: float32 a head, 0 for none. fresh, ...: as
# `CODE_PAGE` has them, 0 without codes.
# skip: of keys that are values, too, the channels that are none. y's heads have size - skip.
ATTEND = operands(
    "q", "q_stride", "heads", "kv_heads", "size", "window", "softcap", "slots", "places",
    "visible", "tables", "keys", "values", "k_page", "v_page", "y", "y_stride", "tiles",
    "partials", "counters", "scratch", "ctrl", "fresh", "fresh_keys", "fresh_values", "sinks",
    "skip",
)  # fmt: skip

MOST_SHARING = 8  # query heads that a thread takes together, where all heads share one key
ELEMENTS = {32: "f32", 16: "f16", 8: "int8", 4: "int4"}  # bits of a cache -> its kernel's name


def axes_of(attrs: Mapping[str, Any], pairs: int) -> NDArray[np.int64]:
    """Axis of position (0 time, 1 height, 2 width) of each of `pairs` frequencies, int [pairs]."""
    return np.array([int(axis) for axis in attrs["rope_axes"] or "0" * pairs], np.int64)


def rope_table(b: Builder, node: Any, attrs: dict[str, Any]) -> tuple[str, int]:
    """Name and half width of the rotary table for a node, made once for equal ones."""
    short, long = node.weights.get("inv_freq", ""), node.weights.get("inv_freq_long", "")
    if not short:
        return "", 0
    scales = attrs["rope_scale"], attrs["rope_long_scale"]
    growth = {"growth": attrs["rope_growth"], "length": attrs["rope_length"]}
    half = b.weight_shape(short)[0]
    key = (short, long, *scales, attrs["rope_axes"], *growth.values())
    if have := b.made("rope", key):
        return have, half
    axes = ""
    if attrs["rope_axes"]:
        axes = b.constant(axes_of(attrs, half).astype(np.int32))
    name = b.make("rope", key, f"#rope.{node.output}")
    b.buffer(name, "T", half * 8)
    words = {
        "positions": "@positions", "axis_stride": "@axis_stride", "axes": axes,
        "inv_freq": weight(node, "inv_freq"), "inv_freq_long": weight(node, "inv_freq_long"),
        "half": half, "long_flags": "@long_flags", "table": name, "scale": scales[0],
        "long_scale": scales[1], **growth,
    }  # fmt: skip
    b.step("rope_table", ROPE_TABLE, name, [], words, rows="T")
    return name, half


def _heads(b: Builder, node: Any, attrs: dict[str, Any], kv_heads: int) -> str:
    """Queries normed, rotated and scaled in place, keys and values to their pages; returns the
    name of the queries."""
    packed, pages = node.inputs[0], b.pages(node.state)
    if b.is_output(packed) or len(b.readers(packed)) > 1:  # queries are prepared in place
        packed = b.like(f"{packed}#copy.{node.output}", node.inputs[0])
        words = {
            "x": node.inputs[0], "x_stride": b.stride(packed), "y": packed,
            "y_stride": b.stride(packed), "width": b.width(node.inputs[0]),
        }  # fmt: skip
        b.step("copy_rows", COPY, packed, [node.inputs[0]], words, rows="T")
    queries = b.like(f"{packed}#{node.output}", packed)
    rope, half = rope_table(b, node, attrs)
    words = {
        "qkv": packed, "stride": b.stride(packed), "heads": attrs["heads"], "kv_heads": kv_heads,
        "size": attrs["head_dim"], "rope": rope, "half": half,
        "q_norm": weight(node, "q_norm"), "k_norm": weight(node, "k_norm"),
        "eps": attrs["qk_eps"], "norm_last": int(attrs["norm_last"]), "scale": attrs["scale"],
        "slots": "@slots", "tables": "@tables",
        "keys": pages.keys, "values": pages.values, "k_page": pages.key_bytes,
        "v_page": pages.value_bytes, "element_bytes": pages.bits // 8, "fresh": "",
    }  # fmt: skip
    fresh = pages.fresh
    if fresh is not None:
        words |= {
            "keys": fresh.keys, "values": fresh.values, "k_page": fresh.key_bytes,
            "v_page": fresh.value_bytes, "element_bytes": fresh.bits // 8, "fresh": "@fresh",
        }  # fmt: skip
    reads = [packed, *filter(None, [rope])]
    b.step("append", APPEND, queries, reads, words, rows="T", in_place=packed)
    if fresh is not None and kv_heads:
        _code(b, attrs, pages, fresh, queries)
    return queries


def _code(b: Builder, attrs: dict[str, Any], pages: Pages, fresh: Pages, queries: str) -> None:
    """Pages that are full by now in codes."""
    words = {
        "kv_heads": attrs["kv_heads"], "size": attrs["head_dim"], "slots": "@slots",
        "tables": "@tables", "keys": pages.keys, "values": pages.values,
        "k_page": pages.key_bytes, "v_page": pages.value_bytes, "fresh": "@fresh",
        "fresh_keys": fresh.keys, "fresh_values": fresh.values,
    }  # fmt: skip
    b.step(f"code_page_{ELEMENTS[pages.bits]}", CODE_PAGE, queries, [queries], words, rows="T")


def _attend(b: Builder, node: Any, attrs: dict[str, Any], queries: str) -> None:
    y, pages = b.floats(node.output), b.pages(node.state)
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    inside = attrs.get("values", 0)
    if inside:  # all heads read one key: groups of them are for threads to share
        groups = heads // max(n for n in range(1, MOST_SHARING + 1) if heads % n == 0)
    rows = TILE_TOKENS * (heads // groups) + 3
    tile = rows * (64 + 4 * (-(-size // 16) * 16))
    b.scratch(2048 + max(1024, -(-size // 16) * 256) + rows * size * 4 + 2 * tile)
    b.partials(groups * tile)
    fresh = pages.fresh
    words = {
        "q": queries, "q_stride": b.stride(queries), "heads": heads, "kv_heads": groups,
        "size": size, "window": attrs["window"], "softcap": attrs["softcap"], "slots": "@slots",
        "places": "@places", "visible": "@visible", "tables": "@tables", "keys": pages.keys,
        "values": pages.values, "k_page": pages.key_bytes, "v_page": pages.value_bytes, "y": y,
        "y_stride": b.stride(y), "tiles": "@tiles", "partials": "@partials",
        "counters": "@counters", "scratch": "@scratch", "ctrl": "@ctrl",
        "fresh": "@fresh" if fresh else "", "fresh_keys": fresh.keys if fresh else "",
        "fresh_values": fresh.values if fresh else "",
        "sinks": weight(node, "sinks"), "skip": size - inside if inside else 0,
    }  # fmt: skip
    kind = "attend_latent" if inside else "attend"
    b.step(f"{kind}_{ELEMENTS[pages.bits]}", ATTEND, y, [queries], words)


def lower_attention(b: Builder, node: Any) -> None:
    """append, then attend over the pages."""
    attrs = b.attrs(node)
    _attend(b, node, attrs, _heads(b, node, attrs, attrs["kv_heads"]))


def lower_shared_attention(b: Builder, node: Any) -> None:
    """Queries prepared alone, over the owner's pages."""
    attrs = b.attrs(node)
    _attend(b, node, attrs, _heads(b, node, attrs, 0))


LOWER: dict[str, Lower] = {
    "attention": lower_attention, "shared_attention": lower_shared_attention,
}  # fmt: skip
