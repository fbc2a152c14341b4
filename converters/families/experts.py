"""Mixtures of experts, beside the feed-forwards of `blocks`.

Their tensors go by transformers' names of experts one by one; of files that stack them, sources
take the stacks apart (`converters/sources/stacked.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import limits
from ...kernels.ops_experts import ACTIVE, EXPERTS, WHOLE
from . import blocks
from .blocks import Builder, Stacked
from .config import size_faults
from .recipe import Part, Recipe

QWEN_KEYS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


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


def sparse_layers(c: Any, count: int, faults: list[str]) -> list[bool]:
    """Whether each layer has experts, of a config with `mlp_only_layers` and
    `decoder_sparse_step`."""
    dense, step = set(c.mlp_only_layers or []), c.decoder_sparse_step
    if step < 1:
        faults.append(f"config 'decoder_sparse_step' is {step}, expected 1 or more")
        step = 1
    layers = range(c.num_hidden_layers)
    return [count > 0 and i not in dense and (i + 1) % step == 0 for i in layers]


def feed_forward(
    b: Stacked,
    layer: int,
    x: str,
    e: Experts,
    router: str,
    *,
    module: str = "mlp.experts",
    bias: bool = False,
) -> str:
    """Rows [T, C] through the experts that the router, a linear [E, C], picks for each: those of
    <module>.<number>.gate_proj, up_proj and down_proj. bias: all of these have some."""
    at = f"layers.{layer}"
    part = Part(b.at(layer, f"{router}.weight"), (e.count, b.width))
    logits = b.linear(x, f"{at}.router", [part], bias=bias)

    def stack(key: str, kind: str) -> list[Part]:
        rows = (e.width, b.width) if key != "down" else (b.width, e.width)
        shape = rows if kind == "weight" else rows[:1]
        return [Part(b.at(layer, f"{module}.{i}.{key}_proj.{kind}"), shape) for i in range(e.count)]

    weights: dict[str, str] = {}
    for kind, end in (("weight", ""), ("bias", "_bias"))[: 1 + bias]:
        for slot, keys in (("gate_up", ("gate", "up")), ("down", ("down",))):
            parts = tuple(part for key in keys for part in stack(key, kind))
            label = f"{at}.experts_{slot}{end}"
            weights[f"{slot}{end}"] = b.weight(label, Recipe(parts))
    attrs = {"experts": e.count, "active": e.active, "act": e.act, **e.attrs}
    attrs |= {} if e.normalised else {"normalised": False}
    return b.node("experts", [x, logits], f"{at}.experts", weights=weights, attrs=attrs)


def gated_shared(b: Builder, layer: int, x: str, width: int, module: str = "mlp") -> str:
    """An expert that all rows go through, of `width`, times the sigmoid of one number a row."""
    at, name = f"layers.{layer}", f"{module}.shared_expert"
    names = (f"{name}.gate_proj", f"{name}.up_proj", f"{name}.down_proj")
    y = blocks.mlp(b, layer, x, "silu", names=names, width=width)
    part = Part(b.at(layer, f"{name}_gate.weight"), (1, b.width))
    by = b.linear(x, f"{at}.shared_gate", [part])
    return b.node("gate", [y, by], f"{at}.shared", attrs={"act": "sigmoid"})


def beside_shared(
    b: Builder,
    c: Any,
    count: int,
    faults: list[str],
    sparse: Sequence[bool],
    *,
    normalised: bool = True,
) -> Callable[[int, str], str]:
    """Feed-forwards of Qwen's layers: where `sparse`, `count` experts and one for all rows; else
    the usual one."""
    e = Experts(count, c.num_experts_per_tok, c.moe_intermediate_size, normalised=normalised)
    width = c.shared_expert_intermediate_size
    if any(sparse):
        e = checked(e, b.width, QWEN_KEYS, faults)
        broken = size_faults(c, {"shared_expert_intermediate_size": limits.TENSOR_DIM - 1})
        faults += broken
        width = 1 if broken else width

    def feed(layer: int, x: str) -> str:
        if not sparse[layer]:
            return blocks.mlp(b, layer, x, "silu")
        y = feed_forward(b, layer, x, e, "mlp.gate")
        return b.add(y, gated_shared(b, layer, x, width), f"layers.{layer}.experts_shared")

    return feed
