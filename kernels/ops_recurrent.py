"""Rows of the catalogue of recurrent layers: convolutions along the text, state spaces, delta rule.

Their states hold a fixed number of values whatever the length of the text. N is a state's size (the
key), P the width of a head's values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need
from .states import ConvState, RecurrentState, StateSpec

GATES = ("identity", "silu", "sigmoid")  # of `gate`
CONV_WIDTHS = range(2, 17)

Sizes = Mapping[str, tuple[int, ...]]


def _gate(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    x, gate = inputs
    fits = tuple(gate) in (tuple(x), (*x[:-1], 1))
    need(fits, f"gate: shapes {x} and {gate} differ, expected the same or a gate of one column")
    need(attrs["act"] in GATES, f"gate: act is {attrs['act']!r}, expected one of {GATES}")
    return tuple(x)


def _head_norm(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), size, weight = inputs, attrs["size"], weights["weight"]
    width = x[-1]
    parts = isinstance(width, int) and 0 < size <= width and width % size == 0
    need(parts, f"head_norm: rows of {width} in parts of {size}")
    need(
        weight in ((size,), (width,)),
        f"head_norm: weight {weight}, expected ({size},) for all parts or ({width},)",
    )
    need(attrs["eps"] > 0, f"head_norm: eps is {attrs['eps']}, expected > 0")
    return tuple(x)


def _tokens(op: str, inputs: Sequence[Shape]) -> None:
    need(
        all(len(x) == 2 and x[0] == "T" for x in inputs),
        f"{op}: shapes {list(inputs)}, expected rows [T, C] of a step's tokens",
    )


def _vector(op: str, slot: str, weights: Sizes, size: int) -> None:
    if slot in weights:
        need(weights[slot] == (size,), f"{op}: {slot} {weights[slot]}, expected ({size},)")


def _causal_conv(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    _tokens("causal_conv", inputs)
    (x,), channels, width = inputs, attrs["channels"], attrs["width"]
    need(width in CONV_WIDTHS, f"causal_conv: width is {width}, expected 2 to {CONV_WIDTHS[-1]}")
    need(x[-1] == channels, f"causal_conv: rows of {x[-1]}, expected {channels} channels")
    wanted = (channels, width)
    need(weights["weight"] == wanted, f"causal_conv: weight {weights['weight']}, expected {wanted}")
    _vector("causal_conv", "bias", weights, channels)
    acts = ("identity", "silu")
    need(attrs["act"] in acts, f"causal_conv: act is {attrs['act']!r}, expected one of {acts}")
    need(attrs["tail"] >= 0, f"causal_conv: tail is {attrs['tail']}, expected >= 0")
    return tuple(x)


def _conv_state(attrs: Attrs) -> StateSpec:
    return ConvState(attrs["channels"], attrs["width"], attrs["tail"])


def _ssd(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    _tokens("ssd", inputs)
    x, dt = inputs
    heads, size, groups, state = (attrs[k] for k in ("heads", "head_dim", "groups", "state"))
    need(min(heads, size, groups, state) > 0, f"ssd: {heads} heads of {size}, {groups} of {state}")
    need(heads % groups == 0, f"ssd: {heads} heads are no multiple of {groups} groups")
    wanted = heads * size + 2 * groups * state
    need(x[-1] == wanted, f"ssd: rows of {x[-1]}, expected {wanted}")
    need(dt[-1] == heads, f"ssd: steps of {dt[-1]} heads, expected {heads}")
    low, high = attrs["dt_min"], attrs["dt_max"]
    need(0 <= low < high, f"ssd: steps from {low} to {high}, expected 0 or more, rising")
    for slot in ("a_log", "dt_bias", "d"):
        _vector("ssd", slot, weights, heads)
    return (x[0], heads * size)


def _ssd_state(attrs: Attrs) -> StateSpec:
    return RecurrentState(attrs["heads"], attrs["state"], attrs["head_dim"])


def _gated_delta(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    _tokens("gated_delta", inputs)
    x, gates = inputs
    heads, key_heads, key, value = (attrs[k] for k in ("heads", "key_heads", "key_dim", "head_dim"))
    need(min(heads, key_heads, key, value) > 0, f"gated_delta: {heads}/{key_heads} heads")
    need(heads % key_heads == 0, f"gated_delta: {heads} heads are no multiple of {key_heads}")
    wanted = 2 * key_heads * key + heads * value
    need(x[-1] == wanted, f"gated_delta: rows of {x[-1]}, expected {wanted}")
    need(gates[-1] == 2 * heads, f"gated_delta: gates of {gates[-1]}, expected {2 * heads}")
    need(attrs["eps"] > 0, f"gated_delta: eps is {attrs['eps']}, expected > 0")
    for slot in ("a_log", "dt_bias"):
        _vector("gated_delta", slot, weights, heads)
    return (x[0], heads * value)


def _delta_state(attrs: Attrs) -> StateSpec:
    return RecurrentState(attrs["heads"], attrs["key_dim"], attrs["head_dim"])


RECURRENT: tuple[Op, ...] = (
    Op("gate", "gating", ("x", "gate"), _gate, attrs={"act": Attr(str)}),
    Op(
        "head_norm", "gating", ("x",), _head_norm,
        weights={"weight": True}, attrs={"size": Attr(int), "eps": Attr(float)},
    ),
    Op(
        "causal_conv", "causal_conv", ("x",), _causal_conv,
        weights={"weight": True, "bias": False}, columns=("weight",),
        attrs={
            "channels": Attr(int), "width": Attr(int), "act": Attr(str, "identity"),
            "tail": Attr(int, 0),
        },
        state_of=_conv_state,
    ),
    Op(
        "ssd", "ssd", ("x", "dt"), _ssd,
        weights={"a_log": True, "dt_bias": True, "d": True},
        attrs={
            "heads": Attr(int), "head_dim": Attr(int), "groups": Attr(int), "state": Attr(int),
            "dt_min": Attr(float, 0.0), "dt_max": Attr(float, 3e38),
        },
        state_of=_ssd_state,
    ),
    Op(
        "gated_delta", "gated_delta", ("x", "gates"), _gated_delta,
        weights={"a_log": True, "dt_bias": True},
        attrs={
            "heads": Attr(int), "key_heads": Attr(int), "key_dim": Attr(int),
            "head_dim": Attr(int), "eps": Attr(float, 1e-6),
        },
        state_of=_delta_state,
    ),
)  # fmt: skip
