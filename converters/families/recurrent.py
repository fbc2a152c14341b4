"""The building blocks of recurrent layers, beside those of `blocks`."""

from __future__ import annotations

from ...kernels.ops_recurrent import CONV_WIDTHS
from ...kernels.states import ConvState
from .blocks import Builder
from .recipe import Part, Recipe


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
    b: Builder,
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


def gate(b: Builder, x: str, by: str, label: str, act: str) -> str:
    """x act(by)."""
    return b.node("gate", [x, by], label, attrs={"act": act})
