"""The op catalogue: every operation a graph may contain, and what it needs.

This module is the contract between graphs and executors. It holds names, attributes and shape
rules only, so that reading or checking a graph imports neither numba nor onnx. An op has four
implementations: NumPy `reference` (reads like the formula), Numba kernel and ONNX emission in the
module that `Op.module` names, and torch in the converters.

Shapes are written with these letters: T tokens of a step, R selected rows, H query heads, G
key/value heads, D head size, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .states import KVState, StateSpec

Dim = int | str
Shape = tuple[Dim, ...]
Attrs = Mapping[str, Any]
Infer = Callable[[Sequence[Shape], Mapping[str, tuple[int, ...]], Attrs], Shape]

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


# What operands of kernels hold: int64 and float32.
_LARGEST: dict[type, float] = {int: (1 << 63) - 1, float: 3.4028235e38}


class OpError(ValueError):
    """A node does not fit its op: wrong attribute, missing weight or impossible shape."""


@dataclass(frozen=True)
class Attr:
    """One attribute: its type, and its default (`...` means required)."""

    type: type
    default: Any = ...


@dataclass(frozen=True)
class Op:
    """One row of the catalogue.

    inputs: names of the values it reads, float32 but for those in `integer`, which are int32.
    weights: slot name -> True when required. `matrix` names the slots that may be in any encoding,
    the others are f32.
    state_of: complete attributes -> the state that a node of this op owns, None for none. An op
    that `borrows` reads a state of that description which another node owns.
    infer: input shapes, weight shapes, attributes -> output shape; raises OpError.
    """

    name: str
    module: str
    inputs: tuple[str, ...]
    infer: Infer
    weights: Mapping[str, bool] = field(default_factory=dict)
    matrix: tuple[str, ...] = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    integer: tuple[str, ...] = ()
    state_of: Callable[[Attrs], StateSpec] | None = None
    borrows: bool = False

    @property
    def reference(self) -> Callable[..., Any]:
        """The NumPy face: `reference(inputs, weights, attrs, state) -> array` (float32)."""
        faces: dict[str, Callable[..., Any]]
        faces = import_module(f"{__package__}.{self.module}").REFERENCE
        return faces[self.name]

    @property
    def onnx(self) -> Callable[..., Any] | None:
        """The ONNX face, or None where the op has no emission yet."""
        faces = getattr(import_module(f"{__package__}.{self.module}"), "ONNX", {})
        return faces.get(self.name)

    @property
    def lower(self) -> Callable[..., None]:
        """The CPU face: `lower(builder, node)` appends instructions (`kernels/lowering.py`)."""
        faces: dict[str, Callable[..., None]]
        faces = import_module(f"{__package__}.{self.module}").LOWER
        return faces[self.name]

    def check_attrs(self, attrs: Attrs) -> dict[str, Any]:
        """Attributes with defaults filled in; unknown, missing or mistyped ones raise OpError."""
        unknown = sorted(set(attrs) - set(self.attrs))
        if unknown:
            raise OpError(f"{self.name}: unknown attributes {unknown}, known: {sorted(self.attrs)}")
        full = {}
        for key, spec in self.attrs.items():
            value: Any = attrs.get(key, spec.default)
            if value is ...:
                raise OpError(f"{self.name}: attribute {key!r} is missing")
            if spec.type is float and type(value) is int:
                value = float(value) if abs(value) < 1 << 53 else math.inf
            if type(value) is not spec.type:
                raise OpError(
                    f"{self.name}: attribute {key!r} is {value!r}, expected {spec.type.__name__}"
                )
            if not _in_range(value, spec.type):
                raise OpError(f"{self.name}: attribute {key!r} is {value!r}, out of range")
            full[key] = value
        return full


def _in_range(value: Any, kind: type) -> bool:
    """Whether an operand word or a float32 can hold a number."""
    return kind not in _LARGEST or bool(abs(value) <= _LARGEST[kind])


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise OpError(message)


def _embed(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (tokens,), table = inputs, weights["weight"]
    _need(len(tokens) == 1, f"embed: tokens have shape {tokens}, expected [T]")
    _need(len(table) == 2, f"embed: weight has shape {table}, expected [V, C]")
    return (tokens[0], table[1])


def _rms_norm(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    (x,) = inputs
    _need(
        weights["weight"] == (x[-1],), f"rms_norm: weight {weights['weight']} for rows of {x[-1]}"
    )
    _need(attrs["eps"] > 0, f"rms_norm: eps is {attrs['eps']}, expected > 0")
    return tuple(x)


def _linear(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (x,), w = inputs, weights["weight"]
    _need(len(w) == 2 and w[1] == x[-1], f"linear: weight {w} does not take rows of {x[-1]}")
    if "bias" in weights:
        _need(weights["bias"] == (w[0],), f"linear: bias {weights['bias']} for {w[0]} outputs")
    return (*x[:-1], w[0])


def _attention(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    kv_heads = attrs["kv_heads"]
    return _attended(inputs[0], attrs["heads"] + 2 * kv_heads, weights, attrs)


def _shared_attention(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    return _attended(inputs[0], attrs["heads"], weights, attrs)


def _attended(x: Shape, packed: int, weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    """Rows of `packed` head vectors in, rows of H head vectors out."""
    heads, kv_heads, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    _need(min(heads, kv_heads, size) > 0, f"attention: heads {heads}/{kv_heads}, head size {size}")
    _need(heads % kv_heads == 0, f"attention: {heads} heads are no multiple of {kv_heads} kv heads")
    _need(x[-1] == packed * size, f"attention: rows of {x[-1]}, expected {packed * size}")
    _need(x[0] == "T", f"attention: {x[0]} rows, expected T, the tokens of a step")
    _need(attrs["window"] >= 0, f"attention: window is {attrs['window']}, expected >= 0")
    _need(attrs["softcap"] >= 0, f"attention: softcap is {attrs['softcap']}, expected >= 0")
    for slot in ("q_norm", "k_norm"):
        if slot in weights:
            _need(
                weights[slot] == (size,), f"attention: {slot} {weights[slot]}, expected ({size},)"
            )
    both = packed > heads
    alone = both and ("q_norm" in weights) != ("k_norm" in weights)
    _need(not alone, "attention: only one of q_norm, k_norm")
    axes = attrs["rope_axes"]
    if axes:
        count = weights.get("inv_freq", (0,))[0]
        _need(
            len(axes) == count and set(axes) <= set("012"),
            f"attention: rope_axes {axes!r}, expected 0, 1 or 2 for each of {count} frequencies",
        )
    for slot in ("inv_freq", "inv_freq_long"):
        if slot in weights:
            pairs = weights[slot]
            _need(
                len(pairs) == 1 and 2 * pairs[0] <= size, f"attention: {slot} {pairs}, head {size}"
            )
    if "inv_freq_long" in weights:
        same = weights.get("inv_freq") == weights["inv_freq_long"]
        _need(
            same and attrs["rope_switch"] > 0, "attention: long rope needs inv_freq and rope_switch"
        )
    return (*x[:-1], heads * size)


def _kv_state(attrs: Attrs) -> StateSpec:
    return KVState(attrs["kv_heads"], attrs["head_dim"], attrs["window"])


def _glu(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (x,) = inputs
    width = x[-1]
    _need(
        isinstance(width, int) and width % 2 == 0, f"glu: rows of {width}, expected an even width"
    )
    _need(
        attrs["act"] in ACTIVATIONS, f"glu: act is {attrs['act']!r}, expected one of {ACTIVATIONS}"
    )
    return (*x[:-1], int(width) // 2)


def _add(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    a, b = inputs
    _need(tuple(a) == tuple(b), f"add: shapes {a} and {b} differ")
    return tuple(a)


def _select(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    x, rows = inputs
    _need(len(x) == 2 and len(rows) == 1, f"select: shapes {x} and {rows}, expected [T, C] and [R]")
    return (rows[0], x[1])


def _softcap(
    inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs
) -> Shape:
    _need(attrs["cap"] > 0, f"softcap: cap is {attrs['cap']}, expected > 0")
    return tuple(inputs[0])


_ATTENTION_ATTRS = {
    "heads": Attr(int), "kv_heads": Attr(int), "head_dim": Attr(int),
    "scale": Attr(float), "window": Attr(int, 0), "softcap": Attr(float, 0.0),
    "qk_eps": Attr(float, 1e-6), "rope_scale": Attr(float, 1.0),
    "rope_long_scale": Attr(float, 1.0), "rope_switch": Attr(int, 0),
    "rope_axes": Attr(str, ""),
}  # fmt: skip

CATALOGUE: dict[str, Op] = {
    op.name: op
    for op in (
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
            "linear", "linear", ("x",), _linear,
            weights={"weight": True, "bias": False}, matrix=("weight",),
        ),
        Op(
            "attention", "attention", ("qkv",), _attention,
            weights={"q_norm": False, "k_norm": False, "inv_freq": False, "inv_freq_long": False},
            attrs=_ATTENTION_ATTRS,
            state_of=_kv_state,
        ),
        Op(
            "shared_attention", "attention", ("q",), _shared_attention,
            weights={"q_norm": False, "inv_freq": False, "inv_freq_long": False},
            attrs=_ATTENTION_ATTRS,
            state_of=_kv_state,
            borrows=True,
        ),
        Op("glu", "elementwise", ("x",), _glu, attrs={"act": Attr(str)}),
        Op("add", "elementwise", ("a", "b"), _add),
        Op("select", "elementwise", ("x", "rows"), _select, integer=("rows",)),
        Op("softcap", "elementwise", ("x",), _softcap, attrs={"cap": Attr(float)}),
    )
}  # fmt: skip
