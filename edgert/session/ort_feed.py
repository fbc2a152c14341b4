"""The rows of one run of an emitted model, and what a session makes of where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .feeds import Rows

_HIDDEN = {"float32": -1e30, "float16": -6e4}  # what a mask adds to a score nobody may see


_THREE = np.zeros((3, 1), np.int64)


@lru_cache(maxsize=16)
def _all_seen(size: int) -> NDArray[np.int64]:
    return np.full(size, -1, np.int64)


@dataclass(frozen=True)
class Piece:
    """Rows first, first + 1, ... of a feed, `count` of them, padded to S = `size` rows.

    length: committed tokens. place: int [first + S], how many tokens each row of the feed so far
    continues. position: int [3, S]. visible: int64 [S], as in `feeds.Rows`.
    """

    first: int
    count: int
    size: int
    length: int
    place: NDArray[np.int64]
    position: NDArray[np.int64]
    visible: NDArray[np.int64]

    @property
    def start(self) -> int:
        """Slot of the first row."""
        return self.length + self.first

    @property
    def end(self) -> int:
        """Slot after the last row, padding included."""
        return self.start + self.size

    def places(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens the rows in the slots `slot` continue."""
        own = self.place[np.clip(slot - self.length, 0, len(self.place) - 1)]
        found: NDArray[np.int64] = np.where(slot < self.length, slot, own)
        return found


def pieces(rows: Rows, length: int, fixed: int, most: int = 0) -> Iterator[Piece]:
    """The rows of one feed as runs of `fixed` rows, padded; 0: as one run of all, or, where a model
    takes fewer at once, of up to `most`."""
    step = fixed or most or rows.total
    for first in range(0, rows.total, step):
        stop = min(first + step, rows.total)
        size = fixed or stop - first
        place = np.arange(length, length + first + size)
        if rows.axes is None:  # a chain: every row stands at its place and sees all before it
            position = place[first:] + _THREE
            yield Piece(first, stop - first, size, length, place, position, _all_seen(size))
            continue
        place[:stop] = rows.place[:stop]
        position = np.empty((3, size), np.int64)
        position[:] = place[first:]
        position[:, : stop - first] = rows.position[:, first:stop]
        visible = np.full(size, -1, np.int64)
        visible[: stop - first] = rows.visible[first:stop]
        yield Piece(first, stop - first, size, length, place, position, visible)


def mask(piece: Piece, capacity: int, window: int, dtype: str, *, present: bool) -> NDArray[Any]:
    """0 where a new row sees a cached or new one, very negative elsewhere: [1, 1, S, P + S] over
    the buffers as they were and the new rows, or with `present` [1, 1, S, P] over the buffers with
    the new rows in them."""
    start, new = piece.start, np.arange(piece.start, piece.end)
    slot, valid = np.arange(capacity), np.arange(capacity) < (piece.end if present else start)
    if not present:
        slot = np.concatenate([slot, new])
        valid = np.concatenate([valid, np.ones(piece.size, bool)])
    seen = valid[None, :] & (slot[None, :] <= new[:, None])
    if window:
        seen &= piece.places(new)[:, None] - piece.places(slot)[None, :] < window
    if (piece.visible != -1).any():
        pending = (slot >= piece.length) & (slot < piece.end)
        bit = np.where(pending, slot - piece.length, 0)
        ancestor = piece.visible[:, None] >> np.minimum(bit, 63)[None, :] & 1
        seen &= ~pending[None, :] | (ancestor == 1)
    return np.where(seen, 0.0, _HIDDEN[dtype]).astype(dtype)[None, None]
