"""Slots of recurrent and convolution states: one index a sequence, for every such state of a graph.

A slot holds what cannot be cut at any length. It is reserved as address space and cleared when a
sequence takes it; what is in it is described in `recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DeviceError, ResourceError
from ..graph import Graph
from ..kernels.states import ConvState, RecurrentState
from .halves import halved, widened
from .memory import Indices
from .recurrent import ConvSlots, Parts, RecurrentSlots
from .tailed import Fold, TailedSlots

SlotContent = dict[str, Parts]
Memory = RecurrentSlots | TailedSlots | ConvSlots


class SlotPool:
    """The slots of all sequences of a session, and who holds them.

    count: how many sequences may have one. rows: tokens that may be pending in one of them. folds:
    for each recurrent state with a tail, what its op offers to fold tail rows into the matrix.
    half: what is kept of a sequence has matrices of bfloat16. memories: the slots of each state by
    name.
    """

    def __init__(
        self, graph: Graph, count: int, rows: int, folds: Mapping[str, Fold] | None = None, *,
        half: bool = False,
    ) -> None:  # fmt: skip
        self.half = half
        self.rows, self.indices = rows, Indices(count)
        self.memories: dict[str, Memory] = {}
        for name, spec in graph.states.items():
            if isinstance(spec, RecurrentState) and spec.tail:
                fold = (folds or {}).get(name)
                if fold is None:
                    raise DeviceError(
                        f"state {name!r} has a tail of {spec.tail} tokens and no function that "
                        "folds it, expected one",
                        code="state-kind",
                    )
                self.memories[name] = self._reserved(
                    name, TailedSlots, spec, count, rows, fold, graph.context
                )
            elif isinstance(spec, RecurrentState):
                self.memories[name] = self._reserved(name, RecurrentSlots, spec, count)
            elif isinstance(spec, ConvState):
                self.memories[name] = self._reserved(name, ConvSlots, spec, count, rows)
        self.whole_steps = any(
            isinstance(memory, RecurrentSlots) for memory in self.memories.values()
        )

    @staticmethod
    def _reserved(name: str, kind: Callable[..., Memory], *arguments: Any) -> Memory:
        """The slots of a state. Raises ResourceError where there are no addresses for them."""
        try:
            return kind(*arguments)
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise ResourceError(
                f"no addresses for {arguments[1]} slots of state {name!r}, {arguments[0]}: {error}",
                code="state-slots",
                hint="no model has so large states; get the bundle again from where it came from",
            ) from None

    def __bool__(self) -> bool:
        """Whether the graph has such states at all."""
        return bool(self.memories)

    def named(self) -> dict[str, int]:
        """What kernels find the slots of a state by: `@state:<name>`, see `recurrent`."""
        return {f"@state:{n}": m.described.ctypes.data for n, m in self.memories.items()}

    def take(self) -> int:
        """A cleared slot. Raises ResourceError where none is free."""
        taken = self.indices.take(1)
        if taken is None:
            raise ResourceError(
                f"all {self.indices.count} slots of recurrent states are taken, 1 is needed",
                code="state-slots",
                hint="close other sequences, or give more with kv_memory (--kv-memory)",
            )
        for memory in self.memories.values():
            memory.clear(taken[0])
        return taken[0]

    def give(self, slots: Sequence[int]) -> None:
        """Give slots back. Any thread may call, finalizers included."""
        self.indices.give(slots)

    def lowest(self, slot: int) -> int:
        """The shortest length that the slot can be cut to."""
        return max((memory.lowest(slot) for memory in self.memories.values()), default=0)

    def cut(self, slot: int, length: int, target: int) -> None:
        """Go back from `length` tokens to `target`, `lowest` or more."""
        for memory in self.memories.values():
            memory.cut(slot, length, target)

    def make_room(self, slot: int, length: int, rows: int) -> None:
        """Have room for the rows of `rows` pending tokens behind `length` committed ones."""
        for memory in self.memories.values():
            memory.make_room(slot, length, rows)

    def keep(self, slot: int, length: int, kept: Sequence[int]) -> None:
        """Commit the pending tokens `kept` behind `length` committed ones."""
        for memory in self.memories.values():
            memory.keep(slot, length, kept)

    def content(self, slot: int, length: int) -> SlotContent:
        """What a slot holds of `length` committed tokens, as views."""
        return {name: memory.content(slot, length) for name, memory in self.memories.items()}

    def copy(self, slot: int, length: int) -> SlotContent:
        """The same as copies."""
        return {
            name: {
                key: value if isinstance(value, int) else value.copy() for key, value in p.items()
            }
            for name, p in self.content(slot, length).items()
        }

    def kept(self, slot: int, length: int) -> SlotContent:
        """Copies to go on from later; their matrices may be rounded (`half`)."""
        return self.rounded(self.copy(slot, length))

    def rounded(self, content: SlotContent) -> SlotContent:
        """Content as it is kept: matrices of bfloat16 where that is wanted."""
        return halved(content) if self.half else content

    def load(self, slot: int, content: SlotContent, length: int) -> None:
        """Make a slot hold `content` of `length` tokens, rounded or not."""
        content = widened(content)
        for name, memory in self.memories.items():
            memory.load(slot, content[name], length)

    def fault(self, content: Any, length: int) -> str:
        """What is wrong with content of `length` tokens, "" for nothing."""
        wanted = sorted(self.memories) if length else []
        if not isinstance(content, Mapping) or sorted(content) != wanted:
            return f"its recurrent parts are not {wanted}"
        for name in wanted:
            parts = content[name]
            damage = "no parts"
            if isinstance(parts, Mapping):
                damage = self.memories[name].fault(dict(parts), length)
            if damage:
                return f"its state {name!r} is damaged: {damage}"
        return ""

    @property
    def bytes_per_slot(self) -> int:
        return sum(memory.bytes_per_slot for memory in self.memories.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the slots that somebody holds."""
        return (self.indices.count - self.indices.free) * self.bytes_per_slot


def content_bytes(content: SlotContent) -> int:
    """Bytes of the arrays in a slot's content."""
    arrays = (v for parts in content.values() for v in parts.values() if not isinstance(v, int))
    return sum(int(array.nbytes) for array in arrays)
