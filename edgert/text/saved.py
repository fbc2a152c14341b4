"""A conversation as one file: safetensors arrays, their tree as JSON, and the model they belong to.

The metadata carry the format, the owner (bundle fingerprint, device, context) and a SHA-256 over
tree and arrays; a file that differs in any of them is refused before its content is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from ..storage.replace import glob_escape

FORMAT = "edgert-conversation-1"
ARRAY = "\u0000array"  # key that stands for an array in the tree
TUPLE = "\u0000tuple"

Arrays = dict[str, NDArray[Any]]


def write(path: str | PathLike[str], content: Mapping[str, Any], owner: Mapping[str, str]) -> None:
    """Write a tree of JSON values, tuples and arrays aside, then rename it to `path`."""
    from safetensors.numpy import save

    arrays: Arrays = {}
    tree = msgspec.json.encode(_flatten(dict(content), arrays)).decode()
    metadata = {**owner, "format": FORMAT, "tree": tree, "digest": _digest(tree, arrays)}
    target = Path(path)
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        _remove_stale(target)
        aside.write_bytes(save(arrays, metadata))
        os.replace(aside, target)
    except OSError as error:
        raise ResourceError(
            f"{target}: cannot be written: {error}",
            code="save",
            hint="check the folder, its permissions and the free space",
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    """What a process left that was killed while it saved to the same name."""
    from psutil import pid_exists

    for path in target.parent.glob(f"{glob_escape(target.name)}.partial-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and not pid_exists(int(number)):
            path.unlink(missing_ok=True)


def read(path: str | PathLike[str], owner: Mapping[str, str]) -> dict[str, Any]:
    """The tree that `write` got; RequestError unless format, owner and digest all match."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_owner(path, metadata, {"format": FORMAT, **owner})
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from None
    tree = metadata.get("tree", "")
    if metadata.get("digest") != _digest(tree, arrays):
        raise damaged(path, "content and checksum differ")
    content: dict[str, Any] = _unflatten(msgspec.json.decode(tree), arrays)
    return content


def damaged(path: str | PathLike[str], why: str) -> RequestError:
    return RequestError(
        f"{os.fspath(path)}: not a saved conversation: {why}",
        code="state-damaged",
        hint="start a new conversation",
    )


def _check_owner(
    path: str | PathLike[str], found: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise RequestError(
                f"{os.fspath(path)}: its {key} is {str(found.get(key))[:80]!r}, expected {value!r}",
                code="state-foreign",
                hint="restore it with the bundle, device and context it was saved with",
            )


def _digest(tree: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
