"""Rotary frequencies as transformers defines them (`modeling_rope_utils`), for every static type.

    default    1 / theta^(2i/d)
    linear     default / factor                                     (position interpolation)
    llama3     default, slow waves / factor, smooth in between      (Llama 3.1)
    yarn       a ramp between default and default / factor          (arXiv 2309.00071)
    longrope   default / short_factor or / long_factor, by length   (arXiv 2402.13753; "su")
    proportional  1 / theta^(2i/d) / factor of the first pairs, 0 of the others     (Gemma 4)
    ntk_alpha  default with theta alpha^(d/(d-2))                   (HunYuan calls it dynamic)
    dynamic    default up to max_position_embeddings; behind them of theta s^(d/(d-2)) for each row,
               s = factor (p + 1) / max_position_embeddings - factor + 1

Frequencies are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...notices import notice
from .config import Decoder
from .recipe import F32

F64 = NDArray[np.float64]
LOWEST, HIGHEST = 1e-12, 1e12  # of any number in rope parameters

# type -> (required keys, optional keys), besides rope_type, rope_theta and partial_rotary_factor
TYPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)
    ),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("original_max_position_embeddings", "attention_factor", "factor"),
    ),
    "ntk_alpha": (("alpha",), ("factor",)),
    "proportional": ((), ("factor",)),
}  # fmt: skip
COMMON = tuple(TYPES)[:-2]  # of most families

# Keys that other programs wrote, or read, and transformers does not.
UNREAD: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attn_factor", "extrapolation_factor", "finetuned"),
    "ntk_alpha": ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}


@dataclass(frozen=True)
class Rope:
    """inv_freq float32 [d/2]; cos and sin are multiplied by `scale`. Sequences longer than
    `switch` tokens (0: none) use `long` instead. length: tokens that it is stretched to, 0 where
    that is max_position_embeddings. growth: factor by which frequencies follow the position behind
    `grows_from` tokens, 0 for none."""

    inv_freq: F32
    scale: float = 1.0
    long: F32 | None = None
    switch: int = 0
    length: int = 0
    growth: float = 0.0
    grows_from: int = 0


def rope_parameters(config: Decoder, *, theta: float = 10_000.0) -> dict[str, Any]:
    """One dict from the old keys (rope_theta, rope_scaling) or the new one (rope_parameters)."""
    params = dict(config.rope_scaling or config.rope_parameters or {})
    old = params.pop("type", "default")
    params.setdefault("rope_type", old)
    params.setdefault("rope_theta", config.rope_theta if config.rope_theta is not None else theta)
    return params


def rope(
    params: Mapping[str, Any],
    head_dim: int,
    context: int,
    faults: list[str],
    *,
    types: tuple[str, ...] = COMMON,
    partial: bool = False,
) -> Rope:
    """Frequencies of one set of parameters; what is unknown or impossible goes into `faults`.

    context: max_position_embeddings. partial: whether partial_rotary_factor may be below 1.
    """
    kind = params.get("rope_type")
    before = len(faults)
    if kind not in types:
        faults.append(f"rope_type is {str(kind)[:40]!r}, expected one of {sorted(types)}")
        return Rope(np.ones(max(1, head_dim // 2), np.float32))
    checked = _checked(kind, params, context, faults)
    factor = checked.get("partial_rotary_factor", 1.0)
    dim = int(head_dim * min(1.0 if kind == "proportional" else factor, 1.0))
    whole = factor == 1 or partial or kind == "proportional"
    if factor > 1 or dim % 2 or dim < 2 or not whole:
        faults.append(
            f"rope: partial_rotary_factor {factor} of a head of {head_dim}, expected "
            f"{'an even number of channels' if partial else '1 and an even head'}"
        )
    if kind == "llama3" and len(faults) == before:
        if not checked["high_freq_factor"] > checked["low_freq_factor"]:
            faults.append(
                f"rope: high_freq_factor is {checked['high_freq_factor']}, expected more than "
                f"low_freq_factor {checked['low_freq_factor']}"
            )
    if kind == "longrope" and len(faults) == before:
        for key in ("short_factor", "long_factor"):
            if len(checked[key]) != dim // 2:
                faults.append(f"rope: {key} has {len(checked[key])} numbers, expected {dim // 2}")
    if len(faults) > before:
        return Rope(np.ones(max(1, head_dim // 2), np.float32))
    base = float(checked["rope_theta"]) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return _MAKERS[kind](base, checked, dim)


def _checked(
    kind: str, params: Mapping[str, Any], context: int, faults: list[str]
) -> dict[str, Any]:
    required, optional = TYPES[kind]
    always = ("rope_type", "rope_theta", "partial_rotary_factor")
    for key in params:
        if key in UNREAD.get(kind, ()):
            notice(f"rope: {key} = {str(params[key])[:20]} is ignored, as transformers does")
        elif key not in (*required, *optional, *always):
            faults.append(f"rope: key {key!r} is unknown for rope_type {kind!r}")
    out: dict[str, Any] = {}
    for key in (*required, *optional, *always[1:]):
        value = params.get(key)
        if value is None:
            if key in (*required, "rope_theta"):
                faults.append(f"rope: key {key!r} is missing for rope_type {kind!r}")
            continue
        if not _fits(key, value):
            faults.append(f"rope: {key} is {str(value)[:60]}, expected {_expected(key)}")
        else:
            out[key] = value
    out.setdefault("original_max_position_embeddings", context)
    out["context"] = context
    return out


def _number(value: Any) -> bool:
    return type(value) in (int, float) and LOWEST < value < HIGHEST


def _fits(key: str, value: Any) -> bool:
    if key in ("short_factor", "long_factor"):
        return isinstance(value, list) and all(_number(v) for v in value)
    if key == "truncate":
        return type(value) is bool
    if key == "original_max_position_embeddings":
        return type(value) is int and 1 < value < HIGHEST
    return _number(value) and (key != "rope_theta" or value > 1)


def _expected(key: str) -> str:
    if key in ("short_factor", "long_factor"):
        return "a list of positive numbers"
    if key == "truncate":
        return "true or false"
    return "a number above 1" if key == "rope_theta" else "a positive number"


def _default(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    return Rope(base.astype(np.float32))


def _dynamic(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    factor, context = float(p["factor"]), p["context"]
    if factor <= 1 or dim < 4:  # nothing to grow to
        return _default(base, p, dim)
    length = int(context * factor)
    return Rope(base.astype(np.float32), length=length, growth=factor, grows_from=context)


def _linear(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    return Rope((base / p["factor"]).astype(np.float32))


def _llama3(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    waves = p["original_max_position_embeddings"] * base / (2 * math.pi)  # turns over the context
    smooth = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return Rope((base * (smooth + (1 - smooth) / p["factor"])).astype(np.float32))


def _yarn(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    length, theta, factor = p["original_max_position_embeddings"], p["rope_theta"], p["factor"]

    def channel(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(p.get("beta_fast", 32)), channel(p.get("beta_slow", 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 1e-3), 0.0, 1.0)
    mixed = base / factor * ramp + base * (1 - ramp)
    return Rope(mixed.astype(np.float32), _yarn_scale(p), length=int(length * factor))


def _yarn_scale(p: Mapping[str, Any]) -> float:
    if "attention_factor" in p:
        return float(p["attention_factor"])

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(p["factor"]) + 1.0 if p["factor"] > 1 else 1.0

    if "mscale" in p and "mscale_all_dim" in p:
        return scale(p["mscale"]) / scale(p["mscale_all_dim"])
    return scale(1.0)


def _longrope(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    length = p["original_max_position_embeddings"]
    stretch = p.get("factor", p["context"] / length)
    scale = p.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(stretch) / math.log(length)) if stretch > 1 else 1.0
    short = (base / np.array(p["short_factor"], np.float64)).astype(np.float32)
    if length >= p["context"]:
        return Rope(short, float(scale))
    long = (base / np.array(p["long_factor"], np.float64)).astype(np.float32)
    return Rope(short, float(scale), long, length)


def _ntk_alpha(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    stretch = float(p["alpha"]) ** (-np.arange(0, dim, 2, dtype=np.float64) / max(dim - 2, 1))
    return Rope((base * stretch).astype(np.float32))


def _proportional(base: F64, p: Mapping[str, Any], dim: int) -> Rope:
    turning = int(p.get("partial_rotary_factor", 1.0) * dim // 2)
    kept = np.where(np.arange(dim // 2) < turning, base / p.get("factor", 1.0), 0.0)
    return Rope(kept.astype(np.float32))


_MAKERS: Mapping[str, Callable[[F64, Mapping[str, Any], int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "ntk_alpha": _ntk_alpha,
    "proportional": _proportional,
}
