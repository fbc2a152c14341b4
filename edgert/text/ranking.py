"""The largest of many values, without sorting all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

BLOCK = 64  # values in a group, for the bound on the k-th largest
FEW = 1024  # up to so many values one stable sort is quicker than `descending`'s keys
_HIGH, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_SIGN, _MAGNITUDE = np.uint32(31), np.uint32(0x7FFFFFFF)


class Ranked:
    """A row of values, float [n], of which the largest are wanted.

    The row is cut into groups of BLOCK values each, strided so that the maxima of all groups are
    one vector operation. The k-th largest of the maxima bounds the k-th largest value from below,
    so only the groups that reach it are looked at. peak: the largest value; NaN where there is one.
    """

    def __init__(self, z: F32 | F64) -> None:
        self.z = z
        groups = len(z) // BLOCK
        self._table = z[: groups * BLOCK].reshape(BLOCK, groups)
        self._rest = z[groups * BLOCK :]
        self._maxima = self._table.max(axis=0) if groups else z[:0]

        peaks = [part.max() for part in (self._maxima, self._rest) if len(part)]
        self.peak = float(np.maximum.reduce(peaks))

    def reaching(self, count: int) -> Ids:
        """Indices, ascending, of at least the `count` largest values: all that reach some bound."""
        groups, size = len(self._maxima), len(self.z)
        if count * 2 > groups:
            return self.at_least(np.partition(self.z, size - count)[size - count])
        return self.at_least(np.partition(self._maxima, groups - count)[groups - count])

    def at_least(self, bound: float) -> Ids:
        """Indices, ascending, of the values from `bound` on."""
        groups = len(self._maxima)
        hot = (self._maxima >= bound).nonzero()[0]
        near: Ids
        if len(hot) * 4 >= groups:
            near = (self.z >= bound).nonzero()[0]
            return near
        found = (self._table.take(hot, axis=1) >= bound).ravel().nonzero()[0]
        near = found // len(hot) * groups + hot[found % len(hot)] if len(hot) else hot
        if len(self._rest):
            near = np.concatenate([near, (self._rest >= bound).nonzero()[0] + groups * BLOCK])
        return near

    def largest(self, count: int) -> Ids:
        """Indices int64 [count] of the largest, descending, equal ones by lower index."""
        near = self.reaching(count)
        return near[descending(self.z[near])[:count]]


def largest(z: F32 | F64, count: int) -> Ids:
    """Indices int64 [count] of the largest values, descending, equal ones by lower index."""
    return Ranked(z).largest(count)


def reaching(z: F32 | F64, count: int) -> Ids:
    """Indices, ascending, of at least the `count` largest values."""
    return Ranked(z).reaching(count)


def descending(z: F32 | F64) -> Ids:
    """Order of values [n] by falling value, equal ones by lower index.

    Many float32 are sorted as whole numbers made of the value's bits (mapped so that they sort like
    it) and the index, which is quicker than a stable sort.
    """
    if len(z) <= FEW or z.dtype != np.float32:
        return np.argsort(-z, kind="stable")
    bits = (z + np.float32(0)).view(np.uint32)  # + 0 makes -0 and 0 equal
    rank = np.where(bits >> _SIGN, bits, ~bits & _MAGNITUDE)
    keys = (rank.astype(np.uint64) << _HIGH) | np.arange(len(z), dtype=np.uint64)
    return (np.sort(keys) & _LOW).astype(np.int64)
