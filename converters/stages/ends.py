"""Embeddings and heads, which are stored otherwise than the matrices between."""

from __future__ import annotations

from ...graph import Graph


def ends_of(graph: Graph) -> set[str]:
    """Embeddings and, where there are some, the last linear's matrix: the head."""
    ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    if ends:
        ends |= {n.weights["weight"] for n in [n for n in graph.nodes if n.op == "linear"][-1:]}
    return ends
