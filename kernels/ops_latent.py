"""Rows of the catalogue that latent attention is made of, besides attention itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need

Sizes = Mapping[str, tuple[int, ...]]


def _latent_heads(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    q, kv, turning = inputs
    heads, shared, own, value = (attrs[key] for key in ("heads", "shared", "own", "value"))
    name, size = "latent_heads", shared + own
    need(min(heads, shared, own, value) > 0, f"{name}: {heads} heads of {shared}, {own}, {value}")
    need(value <= size, f"{name}: values of {value}, expected at most the {size} of a key")
    need(q[0] == kv[0] == turning[0], f"{name}: {q[0]}, {kv[0]} and {turning[0]} rows")
    for slot, found, wanted in (
        ("q", q, heads * size), ("kv", kv, heads * (own + value)), ("shared", turning, shared),
    ):  # fmt: skip
        need(found[-1] == wanted, f"{name}: {slot} rows of {found[-1]}, expected {wanted}")
    return (q[0], 3 * heads * size)


def _first_columns(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), size, keep = inputs, attrs["size"], attrs["keep"]
    need(0 < keep <= size, f"first_columns: keep is {keep}, expected 1 to {size}")
    need(int(x[1]) % size == 0, f"first_columns: rows of {x[1]}, expected a multiple of {size}")
    return (x[0], int(x[1]) // size * keep)


_HEADS = {key: Attr(int) for key in ("heads", "shared", "own", "value")}
LATENT: tuple[Op, ...] = (
    Op("latent_heads", "latent", ("q", "kv", "shared"), _latent_heads, attrs=_HEADS),
    Op(
        "first_columns", "latent", ("x",), _first_columns,
        attrs={"size": Attr(int), "keep": Attr(int)},
    ),
)  # fmt: skip
