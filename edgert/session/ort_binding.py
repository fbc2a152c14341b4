"""Inputs, outputs and states of a model's steps, bound to buffers (onnxruntime's IOBinding)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.onnx_ports import Port
from ..roles import row_input
from . import ort_mode
from .base import F32
from .ort_feed import Piece, mask
from .ort_model import OrtModel, failed
from .ort_state import OrtState

_WORDS = 64  # int32 values: inputs in one buffer begin at multiples of 256 bytes
_HOST = ("total_sequence_length",)  # inputs that kernels of every device read on the host
_TABLES = ("cos", "sin")  # inputs that stay as they are


class Binding:
    """Steps of S = `size` tokens and R = `rows` selected rows of one sequence.

    The int32 inputs lie in one buffer: a step copies them to the device at once.
    """

    def __init__(self, model: OrtModel, state: OrtState, size: int, rows: int) -> None:
        from onnxruntime import RunOptions

        self.model, self.state, self.size = model, state, size
        self.sizes = {"B": 1, "S": size, "P": state.capacity, "K": state.capacity + size, "R": rows}
        self.given = {value.name for value in model.graph.inputs}
        self.rows = row_input(model.graph)
        self.symbols = {value.name: value.shape[0] for value in model.graph.outputs}
        self.io = model.runtime.io_binding()
        self.values: dict[str, Any] = {}
        self.made: dict[str, Port] = {}
        self.words: dict[str, NDArray[np.int32]] = {}
        self._bind_words()
        self.whole = {m.past.name: m.made for m in model.memories if m.whole}
        for port in model.inputs:
            if port.name not in self.words and port.name not in self.whole:
                self.io.bind_ortvalue_input(port.name, self._input(port))
        written = {memory.made.name: memory for memory in model.memories}
        for port in model.outputs:
            memory = written.get(port.name)
            if memory is not None and memory.whole:
                continue
            if memory is not None and memory.in_place:
                self.io.bind_ortvalue_output(port.name, state.buffers[memory.past.name])
                continue
            shape = self._shape(port)
            fresh = memory is not None
            value = model.ortvalue(np.zeros(shape, port.dtype), host=True) if fresh else None
            self.values[port.name] = value if fresh else model.empty(shape)
            self.io.bind_ortvalue_output(port.name, self.values[port.name])
        # only one-token steps are repeated with the same buffers, so only they are captured
        self.graph_id = model.capture_id() if model.captures and size == 1 else -1
        self.options = RunOptions()
        if model.captures:
            self.options.add_run_config_entry("gpu_graph_id", str(self.graph_id))

    def _shape(self, port: Port) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else self.sizes[dim] for dim in port.shape)

    def _bind_words(self) -> None:
        """Put the int32 inputs into one buffer, each at a multiple of 256 bytes."""
        ports = [p for p in self.model.inputs if p.dtype == "int32" and _kind(p.name) not in _HOST]
        shapes = [self._shape(port) for port in ports]
        counts = [int(np.prod(shape)) for shape in shapes]
        *starts, end = np.cumsum([0] + [-(-count // _WORDS) * _WORDS for count in counts])
        self.host = np.zeros(max(end, 1), np.int32)
        self.block = self.model.ortvalue(self.host)
        place, base = self.model.provider, self.block.data_ptr()
        for port, shape, count, start in zip(ports, shapes, counts, map(int, starts), strict=True):
            self.words[port.name] = self.host[start : start + count]
            if port.name not in self.given:
                self.made[port.name] = port
            where = place.memory, place.index, np.int32, shape, base + 4 * start
            self.io.bind_input(port.name, *where)

    def _input(self, port: Port) -> Any:
        """The value behind an input, remembered where a step changes it."""
        kind, _, rest = port.name.partition(".")
        if port.name in self.state.buffers:
            return self.state.buffers[port.name]
        made = port.name not in self.given
        if made and kind in _TABLES:
            long, rows = self.state.long_rope, self.state.capacity
            return self.model.tables(rest, rows, long=long)[kind == "sin"]
        if made:
            self.made[port.name] = port
        zeros = np.zeros(self._shape(port), port.dtype)
        self.values[port.name] = self.model.ortvalue(zeros, host=made and kind in _HOST)
        return self.values[port.name]

    def run(
        self, piece: Piece, given: Mapping[str, NDArray[Any]], wanted: list[str]
    ) -> dict[str, F32]:
        """One step. given: the graph's inputs, [n] or [n, C] each; wanted: names of outputs, which
        come as [n, C]."""
        self._feed(piece, given)
        made = self._bind_whole(piece)
        try:
            with ort_mode.running(self.model.flushes):
                self.model.runtime.run_with_iobinding(self.io, self.options)
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise failed(self.model.provider, f"a step of {piece.count} tokens", error) from error
        self.state.made = made
        for memory in self.model.memories:
            if not memory.in_place and not memory.whole:
                fresh = self.values[memory.made.name].numpy()[0, :, : piece.count]
                self.state.store(memory.past.name, fresh, piece.start)
        return {name: self._result(name, piece, given) for name in wanted}

    def _bind_whole(self, piece: Piece) -> dict[str, Any]:
        """Recurrent states as they stand before this piece of a feed, and fresh values for what
        they will be behind it, by input name."""
        before = self.state.made if piece.first else self.state.slots
        made = {}
        for name, port in self.whole.items():
            made[name] = self.model.empty(self._shape(port), port.dtype)
            self.io.bind_ortvalue_input(name, before[name])
            self.io.bind_ortvalue_output(port.name, made[name])
        return made

    def _result(self, name: str, piece: Piece, given: Mapping[str, NDArray[Any]]) -> F32:
        found: F32 = self.values[name].numpy()
        count = piece.count if self.symbols[name] == "T" else len(given[self.rows])
        rows = found.reshape(-1, found.shape[-1])[:count]
        # of host memory `numpy()` is a view that the next step overwrites
        return rows.copy() if self.model.provider.memory == "cpu" else rows

    def _feed(self, piece: Piece, given: Mapping[str, NDArray[Any]]) -> None:
        made = {name: self._make(port, piece) for name, port in self.made.items()}
        for name, array in {**given, **made}.items():
            if name in self.words:
                word = self.words[name]
                word[:], word[: array.size] = 0, array.ravel()
        self.block.update_inplace(self.host)
        for name, array in {**given, **made}.items():
            if name in self.words:
                continue
            value = self.values[name]
            if name in given:
                padded = np.zeros(value.shape(), _numpy_type(value))
                padded.reshape(-1, array.shape[-1])[: len(array)] = array
                array = padded
            value.update_inplace(array)

    def _make(self, port: Port, piece: Piece) -> NDArray[Any]:
        kind, _, rest = port.name.partition(".")
        return _MAKERS[kind](self, piece, rest, port.dtype)


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _numpy_type(value: Any) -> str:
    return "float16" if "float16" in value.data_type() else "float32"


def _last(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
    return np.array([piece.end - 1], dtype)


def _total(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
    # a captured graph replays the total it was captured with: the whole buffer
    return np.array([binding.state.capacity if binding.graph_id >= 0 else piece.end], dtype)


def _positions(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
    # padding may stand past the tables
    return np.minimum(piece.position[:1], binding.state.capacity - 1).astype(dtype)


def _valid(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
    return (np.arange(piece.size) < piece.count).astype(dtype)[None]


def _turn(table: int) -> Callable[[Binding, Piece, str, str], NDArray[Any]]:
    def make(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
        long = binding.state.long_rope
        return binding.model.turns(rest, piece.position, long=long)[table][None]

    return make


def _mask(*, present: bool) -> Callable[[Binding, Piece, str, str], NDArray[Any]]:
    def make(binding: Binding, piece: Piece, rest: str, dtype: str) -> NDArray[Any]:
        return mask(piece, binding.state.capacity, int(rest), dtype, present=present)

    return make


# How the session makes what the ops' ports ask for, by the first word of a port's name.
_MAKERS: dict[str, Callable[[Binding, Piece, str, str], NDArray[Any]]] = {
    "seqlens_k": _last,
    "total_sequence_length": _total,
    "positions": _positions,
    "valid": _valid,
    "cos_at": _turn(0),
    "sin_at": _turn(1),
    "mask": _mask(present=False),
    "mask_present": _mask(present=True),
}
