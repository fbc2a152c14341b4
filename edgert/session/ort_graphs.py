"""The graphs over one set of weights that onnxruntime runs, each emitted into a file of its own.

A denoiser is run in pieces, and for several sizes of picture. Its files name the same weights file,
which the system maps once; on the device a piece has the weights that it reads itself. A file is
opened when its graph is first run, and of every piece one is open at a time: another size of
picture takes the place of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from ..graph import Graph
from . import ort_mode
from .base import F32
from .onnx_check import digest, inline_bytes
from .onnx_file import read_model
from .onnx_names import PIECES
from .ort_model import OrtModel, failed

Files = Mapping[str, Sequence[Path]]  # of one dialect, by piece; "" for the whole
_KNOWN = 32  # graphs whose hash is remembered


class Held:
    """Float rows [N, width], or those of a batch [B, N, width], where the provider computed them:
    an input of a later run on the same device. `np.asarray` copies them to the host.

    first: the number of the first one in `value`; a slice of the first axis copies nothing.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, value: Any, shape: tuple[int, ...], first: int = 0, owner: Held | None = None
    ) -> None:
        self.value, self.shape, self.first, self.owner = value, shape, first, owner

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Held:
        begin, end, _ = part.indices(len(self))
        first = self.first + begin * int(np.prod(self.shape[1:]))
        return Held(self.value, (max(end - begin, 0), *self.shape[1:]), first, self)

    @property
    def address(self) -> int:
        """Where it begins, on its device."""
        return int(self.value.data_ptr()) + self.first * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        flat = np.asarray(self.value.numpy()).reshape(-1)
        flat = flat[self.first : self.first + int(np.prod(self.shape))]
        return np.array(flat, dtype or np.float32).reshape(self.shape)


class OrtGraphs:
    """Opens the files of a part's graphs.

    whole: the part's graph. files: None where there is only `own`, its emission. open_file: makes
    the model of a graph from its file, which it checks.
    """

    def __init__(
        self, whole: Graph, own: Path, files: Files | None,
        open_file: Callable[[Graph, Path], OrtModel],
    ) -> None:  # fmt: skip
        self.whole, self.own, self.files = whole, own, files
        self.closed = False
        self._open_file = open_file
        self._digests: dict[int, tuple[Graph, str]] = {}
        self._opened: dict[str, tuple[str, OrtModel]] = {}

    def find(self, graph: Graph) -> Path | OrtModel:
        """The file of a graph, or its model where that is open. Raises DeviceError where the bundle
        has no file of it."""
        piece, wanted = self._piece(graph), self._digest(graph)
        held = self._opened.get(piece)
        if held is not None and held[0] == wanted:
            return held[1]
        return self._file(piece, wanted, graph)

    def model_of(self, graph: Graph) -> OrtModel:
        """The opened model of a graph. Raises DeviceError where the bundle has no file of it,
        BundleError for a file that is not what it says."""
        path = self.find(graph)
        if isinstance(path, OrtModel):
            return path
        piece, wanted = self._piece(graph), self._digest(graph)
        held = self._opened.get(piece)
        if held is not None:
            del self._opened[piece]
            held[1].close()
        self._opened[piece] = wanted, self._open_file(graph, path)
        return self._opened[piece][1]

    def _digest(self, graph: Graph) -> str:
        found = self._digests.get(id(graph))
        if found is None:
            if len(self._digests) >= _KNOWN:
                self._digests.clear()
            found = self._digests[id(graph)] = graph, digest(graph)
        return found[1]

    def _piece(self, graph: Graph) -> str:
        """Cuts are called as the whole and what they are (`Emission.piece`)."""
        prefix, _, piece = graph.name.rpartition(".")
        return piece if prefix == self.whole.name and piece in PIECES else ""

    def _file(self, piece: str, wanted: str, graph: Graph) -> Path:
        """The file that was emitted of a graph, as its metadata says."""
        if self.files is None and wanted == self._digest(self.whole):
            return self.own
        further, named = inline_bytes(graph), list((self.files or {}).get(piece, ()))
        for path in named:
            if read_model(path, further).metadata.get("edgert.graph") == wanted:
                return path
        inputs = ", ".join(f"{v.name} {list(v.shape)}" for v in graph.inputs)
        names = [path.name for path in (named if self.files is not None else [self.own])]
        raise DeviceError(
            f"no ONNX model in {self.own.parent} is the graph {graph.name!r} of {inputs}, found "
            + (f"{names} of other graphs or sizes" if names else "none of it"),
            code="device-graph",
            hint=self._remedy(),
        )

    def _remedy(self) -> str:
        """The command that writes the missing file."""
        if self.files is None:
            return "use --device cpu"
        flags = " --precision f16" if ".f16" in self.own.name else ""
        words = {".std": "standard", ".batch": "batch", ".fused": "fused"}
        flags += "".join(f" --{flag}" for word, flag in words.items() if word in self.own.name)
        return (
            f"`edgert export {self.own.parent}{flags}` writes it for pictures of the model's own "
            "size, with `--size WIDTHxHEIGHT` for another; or use --device cpu"
        )

    def close(self) -> None:
        """Free everything."""
        self.closed = True
        for _, model in self._opened.values():
            model.close()
        self._opened, self._digests = {}, {}


