"""Weights that a source has in codes already, taken over as they are.

A source's tensor says by `kept` in which encoding its codes are, and gives them by `stored`; one
whose codes no encoding has says by `instead` in which they are chosen anew. Float tensors are taken
over as floats: bfloat16 as float16. A product whose rows come from tensors in
different encodings becomes several products, one for each encoding, whose rows are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from ..graph import Graph, Node, Weight
from ..kernels.encodings import ENCODINGS, EXACT, damage
from ..kernels.quant import Quantized
from .families.recipe import Part, Recipe
from .sources.base import PlannedPart, SourceTensor
from .stages.part_encodings import experts_of

Tensors = Mapping[str, SourceTensor]
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "f16"}
ANEW = "int8-g32"  # of codes that cannot stay, since their values are wanted otherwise


def encoding_of(part: Part, tensors: Tensors) -> str:
    """The encoding in which a tensor is taken over."""
    tensor = tensors[part.name if part.name in tensors else part.alias]
    kept: str = getattr(tensor, "kept", "")
    if kept and part.plain:
        return kept
    instead: str = getattr(tensor, "instead", "") or (ANEW if kept else "")
    return instead or FLOATS[tensor.dtype]


def is_kept(recipe: Recipe, tensors: Tensors, encoding: str) -> bool:
    """Whether all tensors of a recipe have codes of this encoding, taken over as they are."""
    found = [tensors[p.name if p.name in tensors else p.alias] for p in recipe.parts]
    plain = all(part.plain for part in recipe.parts)
    kept = all(getattr(tensor, "kept", "") == encoding for tensor in found)
    return bool(found) and plain and kept


def encodings(part: PlannedPart, tensors: Tensors) -> dict[str, str]:
    """The encoding of each weight of a part that `split` has seen. Stacks of experts in several
    encodings cannot be divided: their codes are chosen anew."""
    found = {name: _encoding(recipe, tensors) for name, recipe in part.weights.items()}
    return found | {name: ANEW for name in experts_of(part.graph) if not found[name]}


def _encoding(recipe: Recipe, tensors: Tensors) -> str:
    """The common encoding of a recipe's tensors; of several floats the widest; "" for several."""
    if recipe.values is not None or len(recipe.shape) == 1:
        return EXACT
    found = {encoding_of(part, tensors) for part in recipe.parts}
    if found <= set(FLOATS.values()):
        return EXACT if EXACT in found else "f16"
    return found.pop() if len(found) == 1 else ""


def split(part: PlannedPart, tensors: Tensors) -> PlannedPart:
    """The part with every product's weight in one encoding."""
    weights = dict(part.graph.weights)
    recipes = dict(part.weights)
    nodes: list[Node] = []
    for node in part.graph.nodes:
        name = node.weights.get("weight", "")
        if node.op != "linear" or _encoding(part.weights[name], tensors):
            nodes.append(node)
            continue
        made = _pieces(node, part.weights, tensors)
        for slot in node.weights.values():
            weights.pop(slot, None)
            recipes.pop(slot, None)
        for piece, owned in made:
            nodes.append(piece)
            recipes |= owned
            weights |= {key: Weight(recipe.shape) for key, recipe in owned.items()}
    graph: Graph = msgspec.structs.replace(part.graph, nodes=tuple(nodes), weights=weights)
    return replace(part, graph=graph, weights=recipes)


def _pieces(
    node: Node, recipes: Mapping[str, Recipe], tensors: Tensors
) -> list[tuple[Node, dict[str, Recipe]]]:
    """Products of neighbouring parts in one encoding, and what puts their rows together."""
    name, bias = node.weights["weight"], node.weights.get("bias", "")
    parts = list(enumerate(recipes[name].parts))
    groups = [list(g) for _, g in groupby(parts, lambda item: encoding_of(item[1], tensors))]
    made: list[tuple[Node, dict[str, Recipe]]] = []
    rows = ""
    for index, group in enumerate(groups):
        own, owned = f"{name}.{index}", {f"{name}.{index}": Recipe(tuple(p for _, p in group))}
        slots = {"weight": own}
        if bias:
            slots["bias"] = f"{bias}.{index}"
            owned[slots["bias"]] = Recipe(tuple(recipes[bias].parts[i] for i, _ in group))
        made.append((Node("linear", node.inputs, f"{own}.y", slots), owned))
        if not rows:
            rows = f"{own}.y"
            continue
        last = index == len(groups) - 1
        output = node.output if last else f"{own}.rows.y"
        made.append((Node("concat", (rows, f"{own}.y"), output), {}))
        rows = output
    return made


def stored_rows(
    encoding: str, pieces: list[tuple[Part, SourceTensor, int, int]]
) -> dict[str, NDArray[Any]]:
    """Rows of tensors in an encoding, by suffix. Raises ConvertError for scales that are no finite
    numbers. pieces: part, tensor, first row and the one after the last."""
    row, found = ENCODINGS[encoding], []
    for part, tensor, start, stop in pieces:
        tensors = _in_order(part, tensor, start, stop)
        shape = (stop - start, *tensor.shape[1:])
        if fault := damage(Quantized(encoding, shape, tensors)):
            raise ConvertError(
                f"tensor {part.name!r}, rows {start} to {stop}: {fault}",
                code="weight-values",
                hint="the file is damaged or its making went wrong; take another one",
                tensor=part.name,
            )
        found.append(tensors)
    return {
        t.suffix: found[0][t.key]
        if len(found) == 1
        else np.concatenate([tensors[t.key] for tensors in found])
        for t in row.tensors
    }


def _in_order(part: Part, tensor: Any, start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Rows [start, stop) of a part as tensors of its encoding, by key."""
    if part.pairs is None:
        whole: dict[str, NDArray[Any]] = tensor.stored(start, stop)
        return whole
    low, high, at = part.placed(start, stop)
    return {key: np.ascontiguousarray(rows[at]) for key, rows in tensor.stored(low, high).items()}
