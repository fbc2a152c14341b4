"""A graph in pieces that follow each other, for passes that hold one piece in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Graph
from ..kernels.states import BorrowedState


def segments(graph: Graph, wanted: Sequence[str]) -> list[Graph]:
    """The graph in pieces that each begin with the one value that the piece before ends with, up to
    the last that reads one of the values `wanted`; every piece reads some of them."""
    found: list[Graph] = []
    start: list[str] = []
    for value in _cuts(graph, set(wanted)):
        found.append(graph.cut(start, [value], name=f"{graph.name}, to {value}"))
        start = [value]
    return found


def _cuts(graph: Graph, wanted: set[str]) -> list[str]:
    """Values to cut at: where that value alone is read later on, no later node reads a state made
    before, and a wanted value was read since the last cut."""
    shapes, nodes = graph.shapes(), graph.nodes
    reads = [bool(set(node.inputs) & wanted) for node in nodes]
    until = {name: i for i, node in enumerate(nodes) for name in node.inputs}  # its last reader
    lent = _lent(graph)
    alive = {value.name for value in graph.inputs if value.dtype == "f32"}
    found, since = list[str](), False
    for i, node in enumerate(nodes):
        alive = {name for name in (*alive, node.output) if until.get(name, -1) > i}
        since = since or reads[i]
        alone = alive == {node.output} and shapes[node.output][0] == "T"
        if since and alone and not any(start <= i < stop for start, stop in lent):
            found.append(node.output)
            since = False
            if not any(reads[i + 1 :]):
                return found
    return [*found, graph.outputs[0].name] if since else found


def _lent(graph: Graph) -> list[tuple[int, int]]:
    """Of each state that other nodes borrow: its owner's place, and the last borrower's."""
    at = {node.state: i for i, node in enumerate(graph.nodes) if node.state}
    owners = {
        name: state.owner
        for name, state in graph.states.items()
        if isinstance(state, BorrowedState)
    }
    return [(at[owner], at[name]) for name, owner in owners.items() if owner in at]
