"""Which weights of a part are not stored as asked for: small matrices, routers of experts, and all
of autoencoders.

A picture's parts have no calibration, so nothing measures what codes lose there; these rules keep
in 16 bits what is small and known to be sensitive.
"""

from __future__ import annotations

from ...graph import Graph
from ...kernels.encodings import ENCODINGS
from ...kernels.ops import CATALOGUE
from ...roles import STEPPED

HALF = "f16"
SMALL = 64  # rows or columns up to which a matrix is: patches, timesteps' and captions' sizes
WHOLE = ("decoder", "encoder")
CHANNELS = "int8-channel"  # what int8 means for pictures


def matrices(graph: Graph) -> set[str]:
    """Weights that may be in any encoding, by the slots of all nodes that use them."""
    held, exact = set[str](), set[str]()
    for node in graph.nodes:
        for slot, name in node.weights.items():
            (held if slot in CATALOGUE[node.op].matrix else exact).add(name)
    return held - exact


def made_for(graph: Graph, wanted: str) -> set[str]:
    """Matrices of few rows by what their products are: `gates`, decays and steps of recurrent
    layers, whose errors add up along a text; `logits`, by which experts are picked."""
    products = {node.output: node for node in graph.nodes if node.op == "linear"}
    found = set()
    for node in graph.nodes:
        for slot, value in zip(CATALOGUE[node.op].inputs, node.inputs, strict=True):
            if slot == wanted and value in products:
                found.add(products[value].weights["weight"])
    return found


def mixing(graph: Graph) -> set[str]:
    """Matrices by which streams are mixed: of coefficients, and of the routers that these take."""
    makers, found = {node.output: node for node in graph.nodes}, set[str]()
    for node in graph.nodes:
        maker = makers.get(node.inputs[1]) if node.op == "mix_streams" else None
        while maker is not None and maker.op in ("linear", "softcap"):
            found |= {maker.weights["weight"]} if maker.op == "linear" else set()
            maker = makers.get(maker.inputs[0])
    return found


def experts_of(graph: Graph) -> set[str]:
    """Matrices of stacked experts."""
    stacked = [node for node in graph.nodes if node.op == "experts"]
    return {node.weights[slot] for node in stacked for slot in CATALOGUE["experts"].matrix}


def by_head(graph: Graph) -> set[str]:
    """Matrices of single heads, whose codes no calibration chooses."""
    return {node.weights["weight"] for node in graph.nodes if node.op == "head_linear"}


def _rough(graph: Graph) -> set[str]:
    """Matrices whose inputs are too uneven for one scale a row: what comes out of activations, and
    patches under convolutions."""
    bent = {node.output for node in graph.nodes if node.op in ("activation", "glu")}
    users = [
        n for n in graph.nodes if n.op == "conv2d" or (n.op == "linear" and n.inputs[0] in bent)
    ]
    return {node.weights["weight"] for node in users}


def encodings_of(role: str, graph: Graph, quant: str, embed_quant: str) -> dict[str, str]:
    """Encodings of a part's weights where they are others than `quant`: of a language model those
    of gates and of single heads, stored as embeddings are, and of routers and what mixes streams,
    in 16 bits; of other parts small matrices and all of autoencoders. Matrices that only single
    rows go through, of timesteps and labels, are stored as embeddings are: they are read once a
    step. So are those that one scale a row is too coarse for, where it is asked for, and all of
    text encoders, whose activations have outliers."""
    if ENCODINGS[quant].plain:
        return {}
    if role in STEPPED:
        gates = dict.fromkeys(made_for(graph, "gates") | by_head(graph), embed_quant)
        return gates | dict.fromkeys(made_for(graph, "logits") | mixing(graph), HALF)
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
    if ENCODINGS[quant].channels:
        rough = _rough(graph) if role == "denoiser" else held
        chosen |= {name: embed_quant for name in rough if chosen[name] == quant}
    return chosen
