"""Rows of the catalogue that language models are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need
from .states import KVState, LatentState, StateSpec

Sizes = Mapping[str, tuple[int, ...]]

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")  # of gates
STREAMS = 64  # that rows consist of, at most
LANES = 16  # channels that kernels take at once


def _embed(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (tokens,), table = inputs, weights["weight"]
    need(len(tokens) == 1, f"embed: tokens have shape {tokens}, expected [T]")
    need(len(table) == 2, f"embed: weight has shape {table}, expected [V, C]")
    return (tokens[0], table[1])


def _rms_norm(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    (x,) = inputs
    need(weights["weight"] == (x[-1],), f"rms_norm: weight {weights['weight']} for rows of {x[-1]}")
    need(attrs["eps"] > 0, f"rms_norm: eps is {attrs['eps']}, expected > 0")
    return tuple(x)


def _row_rms(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,) = inputs
    need(len(x) == 2, f"row_rms: {x}, expected rows [N, C]")
    need(attrs["floor"] > 0, f"row_rms: floor is {attrs['floor']}, expected > 0")
    return (x[0], 1)


def _mix_streams(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x, by), count = inputs, attrs["streams"]
    need(1 <= count <= STREAMS, f"mix_streams: {count} streams, expected 1 to {STREAMS}")
    need(
        len(x) == len(by) == 2 and x[0] == by[0],
        f"mix_streams: rows {x} by {by}, expected as many of both",
    )
    need(
        int(x[1]) % (16 * count) == 0,
        f"mix_streams: rows of {x[1]}, expected {count} streams of a multiple of 16 columns",
    )
    need(
        int(by[1]) % count == 0,
        f"mix_streams: {by[1]} coefficients, expected a multiple of {count} streams",
    )
    return (x[0], int(x[1]) // count * (int(by[1]) // count))


def _linear(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (x,), w = inputs, weights["weight"]
    need(len(w) == 2 and w[1] == x[-1], f"linear: weight {w} does not take rows of {x[-1]}")
    if "bias" in weights:
        need(weights["bias"] == (w[0],), f"linear: bias {weights['bias']} for {w[0]} outputs")
    return (*x[:-1], w[0])


def _attention(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    heads, kv_heads = attrs["heads"], attrs["kv_heads"]
    if not attrs["values"]:
        return _attended(inputs[0], heads + 2 * kv_heads, weights, attrs)
    values, size = attrs["values"], attrs["head_dim"]
    need(
        0 < values < size and values % LANES == size % LANES == 0,
        f"attention: values of {values} in keys of {size}, expected multiples of {LANES}",
    )
    odd = kv_heads != 1 or attrs["window"] or attrs["softcap"] or {"q_norm", "sinks"} & {*weights}
    need(
        not odd, "attention: values in keys go with one kv head, without window, cap, norms, sinks"
    )
    rows = _attended(inputs[0], heads + 1, weights, attrs)[0]
    return (rows, heads * values)


def _shared_attention(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    return _attended(inputs[0], attrs["heads"], weights, attrs)


def _attended(x: Shape, packed: int, weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    """Rows of `packed` head vectors in, rows of H head vectors out."""
    heads, kv_heads, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    need(min(heads, kv_heads, size) > 0, f"attention: heads {heads}/{kv_heads}, head size {size}")
    need(heads % kv_heads == 0, f"attention: {heads} heads are no multiple of {kv_heads} kv heads")
    need(x[-1] == packed * size, f"attention: rows of {x[-1]}, expected {packed * size}")
    need(x[0] == "T", f"attention: {x[0]} rows, expected T, the tokens of a step")
    need(attrs["window"] >= 0, f"attention: window is {attrs['window']}, expected >= 0")
    need(attrs["softcap"] >= 0, f"attention: softcap is {attrs['softcap']}, expected >= 0")
    for slot in ("q_norm", "k_norm"):
        if slot in weights:
            need(weights[slot] == (size,), f"attention: {slot} {weights[slot]}, expected ({size},)")
    need(
        "q_norm" in weights or not attrs["norm_last"],
        "attention: norm_last without the norms that it is about",
    )
    if "sinks" in weights:
        need(weights["sinks"] == (heads,), f"attention: sinks {weights['sinks']}, {heads} heads")
    both = packed > heads
    alone = both and ("q_norm" in weights) != ("k_norm" in weights)
    need(not alone, "attention: only one of q_norm, k_norm")
    axes = attrs["rope_axes"]
    if axes:
        count = weights.get("inv_freq", (0,))[0]
        need(
            len(axes) == count and set(axes) <= set("012"),
            f"attention: rope_axes {axes!r}, expected 0, 1 or 2 for each of {count} frequencies",
        )
    check_growth("attention", weights, attrs)
    for slot in ("inv_freq", "inv_freq_long"):
        if slot in weights:
            pairs = weights[slot]
            need(
                len(pairs) == 1 and 2 * pairs[0] <= size, f"attention: {slot} {pairs}, head {size}"
            )
    if "inv_freq_long" in weights:
        same = weights.get("inv_freq") == weights["inv_freq_long"]
        need(
            same and attrs["rope_switch"] > 0, "attention: long rope needs inv_freq and rope_switch"
        )
    return (*x[:-1], heads * size)


def check_growth(op: str, weights: Sizes, attrs: Attrs) -> None:
    """What a node says of frequencies that follow the length of a text."""
    growth, length = attrs["rope_growth"], attrs["rope_length"]
    need(
        0 <= growth <= 1e12 and length >= 0,
        f"{op}: rope_growth {growth} and rope_length {length}, expected 0 to 1e12",
    )
    need((growth > 0) == (length > 0), f"{op}: only one of rope_growth, rope_length")
    alone = not attrs["rope_axes"] and "inv_freq_long" not in weights
    need(
        not growth or (alone and weights.get("inv_freq", (0,))[0] > 1),
        f"{op}: rope_growth needs two frequencies or more, without axes and long ones",
    )


def _kv_state(attrs: Attrs) -> StateSpec:
    if attrs.get("values"):
        return LatentState(attrs["head_dim"])
    return KVState(attrs["kv_heads"], attrs["head_dim"], attrs["window"])


def _glu(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (x,) = inputs
    width = x[-1]
    need(isinstance(width, int) and width % 2 == 0, f"glu: rows of {width}, expected an even width")
    need(
        attrs["act"] in ACTIVATIONS, f"glu: act is {attrs['act']!r}, expected one of {ACTIVATIONS}"
    )
    return (*x[:-1], int(width) // 2)


def _add(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    a, b = inputs
    need(tuple(a) == tuple(b), f"add: shapes {a} and {b} differ")
    return tuple(a)


def _select(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    x, rows = inputs
    need(len(x) == 2 and len(rows) == 1, f"select: shapes {x} and {rows}, expected [T, C] and [R]")
    return (rows[0], x[1])


def _softcap(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    need(attrs["cap"] > 0, f"softcap: cap is {attrs['cap']}, expected > 0")
    return tuple(inputs[0])


def _placed(op: str, x: Shape) -> int:
    """Width of rows that stand somewhere in a sequence."""
    need(len(x) == 2 and x[0] == "T", f"{op}: rows {x}, expected [T, C], the tokens of a step")
    return int(x[1])


def _add_learned_positions(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), table = inputs, weights["weight"]
    width = _placed("add_learned_positions", x)
    need(
        len(table) == 2 and table[1] == width,
        f"add_learned_positions: weight {table}, expected [positions, {width}]",
    )
    return x


def _scale_by_position(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), factors = inputs, weights["weight"]
    width = _placed("scale_by_position", x)
    need(len(factors) == 1, f"scale_by_position: weight {factors}, expected [factors]")
    need(attrs["every"] > 0, f"scale_by_position: every is {attrs['every']}, expected > 0")
    need(
        0 < attrs["width"] <= width,
        f"scale_by_position: width is {attrs['width']}, expected 1 to {width}",
    )
    return x


_ATTENTION_ATTRS = {
    "heads": Attr(int), "kv_heads": Attr(int), "head_dim": Attr(int),
    "scale": Attr(float), "window": Attr(int, 0), "softcap": Attr(float, 0.0),
    "qk_eps": Attr(float, 1e-6), "rope_scale": Attr(float, 1.0),
    "rope_long_scale": Attr(float, 1.0), "rope_switch": Attr(int, 0),
    "rope_axes": Attr(str, ""), "norm_last": Attr(bool, False),
    "rope_growth": Attr(float, 0.0), "rope_length": Attr(int, 0),
}  # fmt: skip

TEXT: tuple[Op, ...] = (
    Op(
        "embed", "embed", ("tokens",), _embed,
        weights={"weight": True}, matrix=("weight",), attrs={"scale": Attr(float, 1.0)},
        integer=("tokens",),
    ),
    Op(
        "rms_norm", "norm", ("x",), _rms_norm,
        weights={"weight": True}, attrs={"eps": Attr(float)},
    ),
    Op(
        "row_rms", "norm", ("x",), _row_rms,
        attrs={"floor": Attr(float), "centred": Attr(bool, False), "inverse": Attr(bool, False)},
    ),
    Op(
        "linear", "linear", ("x",), _linear,
        weights={"weight": True, "bias": False}, matrix=("weight",),
    ),
    Op(
        "attention", "attention", ("qkv",), _attention,
        weights={
            "q_norm": False, "k_norm": False, "inv_freq": False, "inv_freq_long": False,
            "sinks": False,
        },
        attrs=_ATTENTION_ATTRS | {"values": Attr(int, 0)},
        state_of=_kv_state,
    ),
    Op(
        "shared_attention", "attention", ("q",), _shared_attention,
        weights={"q_norm": False, "inv_freq": False, "inv_freq_long": False, "sinks": False},
        attrs=_ATTENTION_ATTRS,
        state_of=_kv_state,
        borrows=True,
    ),
    Op(
        "add_learned_positions", "positions", ("x",), _add_learned_positions,
        weights={"weight": True}, reach=lambda weights, attrs: weights["weight"][0],
    ),
    Op(
        "scale_by_position", "positions", ("x",), _scale_by_position,
        weights={"weight": True}, attrs={"every": Attr(int), "width": Attr(int)},
        reach=lambda weights, attrs: weights["weight"][0] * int(attrs["every"]),
    ),
    Op("glu", "elementwise", ("x",), _glu, attrs={"act": Attr(str)}),
    Op("add", "elementwise", ("a", "b"), _add),
    Op("select", "elementwise", ("x", "rows"), _select, integer=("rows",)),
    Op("softcap", "elementwise", ("x",), _softcap, attrs={"cap": Attr(float)}),
    Op("mix_streams", "gating", ("x", "by"), _mix_streams, attrs={"streams": Attr(int)}),
)  # fmt: skip
