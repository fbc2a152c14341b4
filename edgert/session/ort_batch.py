"""Runs of a graph for several inputs at once: files whose values have an axis in front, [B, N, C].

Nothing that is on the device leaves it between two runs. A model whose session captures (device
`cuda:graph`) runs in buffers of its own for each set of shapes, which CUDA replays as one launch.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..graph import Graph
from . import ort_mode
from .base import Fixed
from .feeds import check_arrays
from .ort_graphs import Held
from .ort_model import OrtModel, failed

_CAPTURES = 8  # sets of buffers of one model
_HIDDEN = {"float16": -3e4, "float32": -1e30}  # instead of a score of rows that are not there

Lengths = Mapping[str, Sequence[int]]


class BatchModel(OrtModel):
    """An opened file that computes batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.names = [value.name for value in self.graph.outputs]
        self._seen: dict[tuple[Any, ...], Fixed] = {}
        self._captures: OrderedDict[tuple[Any, ...], list[Buffers]] = OrderedDict()

    def run_batch(
        self, arrays: Mapping[str, Any], lengths: Lengths, sizes: Mapping[str, int], *, keep: bool
    ) -> dict[str, Any]:
        """Every output [B, N, width]: float32 on the host, or `Held` with `keep`.

        arrays: every input [B, ...], `Held`, `Fixed` or on the host. lengths: rows that count of
        each, by symbol. sizes: of all symbols, B among them.
        """
        feeds = {value.name: _typed(value, arrays[value.name]) for value in self.graph.inputs}
        for port in self.inputs:
            if port.name not in feeds:
                feeds[port.name] = self._mask(port.name, port.dtype, lengths, sizes)
        try:
            with ort_mode.running(self.flushes):
                if self.captures:
                    found = self._replayed(feeds, sizes)
                else:
                    found = bound(self, feeds, self.names, keep=keep)
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise failed(self.provider, f"a run of {dict(sizes)}", error) from error
        given = found if keep else [np.array(value) for value in found]
        return dict(zip(self.names, given, strict=True))

    def _mask(self, name: str, dtype: str, lengths: Lengths, sizes: Mapping[str, int]) -> Fixed:
        """0 for each row of a symbol that is there, very negative for padding: [B, 1, 1, M]."""
        symbol = name.partition(".")[2]
        count, rows = sizes["B"], sizes[symbol]
        there = tuple(lengths.get(symbol, (rows,) * count))
        key = name, dtype, rows, there
        if key not in self._seen:
            if len(self._seen) > _CAPTURES:
                self._seen.clear()
            seen = np.arange(rows)[None, :] < np.asarray(there)[:, None]
            mask = np.where(seen, 0.0, _HIDDEN[dtype]).astype(dtype)
            self._seen[key] = Fixed(mask[:, None, None])
        return self._seen[key]

    def _replayed(self, feeds: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Held]:
        """A run in kept buffers, none of whose outputs somebody still holds."""
        key = tuple(
            (name, array.shape, array.address if isinstance(array, Held) else 0)
            for name, array in feeds.items()
        )
        kept = self._captures.setdefault(key, [])
        self._captures.move_to_end(key)
        while len(self._captures) > _CAPTURES:
            self._captures.popitem(last=False)
        for buffers in kept:
            if buffers.free:
                return buffers.run(feeds)
        kept.append(Buffers(self, feeds, sizes))
        return kept[-1].run(feeds)

    def close(self) -> None:
        self._captures.clear()
        self._seen.clear()
        super().close()


