"""Reading a bundle: a directory `name.edge/` of manifest, graphs, weights and text files.

    with Bundle.open("model.edge") as bundle:
        graph, weights = bundle.graph(), bundle.weights()

`open` checks everything that a session will rely on: the manifest, sizes and hashes of all files,
graphs, and every tensor's type, shape and place. Weights are views of the mapped file. Nothing in a
bundle is run, nothing outside it is touched, and besides the mapping no more memory is taken than
about 32 times its JSON files.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..graph import Graph
from ..kernels.quant import Matrix
from ..storage import strict_json
from ..storage.folder import Folder, sha256_fd
from ..storage.hash_cache import HashCache
from ..storage.safetensors import TensorFile
from .check import check_borrowed, check_image, check_part, check_weights, load_weights
from .draft import ROLE as DRAFT
from .draft import check_draft
from .manifest import MANIFEST_NAME, FileEntry, Manifest, Part
from .store import located, pull_hint

Verify = Literal["cached", "full", "skip"]
_log = logging.getLogger("edgert")


class Bundle:
    """An open bundle, by its path or its name in the store; use `Bundle.open`. Arrays from
    `weights` stay valid after `close`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the manifest only; `check_files` and `check_structure` must follow (see `open`)."""
        self.path = located(path)
        if hint := pull_hint(self.path):
            raise BundleError(
                f"{self.path} is not there, expected a bundle directory (name.edge) or the name of "
                "a model in the store",
                code="bundle-missing",
                hint=hint,
            )
        self.verified = False
        self._graphs: dict[str, Graph] = {}
        self._tensors: dict[str, TensorFile] = {}
        self._folder = Folder(self.path)
        try:
            raw = self._manifest_bytes()
            self.manifest = Manifest.from_json(raw, where=str(self.path / MANIFEST_NAME))
        except BaseException:
            self._folder.close()
            raise
        self.fingerprint = hashlib.sha256(raw).hexdigest()

    def _manifest_bytes(self) -> bytes:
        try:
            return self._folder.read(MANIFEST_NAME, limits.MANIFEST_BYTES)
        except BundleError as error:
            if error.code != "file-missing":
                raise
        checkpoint = (self.path / "config.json").is_file()
        raise BundleError(
            f"{self.path} {'is a checkpoint' if checkpoint else f'has no {MANIFEST_NAME}'}, "
            "expected a bundle directory (name.edge)",
            code="bundle-missing",
            hint=f"convert it first: edgert convert {self.path} -o {self.path.resolve().name}.edge"
            if checkpoint
            else "check the path; if it was a bundle, copy it again",
            path=self.path,
        )

    @staticmethod
    def open(path: str | os.PathLike[str], *, verify: Verify = "cached") -> Bundle:
        """Open and check a bundle directory.

        verify: "cached" hashes each file once per content change, "full" hashes always, "skip"
        compares sizes only and logs a warning every time. Raises BundleError.
        """
        bundle = Bundle(path)
        try:
            for fault in bundle.check_files(verify).values():
                raise fault
            bundle.check_structure()
        except BaseException:
            bundle.close()
            raise
        return bundle

    def check_files(self, verify: Verify = "cached") -> dict[str, BundleError]:
        """Open, measure and hash every listed file, map the weights; faults by file name."""
        if verify not in ("cached", "full", "skip"):
            raise ValueError(f"verify is {verify!r}, expected cached, full or skip")
        if verify == "skip":
            _log.warning("%s: hashes are not verified; damaged files go unnoticed", self.path)
        cache, faults = HashCache(), {}
        for name in self.manifest.files:
            try:
                self._admit(name, verify, cache)
            except BundleError as error:
                faults[name] = error
        cache.save()
        self.verified = verify != "skip"
        return faults

    def _admit(self, name: str, verify: Verify, cache: HashCache) -> None:
        fd = self._folder.open(name)
        try:
            self._check_file(name, fd, verify, cache)
            if name in {part.weights for part in self.manifest.parts.values()}:
                # the file that was hashed, even if it was replaced since
                self._tensors[name] = TensorFile(self.path_of(name), fd=fd)
        finally:
            os.close(fd)

    def check_structure(self) -> None:
        """Parse the graphs and compare them with the manifest and the mapped weights."""
        for part, entry in self.manifest.parts.items():
            self._graphs[part] = self._read_graph(entry)
        for part in self.manifest.parts:
            check_borrowed(part, self._graphs, where=str(self.path))
        check_image(self.manifest, self._graphs, where=str(self.path))
        check_draft(self.manifest, self._graphs, self.read, where=str(self.path))
        for file, tensors in self._tensors.items():
            users = [p for p, entry in self.manifest.parts.items() if entry.weights == file]
            check_weights([self._graphs[part] for part in users], tensors)

    def _check_file(self, name: str, fd: int, verify: Verify, cache: HashCache) -> None:
        expected, path = self.manifest.files[name], self.path_of(name)
        size = os.fstat(fd).st_size
        if size != expected.size:
            raise changed(path, f"{size} bytes", f"{expected.size} bytes", "file-size")
        if verify == "skip":
            return
        found = cache.get(path, fd) if verify == "cached" else None
        if found != expected.sha256:  # unknown, or the cache of hashes is damaged
            found = sha256_fd(fd)[0]
            cache.put(path, fd, found)
        if found != expected.sha256:
            raise changed(path, f"SHA-256 {found}", expected.sha256, "file-hash")

    def _read_graph(self, part: Part) -> Graph:
        where = str(self.path_of(part.graph))
        data = self.read(part.graph)
        graph = Graph.from_json(data, where=where)
        strict_json.parse(data, where=where, code="graph")  # after the size: refuses repeated keys
        check_part(part.role, graph, self.manifest.text, where=where)
        return graph

    def part(self, part: str = "") -> str:
        """A part's name: "" for the one with the role "text". BundleError for unknown ones."""
        if not part:
            return self.manifest.part_of("text")
        if part not in self.manifest.parts:
            raise BundleError(
                f"{self.path}: no part {part!r}, expected one of {sorted(self.manifest.parts)}",
                code="bundle-part",
                hint="this model was not converted with that part",
            )
        return part

    def graph(self, part: str = "") -> Graph:
        """A part's checked graph, the text part's by default."""
        return self._graphs[self.part(part)]

    def head(self) -> Graph | None:
        """The graph of the draft head that `edgert.load` opens beside the text part, None without
        one."""
        drafts = self.manifest.draft is not None
        return self.graph(self.manifest.part_of(DRAFT)) if drafts else None

    def weights(self, part: str = "") -> dict[str, Matrix | NDArray[Any]]:
        """A part's weights by graph name: read-only views, float arrays or Quantized."""
        entry = self.manifest.parts[self.part(part)]
        return load_weights(self.graph(part), self._tensors[entry.weights])

    def tensor_files(self) -> list[TensorFile]:
        """The mapped weights files."""
        return list(self._tensors.values())

    def read(self, name: str) -> bytes:
        """Content of a listed file, hashed as it is read (unless opened with verify="skip")."""
        expected = self._entry(name)
        data = self._folder.read(name, expected.size)
        found = hashlib.sha256(data).hexdigest() if self.verified else expected.sha256
        if found != expected.sha256:
            raise changed(self.path_of(name), f"SHA-256 {found}", expected.sha256, "file-hash")
        return data

    def _entry(self, name: str) -> FileEntry:
        self._folder.path_of(name)
        names = sorted(self.manifest.files)
        if name not in names:
            raise BundleError(
                f"{self.path}: no file {name!r}, expected one of {names[:16]}",
                code="file-missing",
                hint="the bundle was made without it",
            )
        return self.manifest.files[name]

    def path_of(self, name: str) -> Path:
        """Where a file of this bundle lies; BundleError for names that leave it."""
        return self._folder.path_of(name)

    def close(self) -> None:
        """Drop the mapping (live views keep it) and the directory. Closing twice is allowed."""
        for file in self._tensors.values():
            file.close()
        self._folder.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def changed(path: Path, found: str, expected: str, code: str) -> BundleError:
    """The error for a file that is not what the manifest says."""
    return BundleError(
        f"{path}: found {found}, the manifest expects {expected}",
        code=code,
        hint="the file changed after it was written; copy the bundle again or convert anew",
        path=path,
    )
