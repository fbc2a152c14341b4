"""Recurrent and convolution states: one slot a sequence, and what a step leaves in it.

A slot starts with int32 words that say how far it stands; its parts follow, each at a multiple of
64 bytes from the slot's start. Kernels read what is committed and append the rows of pending
tokens behind it; they change nothing else.

recurrent   words fold, 0, side
            matrix      float32 [2][heads][key_dim][value_dim]
            normaliser  float32 [2][heads][key_dim]
    The matrix holds all `fold` tokens. Kernels read matrix `side` and write the other one, and a
    step's tokens are kept all or not at all. With a tail: `tailed.TailedSlots`.

conv        words rows, first
            inputs      float32 [capacity][channels]
    Row rows - 1 is the last committed token's, pending token i goes to row rows + i; before a
    sequence's start stand width - 1 rows of zeros. `first` is the oldest token still promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.states import ConvState, RecurrentState
from .memory import is_whole, reserve

F32 = NDArray[np.float32]
Parts = dict[str, Any]
WORDS = 16
ALIGN = 64


class _Slots:
    """One state in all slots: words int32 [slots, 16] and parts float32 [slots, ...] as views of
    one reserved array. offsets: where each part starts in a slot, bytes. described: int64 words by
    which kernels find all of it: address of the first slot, bytes of a slot, from its start to the
    first part, and of one side or row of that part (`kernels/cpu/slots.py`)."""

    def __init__(self, slots: int, parts: Mapping[str, tuple[int, ...]]) -> None:
        self.offsets, end = dict[str, int](), 4 * WORDS
        for name, shape in parts.items():
            self.offsets[name] = end
            end += -(-4 * int(np.prod(shape)) // ALIGN) * ALIGN
        self.stride = end
        self.raw = reserve(slots * end).reshape(slots, end)
        self.words = self.raw[:, : 4 * WORDS].view(np.int32)
        self.parts = {
            name: self.raw[:, start : start + 4 * int(np.prod(parts[name]))]
            .view(np.float32)
            .reshape(slots, *parts[name])
            for name, start in self.offsets.items()
        }
        name, first = next(iter(parts.items()))
        row = 4 * int(np.prod(first[1:]))
        where = self.raw.ctypes.data, end, self.offsets[name], row
        self.described = np.array(where, np.int64)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that one sequence takes."""
        return self.stride


class RecurrentSlots(_Slots):
    """The slots of one recurrent state without a tail."""

    def __init__(self, spec: RecurrentState, slots: int) -> None:
        self.spec = spec
        heads = (spec.heads, spec.key_dim)
        parts: dict[str, tuple[int, ...]] = {"matrix": (2, *heads, spec.value_dim)}
        if spec.normaliser:
            parts["normaliser"] = (2, *heads)
        super().__init__(slots, parts)

    def clear(self, slot: int) -> None:
        self.words[slot] = 0
        for part in self.parts.values():
            part[slot, 0] = 0

    def make_room(self, slot: int, length: int, rows: int) -> None:
        """There is always room: nothing is kept of single tokens."""

    def keep(self, slot: int, length: int, kept: Sequence[int]) -> None:
        """Commit the pending tokens `kept`."""
        words = self.words[slot]
        words[0], words[2] = length + len(kept), 1 - words[2]

    def lowest(self, slot: int) -> int:
        """The shortest length that `cut` can go back to."""
        return int(self.words[slot, 0])

    def cut(self, slot: int, length: int, target: int) -> None:
        """Go back from `length` tokens to `target`: there is nowhere to go."""

    def content(self, slot: int, length: int) -> Parts:
        """What is committed, as views."""
        fold, _, side = (int(word) for word in self.words[slot, :3])
        return {"fold": fold, **{name: part[slot, side] for name, part in self.parts.items()}}

    def fault(self, parts: Parts, length: int) -> str:
        """What is wrong with content of `length` tokens, "" for nothing."""
        fold = parts.get("fold")
        if not is_whole(fold) or fold != length:
            return f"fold is {fold!r} of {length} tokens"
        return misshapen(parts, {n: part.shape[2:] for n, part in self.parts.items()}, "fold")

    def load(self, slot: int, parts: Parts, length: int) -> None:
        self.words[slot] = 0
        self.words[slot, 0] = parts["fold"]
        for name, part in self.parts.items():
            part[slot, 0] = parts[name]


class ConvSlots(_Slots):
    """The slots of one convolution state. rows: how many tokens may be pending."""

    def __init__(self, spec: ConvState, slots: int, rows: int) -> None:
        self.spec = spec
        self.promised: int = spec.width - 1 + spec.tail
        super().__init__(slots, {"inputs": (self.promised + rows, spec.channels)})
        self.inputs = self.parts["inputs"]

    def clear(self, slot: int) -> None:
        before = self.spec.width - 1
        self.words[slot] = 0
        self.words[slot, :2] = before, -before
        self.inputs[slot, :before] = 0

    def make_room(self, slot: int, length: int, rows: int) -> None:
        """Have `rows` rows free behind the committed ones: the promised ones move to the front."""
        end = int(self.words[slot, 0])
        if end + rows > self.inputs.shape[1]:
            count = length - int(self.words[slot, 1])
            self.inputs[slot, :count] = self.inputs[slot, end - count : end]
            self.words[slot, 0] = count

    def keep(self, slot: int, length: int, kept: Sequence[int]) -> None:
        """Commit the pending tokens `kept`."""
        words = self.words[slot]
        to_front(self.inputs[slot], int(words[0]), kept)
        words[0] += len(kept)
        words[1] = max(words[1], length + len(kept) - self.promised)

    def lowest(self, slot: int) -> int:
        """The shortest length that `cut` can go back to."""
        return int(self.words[slot, 1] + self.spec.width - 1)

    def cut(self, slot: int, length: int, target: int) -> None:
        """Go back from `length` tokens to `target`."""
        self.words[slot, 0] -= length - target

    def content(self, slot: int, length: int) -> Parts:
        """What is committed, as views."""
        end, first = (int(word) for word in self.words[slot, :2])
        return {"first": first, "inputs": self.inputs[slot, end - (length - first) : end]}

    def fault(self, parts: Parts, length: int) -> str:
        """What is wrong with content of `length` tokens, "" for nothing."""
        first, before = parts.get("first"), self.spec.width - 1
        low = max(-before, length - self.promised)
        if not is_whole(first) or not low <= first <= length - before:
            return f"first is {first!r} of {length} tokens"
        return misshapen(parts, {"inputs": (length - first, self.spec.channels)}, "first")

    def load(self, slot: int, parts: Parts, length: int) -> None:
        count = length - parts["first"]
        self.inputs[slot, :count] = parts["inputs"]
        self.words[slot] = 0
        self.words[slot, :2] = count, parts["first"]


def to_front(rows: F32, start: int, kept: Sequence[int]) -> None:
    """Move the rows start + kept, rising, to `start` and on."""
    if kept and kept[-1] != len(kept) - 1:
        rows[start : start + len(kept)] = rows[start + np.asarray(kept)]


def misshapen(parts: Parts, shapes: Mapping[str, tuple[int, ...]], number: str) -> str:
    """The first part that is not float32 of its shape, or a name that does not belong."""
    if set(parts) != {number, *shapes}:
        return f"it has {sorted(parts)}, expected {sorted({number, *shapes})}"
    for name, shape in shapes.items():
        array = parts[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            return f"{name} is not float32 {shape}"
    return ""
