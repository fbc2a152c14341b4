"""Which layers can be turned, and the graph with linear attention in some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import ConvertError
from ...graph import Graph, Node
from ...kernels.ops import CATALOGUE
from ...kernels.states import BorrowedState, KVState
from ..families.linear import LinearAttention, hybrid
from ..families.recipe import FamilyModel, Part, Recipe
from .options import LinearizeOptions

WIDE = 64  # head sizes above take fewer features
FEW = 32
NEAR = 64  # head sizes from here on have a window


@dataclass(frozen=True)
class Turn:
    """An attention layer that can be turned. source: the value its projections read. rows: what the
    attention reads, output: what it gives. window: whether it keeps softmax over the newest."""

    layer: int
    source: str
    rows: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    features: int
    window: bool = False


def turnable(graph: Graph, options: LinearizeOptions) -> list[Turn]:
    """Layers of full attention whose keys nobody else reads. Raises ConvertError for none."""
    lent = {s.owner for s in graph.states.values() if isinstance(s, BorrowedState)}
    makers, found = {node.output: node for node in graph.nodes}, list[Turn]()
    for node in graph.nodes:
        state = graph.states.get(node.state)
        if node.op != "attention" or not isinstance(state, KVState) or state.window:
            continue
        if "sinks" in node.weights:
            continue
        attrs = CATALOGUE["attention"].check_attrs(node.attrs)
        maker = makers.get(node.inputs[0])
        number = node.state.removeprefix("kv")
        if node.state in lent or attrs["softcap"] or maker is None or not number.isdecimal():
            continue
        if attrs["norm_last"] or maker.op == "scale_by_position":
            continue
        size = attrs["head_dim"]
        features = options.features or (size if size <= WIDE else FEW)
        heads, groups = attrs["heads"], attrs["kv_heads"]
        place = int(number), maker.inputs[0], node.inputs[0], node.output
        window = size >= NEAR if options.window is None else options.window
        found.append(Turn(*place, heads, groups, size, features, window))
    if not found:
        kinds = sorted({node.op for node in graph.nodes if node.state})
        raise ConvertError(
            f"no layer can be linearized among those with {kinds}, expected attention over the "
            "whole context, without a soft cap, sinks or norms behind the rotation, whose queries "
            "have no factors and whose keys no other layer reads",
            code="linearize-layers",
            hint="layers with a window remember little as they are",
        )
    return found


def hybrid_graph(graph: Graph, turned: Iterable[int], options: LinearizeOptions) -> Graph:
    """The graph with linear attention in some layers; names as the families have them."""
    recipes = {n: Recipe((Part(n, w.shape),)) for n, w in graph.weights.items()}
    turns = {turn.layer: turn for turn in turnable(graph, options)}
    chosen, faults = sorted(turned), list[str]()
    if not chosen:
        return graph
    first = turns[chosen[0]]
    spec = LinearAttention(
        mode=options.mode, features=first.features, chunk=options.chunk, maps=True, key_mean=True,
        window=first.window,
    )  # fmt: skip
    made = hybrid(FamilyModel(graph, recipes, {}), chosen, spec, faults)
    if faults:
        raise ConvertError(f"linearizing: {'; '.join(faults)}", code="linearize-layers")
    return made.graph


def layer_graph(graph: Graph, turn: Turn) -> Graph:
    """From a layer's input to its heads' outputs."""
    return graph.cut([turn.source], [turn.output], name=f"layer {turn.layer}")


def nodes_of(graph: Graph, turn: Turn) -> Mapping[str, Node]:
    """The nodes of a layer's attention, by op."""
    return {node.op: node for node in layer_graph(graph, turn).nodes}


def new_weights(graph: Graph, teacher: Graph) -> list[str]:
    """Names that the teacher does not have."""
    return [name for name in graph.weights if name not in teacher.weights]


def attention_weights(graph: Graph, turns: Sequence[Turn]) -> set[str]:
    """Weights of the turned layers' attention, with the projection behind it."""
    found = {name for turn in turns for name in layer_graph(graph, turn).weights}
    ends = {turn.output for turn in turns}
    for node in graph.nodes:
        if ends & set(node.inputs):
            found |= set(node.weights.values())
    return found
