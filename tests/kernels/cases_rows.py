"""Cases of the ops of diffusion transformers that work on rows, for test_catalogue.py.

Each is the arguments of a `Case`. inputs: rows (a number or a symbol) and width of each input that
is not [T, width]; sizes: what the symbols besides T are.
"""

from __future__ import annotations

from typing import Any

from edgert.kernels.ops import POINTWISE

Spec = dict[str, Any]


def _layer_norm(width: int, rows: int, slots: tuple[str, ...]) -> Spec:
    weights = {slot: ((width,), "f32") for slot in slots}
    label = "-".join(slots) or "plain"
    return {"width": width, "rows": rows, "weights": weights, "attrs": {"eps": 1e-6},
            "label": label}  # fmt: skip


def _row_rms(width: int, rows: int, floor: float, **more: bool) -> Spec:
    label = "-".join([str(floor), *more])
    return {"width": width, "rows": rows, "attrs": {"floor": floor, **more}, "label": label}


def _modulated(
    width: int, rows: int, chunks: int, label: str, *, table: int = 0, **chosen: int
) -> Spec:
    """chunks: of the modulation row. table: rows of the table, 0 for none."""
    weights = {"table": ((table, width), "f32")} if table else {}
    return {
        "width": width, "rows": rows, "weights": weights, "attrs": chosen,
        "inputs": {"m": (1, chunks * width)}, "label": label,
    }  # fmt: skip


def _attention(heads: int, size: int, rows: int, label: str, *, keys: int = 0, **more: Any) -> Spec:
    """keys: rows of another value than the queries, 0 for the same. more: attributes, and `bias`,
    how many buckets it has."""
    width, buckets = heads * size, more.pop("bias", 0)
    weights = {"relative_bias": ((buckets, heads), "f32")} if buckets else {}
    inputs = {name: ("M", width) for name in ("k", "v")} if keys else {}
    return {
        "width": width, "rows": rows, "weights": weights, "inputs": inputs, "sizes": {"M": keys},
        "attrs": {"heads": heads, "head_dim": size, "scale": size**-0.5, **more}, "label": label,
    }  # fmt: skip


def _fixed(heads: int, size: int, rows: int, keys: int) -> Spec:
    """A picture's rows over a caption's: both without a batch."""
    spec = _attention(heads, size, rows, f"fixed-{keys}")
    width = heads * size
    inputs = {"q": (rows, width), "k": (keys, width), "v": (keys, width)}
    return spec | {"inputs": inputs}


def _grid(height: int, width: int, channels: int, **more: Any) -> Spec:
    attrs = {"height": height, "width": width, **more}
    return {
        "width": channels, "rows": height * width, "attrs": attrs,
        "inputs": {"x": (height * width, channels)}, "label": f"{height}x{width}-{more}",
    }  # fmt: skip


def _concat(left: int, right: int, rows: int) -> Spec:
    inputs = {"a": ("T", left), "b": ("T", right)}
    return {"width": left, "rows": rows, "inputs": inputs, "label": str(right)}


