"""Memory of one sequence on onnxruntime: key and value buffers [1, G, P, D] on the device.

Nodes of style gqa and rotary write into the buffers themselves (past and present are one buffer);
for plain nodes the session copies the new rows in. P grows by doubling up to the context.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from .base import State
from .onnx_io import Attention, Variant

_FIRST = 256  # rows of a new state's buffers, unless more are expected
_KEPT = 4  # closed states whose buffers and captured steps wait for the next ones


class Buffers(NamedTuple):
    """Keys and values of `capacity` rows by ONNX input name, and the steps bound to them."""

    capacity: int
    long_rope: bool
    values: dict[str, Any]
    bindings: dict[tuple[int, int], Any]


class BufferPool:
    """Buffers of closed states. A captured step belongs to its buffers and onnxruntime never frees
    it, so a server must use both again instead of capturing anew for every conversation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Buffers] | None = []

    def put(self, buffers: Buffers) -> None:
        """Keep these for a later state; beyond a few, the oldest go."""
        with self._lock:
            if self._kept is not None:
                self._kept = [*self._kept, buffers][-_KEPT:]

    def take(self, capacity: int, *, long_rope: bool) -> Buffers | None:
        """Kept buffers of exactly this kind, if there are any."""
        with self._lock:
            for index, kept in enumerate(self._kept or ()):
                if (kept.capacity, kept.long_rope) == (capacity, long_rope):
                    return (self._kept or []).pop(index)
        return None

    def close(self) -> None:
        """Free what is kept, and keep nothing any more."""
        with self._lock:
            self._kept = None


class BufferOwner(Protocol):
    """What a state needs of its session; `OrtSession` has it.

    cuda_graph: whether one-token steps are captured.
    """

    variant: Variant
    attentions: list[Attention]
    cuda_graph: bool
    buffer_pool: BufferPool

    def ortvalue(self, array: NDArray[Any], *, host: bool = False) -> Any:
        """An array as onnxruntime holds it, on the device unless `host`."""


class OrtState(State):
    """Buffers by ONNX input name (`past_key.<state>`), and cached bindings of repeated steps."""

    def __init__(
        self, session: BufferOwner, context: int, expected: int, *, long_rope: bool
    ) -> None:
        super().__init__(context)
        self.session = session
        self.long_rope = long_rope
        self.closed = False
        self.buffers: dict[str, Any] = {}
        self.bindings: dict[tuple[int, int], Any] = {}
        fixed = session.variant.capacity
        self.capacity = fixed or self._rounded(max(expected, _FIRST))
        self._allocate()

    def _rounded(self, rows: int) -> int:
        """Where steps are captured, capacities are powers of two, so that buffers fit again."""
        if self.session.cuda_graph:
            rows = 1 << (rows - 1).bit_length()
        return min(self.context, rows)

    def _allocate(self) -> None:
        kept = self.session.buffer_pool.take(self.capacity, long_rope=self.long_rope)
        if kept is not None:
            self.buffers, self.bindings = kept.values, kept.bindings
            for binding in self.bindings.values():
                binding.state = self
            return
        self.buffers, self.bindings = {}, {}
        kind = np.float16 if self.session.variant.half else np.float32
        try:
            for node in self.session.attentions:
                shape = (1, node.kv_heads, self.capacity, node.head_dim)
                for name in _names(node):
                    empty, host = np.zeros(shape, kind), node.style == "plain"
                    self.buffers[name] = self.session.ortvalue(empty, host=host)
        except (MemoryError, RuntimeError) as error:
            raise ResourceError(
                f"no memory for {self.capacity} rows of keys and values: {error}",
                code="kv-memory",
                hint="load with a smaller ctx_size, or close other conversations",
            ) from None

    def reserve(self, rows: int) -> None:
        """Make room for `rows` tokens; what is committed stays."""
        if rows <= self.capacity:
            return
        kept = self._read()
        self._give_back()
        self.capacity = self._rounded(max(2 * self.capacity, rows))
        self._allocate()
        self._write(kept)

    def _read(self) -> dict[str, NDArray[Any]]:
        """Committed rows by buffer name, [G, n, D]. Copies: `numpy()` of a value on the host is a
        view that does not keep its memory alive."""
        return {n: v.numpy()[0, :, : self.length].copy() for n, v in self.buffers.items()}

    def _write(self, rows: dict[str, NDArray[Any]]) -> None:
        """Put rows [G, n, D] at the start of the buffers."""
        for name, part in rows.items():
            whole = self.buffers[name].numpy().copy()
            whole[0, :, : part.shape[1]] = part
            self.buffers[name].update_inplace(whole)

    def store(self, name: str, rows: NDArray[Any], start: int) -> None:
        """Rows [G, n, D] of a plain node, at position `start`. Such buffers are on the host."""
        self.buffers[name].numpy()[0, :, start : start + rows.shape[1]] = rows

    def snapshot(self) -> dict[str, Any]:
        kept = self._read()
        kv = {
            node.state: tuple(kept[name].transpose(1, 0, 2).copy() for name in _names(node))
            for node in self.session.attentions
        }
        return {"length": self.length, "long_rope": self.long_rope, "kv": kv}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._check(snapshot)
        self.length, self.pending = 0, 0
        self.reserve(snapshot["length"])
        rows = {}
        for node in self.session.attentions:
            for name, part in zip(_names(node), snapshot["kv"][node.state], strict=True):
                rows[name] = part.transpose(1, 0, 2)
        self._write(rows)
        self.length = snapshot["length"]
        if self.long_rope != snapshot["long_rope"]:
            self.long_rope, self.bindings = snapshot["long_rope"], {}

    def _check(self, snapshot: dict[str, Any]) -> None:
        length, kv = snapshot.get("length", -1), snapshot.get("kv", {})
        expected = {n.state: (length, n.kv_heads, n.head_dim) for n in self.session.attentions}
        found = {name: tuple(pair[0].shape) for name, pair in kv.items()}
        if found != expected or not 0 <= length <= self.context:
            raise RequestError(
                f"a snapshot of {length} tokens and states {found}, expected up to {self.context} "
                f"tokens and {expected}",
                code="snapshot",
                hint="the snapshot belongs to another model",
            )

    @property
    def nbytes(self) -> int:
        return sum(value.tensor_size_in_bytes() for value in self.buffers.values())

    def _give_back(self) -> None:
        if self.session.cuda_graph and self.buffers:
            buffers = Buffers(self.capacity, self.long_rope, self.buffers, self.bindings)
            self.session.buffer_pool.put(buffers)
        self.buffers, self.bindings = {}, {}

    def close(self) -> None:
        self.closed = True
        self._give_back()


def _names(node: Attention) -> tuple[str, str]:
    return f"past_key.{node.state}", f"past_value.{node.state}"
