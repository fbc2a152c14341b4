"""Values of a GGUF file's metadata, decoded when they are asked for, by the type that is expected.

Texts and arrays are spans of the header's bytes until then, so that a header takes the memory of
its bytes and little more, whatever it claims to hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: Mapping[int, Struct] = {
    number: Struct(f"<{letter}")
    for number, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q",
        12: "d",
    }.items()
}  # fmt: skip
_HINT = "the file's metadata are damaged or of another kind; convert the model to GGUF again"


class TextSpan(NamedTuple):
    """A text: where its bytes are."""

    at: int
    nbytes: int


class ArraySpan(NamedTuple):
    """An array: the type of its entries, how many, and where the first is."""

    kind: int
    size: int
    at: int


class Metadata:
    """Keys and values of one file. Getters raise BundleError (gguf-key) for another type."""

    def __init__(self, where: str, values: Mapping[str, Any], data: bytearray) -> None:
        self.where, self._values, self._data = where, values, data

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def shown(self, key: str) -> str:
        """A value for a message."""
        value = self._values.get(key)
        if isinstance(value, ArraySpan):
            return f"an array of {value.size}"
        if isinstance(value, TextSpan):
            raw = bytes(self._data[value.at : value.at + min(value.nbytes, 40)])
            return repr(raw.decode("utf-8", "replace"))
        return str(value)

    def is_array(self, key: str) -> bool:
        """Whether a key is there and has an array."""
        return isinstance(self._values.get(key), ArraySpan)

    def plain(self, key: str) -> Any:
        """A number or a truth value as it is stored; None for anything else."""
        value = self._values.get(key)
        return None if isinstance(value, (ArraySpan, TextSpan)) else value

    def text(self, key: str, limit: int = limits.TEMPLATE_BYTES) -> str | None:
        """A text of at most `limit` bytes; None where the key is not there."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, TextSpan) or value.nbytes > limit:
            raise self._fault(key, f"a text of at most {limit} bytes")
        return self._decoded(value.at, value.nbytes, key)

    def whole(self, key: str) -> int | None:
        """A whole number that is not negative; None where the key is not there."""
        value = self._values.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise self._fault(key, "a whole number from 0")
        return value

    def number(self, key: str) -> float | None:
        """A number; None where the key is not there."""
        value = self._values.get(key)
        if value is not None and type(value) not in (int, float):
            raise self._fault(key, "a number")
        return None if value is None else float(value)

    def flag(self, key: str) -> bool | None:
        """True or false; None where the key is not there."""
        value = self._values.get(key)
        if value is not None and type(value) is not bool:
            raise self._fault(key, "true or false")
        return value

    def numbers(self, key: str) -> NDArray[Any] | None:
        """An array of numbers or truth values, a copy; None where the key is not there."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, ArraySpan) or value.kind not in SCALARS:
            raise self._fault(key, "an array of numbers")
        form = np.dtype(SCALARS[value.kind].format)
        return np.frombuffer(self._data, form, value.size, value.at).copy()

    def texts(self, key: str) -> list[str] | None:
        """An array of texts; None where the key is not there."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, ArraySpan) or value.kind != STRING:
            raise self._fault(key, "an array of texts")
        found, at, unpack = [], value.at, SCALARS[10].unpack_from
        for _ in range(value.size):
            size = unpack(self._data, at)[0]
            found.append(self._decoded(at + 8, size, key))
            at += 8 + size
        return found

    def _decoded(self, at: int, nbytes: int, key: str) -> str:
        raw = self._data[at : at + nbytes]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise BundleError(
                f"{self.where}: key {key!r} holds {bytes(raw[:40])!r}, expected UTF-8",
                code="gguf-key",
                hint=_HINT,
            ) from None

    def _fault(self, key: str, expected: str) -> BundleError:
        value = self._values[key]
        kind = "a text" if isinstance(value, TextSpan) else type(value).__name__
        found = self.shown(key) if isinstance(value, ArraySpan) else f"{kind} {self.shown(key)}"
        return BundleError(
            f"{self.where}: key {key!r} is {found[:120]}, expected {expected}",
            code="gguf-key",
            hint=_HINT,
        )
