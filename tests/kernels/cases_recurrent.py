"""Cases of the ops of recurrent layers, for test_catalogue.py. Each is a `Case`'s arguments."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]


def _gate(width: int, rows: int, act: str, *, one: bool = False) -> Spec:
    inputs = {"gate": ("T", 1)} if one else {}
    label = f"{act}{'-one' * one}"
    return {"width": width, "rows": rows, "attrs": {"act": act}, "label": label, "inputs": inputs}


def _head_norm(width: int, size: int, rows: int, *, shared: bool) -> Spec:
    weights = {"weight": ((size if shared else width,), "f32")}
    return {
        "width": width, "rows": rows, "weights": weights, "attrs": {"size": size, "eps": 1e-5},
        "label": f"{size}-{'shared' if shared else 'own'}",
    }  # fmt: skip


def _mixed(width: int, streams: int, made: int, rows: int) -> Spec:
    return {
        "width": streams * width, "rows": rows, "attrs": {"streams": streams},
        "inputs": {"by": ("T", made * streams)}, "label": f"{streams}-{made}",
    }  # fmt: skip


def _conv(channels: int, width: int, rows: int, *, bias: bool = False, **more: Any) -> Spec:
    weights = {"weight": ((channels, width), "f32")}
    if bias:
        weights["bias"] = ((channels,), "f32")
    return {
        "width": channels, "rows": rows, "weights": weights,
        "attrs": {"channels": channels, "width": width, **more},
        "label": f"{width}{'-bias' * bias}{more.get('act', '')}",
    }  # fmt: skip


def _ssd(
    heads: int, size: int, groups: int, state: int, rows: int, label: str = "", **more: float
) -> Spec:
    return {
        "width": heads * size + 2 * groups * state, "rows": rows,
        "weights": {slot: ((heads,), "f32") for slot in ("a_log", "dt_bias", "d")},
        "attrs": {"heads": heads, "head_dim": size, "groups": groups, "state": state, **more},
        "inputs": {"dt": ("T", heads)}, "label": f"{heads}x{size}-{groups}x{state}{label}",
    }  # fmt: skip


def _delta(heads: int, size: int, key_heads: int, keys: int, rows: int) -> Spec:
    return {
        "width": 2 * key_heads * keys + heads * size, "rows": rows,
        "weights": {slot: ((heads,), "f32") for slot in ("a_log", "dt_bias")},
        "attrs": {"heads": heads, "head_dim": size, "key_heads": key_heads, "key_dim": keys},
        "inputs": {"gates": ("T", 2 * heads)}, "label": f"{heads}x{size}-{key_heads}x{keys}",
    }  # fmt: skip


CASES: dict[str, list[Spec]] = {
    "gate": [
        _gate(width, rows, act)
        for act in ("identity", "silu", "sigmoid")
        for width, rows in ((1, 5), (63, 63), (500, 1))
    ]
    + [_gate(48, 63, act, one=True) for act in ("silu", "sigmoid")],
    "head_norm": [
        _head_norm(64, 16, 63, shared=True),
        _head_norm(63, 21, 63, shared=False),
        _head_norm(500, 500, 1, shared=False),
        _head_norm(60, 5, 5, shared=True),
    ],
    "mix_streams": [
        _mixed(64, 4, 4, 63),
        _mixed(48, 6, 4, 500),
        _mixed(16, 1, 3, 5),
        _mixed(160, 5, 1, 1),
        _mixed(512, 2, 2, 1000),
    ],
    "causal_conv": [
        _conv(64, 4, 63, bias=True, act="silu"),
        _conv(63, 3, 63),
        _conv(1, 2, 5, bias=True),
        _conv(500, 4, 1, act="silu"),
        _conv(48, 4, 2, tail=7),
        _conv(33, 16, 500, act="silu", bias=True),
        _conv(20, 3, 1000),
    ],
    "ssd": [
        _ssd(4, 16, 2, 8, 63),
        _ssd(3, 20, 1, 13, 63),
        _ssd(2, 64, 2, 128, 500),
        _ssd(1, 1, 1, 1, 1),
        _ssd(4, 32, 1, 16, 1000, "limits", dt_min=0.5, dt_max=1.25),
    ],
    "gated_delta": [
        _delta(4, 16, 2, 8, 63),
        _delta(3, 20, 3, 13, 63),
        _delta(2, 64, 1, 128, 500),
        _delta(1, 1, 1, 1, 1),
        _delta(4, 32, 2, 16, 1000),
    ],
}
