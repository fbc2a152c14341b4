"""Opening files of a bundle: one resolver of names, one no-follow open, one hash.

A bundle names its files by relative paths with "/" between folders. `check_name` alone checks
such names, `Folder` alone opens them: every component is opened without following links, and the
opened file is checked, not its name. A FIFO or a device is refused without waiting for its other
end.

Not promised: that a file which a local user rewrites in place while it is mapped stays what it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import unicodedata
import weakref
from collections.abc import Iterable
from pathlib import Path

from .. import limits
from ..errors import BundleError

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_READ = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:<>"|?*]')
_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_CHUNK = 1 << 20
_SUSPECT = "the bundle is damaged or hostile; get it again from where it came from"


def check_name(name: str, where: str = "") -> str:
    """The name itself if it is a portable relative path inside a folder, else BundleError.

    where: what mentions the name, for the message.
    """
    fault = _name_fault(name)
    if fault:
        prefix = f"{where}: " if where else ""
        raise BundleError(
            f"{prefix}file name {name[:80]!a} {fault}, expected a relative path "
            "such as 'draft/model.bin'",
            code="path",
            hint=_SUSPECT,
            name=name[:256],
        )
    return name


def _name_fault(name: str) -> str:
    if not name:
        return "is empty"
    if len(name) > limits.PATH_CHARACTERS:
        return f"has {len(name)} characters, the limit is {limits.PATH_CHARACTERS}"
    if _FORBIDDEN.search(name):
        return 'holds a control character or one of \\ : < > " | ? *'
    if not _encodable(name) or unicodedata.normalize("NFC", name) != name:
        return "is not Unicode in composed form (NFC)"
    parts = name.split("/")
    if "" in parts:
        return "is absolute or has an empty component"
    if "." in parts or ".." in parts:
        return "has a component '.' or '..'"
    if any(part[-1] in ". " or part[0] == " " for part in parts):
        return "has a component that begins with a space or ends with a dot or a space"
    if any(_RESERVED.match(part) for part in parts):
        return "has a component that is a device on some systems"
    return ""


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_names(names: Iterable[str], where: str) -> None:
    """`check_name` for all; names that one file system may take for the same raise BundleError."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", check_name(name, where).casefold())
        if key in seen:
            raise BundleError(
                f"{where}: file names {seen[key]!r} and {name!r} may be the same file, expected "
                "names that differ by more than case",
                code="path",
                hint=_SUSPECT,
            )
        seen[key] = name
    for key, name in seen.items():
        parents = [key.rsplit("/", n)[0] for n in range(1, key.count("/") + 1)]
        clash = next((seen[parent] for parent in parents if parent in seen), None)
        if clash:
            raise BundleError(
                f"{where}: file names {clash!r} and {name!r} clash, expected a file "
                "or a folder, not both",
                code="path",
                hint=_SUSPECT,
            )


def open_regular(
    path: str | os.PathLike[str], *, dir_fd: int | None = None, follow: bool = False
) -> int:
    """Descriptor of a regular file, read-only. Raises BundleError for anything else.

    follow: allow `path` to be a symbolic link (checkpoint caches are made of them; bundles not).
    """
    try:
        if not follow and not _NOFOLLOW and os.path.islink(path):
            raise OSError(errno.ELOOP, "symbolic link")
        fd = os.open(path, _READ | (0 if follow else _NOFOLLOW), dir_fd=dir_fd)
    except OSError as error:
        raise _refusal(path, error) from None
    except ValueError:  # a zero byte, or what no file system can spell
        raise BundleError(
            f"{os.fspath(path)[-80:]!r} is no name of a file, expected a readable one",
            code="file-open",
            hint="check the path, or where the file that names it came from",
            path=path,
        ) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise _wrong_kind(path, _kind(mode))
    return fd


def _why_not(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError) or not isinstance(error, OSError):
        return "not there"
    return f"not to be had ({error.strerror})"


def _kind(mode: int) -> str:
    tests = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in tests if test(mode)), "no regular file")


