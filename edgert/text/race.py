"""Drawing one token from a row of logits by compiled code (`kernels/cpu/race.py`).

The law and the numbers are those of `sampling`, which is the reference: the token wins whose weight
over an exponential number is largest, that number being a function of (seed, position, id). The
compiled code knows how far its scores may be from NumPy's. It answers where the winner is certain,
and leaves all else to the reference: two scores nearer to each other than MARGIN, a weight as near
to an edge of top-p or min-p, logits that are no numbers, rows of less than LEAST. So what is drawn
is the same on every machine, with kernels or without.
"""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from ..kernels.cpu import code
from ..kernels.operands import ROW, WORD
from ..kernels.race import BLOCK, BOUNDS, MOST, RACE
from .params import Resolved
from .ranking import F32, Ids


def ready() -> bool:
    """Whether draws can be compiled code without anything heavy being imported for it: there is a
    library, or kernels are compiled in this process anyway."""
    return code.shipped() is not None or f"{code.__package__}.jit" in sys.modules


@lru_cache(maxsize=2)
def _function(name: str) -> Any:
    return code.entry_point(name, brief=True)


class Race:
    """One request's draws, made by `race_for`. ids: int64 [n], what the logits are of."""

    def __init__(self, params: Resolved, ids: Ids | None) -> None:
        self._function = _function("race_largest" if params.top_k else "race")
        self._words = np.zeros(ROW, np.int64)
        self._ids = None if ids is None else np.ascontiguousarray(ids, np.int64)
        scale = 1.0 / params.temperature
        words = {
            "seed": struct.unpack("q", struct.pack("Q", params.seed))[0],
            "scale": _word(scale), "cut": _word(1.0 if params.temperature_last else scale),
            "top_k": params.top_k, "top_p": _word(params.top_p), "min_p": _word(params.min_p),
            "ids": 0 if self._ids is None else self._ids.ctypes.data,
        }  # fmt: skip
        for name, word in words.items():
            self._words[getattr(RACE, name) // WORD] = word
        self._address = self._words.ctypes.data
        self._most = len(ids) if ids is not None else sys.maxsize
        self._size = -1  # that there is room for

    def winner(self, logits: F32, position: int) -> int:
        """Index of the logit, float32 [n], that is drawn; -1 where the reference must tell."""
        size = len(logits)
        if logits.dtype != np.float32 or not logits.flags.c_contiguous or size > self._most:
            return -1
        if size > self._size:
            self._make_room(size)
        found: int = self._function(self._address, logits.ctypes.data, size, position)
        return found

    def asked(self, size: int) -> int:
        """Address of the words that draws from `size` logits are asked with."""
        self._make_room(size)
        return int(self._address)

    def _make_room(self, size: int) -> None:
        self._room = np.zeros(BOUNDS + 4 * (size // BLOCK + 1), np.uint8)
        self._words[RACE.room // WORD] = self._room.ctypes.data
        self._size = size


def race_for(params: Resolved, ids: Ids | None) -> Race | None:
    """Compiled draws by these parameters, None where there are none for them or on this machine."""
    if params.greedy or params.typical_p < 1.0 or params.excludes or params.dynatemp_range:
        return None
    return Race(params, ids) if params.top_k <= MOST and ready() else None


def _word(x: float) -> int:
    return int(np.float32(x).view(np.uint32))