class Buffers:
    """Inputs and outputs of one set of shapes, where a captured run finds them again."""

    def __init__(self, model: OrtModel, feeds: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        from onnxruntime import RunOptions

        self.model, self.io = model, model.runtime.io_binding()
        self.inputs: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        for name, array in feeds.items():
            if isinstance(array, Held):
                _bind_held(self.io, model, name, array)
                self.last[name] = array.value  # its memory stays
                continue
            self.inputs[name] = model.ortvalue(np.array(array))  # a copy, to be written into
            self.last[name] = array
            self.io.bind_ortvalue_input(name, self.inputs[name])
        self.outputs = []
        for port in model.outputs:
            shape = tuple(sizes[n] if isinstance(n, str) else n for n in port.shape)
            self.outputs.append(model.empty(shape))
            self.io.bind_ortvalue_output(port.name, self.outputs[-1])
        self.options = RunOptions()
        if model.captures:
            self.options.add_run_config_entry("gpu_graph_id", str(model.capture_id()))
        self._given: list[weakref.ref[Held]] = []

    @property
    def free(self) -> bool:
        """Whether nobody holds what the last run gave."""
        return all(reference() is None for reference in self._given)

    def run(self, feeds: Mapping[str, Any]) -> list[Held]:
        """Outputs, which are valid as long as somebody holds them."""
        for name, value in self.inputs.items():
            array = feeds[name]
            if not (isinstance(array, Fixed) and self.last[name] is array):
                value.update_inplace(np.ascontiguousarray(np.asarray(array)))
                self.last[name] = array if isinstance(array, Fixed) else None
        self.model.runtime.run_with_iobinding(self.io, self.options)
        found = [Held(value, tuple(value.shape())) for value in self.outputs]
        self._given = [weakref.ref(held) for held in found]
        return found


def bound(
    model: OrtModel, feeds: Mapping[str, Any], names: Sequence[str], *, keep: bool
) -> list[Any]:
    """One run through IOBinding: nothing that is on the device leaves it, but for outputs that are
    wanted on the host."""
    io, provider = model.runtime.io_binding(), model.provider
    for name, array in feeds.items():
        if isinstance(array, Held):
            _bind_held(io, model, name, array)
        else:
            io.bind_ortvalue_input(name, _uploaded(model, array))
    for name in names:
        place = (provider.memory, provider.index) if keep else ("cpu", 0)
        io.bind_output(name, *place)
    model.runtime.run_with_iobinding(io)
    found = io.get_outputs()
    return [Held(v, tuple(v.shape())) if keep else v.numpy() for v in found]


def _uploaded(model: OrtModel, array: Any) -> Any:
    """An array as onnxruntime holds it; of a `Fixed` one the copy is kept."""
    if not isinstance(array, Fixed):
        return model.ortvalue(array)
    place = f"{model.provider.name} {model.provider.index}"
    if place not in array.copies:
        array.copies[place] = model.ortvalue(array.array)
    return array.copies[place]


def _bind_held(io: Any, model: OrtModel, name: str, held: Held) -> None:
    place = model.provider.memory, model.provider.index
    io.bind_input(name, *place, np.float32, held.shape, held.address)


def _typed(value: Any, array: Any) -> Any:
    """An input on the host in its type."""
    if isinstance(array, Held | Fixed):
        return array
    return np.ascontiguousarray(array, np.int32 if value.dtype == "int32" else np.float32)


def checked_sizes(graph: Graph, arrays: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the graph's symbols, and B, for the arrays of a batch; RequestError where they do
    not fit, as of `feeds.check_arrays`."""
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise RequestError(
            f"inputs of batches of {sorted(counts)}, expected one number of them all, 1 or more",
            code="run-inputs",
        )
    floats, whole = dict[str, Any](), dict[str, NDArray[Any]]()
    for name, array in arrays.items():
        known = array.array if isinstance(array, Fixed) else array
        if getattr(known, "dtype", np.dtype(np.float32)).kind == "f":
            floats[name] = np.broadcast_to(np.float32(0), np.shape(known)[1:])
        else:
            whole[name] = np.asarray(known)
    (count,) = counts
    sizes = [
        check_arrays(graph, {**floats, **{name: array[index] for name, array in whole.items()}})
        for index in range(count if whole else 1)
    ]
    return {**sizes[0], "B": count}
