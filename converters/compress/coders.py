"""Which projections a code keeps: the coding step of COMPOT (arXiv 2602.15200).

For an orthonormal dictionary the best code under a constraint on its support is the projections
themselves on the best support. A coder gives that support: `mask(p [n, k]) -> bool [n, k]`, where
row j holds the k projections of output column j. Every row of a mask has exactly `slots(k)` ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from . import checks
from .checks import F64

Mask = NDArray[np.bool_]


class Coder(Protocol):
    """A rule for supports."""

    def slots(self, k: int) -> int:
        """Kept projections of each output; ConvertError if k atoms do not fit the rule."""
        ...

    def arrange(self, d: F64) -> F64:
        """The first dictionary `[m, k]`, atoms by falling singular value, in this rule's order."""
        ...

    def mask(self, p: F64) -> Mask: ...


def largest(a: F64, count: int) -> Mask:
    """The `count` largest of each row of `a [rows, k]`, ties to the lower index."""
    k = a.shape[1]
    if count >= k:
        return np.ones(a.shape, np.bool_)
    edge = np.partition(a, k - count, axis=1)[:, k - count, None]
    keep: Mask = a >= edge
    tied = np.flatnonzero(np.count_nonzero(keep, axis=1) > count)
    if len(tied):
        above, level = a[tied] > edge[tied], a[tied] == edge[tied]
        room = count - np.count_nonzero(above, axis=1)
        keep[tied] = above | (level & (np.cumsum(level, axis=1) <= room[:, None]))
    return keep


@dataclass(frozen=True)
class TopS:
    """The s projections of largest magnitude of each output: the published rule."""

    s: int

    def slots(self, k: int) -> int:
        return checks.whole(self.s, "s", 1, k)

    def arrange(self, d: F64) -> F64:
        return d

    def mask(self, p: F64) -> Mask:
        return largest(np.abs(p), self.s)


@dataclass(frozen=True)
class NofM:
    """The `keep` largest of every `of` consecutive atoms (2:4 and the like; ours, not published).

    The atoms of one group should differ in rank: `strided` starts with ranks g, g + groups,
    g + 2 groups, ... in group g, instead of neighbours.
    """

    keep: int
    of: int
    strided: bool = True

    def slots(self, k: int) -> int:
        checks.whole(self.of, "of", 1)
        checks.whole(self.keep, "keep", 1, self.of)
        if k % self.of:
            raise ConvertError(
                f"k is {k}, expected a multiple of {self.of} for {self.keep}:{self.of} codes"
            )
        return k // self.of * self.keep

    def arrange(self, d: F64) -> F64:
        if not self.strided:
            return d
        return np.ascontiguousarray(d[:, np.arange(d.shape[1]).reshape(self.of, -1).T.ravel()])

    def mask(self, p: F64) -> Mask:
        return largest(np.abs(p).reshape(-1, self.of), self.keep).reshape(p.shape)


@dataclass(frozen=True)
class SharedSupport:
    """One support for every `outputs` adjacent outputs: the s atoms of largest summed energy.

    For comparison only: from two outputs on it loses to SVD-LLM. The last group may be smaller.
    """

    s: int
    outputs: int

    def slots(self, k: int) -> int:
        checks.whole(self.outputs, "outputs", 1)
        return checks.whole(self.s, "s", 1, k)

    def arrange(self, d: F64) -> F64:
        return d

    def mask(self, p: F64) -> Mask:
        energy = np.add.reduceat(p * p, np.arange(0, len(p), self.outputs), axis=0)
        return np.repeat(largest(energy, self.s), self.outputs, axis=0)[: len(p)]
