"""The header of a safetensors file, checked before use.

A file is `u64 header length | JSON header | data`, little-endian. The header maps tensor names to
`{"dtype", "shape", "data_offsets": [begin, end]}` relative to the data, which the tensors must
cover without holes or overlap (https://github.com/huggingface/safetensors, "Format"). Checks run in
a fixed order, and nothing is allocated from a number that has not been checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import limits
from ..errors import BundleError
from . import strict_json
from .folder import open_regular

# BF16 has no NumPy type: its bits come and go as uint16, those of F8 as uint8.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "F8_E4M3": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}
_LENGTH = 8  # bytes of the header length field
_COPY = "the file is damaged or incomplete; copy or download it again"


class TensorInfo(NamedTuple):
    """One tensor: safetensors dtype name, shape, and absolute byte range [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * DTYPES[dtype].itemsize


def read_header(source: int | str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Tensors of an open file or of a path, in the order of their bytes.

    Raises BundleError: codes tensor-header, tensor-dtype, tensor-shape, tensor-offsets,
    tensor-truncated, tensor-header-duplicate.
    """
    if isinstance(source, int):
        return parse_header(source, f"file descriptor {source}")
    fd = open_regular(source)
    try:
        return parse_header(fd, os.fspath(source))
    finally:
        os.close(fd)


def _fail(where: str, message: str, code: str, hint: str = _COPY) -> BundleError:
    return BundleError(f"{where}: {message}", code=code, hint=hint)


def parse_header(fd: int, where: str) -> dict[str, TensorInfo]:
    """`read_header` of an open file that error messages call `where`."""
    size = os.fstat(fd).st_size
    if size < _LENGTH + 2:
        raise _fail(
            where,
            f"header: the file has {size} bytes, expected at least {_LENGTH + 2}",
            "tensor-header",
        )
    length = int.from_bytes(_read(fd, 0, _LENGTH), "little")
    cap = min(limits.TENSOR_HEADER_BYTES, size - _LENGTH)
    if not 2 <= length <= cap:
        raise _fail(
            where,
            f"header: length field says {length} bytes, expected 2 to {cap} "
            f"(the file has {size}, the limit is {limits.TENSOR_HEADER_BYTES})",
            "tensor-header",
        )
    raw = _read(fd, _LENGTH, length)
    if not raw.startswith(b"{"):
        raise _fail(where, f"header: begins with {raw[:8]!r}, expected b'{{'", "tensor-header")
    entries = strict_json.parse(raw, where=f"{where}: header", code="tensor-header")
    _check_metadata(where, entries.pop("__metadata__", {}))
    if len(entries) > limits.TENSOR_COUNT:
        raise _fail(
            where,
            f"header: {len(entries)} tensors, the limit is {limits.TENSOR_COUNT}",
            "tensor-header",
        )
    start = _LENGTH + length
    tensors = {name: _entry(where, name, entry, start) for name, entry in entries.items()}
    return _check_cover(where, tensors, start, size)


def _read(fd: int, offset: int, count: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
        pieces, left = [], count
        while left and (piece := file.read(left)):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def _check_metadata(where: str, metadata: Any) -> None:
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise _fail(where, "header: __metadata__ is no map of strings to strings", "tensor-header")


def _entry(where: str, name: str, entry: Any, start: int) -> TensorInfo:
    size = len(name.encode("utf-8", "surrogatepass"))
    if not 0 < size <= limits.TENSOR_NAME_BYTES:
        raise _fail(
            where,
            f"header: tensor name {name[:64]!r} has {size} bytes, expected 1 to "
            f"{limits.TENSOR_NAME_BYTES}",
            "tensor-header",
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry)[:8] if isinstance(entry, dict) else type(entry).__name__
        raise _fail(
            where,
            f"tensor {name!r}: has {found}, expected dtype, shape and data_offsets",
            "tensor-header",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _fail(
            where,
            f"tensor {name!r}: dtype {str(dtype)[:32]!r}, this edgert reads {sorted(DTYPES)}",
            "tensor-dtype",
            "convert the file to one of these types",
        )
    _check_shape(where, name, shape)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fail(
            where,
            f"tensor {name!r}: data_offsets {str(offsets)[:64]}, expected [begin, end], "
            "0 <= begin <= end",
            "tensor-offsets",
        )
    need, have = nbytes_of(dtype, tuple(shape)), offsets[1] - offsets[0]
    if need != have:
        raise _fail(
            where,
            f"tensor {name!r}: {dtype} {shape} takes {need} bytes, its byte range holds {have}",
            "tensor-shape",
        )
    return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _check_shape(where: str, name: str, shape: Any) -> None:
    if isinstance(shape, list) and len(shape) > limits.TENSOR_RANK:
        raise _fail(
            where,
            f"tensor {name!r}: rank {len(shape)}, the limit is {limits.TENSOR_RANK}",
            "tensor-shape",
        )
    if not _naturals(shape) or any(n >= limits.TENSOR_DIM for n in shape):
        raise _fail(
            where,
            f"tensor {name!r}: shape {str(shape)[:128]}, expected sizes 0 to "
            f"{limits.TENSOR_DIM - 1}",
            "tensor-shape",
        )


def _check_cover(
    where: str, tensors: dict[str, TensorInfo], start: int, size: int
) -> dict[str, TensorInfo]:
    """Tensors by position, if they cover start .. size exactly."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    at, before = start, "the header"
    for name, info in ordered:
        if info.begin != at:
            what = "overlaps" if info.begin < at else "leaves a gap after"
            raise _fail(
                where,
                f"tensor {name!r} {what} {before}: begins at byte {info.begin - start} of the "
                f"data, expected {at - start}",
                "tensor-offsets",
            )
        if info.end > size:
            raise _fail(
                where,
                f"tensor {name!r} ends at byte {info.end}, the file has {size}: "
                f"{ordered[-1][1].end - size} of {ordered[-1][1].end} expected bytes are missing",
                "tensor-truncated",
                "the copy is incomplete; copy or download the file again",
            )
        at, before = info.end, f"tensor {name!r}"
    if at != size:
        raise _fail(
            where,
            f"{size - at} bytes follow {before}, expected the file to end at byte {at}",
            "tensor-offsets",
        )
    return dict(ordered)
