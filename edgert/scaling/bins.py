"""Bins of equal mass over log compute that keep models of one base compute together."""

from __future__ import annotations

import numpy as np

from .loss import F64

BINS, LEAST = 10, 30


def edges_of(z: F64, *, bins: int = BINS, least: int = LEAST) -> F64:
    """Edges e_0 < e_1 < ...; bin i is [e_i, e_i+1), the last one closed. One value of z gives one
    bin of no width, [z, z]."""
    values, counts = np.unique(z, return_counts=True)
    if len(values) == 1:
        return np.array([values[0], values[0]])
    target = max(least, -(-len(z) // min(bins, len(values))))
    edges, mass = [float(values[0])], 0
    for index, (value, count) in enumerate(zip(values, counts, strict=True)):
        mass += int(count)
        if mass >= target or index == len(values) - 1:
            edges.append(float(value))
            mass = 0
    return _merged(z, np.unique(edges), least)


def _merged(z: F64, edges: F64, least: int) -> F64:
    """Without bins of fewer than `least` points: their edge towards the smaller neighbour goes."""
    while len(edges) > 2:
        counts = counts_of(z, edges)
        small = np.flatnonzero(counts < least)
        if not len(small):
            break
        at = int(small[0])
        left = counts[at - 1] if at else np.inf
        right = counts[at + 1] if at + 1 < len(counts) else np.inf
        edges = np.delete(edges, at if left <= right else at + 1)
    return edges


def index_of(z: F64, edges: F64) -> np.ndarray:
    """The bin of each value; what lies outside belongs to the bins at the ends. int64."""
    found = np.searchsorted(edges, z, side="right") - 1
    return np.clip(found, 0, len(edges) - 2)


def counts_of(z: F64, edges: F64) -> np.ndarray:
    """Points in each bin, int64."""
    return np.bincount(index_of(z, edges), minlength=len(edges) - 1)


def midpoints(edges: F64) -> F64:
    """The middle of each bin."""
    found: F64 = (edges[:-1] + edges[1:]) / 2
    return found
