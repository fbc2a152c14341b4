"""Files written aside, as `<name>.partial-<pid>`, and renamed once they are whole. The next writer
removes what killed ones left.

`replace_file` is for files of edgert's own folders and bundles, where a link is replaced rather
than followed; `write_output` is for names that a user gave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
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
    """Raise what `write_output` would, before work that takes long; None: nothing to write."""
    if target is None:
        return
    try:
        if is_stream(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        with tempfile.TemporaryFile(dir=file_behind(target).parent):
            pass
    except OSError as error:
        raise _refused(target, 0, error) from error


def write_output(target: Path, data: bytes) -> None:
    """Write what a user asked for. A file is replaced as by `replace_file`, behind links the one
    that they lead to; a pipe, a terminal and the like (/dev/stdout, /dev/null) are written to.
    Raises ResourceError (disk-full, write), also for a folder, a socket or a disk."""
    try:
        if is_stream(target):
            _write_through(target, data)
            return
        target = file_behind(target)
    except OSError as error:
        raise _refused(target, len(data), error) from error
    replace_file(target, data)


def file_behind(target: Path) -> Path:
    """The path of a file, links followed, that a rename may replace. Raises OSError for what is
    there and is no regular file."""
    status = _status(target)
    if status is not None and not stat.S_ISREG(status.st_mode):
        folder = stat.S_ISDIR(status.st_mode)
        raise OSError(
            errno.EISDIR if folder else errno.EINVAL,
            os.strerror(errno.EISDIR) if folder else "it is no regular file",
        )
    return Path(os.path.realpath(target))


def _status(target: Path) -> os.stat_result | None:
    """Of what a name stands for, None where there is nothing yet."""
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def is_stream(target: Path) -> bool:
    """Whether bytes go out as they come, so that there is nothing to rename. Raises OSError."""
    status = _status(target)
    if status is None:
        return False
    kind = status.st_mode
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind) or _own(status) is not None


def _own(status: os.stat_result) -> int | None:
    """This process's stdout or stderr, where a name stands for one of them: opened once more, a
    file would be written from its start again."""
    for fd in (1, 2) if os.name == "posix" else ():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), status):
                return fd
    return None


def _write_through(target: Path, data: bytes) -> None:
    fd = _own(target.stat())
    if fd is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    with open(os.open(target, os.O_WRONLY) if fd is None else os.dup(fd), "wb") as file:
        file.write(data)


def replace_file(target: Path, data: bytes) -> None:
    """A file's new content: written aside, flushed, renamed; a link is replaced. Raises
    ResourceError for a full disk (disk-full) or a folder that cannot be written (write); the old
    file, if any, then stays."""
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
        wanted = "a file" if error.errno in (errno.EISDIR, errno.EINVAL) else "a writable folder"
        return ResourceError(
            f"{target} could not be written: {error.strerror or error}, expected {wanted}",
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