def one_ahead(array: Any) -> Any:
    """Rows as a batch of one."""
    if isinstance(array, Held):
        return Held(array.value, (1, *array.shape), array.first, array)
    return np.asarray(array)[None]


def one_behind(array: Any) -> Any:
    """The rows of a batch of one."""
    if isinstance(array, Held):
        return Held(array.value, array.shape[1:], array.first, array)
    return array[0]


def run_model(
    model: OrtModel, arrays: Mapping[str, Any], sizes: Mapping[str, int], *, keep: bool
) -> dict[str, Any]:
    """Every output of a graph without states as rows [N, width]: float32 on the host, or `Held`
    with `keep`. arrays: every input, `Held` or on the host."""
    names = [value.name for value in model.graph.outputs]
    feeds = {value.name: _fed(model, value, arrays[value.name]) for value in model.graph.inputs}
    try:
        with ort_mode.running(model.flushes):
            if keep or any(isinstance(array, Held) for array in feeds.values()):
                found = _bound(model, feeds, names, keep=keep)
            else:
                found = model.runtime.run(names, feeds)
    except Exception as error:  # onnxruntime raises its own types, which share no base
        raise failed(model.provider, f"a run of {sizes}", error) from error
    return {name: _rows(array) for name, array in zip(names, found, strict=True)}


def _fed(model: OrtModel, value: Any, array: Any) -> Any:
    """An input in its type and shape: rows of tokens have an axis for the sequence in front."""
    if isinstance(array, Held):
        return array
    kind = np.int32 if value.dtype == "int32" else np.float32
    rows = np.ascontiguousarray(array, kind)
    return rows[None] if value.shape[0] == "T" else rows


def _bound(
    model: OrtModel, feeds: Mapping[str, Any], names: Sequence[str], *, keep: bool
) -> list[Any]:
    """One run through IOBinding: nothing that is on the device leaves it, but for outputs that are
    wanted on the host."""
    io, provider = model.runtime.io_binding(), model.provider
    for name, array in feeds.items():
        value = array.value if isinstance(array, Held) else model.ortvalue(array)
        io.bind_ortvalue_input(name, value)
    for name in names:
        place = (provider.memory, provider.index) if keep else ("cpu", 0)
        io.bind_output(name, *place)
    model.runtime.run_with_iobinding(io)
    found = io.get_outputs()
    return list(found) if keep else [value.numpy() for value in found]


def _rows(found: Any) -> F32 | Held:
    if isinstance(found, np.ndarray):
        return found.reshape(-1, found.shape[-1])
    shape = tuple(found.shape())
    return Held(found, (int(np.prod(shape[:-1])), shape[-1]))
