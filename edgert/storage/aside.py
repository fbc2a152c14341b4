"""Files written aside, as `<name>.partial-<pid>`, and renamed once they are whole. The next writer
removes what killed ones left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import ResourceError

MARK = ".partial-"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def aside_of(target: Path) -> Path:
    """Where this process writes a file before it takes its name."""
    return target.with_name(f"{target.name}{MARK}{os.getpid()}")


def remove_leftovers(folder: Path) -> None:
    """Remove files aside in `folder` whose writers are no longer alive. What cannot be removed
    stays."""
    from psutil import pid_exists

    for path in folder.glob(f"*{MARK}*"):
        pid = path.name.rpartition(MARK)[2]
        if pid.isdigit() and not pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()


def check_target(target: Path | None) -> None:
    """Raise what `replace_file` would, before work that takes long; None: nothing to write."""
    if target is None:
        return
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _refused(target, 0, error) from error


def replace_file(target: Path, data: bytes) -> None:
    """A file's new content: written aside, flushed, renamed. Raises ResourceError for a full disk
    (disk-full) or a folder that cannot be written (write); the old file, if any, then stays."""
    try:
        _replace(target, aside_of(target), data)
    except OSError as error:
        raise _refused(target, len(data), error) from error


def _replace(target: Path, aside: Path, data: bytes) -> None:
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _refused(target: Path, size: int, error: OSError) -> ResourceError:
    if error.errno not in FULL:
        return ResourceError(
            f"{target} could not be written: {error.strerror or error}, expected a writable folder",
            code="write",
            hint="check its permissions and its disk",
            path=target,
        )
    free = shutil.disk_usage(target.parent).free
    return ResourceError(
        f"{target} needs {size} bytes, the disk has {free} free",
        code="disk-full",
        hint="free some space on that disk, and run it again",
        path=target,
        needed=size,
        free=free,
    )
