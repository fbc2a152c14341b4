"""Cases of linear attention for the catalogue's test."""

from __future__ import annotations

from typing import Any

Specs = list[dict[str, Any]]


def _case(
    label: str, heads: int, kv: int, size: int, rows: int, mode: str, *, r: int = 0, pairs: int = 0,
    norm: bool = False, mean: bool = False, long: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """r: features, by maps, where they are not the head's values themselves."""
    shapes: dict[str, tuple[int, ...]] = {}
    if norm:
        shapes |= {"q_norm": (size,), "k_norm": (size,)}
    if pairs:
        shapes["inv_freq"] = (pairs,)
    if long:
        shapes["inv_freq_long"] = (pairs,)
    if mean:
        shapes["key_mean"] = (kv, size)
    if r:
        shapes |= {"q_map": (kv * size, r), "k_map": (kv * size, r)}
    if mode == "shifted":
        shapes |= {"beta": (kv,), "gamma": (kv,)}
    if more.get("window"):
        shapes["log_window"] = (heads,)
    attrs = {
        "heads": heads, "kv_heads": kv, "head_dim": size, "features": r or size, "mode": mode,
        "scale": size**-0.5, "eps": 1e-6 if mode in ("square", "relu") else 0.0, **more,
    }  # fmt: skip
    gates = kv * ((attrs.get("decay", True) is True) + (mode == "mamba2s"))
    return {
        "width": (heads + 2 * kv) * size,
        "rows": rows,
        "weights": {name: (shape, "f32") for name, shape in shapes.items()},
        "attrs": attrs,
        "label": label,
        "inputs": {"gates": ("T", gates or 1)},
    }


CASES: dict[str, Specs] = {
    "linear_attention": [
        _case("square", 4, 2, 16, 63, "square"),
        _case("square-long", 3, 1, 32, 500, "square"),
        _case("square-odd", 4, 2, 20, 500, "square", chunk=33),
        _case("shifted", 4, 2, 16, 500, "shifted", pairs=8),
        _case("shifted-chunks", 2, 2, 64, 500, "shifted", chunk=16),
        _case("shifted-all", 6, 2, 24, 500, "shifted", r=12, pairs=12, norm=True, mean=True),
        _case("shifted-fewer", 4, 4, 40, 300, "shifted", r=17, pairs=20),
        _case("mamba2s", 4, 4, 16, 500, "mamba2s"),
        _case("relu", 4, 2, 16, 300, "relu", decay=False),
        _case("window", 4, 2, 16, 500, "square", chunk=64, window=True),
        _case(
            "window-all", 6, 2, 24, 300, "shifted", r=12, pairs=12, norm=True, mean=True, chunk=33,
            window=True,
        ),
        _case("exp", 4, 2, 16, 500, "2mamba-e"),
        _case("exp-maps", 6, 2, 24, 300, "2mamba-e", r=12, pairs=12, norm=True, decay=False),
        _case("one-row", 4, 2, 16, 1, "square"),
        _case(
            "long-rope", 4, 2, 16, 63, "shifted", pairs=8, long=True, rope_switch=50,
            rope_scale=1.1, rope_long_scale=1.2,
        ),
    ]
}  # fmt: skip
