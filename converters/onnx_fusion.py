"""Nodes of a graph that are emitted as one."""

from __future__ import annotations

from collections import Counter

from ..graph import Graph

MODULATED = ("modulate", "gated_add")  # ops that read chunks of a modulation row


def modulated_norms(graph: Graph) -> dict[str, str]:
    """Layer norms without weights that one modulation alone reads and becomes a part of: their
    outputs by its output."""
    norms = {n.output for n in graph.nodes if n.op == "layer_norm" and not n.weights}
    read = Counter(value for node in graph.nodes for value in node.inputs)
    read.update(value.name for value in graph.outputs)
    return {
        node.output: node.inputs[0]
        for node in graph.nodes
        if node.op == "modulate" and node.inputs[0] in norms and read[node.inputs[0]] == 1
    }
