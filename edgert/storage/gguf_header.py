"""The header of a GGUF file, checked before use.

A file is `magic | version | tensor count | key count | keys and values | tensors | data`,
little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Data begins at a multiple
of the alignment, and the tensors must cover it in the order in which they are listed, each padded
to the alignment, as llama.cpp demands. Checks run in a fixed order, and nothing is allocated from a
number that has not been checked. Values of metadata stay bytes until somebody asks for them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from struct import Struct
from typing import Any, NamedTuple

from .. import limits
from ..errors import BundleError
from .folder import open_regular
from .gguf_values import ARRAY, BOOL, SCALARS, STRING, ArraySpan, Metadata, TextSpan

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment says nothing else
RANK = 4  # axes of a tensor
_COPY = "the file is damaged or incomplete; copy or download it again"
_U32, _U64 = Struct("<I"), Struct("<Q")


class Kind(NamedTuple):
    """A type of tensors: its name, values in a block, bytes of a block."""

    name: str
    values: int
    nbytes: int


# By ggml's number. Removed types, and those that only other programs make, are not there.
KINDS: Mapping[int, Kind] = {
    0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 2: Kind("Q4_0", 32, 18), 3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22), 7: Kind("Q5_1", 32, 24), 8: Kind("Q8_0", 32, 34),
    9: Kind("Q8_1", 32, 36), 10: Kind("Q2_K", 256, 84), 11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144), 13: Kind("Q5_K", 256, 176), 14: Kind("Q6_K", 256, 210),
    15: Kind("Q8_K", 256, 292), 16: Kind("IQ2_XXS", 256, 66), 17: Kind("IQ2_XS", 256, 74),
    18: Kind("IQ3_XXS", 256, 98), 19: Kind("IQ1_S", 256, 50), 20: Kind("IQ4_NL", 32, 18),
    21: Kind("IQ3_S", 256, 110), 22: Kind("IQ2_S", 256, 82), 23: Kind("IQ4_XS", 256, 136),
    24: Kind("I8", 1, 1), 25: Kind("I16", 1, 2), 26: Kind("I32", 1, 4), 27: Kind("I64", 1, 8),
    28: Kind("F64", 1, 8), 29: Kind("IQ1_M", 256, 56), 30: Kind("BF16", 1, 2),
    34: Kind("TQ1_0", 256, 54), 35: Kind("TQ2_0", 256, 66), 39: Kind("MXFP4", 32, 17),
    40: Kind("NVFP4", 64, 36), 41: Kind("Q1_0", 128, 18),
}  # fmt: skip


class TensorInfo(NamedTuple):
    """One tensor: its type's name, shape (rows first), and absolute byte range [begin, end)."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says of itself."""

    metadata: Metadata
    tensors: dict[str, TensorInfo]


def read_gguf(source: int | str | os.PathLike[str]) -> Header:
    """Metadata and tensors of an open file or of a path, tensors in the order of their bytes.

    Raises BundleError: codes gguf-header, gguf-version, gguf-key, gguf-type, tensor-shape,
    tensor-offsets, tensor-truncated.
    """
    if isinstance(source, int):
        return parse_gguf(source, f"file descriptor {source}")
    fd = open_regular(source)
    try:
        return parse_gguf(fd, os.fspath(source))
    finally:
        os.close(fd)


