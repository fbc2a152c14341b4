"""Recurrent states with a tail: the last tokens as rows, the ones before them in a matrix.

A slot as in `recurrent`:

    words fold, rows, matrix, spare, spare_fold
    tail  float32 [capacity][tail_width]

Matrices stand apart, float32 [heads][key_dim][value_dim], normalisers [heads][key_dim] beside them.
`matrix` is the number of the one that holds the first `fold` tokens, -1 while fold is 0. The tail
holds the next `rows`; pending token i goes to tail row rows + i. A row must mean the same whatever
stands before it, for rows of rejected tokens are taken out.

A step whose tokens would complete a chunk finds a `spare` matrix, else -1: kernels leave there what
the first `spare_fold` tokens make, and `keep` takes it over where those were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..kernels.states import RecurrentState, folded
from .memory import is_whole, reserve
from .recurrent import F32, Parts, _Slots, misshapen, to_front

Fold = Callable[[F32, "F32 | None", F32], None]


class TailedSlots(_Slots):
    """The slots of one recurrent state. rows: how many tokens may be pending. fold(matrix,
    normaliser, rows) lets the matrix [heads, key_dim, value_dim] absorb tail rows
    [n, tail_width], in place; normaliser [heads, key_dim] or None.

    How many tokens are folded is a function of the length alone (`states.folded`), so that the
    bits of a sequence do not depend on how its tokens were grouped into steps.

    described: addresses of the first slot, bytes of a slot, of the first matrix, bytes of a
    matrix, of the first normaliser (0 for none), bytes of one, bytes from a slot to its tail, bytes
    of a tail row.
    """

    def __init__(
        self, spec: RecurrentState, slots: int, rows: int, fold: Fold, context: int = 0
    ) -> None:
        """context: tokens that a sequence may have, 0 for any; a longer tail is never full."""
        self.spec, self.fold = spec, fold
        room = min(spec.tail, context or spec.tail) + rows
        super().__init__(slots, {"tail": (room, spec.tail_width)})
        self.words[:, 2:4] = -1
        shapes: dict[str, tuple[int, ...]]
        shapes = {"matrix": (spec.heads, spec.key_dim, spec.value_dim)}
        if spec.normaliser:
            shapes["normaliser"] = (spec.heads, spec.key_dim)
        self.described = np.zeros(8, np.int64)
        self.described[:2] = self.raw.ctypes.data, self.stride
        self._free = list(range(2 * slots - 1, -1, -1))  # a matrix and a spare each
        self.sums = {
            name: reserve(8 * slots * int(np.prod(shape))).view(np.float32).reshape(-1, *shape)
            for name, shape in shapes.items()
        }
        for index, array in enumerate(self.sums.values()):
            self.described[2 + 2 * index : 4 + 2 * index] = array.ctypes.data, array.strides[0]
        self.described[6:] = self.offsets["tail"], 4 * spec.tail_width

    @property
    def bytes_per_slot(self) -> int:
        return self.stride + sum(array.strides[0] for array in self.sums.values())

    def _take(self, slot: int, word: int) -> int:
        """Number of the slot's matrix (word 2) or spare (word 3), a free one if it has none."""
        if self.words[slot, word] < 0:
            self.words[slot, word] = self._free.pop()
        return int(self.words[slot, word])

    def _give(self, slot: int, word: int) -> None:
        if self.words[slot, word] >= 0:
            self._free.append(int(self.words[slot, word]))
            self.words[slot, word] = -1

    def clear(self, slot: int) -> None:
        for word in (2, 3):
            self._give(slot, word)
        self.words[slot, :2] = self.words[slot, 4] = 0

    def make_room(self, slot: int, length: int, rows: int) -> None:
        """There is room for the rows: fewer than `tail` are committed. A step that completes a
        chunk gets a spare."""
        point = folded(self.spec, length + rows)
        if point > self.words[slot, 0]:
            self._take(slot, 3)
            self.words[slot, 4] = point
        else:
            self._give(slot, 3)

    def keep(self, slot: int, length: int, kept: Sequence[int]) -> None:
        """Commit the pending tokens `kept`."""
        words, point = self.words[slot], folded(self.spec, length + len(kept))
        whole = max(0, point - length)  # pending tokens that go into the matrix
        ready = words[3] >= 0 and words[4] == point and list(kept[:whole]) == list(range(whole))
        rows, done = self.parts["tail"][slot], point - int(words[0])
        to_front(rows, int(words[1]), kept)
        words[1] += len(kept)
        if done:
            if not ready:
                self._fold(slot, rows[:done])
            rows[: words[1] - done] = rows[done : words[1]].copy()
            words[1] -= done
        if ready:
            words[2], words[3] = words[3], words[2]
        if kept:
            self._give(slot, 3)
        words[0] = point

    def _fold(self, slot: int, rows: F32) -> None:
        """Let the matrix absorb tail rows, a chunk at a time, as kernels do."""
        fresh = self.words[slot, 2] < 0
        at, chunk = self._take(slot, 2), self.spec.chunk
        matrix, normaliser = self.sums["matrix"][at], self.sums.get("normaliser")
        sums = None if normaliser is None else normaliser[at]
        if fresh:
            matrix[:] = 0
            if sums is not None:
                sums[:] = 0
        for start in range(0, len(rows), chunk):
            self.fold(matrix, sums, rows[start : start + chunk])

    def lowest(self, slot: int) -> int:
        """The shortest length that `cut` can go back to: below it less would be folded."""
        point, spec = int(self.words[slot, 0]), self.spec
        return point + spec.tail - spec.chunk if point else 0

    def cut(self, slot: int, length: int, target: int) -> None:
        """Go back from `length` tokens to `target`."""
        self.words[slot, 1] = target - self.words[slot, 0]

    def content(self, slot: int, length: int) -> Parts:
        """What is committed, as views."""
        fold, rows, at = (int(word) for word in self.words[slot, :3])
        parts: Parts = {name: array[at] for name, array in self.sums.items() if fold}
        return {"fold": fold, **parts, "tail": self.parts["tail"][slot, :rows]}

    def fault(self, parts: Parts, length: int) -> str:
        """What is wrong with content of `length` tokens, "" for nothing."""
        fold, spec = parts.get("fold"), self.spec
        if not is_whole(fold) or fold != folded(spec, length):
            return f"fold is {fold!r} of {length} tokens, expected {folded(spec, length)}"
        shapes: dict[str, tuple[int, ...]]
        shapes = {name: array.shape[1:] for name, array in self.sums.items() if fold}
        shapes["tail"] = (length - fold, spec.tail_width)
        return misshapen(parts, shapes, "fold")

    def load(self, slot: int, parts: Parts, length: int) -> None:
        self.clear(slot)
        self.words[slot, 0] = parts["fold"]
        for name, array in self.sums.items():
            if parts["fold"]:
                array[self._take(slot, 2)] = parts[name]
        rows = length - parts["fold"]
        self.parts["tail"][slot, :rows] = parts["tail"]
        self.words[slot, 1] = rows
