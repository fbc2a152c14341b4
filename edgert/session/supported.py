"""Whether the CPU has kernels for how a graph's weights are stored."""

from __future__ import annotations

from ..errors import DeviceError
from ..graph import Graph, Node
from ..kernels.encodings import ENCODINGS, on_cpu
from ..kernels.ops import CATALOGUE


def check_encodings(graph: Graph) -> None:
    """Raise DeviceError where it has none."""
    used = {weight.encoding for weight in graph.weights.values()}
    missing = sorted(name for name in used if ENCODINGS[name].cpu is None)
    if missing:
        known = sorted(row.name for row in ENCODINGS.values() if row.cpu is not None)
        raise DeviceError(
            f"the CPU session has no kernels for {missing} weights, expected some of {known}",
            code="device-weights",
            hint="use --device reference, or convert the model with another --quant",
        )
    for node in graph.nodes:
        if node.op == "experts":
            _check_experts(graph, node)


def _check_experts(graph: Graph, node: Node) -> None:
    """Stacked experts are in encodings that have kernels for them, and nobody else's."""
    for slot in CATALOGUE[node.op].matrix:
        name = node.weights[slot]
        encoding, shape = graph.weights[name].encoding, graph.weights[name].shape
        if not on_cpu(encoding, shape[-1]).experts:
            known = sorted(r.name for r in ENCODINGS.values() if r.cpu and r.cpu.experts)
            raise DeviceError(
                f"the CPU session has no kernels for experts ({name!r}) in {encoding}, expected "
                f"one of {known}",
                code="device-weights",
                hint="use --device reference, or convert the model with another --quant",
            )
        if sum(name in other.weights.values() for other in graph.nodes) > 1:
            raise DeviceError(
                f"weight {name!r} of experts is read by other nodes too, expected one of its own",
                code="device-weights",
                hint="convert the model again",
            )