def _wrong_kind(path: str | os.PathLike[str], found: str) -> BundleError:
    return BundleError(
        f"{os.fspath(path)} is {found}, expected a regular file",
        code="file-kind",
        hint="copy the real file into place; bundles hold no links and no special files",
        path=path,
    )


def _refusal(path: str | os.PathLike[str], error: OSError) -> BundleError:
    if error.errno in (errno.ELOOP, getattr(errno, "EMLINK", -1)):
        return _wrong_kind(path, "a symbolic link")
    if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):
        return _wrong_kind(path, "a socket or a device")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return BundleError(
            f"{os.fspath(path)}: no such file, expected a regular file",
            code="file-missing",
            hint="check the path; if a file of a bundle is missing, copy the bundle again",
            path=path,
        )
    return BundleError(
        f"{os.fspath(path)} cannot be opened: {error.strerror}, expected a readable file",
        code="file-open",
        hint="check its permissions",
        path=path,
    )


class Folder:
    """A directory whose files are opened by checked names only.

    Where the system can, the directory is held open, so that a rename of it between two files
    cannot mix two bundles.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            mode, found = 0, _why_not(error)
        else:
            found = _kind(mode)
        if not stat.S_ISDIR(mode):
            raise BundleError(
                f"{path} is {found}, expected a bundle directory (name.edge)",
                code="bundle-missing",
                hint=_lost_and_found(path)
                or "give the folder that `edgert convert SRC -o NAME.edge` wrote",
                path=path,
            )
        if os.open in os.supports_dir_fd:
            try:
                self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            except OSError as error:
                raise _refusal(path, error) from None
            self._closer = weakref.finalize(self, os.close, self._fd)

    def path_of(self, name: str) -> Path:
        """Where `name` lies; BundleError for a name that `check_name` refuses."""
        return self.path.joinpath(*check_name(name).split("/"))

    def open(self, name: str) -> int:
        """Descriptor of a regular file inside; no component may be a link."""
        path = self.path_of(name)
        if self._fd is None:
            self._refuse_links(name)
            return open_regular(path)
        *folders, leaf = name.split("/")
        with contextlib.ExitStack() as stack:
            at = self._fd
            for folder in folders:
                at = self._open_folder(folder, at, path)
                stack.callback(os.close, at)
            try:
                return open_regular(leaf, dir_fd=at)
            except BundleError as error:
                message = error.message.replace(leaf, str(path), 1)
                raise BundleError(message, code=error.code, hint=error.hint, path=path) from None

    def _open_folder(self, folder: str, at: int, path: Path) -> int:
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NOFOLLOW
        try:
            return os.open(folder, flags, dir_fd=at)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise _wrong_kind(path, f"behind {folder!r}, a link or a file") from None
            raise _refusal(path, error) from None

    def _refuse_links(self, name: str) -> None:
        at = self.path
        for part in name.split("/")[:-1]:
            at = at / part
            if at.is_symlink():
                raise _wrong_kind(at, "a symbolic link")

    def read(self, name: str, limit: int) -> bytes:
        """Content of a file of at most `limit` bytes."""
        fd = self.open(name)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise BundleError(
                    f"{self.path_of(name)}: {size} bytes, the limit is {limit}",
                    code="file-size",
                    hint="the file is damaged; get the bundle again or raise the limit",
                )
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(size)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the directory; a forgotten Folder does so when it is collected."""
        if self._fd is not None:
            self._closer()
            self._fd = None


def _lost_and_found(path: Path) -> str:
    """A hint where an interrupted replacement left the old bundle aside."""
    aside = sorted(path.parent.glob(f"{path.name}.old-*")) if path.parent.is_dir() else []
    return f"an interrupted convert left it at {aside[0]}; rename that back" if aside else ""


def sha256_fd(fd: int) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of an open file, read from its start in 1 MiB pieces."""
    digest, buffer, size = hashlib.sha256(), bytearray(_CHUNK), 0
    view = memoryview(buffer)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            size += count
    return digest.hexdigest(), size
