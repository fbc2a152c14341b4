"""Whether the CPU has kernels for how a graph's weights are stored, and its cache may be."""

from __future__ import annotations

from ..errors import DeviceError
from ..graph import Graph, Node
from ..kernels.encodings import ENCODINGS
from ..kernels.kv_codes import CODED
from ..kernels.ops import CATALOGUE
from ..kernels.states import LatentState


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
    """Stacked experts are nobody else's: their gates and ups are packed in turn."""
    for slot in CATALOGUE[node.op].matrix:
        name = node.weights[slot]
        if sum(name in other.weights.values() for other in graph.nodes) > 1:
            raise DeviceError(
                f"weight {name!r} of experts is read by other nodes too, expected one of its own",
                code="device-weights",
                hint="convert the model again",
            )


def cache_bits(graph: Graph, wanted: int) -> int:
    """Bits of keys and values, 0: the graph's own. Raises DeviceError for what there is none of."""
    if wanted not in (0, 4, 8, 16, 32):
        raise DeviceError(f"kv_bits is {wanted}, expected 4, 8, 16 or 32", code="kv-bits")
    if wanted in CODED and any(isinstance(s, LatentState) for s in graph.states.values()):
        raise DeviceError(
            f"kv_bits is {wanted}, this model keeps latents of its tokens, which have no codes, "
            "expected 16 or 32",
            code="kv-bits",
            hint="leave kv_bits out (--kv-bits): latents are several times smaller as they are",
        )
    exact = all(ENCODINGS[w.encoding].bits == 32 for w in graph.weights.values())
    return wanted or (32 if exact else 16)
