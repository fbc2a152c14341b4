"""A tree of JSON values, tuples and arrays as one file: safetensors arrays, and the tree as JSON.

The metadata carry the tree, what the file belongs to (its owner: texts by name), and a SHA-256 over
tree and arrays. A file that differs in any of them is refused before its content is used. It is
read whole, not mapped, so that nobody can change it afterwards.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .folder import open_regular
from .replace import glob_escape
from .safetensors_header import DTYPES, TensorInfo, parse_header

ARRAY = "\u0000array"  # key that stands for an array in the tree
TUPLE = "\u0000tuple"

Arrays = dict[str, NDArray[Any]]


class TreeError(ValueError):
    """A file cannot be used. foreign: it belongs to somebody else, instead of being damaged."""

    def __init__(self, message: str, *, foreign: bool = False) -> None:
        super().__init__(message)
        self.foreign = foreign


def write(path: str | PathLike[str], content: Mapping[str, Any], owner: Mapping[str, str]) -> int:
    """Write a tree aside, then rename it to `path`: the file's bytes. Raises OSError."""
    from safetensors.numpy import save

    arrays: Arrays = {}
    tree = msgspec.json.encode(_flatten(dict(content), arrays)).decode()
    data = save(arrays, {**owner, "tree": tree, "digest": _digest(tree, arrays)})
    target = Path(path)
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        _remove_stale(target)
        aside.write_bytes(data)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return len(data)


def _remove_stale(target: Path) -> None:
    """What a process left that was killed while it saved to the same name."""
    from psutil import pid_exists

    for path in target.parent.glob(f"{glob_escape(target.name)}.partial-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and not pid_exists(int(number)):
            path.unlink(missing_ok=True)


def read(
    path: str | PathLike[str],
    owner: Mapping[str, str],
    *,
    most: int | None = None,
    follow: bool = False,
) -> dict[str, Any]:
    """The tree that `write` got; TreeError unless owner and digest match.

    most: bytes of the file, at most; None for any. follow: the path may be a symbolic link.
    """
    metadata, tensors, data = _opened(path, owner, most=most, follow=follow, whole=True)
    arrays = {name: _array(data, info) for name, info in tensors.items()}
    tree = metadata.get("tree", "")
    if metadata.get("digest") != _digest(tree, arrays):
        raise TreeError("content and checksum differ")
    content = _decoded(tree)
    try:
        found = _unflatten(content, arrays)
    except (KeyError, TypeError, RecursionError):
        raise TreeError("its tree names arrays that it does not hold") from None
    if not isinstance(found, dict):
        raise TreeError("its tree is no object")
    return found


def peek(path: str | PathLike[str], owner: Mapping[str, str], *, most: int) -> Any:
    """The tree of a file without its arrays, which is not compared with the digest. Raises
    TreeError."""
    metadata, _, _ = _opened(path, owner, most=most, follow=False, whole=False)
    return _decoded(metadata.get("tree", ""))


def _opened(
    path: str | PathLike[str],
    owner: Mapping[str, str],
    *,
    most: int | None,
    follow: bool,
    whole: bool,
) -> tuple[dict[str, str], dict[str, TensorInfo], bytes]:
    """Metadata, tensors and, of the whole file, its bytes."""
    try:
        fd = open_regular(path, follow=follow)
    except BundleError as error:
        raise TreeError(error.message) from None
    try:
        size = os.fstat(fd).st_size
        if most is not None and size > most:
            raise TreeError(f"it has {size} bytes, expected at most {most}")
        tensors = parse_header(fd, "it")
        start = min((info.begin for info in tensors.values()), default=size)
        header = _first(fd, start)
        metadata = _metadata(header)
        _check_owner(metadata, owner)
        data = _first(fd, size) if whole else header
    except BundleError as error:
        raise TreeError(error.message) from None
    except OSError as error:
        raise TreeError(str(error)) from None
    finally:
        os.close(fd)
    if len(data) != (size if whole else start):
        raise TreeError("it changed while it was read")
    return metadata, tensors, data


def _first(fd: int, count: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(count)


def _metadata(header: bytes) -> dict[str, str]:
    """The metadata of a header that `parse_header` has checked."""
    length = int.from_bytes(header[:8], "little")
    try:
        found = json.loads(header[8 : 8 + length])["__metadata__"]
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _array(data: bytes, info: TensorInfo) -> NDArray[Any]:
    count = math.prod(info.shape)
    flat = np.frombuffer(data, DTYPES[info.dtype], count, info.begin if count else 0)
    return flat.reshape(info.shape)


def _check_owner(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise TreeError(
                f"its {key} is {str(found.get(key))[:80]!r}, expected {value!r}", foreign=True
            )


def _digest(tree: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(tree.encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{_called(array.dtype)}:{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@lru_cache(maxsize=32)
def _called(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # which takes NumPy long


def _decoded(tree: str) -> Any:
    try:
        return msgspec.json.decode(tree)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise TreeError("its tree is no JSON") from None


def _flatten(value: Any, arrays: Arrays) -> Any:
    """A JSON value, with each array replaced by its name in `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = np.ascontiguousarray(value)
        return {ARRAY: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _flatten(item, arrays) for key, item in value.items()}
    if isinstance(value, tuple):
        return {TUPLE: [_flatten(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_flatten(item, arrays) for item in value]
    return value


def _unflatten(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {ARRAY}:
        return arrays[value[ARRAY]]
    if set(value) == {TUPLE}:
        return tuple(_unflatten(item, arrays) for item in value[TUPLE])
    return {key: _unflatten(item, arrays) for key, item in value.items()}
