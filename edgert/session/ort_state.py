"""Memory of one sequence on onnxruntime: buffers [1, G, P, D] on the device, P rows of capacity.

Which buffers there are, the ops say (`onnx_ports.Memory`). Nodes write into those that are
`in_place` themselves; into the others, which lie on the host, the session copies the new rows. P
grows by doubling up to the context. What is `whole` (recurrent states) has one size: a step reads
what is committed and makes another value, which takes its place when all of the step is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from ..kernels.onnx_ports import Memory, Port
from .base import State

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


class Host(Protocol):
    """What a state needs of its session.

    memories: the buffers of the model. fixed_capacity: rows that the model was made for, 0 for any.
    captures: whether steps are captured, so that closed states' buffers must be used again.
    """

    memories: list[Memory]
    fixed_capacity: int
    buffer_pool: BufferPool

    @property
    def captures(self) -> bool: ...

    def ortvalue(self, array: NDArray[Any], *, host: bool = False) -> Any:
        """An array as onnxruntime holds it, on the device unless `host`."""


class OrtState(State):
    """Buffers by ONNX input name (`past_key.<state>`), and cached bindings of repeated steps."""

    def __init__(self, host: Host, context: int, expected: int, *, long_rope: bool) -> None:
        super().__init__(context)
        self.host = host
        self.long_rope = long_rope
        self.closed = False
        self.buffers: dict[str, Any] = {}
        self.bindings: dict[tuple[int, int], Any] = {}
        self.capacity = host.fixed_capacity or self._rounded(max(expected, _FIRST))
        self.rows = [memory for memory in host.memories if not memory.whole]
        self.whole = [memory.past for memory in host.memories if memory.whole]
        self.slots, self.made = self._empty_slots(), dict[str, Any]()
        self._allocate()

    def _empty_slots(self) -> dict[str, Any]:
        """What the recurrent states hold of no tokens, by input name."""
        return {port.name: self.host.ortvalue(_zeros(port)) for port in self.whole}

    def _rounded(self, rows: int) -> int:
        """Where steps are captured, capacities are powers of two, so that buffers fit again."""
        if self.host.captures:
            rows = 1 << (rows - 1).bit_length()
        return min(self.context, rows)

    def _allocate(self) -> None:
        spare = self.host.buffer_pool.take(self.capacity, long_rope=self.long_rope)
        if spare is not None:
            self.buffers, self.bindings = spare.values, spare.bindings
            for binding in self.bindings.values():
                binding.state = self
            return
        self.buffers, self.bindings = {}, {}
        sizes = {"B": 1, "P": self.capacity}
        try:
            for memory in self.rows:
                past = memory.past
                shape = [dim if isinstance(dim, int) else sizes[dim] for dim in past.shape]
                empty = np.zeros(shape, past.dtype)
                self.buffers[past.name] = self.host.ortvalue(empty, host=not memory.in_place)
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
            whole = self.buffers[name].numpy()
            whole[0, :, : part.shape[1]] = part
            _put_back(self.buffers[name], whole)

    def store(self, name: str, rows: NDArray[Any], start: int) -> None:
        """Rows [G, n, D] for a buffer on the host, at slot `start`."""
        self.buffers[name].numpy()[0, :, start : start + rows.shape[1]] = rows

    def _reach(self, length: int) -> int:
        if self.slots and length < self.length:
            self.slots = self._empty_slots()
            return 0
        return length

    def _keep(self, rows: Sequence[int]) -> None:
        if rows and not self.partly(rows):
            self.slots = self.slots | self.made
        if list(rows) == list(range(len(rows))):
            return
        kept = slice(self.length, self.length + len(rows))
        for value in self.buffers.values():
            whole = value.numpy()
            whole[0][:, kept] = whole[0][:, [self.length + row for row in rows]]
            _put_back(value, whole)

    def fork(self) -> OrtState:
        self.check_open()
        self.up_to_date()
        expected = max(self.length, self.capacity)
        other = OrtState(self.host, self.context, expected, long_rope=self.long_rope)
        other._write(self._read())
        other._remember(self.fed, long_rope=self.long_rope)
        other.expected, other.length = self.expected, self.length
        other.settle, other.slots = self.settle, dict(self.slots)  # values that nobody writes into
        return other

    def check_open(self) -> None:
        """RequestError for a closed state."""
        if self.closed:
            raise RequestError("the state is closed, expected an open one", code="step-states")

    def snapshot(self) -> dict[str, Any]:
        self.check_open()
        self.up_to_date()
        kept = self._read()
        kv = {
            state: tuple(kept[memory.past.name].transpose(1, 0, 2).copy() for memory in own)
            for state, own in self._by_state().items()
        }
        slots = {"slots": {n: v.numpy().copy() for n, v in self.slots.items()}}
        kept_slots = slots if self.slots else {}
        return {"length": self.length, **self._remembered(), "kv": kv, **kept_slots}

    def turn(self, *, long_rope: bool) -> None:
        if self.long_rope != long_rope:  # bound steps hold the tables of the other factors
            self.long_rope, self.bindings = long_rope, {}

    def _by_state(self) -> dict[str, list[Memory]]:
        names = dict.fromkeys(memory.state for memory in self.rows)
        return {name: [m for m in self.rows if m.state == name] for name in names}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.check_open()
        self._check(snapshot)
        self.length, self.pending = 0, 0
        self.reserve(snapshot["length"])
        rows = {}
        for state, own in self._by_state().items():
            for memory, part in zip(own, snapshot["kv"][state], strict=True):
                rows[memory.past.name] = part.transpose(1, 0, 2)
        self._write(rows)
        self.behind.clear()
        slots = snapshot.get("slots", {})
        self.slots = {name: self.host.ortvalue(array) for name, array in slots.items()}
        self.length = snapshot["length"]
        self._remember(snapshot.get("fed"), long_rope=snapshot["long_rope"])

    def _check(self, snapshot: dict[str, Any]) -> None:
        length, kv = snapshot.get("length", -1), snapshot.get("kv", {})
        expected = {
            state: [(length, m.past.shape[1], m.past.shape[3]) for m in own]
            for state, own in self._by_state().items()
        }
        found = {name: [tuple(np.shape(part)) for part in pair] for name, pair in kv.items()}
        self._check_remembered(snapshot)
        if found != expected or not 0 <= length <= self.context:
            raise RequestError(
                f"a snapshot of {length} tokens and states {found}, expected up to {self.context} "
                f"tokens and {expected}",
                code="snapshot",
                hint="the snapshot belongs to another model",
            )
        slots = snapshot.get("slots", {})
        wanted = {port.name: (_zeros(port).shape, port.dtype) for port in self.whole}
        made = {n: (np.shape(a), str(getattr(a, "dtype", ""))) for n, a in slots.items()}
        if made != wanted:
            raise RequestError(
                f"a snapshot of recurrent states {made}, expected {wanted}",
                code="snapshot",
                hint="the snapshot belongs to another model",
            )

    @property
    def nbytes(self) -> int:
        values = [*self.buffers.values(), *self.slots.values()]
        return sum(value.tensor_size_in_bytes() for value in values)

    def _give_back(self) -> None:
        if self.host.captures and self.buffers:
            spare = Buffers(self.capacity, self.long_rope, self.buffers, self.bindings)
            self.host.buffer_pool.put(spare)
        self.buffers, self.bindings = {}, {}

    def close(self) -> None:
        self.closed = True
        self.slots, self.made = {}, {}
        self.behind.clear()
        self._give_back()


def _zeros(port: Port) -> NDArray[Any]:
    """What a recurrent state of one sequence holds of no tokens."""
    shape = [dim if isinstance(dim, int) else 1 for dim in port.shape]
    return np.zeros(shape, port.dtype)


def _put_back(value: Any, changed: NDArray[Any]) -> None:
    """What `numpy()` of a value on the host gives is the value itself; of others, a copy."""
    if value.device_name() != "cpu":
        value.update_inplace(changed)
