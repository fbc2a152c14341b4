"""Memory of one sequence on onnxruntime: key and value buffers [1, G, P, D] on the device.

Nodes of style gqa and rotary write into the buffers themselves (past and present are one buffer);
for plain nodes the session copies the new rows in. P grows by doubling up to the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from .base import State
from .onnx_io import Attention

if TYPE_CHECKING:
    from .ort import OrtSession

_FIRST = 256  # rows of a new state's buffers, unless more are expected


class OrtState(State):
    """Buffers by ONNX input name (`past_key.<state>`), and cached bindings of repeated steps."""

    def __init__(
        self, session: OrtSession, context: int, expected: int, *, long_rope: bool
    ) -> None:
        super().__init__(context)
        self.session = session
        self.long_rope = long_rope
        self.buffers: dict[str, Any] = {}
        self.bindings: dict[tuple[int, int], Any] = {}
        fixed = session.variant.capacity
        self.capacity = fixed or min(context, max(expected, _FIRST))
        self._allocate()

    def _allocate(self) -> None:
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
        self.bindings = {}
        self.capacity = min(self.context, max(2 * self.capacity, rows))
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

    def close(self) -> None:
        self.buffers, self.bindings = {}, {}


def _names(node: Attention) -> tuple[str, str]:
    return f"past_key.{node.state}", f"past_value.{node.state}"
