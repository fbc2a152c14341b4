"""The building blocks of recurrent layers, beside those of `blocks`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import limits
from ...kernels.ops_recurrent import CONV_WIDTHS
from ...kernels.states import ConvState, RecurrentState
from .blocks import Stacked
from .recipe import Part, Recipe

LARGE = 3e38  # steps of a state space are never larger


def span(tensor: str, shape: tuple[int, ...], start: int, rows: int) -> Part:
    """`rows` rows of a tensor from `start` on."""
    return Part(tensor, shape, rows=(start, start + rows))


def conv_width(width: int, name: str, faults: list[str]) -> int:
    """A configured width of a convolution in tokens."""
    if width not in CONV_WIDTHS:
        faults.append(f"config {name!r} is {width}, expected 2 to {CONV_WIDTHS[-1]}")
        return CONV_WIDTHS[0]
    return width


def conv(
    b: Stacked,
    layer: int,
    x: str,
    tensor: str,
    channels: int,
    width: int,
    *,
    bias: bool,
    act: str = "identity",
    tail: int = 0,
) -> str:
    """A convolution along the text of a tensor [channels, 1, width], over a new state
    "conv<layer>"."""
    label = f"layers.{layer}.conv"
    weights = {"weight": b.tensor(label, f"{tensor}.weight", (channels, 1, width), flat=True)}
    if bias:
        weights["bias"] = b.weight(f"{label}_bias", Recipe((Part(f"{tensor}.bias", (channels,)),)))
    attrs: dict[str, str | int | float | bool] = {"channels": channels, "width": width, "act": act}
    attrs |= {"tail": tail} if tail else {}
    state = f"conv{layer}"
    b.states[state] = ConvState(channels, width, tail)
    return b.node("causal_conv", [x], label, weights=weights, attrs=attrs, state=state)


def gate(b: Stacked, x: str, by: str, label: str, act: str) -> str:
    """x act(by)."""
    return b.node("gate", [x, by], label, attrs={"act": act})


@dataclass(frozen=True)
class Mixer:
    """A Mamba-2 mixer (arXiv 2405.21060): H heads of `head_dim`, G groups of keys of `state`, a
    convolution over `width` tokens.

    norm: "gated" for a norm of what was gated, by group, "before" for one before the gate, "" for
    none. steps: least and largest. scales: of z, x, B, C and the steps where they are projected;
    out: of what the mixer gives. eps: of the norm, where it is not that of the layers'.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    width: int
    conv_bias: bool = True
    bias: bool = False
    norm: str = "gated"
    steps: tuple[float, float] = (0.0, math.inf)
    scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    out: float = 1.0
    eps: float | None = None

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Width of what is convolved: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    def checked(self, expected: int, faults: list[str]) -> Mixer:
        """This mixer, or, where it is none of a model with `expected` channels, a fault and some
        mixer that there could be."""
        found = self._faults(expected)
        faults += found
        return Mixer(1, 1, 1, 1, CONV_WIDTHS[0]) if found else self

    def _faults(self, expected: int) -> list[str]:
        sizes = {"heads": self.heads, "head size": self.head_dim, "groups": self.groups,
                 "state": self.state}  # fmt: skip
        caps = (limits.HEADS, limits.HEAD_DIM, limits.HEADS, limits.HEAD_DIM)
        found = [
            f"config: {n} {name} of a mixer, expected 1 to {cap}"
            for (name, n), cap in zip(sizes.items(), caps, strict=True)
            if not 1 <= n <= cap
        ]
        if not found and self.heads % self.groups:
            found.append(f"config: {self.heads} heads are no multiple of {self.groups} groups")
        if not found and self.inner != expected:
            found.append(
                f"config: {self.heads} heads of {self.head_dim} are {self.inner} channels, "
                f"expected {expected}"
            )
        if self.width not in CONV_WIDTHS:
            found.append(f"config: a convolution of {self.width}, expected 2 to {CONV_WIDTHS[-1]}")
        low, high = self.steps
        if not 0 <= low < high:
            found.append(f"config: steps from {low} to {high}, expected 0 or more, rising")
        return found


