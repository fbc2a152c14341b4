"""JSON as edgert reads it from files: UTF-8, no duplicate keys, no NaN, no deep nesting."""

from __future__ import annotations

import json
from typing import Any

from ..errors import BundleError


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


def parse(data: bytes, *, where: str, code: str) -> Any:
    """The value, or BundleError with `code` ("<code>-duplicate" for a repeated key).

    Memory stays under 32 times the input (measured: an array of objects of one entry).
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
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