def parse_gguf(fd: int, where: str) -> Header:
    """`read_gguf` of an open file that error messages call `where`."""
    cursor = _Cursor(fd, where)
    _check_begin(cursor)
    tensor_count = cursor.count("tensors", 8 + 1 + 4 + 8 + 4 + 8, limits.GGUF_TENSORS)
    key_count = cursor.count("keys", 8 + 1 + 4 + 1, limits.GGUF_KEYS)
    values: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text("a key", limits.TENSOR_NAME_BYTES)
        if key in values:
            raise cursor.fail(f"key {key!r} is there twice, expected once", "gguf-key")
        values[key] = _value(cursor, key)
    alignment = _alignment(cursor, values)
    listed = [_listed(cursor) for _ in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    tensors = _placed(cursor, listed, start, alignment)
    return Header(Metadata(where, values, cursor.data), tensors)


class _Cursor:
    """Reads a header from front to back, a piece of the file at a time."""

    def __init__(self, fd: int, where: str) -> None:
        self.fd, self.where = fd, where
        self.size = os.fstat(fd).st_size
        self.end = min(self.size, limits.GGUF_HEADER_BYTES)
        self.data, self.at = bytearray(), 0

    def fail(self, message: str, code: str = "gguf-header", hint: str = _COPY) -> BundleError:
        return BundleError(f"{self.where}: {message}", code=code, hint=hint)

    def need(self, nbytes: int, what: str) -> int:
        """Have the next `nbytes` bytes in `data`, and pass them; where they begin."""
        at = self.at
        if nbytes > self.end - at:
            raise self.fail(
                f"header: {what} takes {nbytes} bytes at byte {at}, expected at most "
                f"{self.end - at} (the file has {self.size}, the limit of a header is "
                f"{limits.GGUF_HEADER_BYTES})"
            )
        self.at = at + nbytes
        if self.at > len(self.data):
            self.fill(self.at)
        return at

    def fill(self, until: int) -> None:
        """Read on until `data` has so many bytes, which the file must have."""
        want = min(self.end, max(until, len(self.data) + limits.GGUF_PIECE_BYTES))
        while len(self.data) < want:
            os.lseek(self.fd, len(self.data), os.SEEK_SET)
            piece = os.read(self.fd, want - len(self.data))
            if not piece:
                raise self.fail(f"ends at byte {len(self.data)}, expected {want}", "gguf-header")
            self.data += piece

    def u32(self, what: str) -> int:
        found: int = _U32.unpack_from(self.data, self.need(4, what))[0]
        return found

    def u64(self, what: str) -> int:
        found: int = _U64.unpack_from(self.data, self.need(8, what))[0]
        return found

    def count(self, what: str, least: int, limit: int) -> int:
        """A number of things of which each takes at least `least` bytes of what follows."""
        found = self.u64(f"the number of {what}")
        most = min(limit, (self.end - self.at) // least)
        if found > most:
            raise self.fail(
                f"header: {found} {what}, expected at most {most} (the file has {self.size} bytes, "
                f"the limit is {limit})"
            )
        return found

    def text(self, what: str, limit: int) -> str:
        """A short text, decoded."""
        size = self.u64(f"the length of {what}")
        if not 0 < size <= limit:
            raise self.fail(f"header: {what} has {size} bytes, expected 1 to {limit}")
        at = self.need(size, what)
        raw = bytes(self.data[at : at + size])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"header: {what} {raw[:40]!r} is not UTF-8, expected it") from None

    def pass_texts(self, count: int, what: str) -> None:
        """Pass an array of texts, looking at their lengths only."""
        data, end, unpack, at = self.data, self.end, _U64.unpack_from, self.at
        for index in range(count):
            if at + 8 > len(data):
                if at + 8 > end:
                    break
                self.fill(at + 8)
            size = unpack(data, at)[0]
            at += 8
            if size > end - at:
                raise self.fail(
                    f"header: entry {index} of {what} has {size} bytes, expected at most "
                    f"{end - at}: the file has {self.size}"
                )
            at += size
        else:
            if at > len(data):
                self.fill(at)
            self.at = at
            return
        raise self.fail(f"header: {what} has {count} entries, the header ends before the last")


def _check_begin(cursor: _Cursor) -> None:
    least = 4 + 4 + 8 + 8
    if cursor.size < least:
        raise cursor.fail(f"header: the file has {cursor.size} bytes, expected at least {least}")
    at = cursor.need(4, "the magic")
    magic = bytes(cursor.data[at : at + 4])
    if magic != MAGIC:
        raise cursor.fail(f"header: begins with {magic!r}, expected {MAGIC!r}")
    version = cursor.u32("the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in VERSIONS:
        big = swapped in VERSIONS
        raise cursor.fail(
            f"header: version {swapped if big else version}{' in big-endian order' * big}, "
            f"this edgert reads {list(VERSIONS)} in little-endian order",
            "gguf-version",
            "convert the model to GGUF again with a present llama.cpp, or update edgert",
        )


def _value(cursor: _Cursor, key: str) -> Any:
    """A value of metadata: a number, or where its bytes are."""
    kind = cursor.u32(f"the type of {key!r}")
    if kind in SCALARS:
        return _scalar(cursor, kind, key)
    if kind == STRING:
        size = cursor.u64(f"the length of {key!r}")
        return TextSpan(cursor.need(size, f"{key!r}"), size)
    if kind != ARRAY:
        raise cursor.fail(f"key {key!r} is of type {kind}, expected 0 to 12", "gguf-key")
    inner = cursor.u32(f"the type of {key!r}")
    if inner != STRING and inner not in SCALARS:
        raise cursor.fail(
            f"key {key!r} is an array of type {inner}, expected numbers or texts", "gguf-key"
        )
    least = 8 if inner == STRING else SCALARS[inner].size
    count = cursor.count(f"entries of {key!r}", least, limits.GGUF_HEADER_BYTES)
    if inner == STRING:
        start = cursor.at
        cursor.pass_texts(count, f"{key!r}")
    else:
        start = cursor.need(count * least, f"{key!r}")
    return ArraySpan(inner, count, start)


def _scalar(cursor: _Cursor, kind: int, key: str) -> Any:
    form = SCALARS[kind]
    value = form.unpack_from(cursor.data, cursor.need(form.size, f"{key!r}"))[0]
    if kind == BOOL:
        if value > 1:
            raise cursor.fail(f"key {key!r} is {value}, expected true (1) or false (0)", "gguf-key")
        return bool(value)
    return value


def _alignment(cursor: _Cursor, values: Mapping[str, Any]) -> int:
    found = values.get("general.alignment", ALIGNMENT)
    good = type(found) is int and 8 <= found <= limits.GGUF_ALIGNMENT and not found & (found - 1)
    if not good:
        raise cursor.fail(
            f"general.alignment is {str(found)[:40]}, expected a power of two from 8 to "
            f"{limits.GGUF_ALIGNMENT}",
            "gguf-key",
        )
    return int(found)


def _listed(cursor: _Cursor) -> tuple[str, Kind, tuple[int, ...], int]:
    """A tensor of the list: name, type, shape with rows first, offset in the data."""
    name = cursor.text("a tensor's name", limits.TENSOR_NAME_BYTES)
    rank = cursor.u32(f"the rank of tensor {name!r}")
    if not 1 <= rank <= RANK:
        raise cursor.fail(f"tensor {name!r}: rank {rank}, expected 1 to {RANK}", "tensor-shape")
    sizes = [cursor.u64(f"a size of tensor {name!r}") for _ in range(rank)]
    number = cursor.u32(f"the type of tensor {name!r}")
    kind = KINDS.get(number)
    if kind is None:
        raise cursor.fail(
            f"tensor {name!r} is of type {number}, this edgert knows {sorted(KINDS)}",
            "gguf-type",
            "take a file of another quantization, Q4_K_M for example",
        )
    if any(not 1 <= size < limits.TENSOR_DIM for size in sizes):
        raise cursor.fail(
            f"tensor {name!r}: sizes {sizes}, expected 1 to {limits.TENSOR_DIM - 1} each",
            "tensor-shape",
        )
    if sizes[0] % kind.values:
        raise cursor.fail(
            f"tensor {name!r}: rows of {sizes[0]}, expected a multiple of {kind.values} values "
            f"for {kind.name}",
            "tensor-shape",
        )
    return name, kind, tuple(reversed(sizes)), cursor.u64(f"the offset of tensor {name!r}")


def _placed(
    cursor: _Cursor,
    listed: list[tuple[str, Kind, tuple[int, ...], int]],
    start: int,
    alignment: int,
) -> dict[str, TensorInfo]:
    """The tensors by name, if they cover the data without holes and overlap."""
    tensors: dict[str, TensorInfo] = {}
    at, before, last = start, "the header", cursor.at
    for name, kind, shape, offset in listed:
        if name in tensors:
            raise cursor.fail(f"tensor {name!r} is there twice, expected once", "gguf-header")
        if start + offset != at:
            what = "overlaps" if start + offset < at else "leaves a gap after"
            raise cursor.fail(
                f"tensor {name!r} {what} {before}: begins at byte {offset} of the data, expected "
                f"{at - start} (a multiple of {alignment})",
                "tensor-offsets",
            )
        last = at + math.prod(shape) // kind.values * kind.nbytes
        if last > cursor.size:
            raise cursor.fail(
                f"tensor {name!r} ends at byte {last}, the file has {cursor.size}: "
                f"{last - cursor.size} bytes are missing at least",
                "tensor-truncated",
                "the copy is incomplete; copy or download the file again",
            )
        tensors[name] = TensorInfo(kind.name, shape, at, last)
        at, before = -(-last // alignment) * alignment, f"tensor {name!r}"
    if cursor.size > at:
        raise cursor.fail(
            f"{cursor.size - at} bytes follow {before}, expected the file to end at byte {last}, "
            f"or padded at {at}",
            "tensor-offsets",
        )
    return tensors
