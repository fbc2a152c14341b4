"""Protobuf's wire format, read strictly: enough to look at an .onnx file without `onnx`.

A message is a row of fields `varint(number << 3 | wire type) value`; wire types: 0 varint, 1 eight
bytes, 2 length and bytes, 5 four bytes (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .. import limits

_VARINT_BYTES = 10
_FIXED = {1: 8, 5: 4}


class WireError(ValueError):
    """The bytes are not the message they should be."""


class Field(NamedTuple):
    """One field: its number, and an int (varint) or a view of its bytes."""

    number: int
    value: int | memoryview


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends."""
    value = 0
    for index in range(_VARINT_BYTES):
        if at + index >= len(data):
            raise WireError(f"a varint ends past byte {len(data)}")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                raise WireError(f"a varint at byte {at} has more than 64 bits")
            return value, at + index + 1
    raise WireError(f"a varint at byte {at} has more than {_VARINT_BYTES} bytes")


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of one message; WireError where the bytes cannot be one."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
            yield Field(number, value)
            continue
        if wire == 2:
            size, at = varint(data, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise WireError(f"field {number} has wire type {wire}, expected 0, 1, 2 or 5")
        if size > len(data) - at:
            raise WireError(f"field {number} of {size} bytes ends past its message")
        yield Field(number, data[at : at + size])
        at += size


def signed(value: int) -> int:
    """A varint field read as int64."""
    return value - (1 << 64) if value >> 63 else value


def varints(value: int | memoryview, *, limit: int = 1) -> list[int]:
    """A repeated integer field, packed or single, of at most `limit` numbers."""
    if isinstance(value, int):
        return [signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = varint(value, at)
        found.append(signed(one))
        if len(found) > limit:
            raise WireError(f"more than {limit} numbers in one field")
    return found


def text(value: int | memoryview, *, limit: int = limits.ONNX_TEXT_BYTES) -> str:
    """A string field; WireError when it is no short UTF-8."""
    if isinstance(value, int) or len(value) > limit:
        raise WireError(f"a string field is not text of at most {limit} bytes")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("a string field is not UTF-8") from None


def message(value: int | memoryview) -> memoryview:
    """A sub-message's bytes."""
    if isinstance(value, int):
        raise WireError("a sub-message is stored as an integer")
    return value
