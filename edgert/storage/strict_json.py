"""JSON as edgert reads it from files: UTF-8, no lone surrogates, no duplicate keys, no NaN, no deep
nesting."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..errors import BundleError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may stand alone


class _Duplicate(ValueError):
    """A key stands twice in one object."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Duplicate(f"key {twice[:128]!r} stands twice, expected once")
    return found


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _infinity(text: str) -> float:
    return math.inf if text == "Infinity" else _constant(text)


def parse(data: bytes, *, where: str, code: str, infinity: bool = False) -> Any:
    """The value, or BundleError with `code` ("<code>-duplicate" for a repeated key).

    infinity: take the word `Infinity` as a number, which Python writes for one without a limit.
    Memory stays under 32 times the input (measured: an array of objects of one entry).
    """
    try:
        constant = _infinity if infinity else _constant
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=constant)
        if _SURROGATE.search(data):
            _refuse_surrogates(found)
        return found
    except _Duplicate as error:
        raise BundleError(
            f"{where}: {error}",
            code=f"{code}-duplicate",
            hint="the file is damaged or hostile; get it again from where it came from",
        ) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{where}: not JSON: {str(error)[:200]}, expected one JSON object in UTF-8",
            code=code,
            hint="the file is damaged; copy or download it again",
        ) from None


def _refuse_surrogates(found: Any) -> None:
    """ValueError for half a character in any key or text: no file name and no terminal takes it."""
    values = [found]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and not value.isascii():
            half = re.search("[\ud800-\udfff]", value)
            if half:
                raise ValueError(f"a text holds a lone surrogate, {half[0]!a}, in {value[:64]!a}")
