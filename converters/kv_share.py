"""Which layers of a finished model can read the keys and values of another one (KVSharer).

After arXiv 2410.18517, without training: keys and values of each layer are averaged over short
pieces of text, position by position; pairs of layers are visited from the most dissimilar down
(sharing between alike layers costs more, as its authors found); the later layer of a pair reads the
earlier one's keys and values, if the model then still says the same. They ask for a cosine of the
last hidden states above 0.5; here it is a KL of at most LIMIT nats a token to the original, which a
distribution of tokens can be judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConvertError
from ..graph import Graph
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from ..kernels.states import BorrowedState, KVState
from .families.recipe import FamilyModel, Part, Recipe
from .families.sharing import shared
from .torch_graph import TorchGraph, heads_of

LIMIT = 0.05  # nats a token
PIECES, TOKENS = 30, 64  # that keys and values are averaged over
JUDGED = 8, 128  # pieces and their tokens that the KL is measured on

Ids = NDArray[np.int32]
Means = Mapping[int, tuple[Tensor, Tensor]]  # by layer: keys and values [G, T, D]


@dataclass(frozen=True)
class Found:
    """kv_map: the owner of each layer. shared: layer -> owner, in the order that they were found.
    kl: nats a token to the original on the text of the search; refused: pairs that cost more than
    LIMIT, and least: what the cheapest of them costs."""

    kv_map: tuple[int, ...]
    shared: Mapping[int, int]
    kl: float
    refused: int
    least: float = 0.0


def layers_of(graph: Graph) -> list[int]:
    """Layers with keys and values that nobody else reads yet, states "kv<N>". Raises ConvertError
    for fewer than two."""
    lent = {s.owner for s in graph.states.values() if isinstance(s, BorrowedState)}
    found = [
        int(number)
        for name, state in graph.states.items()
        if isinstance(state, KVState) and name not in lent
        and (number := name.removeprefix("kv")).isdecimal()
    ]  # fmt: skip
    if len(found) < 2:
        raise ConvertError(
            f"{len(found)} layers with keys and values of their own, expected two or more to share",
            code="kv-share-layers",
            hint="convert without --kv-share",
        )
    return sorted(found)


def shared_graph(graph: Graph, kv_map: Sequence[int]) -> tuple[Graph, dict[str, int]]:
    """The graph with these owners, and how many rows stay of each weight. Raises ConvertError
    where heads or windows do not fit, or projections cannot be cut."""
    recipes = {name: Recipe((Part(name, w.shape),)) for name, w in graph.weights.items()}
    faults: list[str] = []
    made = shared(FamilyModel(graph, recipes, {}), kv_map, faults)
    if faults:
        raise ConvertError("; ".join(faults), code="kv-share-layers")
    return made.graph, {name: recipe.shape[0] for name, recipe in made.tensors.items()}


def averages(model: TorchGraph, pieces: Sequence[Ids], layers: Sequence[int]) -> Means:
    """Keys and values of each layer, rotated, averaged over pieces of one length."""
    wanted, sums = {f"kv{layer}": layer for layer in layers}, dict[int, tuple[Tensor, Tensor]]()

    def watch(node: Any, inputs: tuple[Tensor, ...]) -> None:
        if node.op == "attention" and node.state in wanted:
            slots = {slot: model.weights[name] for slot, name in node.weights.items()}
            attrs = CATALOGUE["attention"].check_attrs(node.attrs)
            _, k, v = heads_of(inputs[0], slots, attrs)
            sums[wanted[node.state]] = k.mean(0), v.mean(0)

    with torch.no_grad():
        model(torch.from_numpy(np.stack(pieces)).long(), watch=watch)
    return sums


def distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Mean of the Euclidean distances of two layers' keys and of their values."""
    return float(sum((x - y).norm(dim=-1).mean() for x, y in zip(a, b, strict=True)) / 2)


def pairs_of(graph: Graph, means: Means) -> list[tuple[int, int]]:
    """(later layer, earlier one) of layers that fit each other, the most dissimilar first."""
    fitting = []
    for early, late in combinations(sorted(means), 2):
        a, b = graph.states[f"kv{early}"], graph.states[f"kv{late}"]
        if a == b:  # heads and windows
            fitting.append((distance(means[early], means[late]), late, early))
    return [(late, early) for _, late, early in sorted(fitting, reverse=True)]


def log_probabilities(model: TorchGraph, pieces: Iterable[Ids]) -> Iterator[Tensor]:
    """float32 [T, V] a piece."""
    for piece in pieces:
        with torch.no_grad():
            rows = model(torch.from_numpy(piece)[None].long())[0].float().log_softmax(-1)
        yield rows


def divergence(original: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Nats a token: the mean KL of a model to the original, of rows piece by piece."""
    pairs = zip(original, found, strict=True)
    sums = [(float((p.exp() * (p - q)).sum()), len(p)) for p, q in pairs]
    return sum(kl for kl, _ in sums) / sum(count for _, count in sums)


def search(
    graph: Graph, weights: Mapping[str, Matrix], sequences: Sequence[Ids], count: int
) -> Found:
    """Let up to `count` layers read the keys and values of others. sequences: int32 [T] each, of
    the calibration text. Raises ConvertError for models with too few layers that could."""
    layers = layers_of(graph)
    model = TorchGraph(graph, weights)
    length = min(TOKENS, *(len(ids) for ids in sequences))
    cut = [ids[at : at + length] for ids in sequences for at in (0, len(ids) - length)]
    means = averages(model, cut[:PIECES], layers)
    judged = [ids[: JUDGED[1]] for ids in sequences[: JUDGED[0]]]
    original = list(log_probabilities(model, judged))
    size = 1 + max(int(n) for s in graph.states if (n := s.removeprefix("kv")).isdecimal())
    kv_map, found, refused, kl = list(range(size)), dict[int, int](), list[float](), 0.0
    for late, early in pairs_of(graph, means):
        owner = kv_map[early]
        if kv_map[late] != late or late in found.values() or len(found) == count:
            continue
        tried = [*kv_map[:late], owner, *kv_map[late + 1 :]]
        made, rows = shared_graph(graph, tried)
        kept = {name: model.weights[name][:stop] for name, stop in rows.items()}
        cost = divergence(original, log_probabilities(TorchGraph(made, kept), judged))
        if cost > LIMIT:
            refused.append(cost)
            continue
        kv_map, found, kl = tried, found | {late: owner}, cost
    return Found(tuple(kv_map), found, kl, len(refused), min(refused, default=0.0))
