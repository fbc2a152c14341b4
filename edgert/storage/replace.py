"""Replacing a directory by a finished one, atomically where the system can."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def fsync_folder(path: Path) -> None:
    """Make the names in a directory durable, where the system knows how."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names atomically (Linux renameat2); False where that does not exist."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(a))


def replace_folder(new: Path, out: Path) -> None:
    """`new` becomes `out`; what `out` was before is removed once that is done.

    Where names cannot be exchanged, the old one stands aside as `<out>.old-...` for a moment and
    comes back if the second rename fails (`restore_aside` after a crash).
    """
    if not out.exists():
        os.rename(new, out)
    elif _swap(new, out):
        remove_folder(new)
    else:
        aside = out.with_name(f"{out.name}.old-{secrets.token_hex(4)}")
        os.rename(out, aside)
        try:
            os.rename(new, out)
        except BaseException:
            os.rename(aside, out)
            raise
        remove_folder(aside)
    fsync_folder(out.parent)


def restore_aside(out: Path) -> None:
    """After a crash between two renames: bring the old one back, or remove it if it is outdated."""
    for aside in sorted(out.parent.glob(f"{glob_escape(out.name)}.old-*")):
        if out.exists():
            remove_folder(aside)
        else:
            os.rename(aside, out)


def glob_escape(name: str) -> str:
    """A file name as a literal glob pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def remove_folder(path: Path) -> None:
    """Remove a directory tree; links are removed, not followed."""
    shutil.rmtree(path, ignore_errors=True)
