"""What an op is: a row of the catalogue (`kernels/ops.py`), its attributes and its faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .states import StateSpec

Dim = int | str
Shape = tuple[Dim, ...]
Attrs = Mapping[str, Any]
Infer = Callable[[Sequence[Shape], Mapping[str, tuple[int, ...]], Attrs], Shape]

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
    the others are f32. `columns`: slots of small matrices that CPU kernels read by columns.
    reach: of an op that reads where rows stand: shapes of its weights and complete attributes ->
    how many positions it knows.
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
    columns: tuple[str, ...] = ()
    reach: Callable[[Mapping[str, tuple[int, ...]], Attrs], int] | None = None
    state_of: Callable[[Attrs], StateSpec] | None = None
    borrows: bool = False

    @property
    def reference(self) -> Callable[..., Any]:
        """The NumPy face: `reference(inputs, weights, attrs, state) -> array` (float32); the last
        argument of an op with a `reach` is the rows' positions, int [T]."""
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


def need(ok: bool, message: str) -> None:
    """Raises OpError with a message unless `ok`."""
    if not ok:
        raise OpError(message)
