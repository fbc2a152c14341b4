"""Keys and values that several layers share: the key `kv_map` of a config of any family.

    "kv_map": [0, 0, 2, 2]      a layer's owner: it attends over the keys and values of that layer

A layer whose owner is another one has queries alone: its checkpoint holds neither k_proj nor v_proj
nor k_norm. It appends nothing to the cache and reads the owner's rows, which are rotated already.
Owners come first and own theirs: kv_map[n] <= n, kv_map[kv_map[n]] == kv_map[n]. Layers that are
no attention (linear, convolutions) name themselves.

CLA shares between neighbours (arXiv 2405.12981): [0, 0, 2, 2, ...]. YOCO has one owner for the
upper half (arXiv 2405.05254), above layers with a window or linear attention: [0, 1, 2, 2, ...].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ...graph import Graph, Node, Weight
from ...kernels.ops import CATALOGUE
from ...kernels.states import BorrowedState, KVState, StateSpec
from .config import short
from .recipe import FamilyModel, Part, Recipe

KEY = "kv_map"
_OWNERS = ("k_norm",)  # weights of an attention node that its queries do not need


def split(config: Mapping[str, Any], faults: list[str]) -> tuple[Mapping[str, Any], list[int]]:
    """A config without the key, and the owner of each layer."""
    given, count = config.get(KEY), config.get("num_hidden_layers")
    rest = {key: value for key, value in config.items() if key != KEY}
    owners = given if isinstance(given, list) else []
    if len(owners) != count or not all(type(owner) is int for owner in owners):
        faults.append(
            f"config {KEY!r} is {short(given)}, expected the owner of each of {short(count)} layers"
        )
        return rest, []
    wrong = map_faults(owners)
    faults += wrong
    return rest, [] if wrong else owners


def map_faults(kv_map: Sequence[int]) -> list[str]:
    """What is wrong with a map by itself: owners that come later, or read from others."""
    found = []
    for layer, owner in enumerate(kv_map):
        if not 0 <= owner <= layer:
            found.append(f"{KEY}: the owner of layer {layer} is {owner}, expected 0 to {layer}")
        elif kv_map[owner] != owner:
            found.append(
                f"{KEY}: the owner of layer {layer} is {owner}, which reads layer {kv_map[owner]}, "
                "expected a layer with keys and values of its own"
            )
    return found


def shared(model: FamilyModel, kv_map: Sequence[int], faults: list[str]) -> FamilyModel:
    """A model whose layers have the owners of `kv_map` (states "kv<N>"); what does not fit goes
    into `faults`."""
    if not kv_map or faults:
        return model
    graph, wrong = model.graph, list[str]()
    nodes = {node.output: node for node in graph.nodes}
    states, recipes = dict(graph.states), dict(model.tensors)
    for layer, owner in enumerate(kv_map):
        if owner != layer:
            fault = _unfit(graph, layer, owner) or _borrow(nodes, states, recipes, layer, owner)
            wrong += [f"{KEY}: layer {layer} cannot read layer {owner}: {fault}"] * bool(fault)
    if wrong:
        faults += wrong
        return model
    used = dict.fromkeys(name for node in nodes.values() for name in node.weights.values())
    weights = {name: Weight(recipes[name].shape) for name in graph.weights if name in used}
    made = graph.replace(nodes=tuple(nodes.values()), weights=weights, states=states)
    inputs, outputs = ([value.name for value in values] for values in (made.inputs, made.outputs))
    made = made.cut(inputs, outputs, name=made.name)  # without what nobody reads any more
    return replace(model, graph=made, tensors={name: recipes[name] for name in made.weights})


def _unfit(graph: Graph, layer: int, owner: int) -> str:
    """Why a layer's queries do not fit the keys and values of another, "" where they do."""
    mine, other = (graph.states.get(f"kv{n}") for n in (layer, owner))
    if not isinstance(mine, KVState) or not isinstance(other, KVState):
        none = owner if isinstance(mine, KVState) else layer
        return f"layer {none} has no keys and values of its own"
    sizes = [(state.kv_heads, state.head_dim) for state in (mine, other)]
    if sizes[0] != sizes[1]:
        return f"heads of {sizes[0]}, expected the owner's {sizes[1]}"
    if other.window and not 0 < mine.window <= other.window:
        return f"a window of {mine.window}, expected at most the owner's {other.window}"
    return ""


def _borrow(
    nodes: dict[str, Node],
    states: dict[str, StateSpec],
    recipes: dict[str, Recipe],
    layer: int,
    owner: int,
) -> str:
    """Put a reader of the owner's cache in place of a layer's attention, and queries in place of
    its projections; says why where these cannot be told apart."""
    name = f"kv{layer}"
    node = next(n for n in nodes.values() if n.state == name)
    attrs = CATALOGUE["attention"].check_attrs(node.attrs)
    rows, maker = node.inputs[0], nodes.get(node.inputs[0])
    while maker is not None and maker.op == "concat":  # q is what the others are put behind
        rows, maker = maker.inputs[0], nodes.get(maker.inputs[0])
    if maker is not None and maker.op == "linear":
        for weight in maker.weights.values():
            recipes[weight] = first_rows(recipes[weight], attrs["heads"] * attrs["head_dim"])
    elif rows == node.inputs[0]:
        return "its queries, keys and values come from no projection that can be cut"
    weights = {slot: w for slot, w in node.weights.items() if slot not in _OWNERS}
    made = msgspec.structs.replace(node, op="shared_attention", inputs=(rows,), weights=weights)
    nodes[node.output], states[name] = made, BorrowedState(f"kv{owner}")
    return ""


def first_rows(recipe: Recipe, count: int) -> Recipe:
    """The first `count` rows of a weight."""
    parts, left = list[Part](), count
    for part in recipe.parts:
        start, stop = part.span
        if left >= stop - start:
            parts.append(part)
        elif left:
            parts.append(part._replace(rows=(start, start + left)))
        left -= min(left, stop - start)
    return replace(recipe, parts=tuple(parts))
