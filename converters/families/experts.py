"""Mixtures of experts, beside the feed-forwards of `blocks`: routers, and experts whose matrices
stand one by one in the checkpoint or stacked in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import limits
from ...kernels.ops_experts import ACTIVE, EXPERTS, WHOLE
from .blocks import Stacked
from .recipe import Part, Recipe


@dataclass(frozen=True)
class Experts:
    """What a config says of the experts of a layer.

    count E, active, width F. normalised: whether the weights of those picked sum to 1. attrs:
    further ones of the op.
    """

    count: int
    active: int
    width: int
    act: str = "silu"
    normalised: bool = True
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensors:
    """Where experts' matrices come from: rows of gates and ups, all gates first, rows of down, and
    rows of their biases, where they have some."""

    gate_up: Sequence[Part]
    down: Sequence[Part]
    gate_up_bias: Sequence[Part] = ()
    down_bias: Sequence[Part] = ()


def said(names: tuple[str, str], values: tuple[int | None, int | None], faults: list[str]) -> int:
    """A number that a config may have under two names, which then say the same."""
    found = [value for value in values if value is not None]
    if not found:
        faults.append(f"config key {names[0]!r} is missing")
        return 1
    if found[0] != found[-1]:
        faults.append(f"config {names[1]!r} is {found[-1]}, expected {names[0]!r}, {found[0]}")
    return found[0]


def checked(e: Experts, width: int, keys: tuple[str, str, str], faults: list[str]) -> Experts:
    """The experts of rows of `width`, or of sizes that build, where faults say what is wrong. keys:
    what the config calls count, active and width."""
    before = len(faults)
    if not 1 <= e.count <= EXPERTS:
        faults.append(f"config {keys[0]!r} is {e.count}, expected 1 to {EXPERTS}")
    most = max(1, min(e.count, ACTIVE))
    if not 1 <= e.active <= most:
        faults.append(f"config {keys[1]!r} is {e.active}, expected 1 to {most}: experts of a token")
    for key, size in ((keys[2], e.width), ("hidden_size", width)):
        if not 1 <= size < limits.TENSOR_DIM // EXPERTS or size % WHOLE:
            faults.append(f"config {key!r} is {size}, expected a multiple of {WHOLE}")
    return e if len(faults) == before else replace(e, count=1, active=1, width=WHOLE)


def apart(
    b: Stacked, layer: int, e: Experts, *, module: str = "mlp.experts", scale: float = 1.0
) -> Tensors:
    """Experts with matrices of their own: <module>.<number>.gate_proj, up_proj and down_proj.
    scale: of what they give."""

    def parts(key: str, shape: tuple[int, int], scale: float = 1.0) -> list[Part]:
        return [
            Part(b.at(layer, f"{module}.{i}.{key}_proj.weight"), shape, scale=scale)
            for i in range(e.count)
        ]

    rows = (e.width, b.width)
    return Tensors([*parts("gate", rows), *parts("up", rows)], parts("down", rows[::-1], scale))


def together(
    b: Stacked, layer: int, e: Experts, names: tuple[str, str], *, scale: float = 1.0
) -> Tensors:
    """Experts in two tensors, [E, 2F, C] of gates and ups of each, and [E, C, F]; names: theirs.
    scale: of what they give."""
    both, down = (b.at(layer, f"{name}.weight") for name in names)
    spans = [(at * e.width, (at + 1) * e.width) for at in range(2 * e.count)]
    shape = (e.count, 2 * e.width, b.width)
    parts = [Part(both, shape, rows=rows, stacked=True) for rows in (*spans[::2], *spans[1::2])]
    return Tensors(parts, [Part(down, (e.count, b.width, e.width), scale=scale, stacked=True)])


def feed_forward(
    b: Stacked, layer: int, x: str, e: Experts, tensors: Tensors, router: str, *, bias: bool = False
) -> str:
    """Rows [T, C] through the experts that the router, a linear [E, C], picks for each."""
    at = f"layers.{layer}"
    part = Part(b.at(layer, f"{router}.weight"), (e.count, b.width))
    logits = b.linear(x, f"{at}.router", [part], bias=bias)
    rows = {
        "gate_up": tensors.gate_up, "down": tensors.down,
        "gate_up_bias": tensors.gate_up_bias, "down_bias": tensors.down_bias,
    }  # fmt: skip
    weights = {
        slot: b.weight(f"{at}.experts_{slot}", Recipe(tuple(parts)))
        for slot, parts in rows.items()
        if parts
    }
    attrs = {"experts": e.count, "active": e.active, "act": e.act, **e.attrs}
    attrs |= {} if e.normalised else {"normalised": False}
    return b.node("experts", [x, logits], f"{at}.experts", weights=weights, attrs=attrs)
