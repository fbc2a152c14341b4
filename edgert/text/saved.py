"""A conversation as one file (`storage.tree_file`) that belongs to a bundle, device and context."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import RequestError, ResourceError
from ..storage import tree_file
from ..storage.aside import file_behind

FORMAT = "edgert-conversation-1"


def write(path: str | PathLike[str], content: Mapping[str, Any], owner: Mapping[str, str]) -> None:
    """Write a tree of JSON values, tuples and arrays aside, then rename it to `path`, or
    to the file behind a link."""
    try:
        tree_file.write(file_behind(Path(path)), content, {**owner, "format": FORMAT})
    except OSError as error:
        raise ResourceError(
            f"{os.fspath(path)}: cannot be written: {error}",
            code="save",
            hint="check the folder, its permissions and the free space",
        ) from None


def read(path: str | PathLike[str], owner: Mapping[str, str]) -> dict[str, Any]:
    """The tree that `write` got; RequestError unless format, owner and digest all match."""
    try:
        return tree_file.read(path, {"format": FORMAT, **owner}, follow=True)
    except tree_file.TreeError as error:
        if not error.foreign:
            raise damaged(path, str(error)) from None
        raise RequestError(
            f"{os.fspath(path)}: {error}",
            code="state-foreign",
            hint="restore it with the bundle, device and context it was saved with",
        ) from None


def damaged(path: str | PathLike[str], why: str) -> RequestError:
    """The error of a file that `write` did not leave so."""
    return RequestError(
        f"{os.fspath(path)}: not a saved conversation: {why}",
        code="state-damaged",
        hint="start a new conversation",
    )
