"""Cases of ops of `experts` and `latent`, for test_catalogue.py. Each is a `Case`'s arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]


def _experts(
    encoding: str, rows: int, sizes: tuple[int, int, int, int], label: str = "", **more: Any
) -> Spec:
    """sizes: C, F, experts, active. more: attributes, and `bias`."""
    width, inner, count, active = sizes
    weights: dict[str, Any] = {
        "gate_up": ((2 * count * inner, width), encoding),
        "down": ((count * width, inner), encoding),
    }
    if more.pop("bias", False):
        weights["gate_up_bias"] = ((2 * count * inner,), "f32")
        weights["down_bias"] = ((count * width,), "f32")
    return {
        "width": width, "rows": rows, "weights": weights,
        "attrs": {"experts": count, "active": active, "act": "silu", **more},
        "inputs": {"logits": ("T", count)}, "label": f"{encoding}-{count}x{inner}{label}",
    }  # fmt: skip


def _latent(heads: int, shared: int, own: int, value: int, rows: int) -> Spec:
    return {
        "width": heads * (shared + own), "rows": rows,
        "attrs": {"heads": heads, "shared": shared, "own": own, "value": value},
        "inputs": {"kv": ("T", heads * (own + value)), "shared": ("T", shared)},
        "label": f"{heads}x{shared}-{own}-{value}",
    }  # fmt: skip


def _latent_rows(heads: int, shared: int, rank: int, rows: int) -> Spec:
    return {
        "width": heads * shared, "rows": rows, "label": f"{heads}x{shared}-{rank}",
        "attrs": {"heads": heads, "shared": shared, "rank": rank},
        "inputs": {
            "still": ("T", heads * rank), "key": ("T", shared), "latent": ("T", rank),
        },
    }  # fmt: skip


def _by_head(encoding: str, heads: int, inner: int, outer: int, rows: int) -> Spec:
    return {
        "width": heads * inner, "rows": rows, "attrs": {"heads": heads},
        "weights": {"weight": ((heads * outer, inner), encoding)},
        "label": f"{encoding}-{heads}x{inner}-{outer}",
    }  # fmt: skip


def _first(parts: int, size: int, keep: int, rows: int) -> Spec:
    return {
        "width": parts * size, "rows": rows, "attrs": {"size": size, "keep": keep},
        "label": f"{keep}-of-{size}",
    }  # fmt: skip


def cases(everywhere: Sequence[str], stored: Sequence[str]) -> dict[str, list[Spec]]:
    """By op. everywhere: encodings that every executor has; stored: those with kernels."""
    return {
        "latent_heads": [
            _latent(4, 16, 32, 32, 63), _latent(3, 2, 5, 7, 500), _latent(1, 8, 8, 3, 1),
        ],
        "latent_rows": [
            _latent_rows(4, 16, 48, 63), _latent_rows(3, 2, 7, 500), _latent_rows(1, 8, 16, 1),
        ],
        "head_linear": [
            *(
                _by_head(encoding, 4, 32, 48, rows)
                for encoding in everywhere
                for rows in (1, 63)
            ),
            *(_by_head(encoding, 3, 64, 16, 17) for encoding in stored),
            _by_head("int8-g32", 20, 64, 256, 500), _by_head("f32", 5, 16, 16, 1000),
        ],
        "first_columns": [_first(4, 48, 32, 63), _first(3, 7, 5, 500), _first(1, 16, 16, 1)],
        "experts": [
            *(
                _experts(encoding, rows, (64, 48, 8, 2))
                for encoding in everywhere
                for rows in (1, 63, 500)
            ),
            *(_experts(encoding, 17, (80, 160, 3, 3)) for encoding in stored),
            _experts("int4-g32", 1000, (32, 16, 5, 1), normalised=False),
            _experts("f32", 63, (48, 32, 16, 4), "-shares", normalised=False, scale=2.5),
            _experts("f32", 63, (48, 32, 4, 2), "-gelu", act="gelu"),
            _experts("f16", 63, (48, 32, 4, 2), "-tanh", act="gelu_tanh"),
            *(
                _experts(
                    encoding, 63, (64, 96, 4, 2), "-clamped",
                    act="quick_gelu", limit=0.5, shift=1.0, bias=True,
                )
                for encoding in ("int8-g32", "f32")
            ),
        ],
    }  # fmt: skip
