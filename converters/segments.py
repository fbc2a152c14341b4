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
    """Values to cut at: lone ones where no later node reads a state made before, and a wanted value
    was read since the last cut."""
    nodes = graph.nodes
    reads = [bool(set(node.inputs) & wanted) for node in nodes]
    lent, lone = _lent(graph), set(lone_values(graph))
    found, since = list[str](), False
    for i, node in enumerate(nodes):
        since = since or reads[i]
        if since and i in lone and not any(start <= i < stop for start, stop in lent):
            found.append(node.output)
            since = False
            if not any(reads[i + 1 :]):
                return found
    return [*found, graph.outputs[0].name] if since else found


def lone_values(graph: Graph) -> list[int]:
    """Nodes whose values, rows of T, are all of the nodes before that is read later on."""
    shapes, nodes = graph.shapes(), graph.nodes
    until = {name: i for i, node in enumerate(nodes) for name in node.inputs}  # its last reader
    alive = {value.name for value in graph.inputs if value.dtype == "f32"}
    found = list[int]()
    for i, node in enumerate(nodes):
        alive = {name for name in (*alive, node.output) if until.get(name, -1) > i}
        if alive == {node.output} and shapes[node.output][0] == "T":
            found.append(i)
    return found


def _lent(graph: Graph) -> list[tuple[int, int]]:
    """Of each state that other nodes borrow: its owner's place, and the last borrower's."""
    at = {node.state: i for i, node in enumerate(graph.nodes) if node.state}
    owners = {
        name: state.owner
        for name, state in graph.states.items()
        if isinstance(state, BorrowedState)
    }
    return [(at[owner], at[name]) for name, owner in owners.items() if owner in at]
