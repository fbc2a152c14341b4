"""Recurrent and convolution states: one slot a sequence, and what a step leaves in it.

A slot starts with int32 words that say how far it stands; its parts follow, each at a multiple of
64 bytes from the slot's start. Kernels read what is committed and append the rows of pending
tokens behind it; they change nothing else.

recurrent   words fold, rows, side
            matrix      float32 [sides][heads][key_dim][value_dim]
            normaliser  float32 [sides][heads][key_dim]
            tail        float32 [capacity][tail_width]
    The matrix holds the first `fold` tokens, the tail the next `rows`; pending token i goes to tail
    row rows + i. A row must mean the same whatever stands before it, for rows of rejected tokens
    are taken out. Without a tail there are two sides: kernels read matrix `side` and write the
    other one, and a step's tokens are kept all or not at all.

conv        words rows, first
            inputs      float32 [capacity][channels]
    Row rows - 1 is the last committed token's, pending token i goes to row rows + i; before a
    sequence's start stand width - 1 rows of zeros. `first` is the oldest token still promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.states import ConvState, RecurrentState
from .memory import is_whole, reserve

F32 = NDArray[np.float32]
Fold = Callable[[F32, "F32 | None", F32], None]
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


class RecurrentSlots(_Slots):
    """The slots of one recurrent state. rows: how many tokens may be pending. fold(matrix,
    normaliser, rows) lets the matrix [heads, key_dim, value_dim] absorb tail rows
    [n, tail_width], in place; normaliser [heads, key_dim] or None.

    Whenever more than `tail` committed tokens are unfolded, the oldest half of a tail is folded, so
    that the folds of a sequence do not depend on how its tokens were grouped into steps.
    """

    def __init__(self, spec: RecurrentState, slots: int, rows: int, fold: Fold) -> None:
        self.spec, self.fold = spec, fold
        self.at_once = max(1, spec.tail // 2)
        sides = 1 if spec.tail else 2
        heads = (spec.heads, spec.key_dim)
        parts: dict[str, tuple[int, ...]] = {"matrix": (sides, *heads, spec.value_dim)}
        if spec.normaliser:
            parts["normaliser"] = (sides, *heads)
        if spec.tail:
            parts["tail"] = (spec.tail + rows, spec.tail_width)
        super().__init__(slots, parts)

    def clear(self, slot: int) -> None:
        self.words[slot] = 0
        for name in self._sums:
            self.parts[name][slot, 0] = 0

    @property
    def _sums(self) -> list[str]:
        return ["matrix", "normaliser"] if self.spec.normaliser else ["matrix"]

    def make_room(self, slot: int, length: int, rows: int) -> None:
        """There is always room: at most `tail` rows are committed."""

    def keep(self, slot: int, length: int, kept: Sequence[int]) -> None:
        """Commit the pending tokens `kept`."""
        words = self.words[slot]
        if not self.spec.tail:
            words[0], words[2] = length + len(kept), 1 - words[2]
            return
        tail, rows = self.parts["tail"][slot], int(words[1])
        _to_front(tail, rows, kept)
        rows += len(kept)
        sums = self.parts["normaliser"][slot, 0] if self.spec.normaliser else None
        done = 0
        while rows - done > self.spec.tail:
            self.fold(self.parts["matrix"][slot, 0], sums, tail[done : done + self.at_once])
            done += self.at_once
        if done:
            tail[: rows - done] = tail[done:rows]
        words[0] += done
        words[1] = rows - done

    def lowest(self, slot: int) -> int:
        """The shortest length that `cut` can go back to."""
        return int(self.words[slot, 0])

    def cut(self, slot: int, length: int, target: int) -> None:
        """Go back from `length` tokens to `target`."""
        self.words[slot, 1] = target - self.words[slot, 0] if self.spec.tail else 0

    def content(self, slot: int, length: int) -> Parts:
        """What is committed, as views."""
        fold, rows, side = (int(word) for word in self.words[slot, :3])
        parts: Parts = {name: self.parts[name][slot, side] for name in self._sums}
        if self.spec.tail:
            parts["tail"] = self.parts["tail"][slot, :rows]
        return {"fold": fold, **parts}

    def fault(self, parts: Parts, length: int) -> str:
        """What is wrong with content of `length` tokens, "" for nothing."""
        fold, spec = parts.get("fold"), self.spec
        if not is_whole(fold) or not max(0, length - spec.tail) <= fold <= length:
            return f"fold is {fold!r} of {length} tokens"
        shapes = {name: self.parts[name].shape[2:] for name in self._sums}
        if spec.tail:
            shapes["tail"] = (length - fold, spec.tail_width)
        return _misshapen(parts, shapes, "fold")

    def load(self, slot: int, parts: Parts, length: int) -> None:
        self.words[slot] = 0
        self.words[slot, 0] = parts["fold"]
        for name in self._sums:
            self.parts[name][slot, 0] = parts[name]
        if self.spec.tail:
            rows = length - parts["fold"]
            self.parts["tail"][slot, :rows] = parts["tail"]
            self.words[slot, 1] = rows


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
        _to_front(self.inputs[slot], int(words[0]), kept)
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
        return _misshapen(parts, {"inputs": (length - first, self.spec.channels)}, "first")

    def load(self, slot: int, parts: Parts, length: int) -> None:
        count = length - parts["first"]
        self.inputs[slot, :count] = parts["inputs"]
        self.words[slot] = 0
        self.words[slot, :2] = count, parts["first"]


def _to_front(rows: F32, start: int, kept: Sequence[int]) -> None:
    """Move the rows start + kept, rising, to `start` and on."""
    if kept and kept[-1] != len(kept) - 1:
        rows[start : start + len(kept)] = rows[start + np.asarray(kept)]


def _misshapen(parts: Parts, shapes: Mapping[str, tuple[int, ...]], number: str) -> str:
    """The first part that is not float32 of its shape, or a name that does not belong."""
    if set(parts) != {number, *shapes}:
        return f"it has {sorted(parts)}, expected {sorted({number, *shapes})}"
    for name, shape in shapes.items():
        array = parts[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            return f"{name} is not float32 {shape}"
    return ""
