"""How many inputs of a graph one call may compute, by the bytes of what lives at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from .. import limits, system_memory
from ..graph import Graph
from ..kernels.ops import Shape


def bytes_of_one(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Bytes of the values that are needed together while one input is computed, at the most, in
    float32, attention's scores among them. sizes: rows of symbols, 1 for those not named."""
    shapes = graph.shapes()
    rows = {
        n: sizes.get(str(s[0]), 1) if isinstance(s[0], str) else s[0] for n, s in shapes.items()
    }
    size = {n: 4 * rows[n] * (int(s[-1]) if len(s) > 1 else 1) for n, s in shapes.items()}
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    last |= {value.name: len(graph.nodes) for value in graph.outputs}
    alive = {value.name for value in graph.inputs}
    most = sum(size[name] for name in alive)
    for at, node in enumerate(graph.nodes):
        alive.add(node.output)
        scratch = size[node.output]
        if node.op == "dot_attention":
            scratch += 4 * int(node.attrs["heads"]) * rows[node.inputs[0]] * rows[node.inputs[1]]
        most = max(most, scratch + sum(size[name] for name in alive))
        alive -= {name for name in alive if last.get(name, -1) <= at}
    return most


def inputs_that_fit(graph: Graph, sizes: Mapping[str, int], *, device: bool) -> int:
    """At least 1. device: whether values are in memory of its own, which nobody can ask about."""
    room = limits.BATCH_BYTES
    if not device:
        room = min(room, system_memory.free() // 2)
    return max(1, room // max(1, bytes_of_one(graph, sizes)))


def _rows(shape: Shape, sizes: Mapping[str, int]) -> int:
    first = shape[0]
    return sizes.get(first, 1) if isinstance(first, str) else first
