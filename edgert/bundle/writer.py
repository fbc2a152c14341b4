"""Writing a bundle: to a temporary folder, verified, then renamed into place.

    with BundleWriter(Path("model.edge")) as writer:
        ...write writer.file("weights.safetensors") and the others...
        writer.finish(manifest)

Until `finish` returns, the old bundle stays untouched. A writer that is killed leaves a
`<out>.partial-...` folder, which the next writer of the same name removes.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ..errors import BundleError, ConvertError
from ..storage.folder import check_name, open_regular, sha256_fd
from ..storage.lock import FileLock
from ..storage.replace import (
    fsync_folder,
    glob_escape,
    remove_folder,
    replace_folder,
    restore_aside,
)
from .manifest import MANIFEST_NAME, FileEntry, Manifest
from .reader import Bundle


def check_place(out: Path) -> None:
    """Raise ConvertError where something stands that is no bundle, nor an empty folder: no bundle
    is written there; good to ask before the work."""
    if not os.path.lexists(out):
        return
    is_folder = out.is_dir() and not out.is_symlink()
    if not is_folder or (any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        found = "a folder without manifest.json" if is_folder else "a file or a link"
        raise ConvertError(
            f"{out} is {found}, expected a bundle to replace or nothing",
            code="output-foreign",
            hint="choose another output name; edgert replaces only bundles",
            path=out,
        )


class BundleWriter:
    """Collects the files of a bundle in a sibling folder of `out`.

    Holds `<out>.lock`, so that two converts to one name cannot race. Raises ResourceError when
    another process holds it, ConvertError when `out` exists and is no bundle.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(os.path.abspath(out))
        check_place(self.out)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.out.with_name(f"{self.out.name}.lock"), f"{self.out}")
        self._hashes: dict[str, tuple[tuple[int, ...], FileEntry]] = {}
        try:
            restore_aside(self.out)
            for stale in self.out.parent.glob(f"{glob_escape(self.out.name)}.partial-*"):
                remove_folder(stale)
            self.path = self.out.with_name(f"{self.out.name}.partial-{secrets.token_hex(4)}")
            self.path.mkdir()
        except BaseException:
            self._lock.close()
            raise

    def file(self, name: str) -> Path:
        """Where to write a file of the bundle; folders in `name` are made."""
        path = self.path.joinpath(*check_name(name).split("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def preview(self, manifest: Manifest) -> Bundle:
        """The bundle as it stands, opened in its temporary place (to compute golden answers).

        Close it before `finish`. Every file a manifest needs must have been written.
        """
        self._write_manifest(manifest)
        return Bundle.open(self.path, verify="full")

    def finish(self, manifest: Manifest) -> Path:
        """Hash all files, write the manifest last, read everything back, put it in place."""
        try:
            self.preview(manifest).close()
            for folder, _, _ in os.walk(self.path):
                fsync_folder(Path(folder))
            replace_folder(self.path, self.out)
        except BaseException:
            self.abort()
            raise
        self._lock.close()
        return self.out

    def abort(self) -> None:
        """Remove what was written and release the lock. After `finish`, nothing happens."""
        remove_folder(self.path)
        self._lock.close()

    def _write_manifest(self, manifest: Manifest) -> None:
        files = {name: self._entry(name) for name in sorted(self._names())}
        data = manifest.replace(files=files).to_json()
        Manifest.from_json(data, where=str(self.path / MANIFEST_NAME))
        aside = self.path / f"{MANIFEST_NAME}.new"
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path / MANIFEST_NAME)

    def _names(self) -> list[str]:
        names = []
        for folder, folders, files in os.walk(self.path):
            for name in [*folders, *files]:
                path = Path(folder, name)
                mode = path.lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise BundleError(
                        f"{path} is a link or a special file, expected a regular file",
                        code="file-kind",
                        hint="bundles hold real files only",
                    )
                if stat.S_ISREG(mode) and path != self.path / MANIFEST_NAME:
                    names.append(path.relative_to(self.path).as_posix())
        return names

    def _entry(self, name: str) -> FileEntry:
        fd = open_regular(self.path / name)
        try:
            status = os.fstat(fd)
            key = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if name not in self._hashes or self._hashes[name][0] != key:
                sha256, size = sha256_fd(fd)
                if os.name != "nt":  # Windows flushes through writable descriptors only
                    os.fsync(fd)
                self._hashes[name] = (key, FileEntry(sha256, size))
            return self._hashes[name][1]
        finally:
            os.close(fd)

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