INFINITY = {"__float__": "Infinity"}  # as transformers 5 writes it


def with_limit(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config whose time_step_limit may have an infinite number, as a number."""
    found = raw.get("time_step_limit")
    if not isinstance(found, list):
        return raw
    return {**raw, "time_step_limit": [math.inf if n == INFINITY else n for n in found]}


def step_limits(found: Sequence[float] | None) -> tuple[float, float]:
    """time_step_limit of a config; (1, 0), which is a fault, where it is no pair."""
    if found is None:
        return 0.0, math.inf
    low, high = found if len(found) == 2 else (1.0, 0.0)
    return float(low), float(high)


def mamba(b: Stacked, layer: int, x: str, prefix: str, m: Mixer) -> str:
    """A Mamba-2 mixer of the tensors under `prefix`, over states "conv<layer>" and
    "matrix<layer>"."""
    at, keys = f"layers.{layer}", m.groups * m.state
    z, inner, tensor = m.scales, m.inner, f"{prefix}.in_proj.weight"
    shape = (inner + m.channels + m.heads, b.width)
    starts = (0, inner, 2 * inner, 2 * inner + keys, 2 * inner + 2 * keys)
    rows = (inner, inner, keys, keys, m.heads)
    parts = [
        span(tensor, shape, *each)._replace(scale=scale)
        for *each, scale in zip(starts, rows, z, strict=True)
    ]
    gated = b.linear(x, f"{at}.z", parts[:1], bias=m.bias)
    seen = b.linear(x, f"{at}.xbc", parts[1:4], bias=m.bias)
    steps = b.linear(x, f"{at}.dt", parts[4:], bias=m.bias)
    seen = conv(
        b, layer, seen, f"{prefix}.conv1d", m.channels, m.width, bias=m.conv_bias, act="silu"
    )
    y = _ssd(b, layer, seen, steps, prefix, m)
    if m.norm == "before":
        y = _group_norm(b, y, f"{at}.mixer_norm", f"{prefix}.norm.weight", m)
    y = gate(b, y, gated, f"{at}.gated", "silu")
    if m.norm == "gated":
        y = _group_norm(b, y, f"{at}.mixer_norm", f"{prefix}.norm.weight", m)
    out = Part(f"{prefix}.out_proj.weight", (b.width, inner), scale=m.out)
    return b.linear(y, f"{at}.mixer_o", [out], bias=m.bias)


def _ssd(b: Stacked, layer: int, x: str, dt: str, prefix: str, m: Mixer) -> str:
    label = f"layers.{layer}.ssd"
    weights = {
        slot: b.vector(f"{label}_{slot}", f"{prefix}.{name}", m.heads)
        for slot, name in (("a_log", "A_log"), ("dt_bias", "dt_bias"), ("d", "D"))
    }
    attrs: dict[str, int | float] = {
        "heads": m.heads, "head_dim": m.head_dim, "groups": m.groups, "state": m.state,
    }  # fmt: skip
    low, high = m.steps
    attrs |= {"dt_min": low} if low > 0 else {}
    attrs |= {"dt_max": high} if high < LARGE else {}
    state = f"matrix{layer}"
    b.states[state] = RecurrentState(m.heads, m.state, m.head_dim)
    return b.node("ssd", [x, dt], label, weights=weights, attrs=attrs, state=state)


def _group_norm(b: Stacked, x: str, label: str, tensor: str, m: Mixer) -> str:
    attrs = {"size": m.inner // m.groups, "eps": m.eps or b.eps}
    weights = {"weight": b.vector(label, tensor, m.inner)}
    return b.node("head_norm", [x], label, weights=weights, attrs=attrs)