CASES: dict[str, list[Spec]] = {
    "layer_norm": [
        _layer_norm(1, 5, ("weight", "bias")),
        _layer_norm(63, 63, ()),
        _layer_norm(63, 63, ("weight", "bias")),
        _layer_norm(500, 1, ("weight",)),
        _layer_norm(1000, 500, ()),
        _layer_norm(384, 1000, ("weight", "bias")),
    ],
    "row_rms": [
        _row_rms(1, 5, 1e-5),
        _row_rms(63, 63, 1.0),
        _row_rms(500, 1, 1e-12, centred=True),
        _row_rms(1000, 500, 1e-5, inverse=True),
        _row_rms(384, 1000, 1.0, centred=True, inverse=True),
        _row_rms(17, 7, 1e-5, centred=True),
    ],
    "activation": [
        {"width": width, "rows": rows, "attrs": {"act": act}, "label": act}
        for act in POINTWISE
        for width, rows in ((1, 5), (63, 63), (500, 1), (1000, 7))
    ],
    "columns": [
        {"width": width, "rows": rows, "attrs": {"start": start, "count": count},
         "label": f"{start}-{count}"}
        for width, rows, start, count in (
            (1, 5, 0, 1), (63, 63, 48, 15), (500, 1, 16, 484), (1000, 7, 992, 3), (64, 500, 32, 17),
        )
    ],
    "xielu": [
        {"width": width, "rows": rows, "weights": {"weight": ((4,), "f32")}}
        for width, rows in ((1, 5), (63, 63), (500, 1), (1000, 7))
    ],
    "modulate": [
        _modulated(63, 63, 6, "six", shift=0, scale=1),
        _modulated(500, 1, 6, "last", shift=4, scale=5),
        _modulated(1, 5, 2, "narrow", shift=1, scale=0),
        _modulated(1000, 500, 2, "wide", shift=0, scale=1),
        _modulated(63, 63, 6, "table", table=6, shift=3, scale=4),
        _modulated(63, 63, 1, "one-chunk", table=2, shift=0, scale=1),
        _modulated(500, 1000, 1, "same", shift=0, scale=0),
    ],
    "gated_add": [
        _modulated(63, 63, 6, "six", gate=5),
        _modulated(1, 5, 3, "narrow", gate=2),
        _modulated(500, 1, 6, "table", table=6, gate=2),
        _modulated(1000, 500, 1, "one-chunk", table=3, gate=2),
    ],
    "add_row": [
        {"width": width, "rows": rows, "inputs": {"row": (1, width)}}
        for width, rows in ((1, 5), (63, 63), (500, 1), (1000, 500))
    ],
    "timestep": [
        {"width": 1, "rows": rows, "attrs": {"dim": dim, "freq_shift": shift}, "label": f"{dim}"}
        for rows, dim, shift in ((1, 256, 0.0), (63, 320, 1.0), (5, 2, 0.0), (500, 126, 0.5))
    ],
    "dot_attention": [
        _attention(6, 64, 256, "dit-s"),
        _attention(2, 72, 500, "dit-xl"),
        _attention(3, 20, 63, "head-20"),
        _attention(2, 24, 1000, "head-24"),
        _attention(1, 88, 63, "head-88"),
        _attention(5, 1, 63, "head-1"),
        _attention(2, 64, 1, "alone"),
        _attention(2, 64, 1, "one-query", keys=300),
        _attention(2, 64, 63, "one-key", keys=1),
        _attention(2, 72, 500, "caption", keys=77),
        _attention(4, 16, 63, "longer", keys=1000),
        _attention(2, 32, 1, "causal-alone", causal=True),
        _attention(2, 32, 63, "causal", causal=True),
        _attention(2, 72, 600, "causal-long", causal=True),
        _attention(3, 64, 63, "bias", bias=32),
        _attention(2, 64, 500, "bias-long", bias=32, scale=1.0),
        _attention(2, 20, 63, "bias-near", bias=8, max_distance=5),
        _attention(2, 16, 63, "bias-other", keys=300, bias=32),
        _attention(2, 16, 300, "bias-causal", bias=32, causal=True),
        _attention(2, 16, 63, "bias-small", bias=4, max_distance=1 << 40),
        _attention(2, 16, 63, "negative", scale=-1.0),
        _fixed(2, 72, 500, 120),
        _fixed(4, 64, 1, 1),
    ],
    "patchify": [
        _grid(32, 32, 4, patch=2),
        _grid(6, 10, 3, patch=2),
        _grid(9, 3, 17, patch=3),
        _grid(1, 63, 1, patch=1),
    ],
    "unpatchify": [
        _grid(16, 16, 32, patch=2),
        _grid(3, 5, 12, patch=2),
        _grid(3, 1, 153, patch=3),
        _grid(1, 63, 1, patch=1),
    ],
    "add_grid_positions": [
        _grid(16, 16, 384, base=16),
        _grid(5, 9, 36, base=16, interpolation=2.0),
        _grid(1, 63, 4, base=7),
        _grid(1, 1, 500, base=1),
    ],
    "concat": [_concat(1, 1, 5), _concat(63, 500, 63), _concat(500, 16, 1), _concat(16, 63, 500)],
}  # fmt: skip
