"""Configs of the components of a picture pipeline (diffusers) and of its text encoders
(transformers): typed, frozen, and no key goes unnoticed.

A component's `Config` has a field for every key that matters, with the default that the library
has for it. `fixed` lists keys that may only have values that this edgert computes, `ignored` those
that change nothing. Whatever else stands there is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec

from ... import limits
from .config import refused, short, typed_values
from .keys import says_nothing

# Keys that diffusers writes into every config.
OWN = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_use_default_values"})

Size = Annotated[int, msgspec.Meta(ge=1, lt=limits.TENSOR_DIM)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=limits.LAYERS)]
Heads = Annotated[int, msgspec.Meta(ge=1, le=limits.HEADS)]
HeadDim = Annotated[int, msgspec.Meta(ge=1, le=limits.HEAD_DIM)]
Side = Annotated[int, msgspec.Meta(ge=1, le=limits.PICTURE_SIDE)]
Eps = Annotated[float, msgspec.Meta(gt=0, lt=1)]

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Keys:
    """What a component's config may hold besides its fields."""

    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def diffusers_own(key: str, raw: Mapping[str, Any]) -> bool:
    """Whether a key is one that diffusers writes everywhere."""
    return key in OWN


def read_component(
    raw: Mapping[str, Any],
    kind: type[T],
    keys: Keys,
    faults: list[str],
    *,
    neutral: Callable[[str, Mapping[str, Any]], bool] = diffusers_own,
) -> T:
    """The typed config; unknown keys go into `faults`, unreadable fields raise ConvertError.

    neutral: says of other keys whether they mean nothing; `says_nothing` for transformers.
    """
    fields = {field.name for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key in fields or key in keys.ignored or neutral(key, raw):
            continue
        if key not in keys.fixed:
            faults.append(f"config key {key!r} (= {short(value)}) is unknown")
        elif not any(type(value) is type(ok) and value == ok for ok in keys.fixed[key]):
            allowed = " or ".join(map(short, keys.fixed[key]))
            faults.append(f"config {key!r} is {short(value)}, expected {allowed}")
    values, broken = typed_values(raw, kind)
    for name, value in values.items():
        if type(value) is float and not math.isfinite(value):
            broken.append(f"config {name!r} is {value}, expected a finite number")
    if broken:
        raise refused([*broken, *faults])
    return kind(**values)


def transformers_neutral(key: str, raw: Mapping[str, Any]) -> bool:
    """`says_nothing`, for configs of transformers."""
    return says_nothing(key, raw)
