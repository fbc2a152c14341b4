"""Rows of the catalogue that latent attention is made of, besides attention itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need

HEADS = 1024
WHOLE = 16  # rows and columns of a head's matrix come in groups of as many
_ROWS = ("turning", "still", "key", "latent")
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


def _latent_rows(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    heads, shared, rank = (attrs[key] for key in ("heads", "shared", "rank"))
    need(min(heads, shared, rank) > 0, f"latent_rows: {heads} heads of {shared}, {rank}")
    sizes = heads * shared, heads * rank, shared, rank
    for slot, found, wanted in zip(
        ("turning", "still", "key", "latent"), inputs, sizes, strict=True
    ):
        need(found[0] == inputs[0][0], f"latent_rows: {found[0]} and {inputs[0][0]} rows")
        need(found[-1] == wanted, f"latent_rows: {slot} rows of {found[-1]}, expected {wanted}")
    return (inputs[0][0], (heads + 1) * (shared + rank))


def _head_linear(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), w, heads = inputs, weights["weight"], attrs["heads"]
    need(1 <= heads <= HEADS, f"head_linear: {heads} heads, expected 1 to {HEADS}")
    need(
        len(x) == len(w) == 2 and x[1] == heads * w[1],
        f"head_linear: weight {w} of {heads} heads does not take rows {x}",
    )
    whole = heads * WHOLE
    need(
        w[0] % whole == 0 and w[1] % WHOLE == 0,
        f"head_linear: weight {w}, expected a multiple of {WHOLE} rows a head, and of columns",
    )
    return (x[0], w[0])


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
    Op(
        "latent_rows", "latent", _ROWS, _latent_rows,
        attrs={key: Attr(int) for key in ("heads", "shared", "rank")},
    ),
    Op(
        "head_linear", "head_linear", ("x",), _head_linear,
        weights={"weight": True}, matrix=("weight",), attrs={"heads": Attr(int)},
    ),
)  # fmt: skip
