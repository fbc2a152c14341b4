"""A model in memory as a session, for what a conversion measures and collects."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import Graph, Weight
from ..kernels.cpu import code
from ..kernels.encodings import encoding_of
from ..kernels.quant import Matrix
from ..session import kernel_cache
from ..session.base import Session
from ..session.cpu import CpuSession
from ..session.reference import ReferenceSession


def session_of(
    graph: Graph, weights: Mapping[str, Matrix], *, threads: int | None = None, context: int = 0
) -> Session:
    """The graph over weights in whatever encodings they have: on the CPU session, or on NumPy where
    there are no kernels. context: tokens of a sequence, 0: as the graph's."""
    declared = {name: Weight(w.shape, encoding_of(w).name) for name, w in weights.items()}
    graph = graph.replace(weights=declared)
    if not code.available():
        return ReferenceSession(graph, weights)
    return CpuSession(graph, weights, threads=threads, context=context, cache=kernel_cache())
