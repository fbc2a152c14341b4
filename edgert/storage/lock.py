"""A lock file held by one process; the system releases it however that process ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ..errors import ResourceError

if sys.platform == "win32":
    import msvcrt

    def _acquire(fd: int) -> None:
        os.lseek(fd, 1 << 20, os.SEEK_SET)  # a byte past the text, which others may then read
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _acquire(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """Exclusive use of `path` while open; a second holder gets ResourceError naming the first."""

    def __init__(self, path: Path, purpose: str) -> None:
        self.path = path
        self._fd: int | None = None
        while self._fd is None:
            self._fd = self._try(purpose)
        try:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            os.write(self._fd, f"{os.getpid()}\n".encode())
        except OSError:  # a full disk
            self.close()
            raise

    def _try(self, purpose: str) -> int | None:
        """Descriptor once locked; None if the file vanished meanwhile (try again)."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(self.path, flags, 0o644)
        try:
            _acquire(fd)
        except OSError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise ResourceError(
                f"{purpose} is in use by process {holder}, expected to have it alone",
                code="locked",
                hint=f"wait for process {holder} to finish, or stop it",
                pid=holder,
                path=self.path,
            ) from None
        try:
            current = os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            current = False
        if not current:
            os.close(fd)
            return None
        return fd

    def close(self) -> None:
        """Release. Closing twice is allowed."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # Windows keeps an open file: it stays, unlocked
                self.path.unlink()
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
