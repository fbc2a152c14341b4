"""Feed-forwards without a gate."""

from __future__ import annotations

from .blocks import MLP, Builder
from .recipe import Part, Recipe


def plain_mlp(
    b: Builder,
    layer: int,
    x: str,
    act: str,
    *,
    bias: bool = False,
    names: tuple[str, str] = MLP[1:],
) -> str:
    """Feed-forward without a gate; names: of up and down."""
    at = f"layers.{layer}"
    up = b.matrix(layer, f"{names[0]}.weight", b.ff, b.width)
    down = b.matrix(layer, f"{names[1]}.weight", b.width, b.ff)
    rows = b.linear(x, f"{at}.up", [up], bias=bias)
    rows = _xielu(b, layer, rows) if act == "xielu" else b.activation(rows, f"{at}.act", act)
    return b.linear(rows, f"{at}.down", [down], bias=bias)


def _xielu(b: Builder, layer: int, x: str) -> str:
    """xIELU, whose four numbers are the layer's own."""
    shapes = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
    parts = tuple(Part(b.at(layer, f"mlp.act_fn.{n}"), shape) for n, shape in shapes.items())
    at = f"layers.{layer}.act"
    return b.node("xielu", [x], at, weights={"weight": b.weight(at, Recipe(parts))})
