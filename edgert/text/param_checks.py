"""Checks of single parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import limits
from ..errors import RequestError


def plain(value: Any) -> Any:
    """NumPy's scalars and arrays, and any sequence or mapping, as Python's own."""
    if isinstance(value, Mapping):
        return {_scalar(key): _scalar(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(_scalar(inner) for inner in value)
    return _scalar(value)


def _scalar(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def check_texts(field: str, one: str, texts: Sequence[str]) -> None:
    """Raise RequestError for too many texts, empty ones and long ones. one: what one is called."""
    between(f"number of {one}s", len(texts), 0, limits.STOP_STRINGS, field=field)
    for text in texts:
        length = len(text)
        between(f"characters in a {one}", length, 1, limits.STOP_STRING_CHARACTERS, field=field)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(
                f"a {one} is {text[:40]!a}, expected Unicode text without lone surrogates",
                code="text-surrogate",
                hint="decode the input with errors='replace'",
                field=field,
            )


def between(
    what: str, value: float | None, low: float, high: float, *, open_low: bool = False,
    field: str = "",
) -> None:  # fmt: skip
    """Raise RequestError unless value is None or in [low, high] (or (low, high]). field: the
    parameter, if it is not the last word of `what`."""
    if value is None or (
        math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    ):
        return
    bounds = f"{'more than' if open_low else 'from'} {low} {'up ' if open_low else ''}to {high}"
    raise RequestError(
        f"{what} is {value}, expected {bounds}",
        code="parameter-range",
        hint="choose a value in that range, or leave it out for the default",
        field=field or what.split()[-1],
    )
