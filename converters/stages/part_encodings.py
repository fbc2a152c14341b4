"""Which weights of a part are not stored as asked for: small matrices, and all of autoencoders.

A picture's parts have no calibration, so nothing measures what codes lose there; these rules keep
in 16 bits what is small and known to be sensitive.
"""

from __future__ import annotations

from ...graph import Graph
from ...kernels.encodings import ENCODINGS, EXACT
from ...kernels.ops import CATALOGUE
from ...roles import STEPPED

HALF = "f16"
SMALL = 64  # rows or columns up to which a matrix is: patches, timesteps' and captions' sizes
WHOLE = ("decoder", "encoder")


def matrices(graph: Graph) -> set[str]:
    """Weights that may be in any encoding, by the slots of all nodes that use them."""
    held, exact = set[str](), set[str]()
    for node in graph.nodes:
        for slot, name in node.weights.items():
            (held if slot in CATALOGUE[node.op].matrix else exact).add(name)
    return held - exact


def _gates(graph: Graph) -> set[str]:
    """Matrices of few rows whose products are decays and steps of recurrent layers: their errors
    add up along a text."""
    products = {node.output: node for node in graph.nodes if node.op == "linear"}
    found = set()
    for node in graph.nodes:
        for slot, value in zip(CATALOGUE[node.op].inputs, node.inputs, strict=True):
            if slot == "gates" and value in products:
                found.add(products[value].weights["weight"])
    return found


def encodings_of(role: str, graph: Graph, quant: str, embed_quant: str) -> dict[str, str]:
    """Encodings of a part's weights where they are others than `quant`: of a language model those
    of gates, stored as embeddings are; of other parts small matrices and all of autoencoders.
    Matrices that only single rows go through, of timesteps and labels, are stored as embeddings
    are: they are read once a step."""
    if quant == EXACT or ENCODINGS[quant].grid is None:
        return {}
    if role in STEPPED:
        return dict.fromkeys(_gates(graph), embed_quant)
    chosen, held = dict[str, str](), matrices(graph)
    shapes, single = graph.shapes(), set(held)
    for node in graph.nodes:
        if node.op != "linear" or shapes[node.inputs[0]][0] != 1:
            single -= set(node.weights.values())
    tables = {node.weights["weight"] for node in graph.nodes if node.op == "embed"}
    for name in held:
        shape = graph.weights[name].shape
        if role in WHOLE or min(shape) < SMALL:
            chosen[name] = HALF
        else:
            chosen[name] = embed_quant if name in single | tables else quant
    return chosen
