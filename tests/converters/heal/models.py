"""A tiny model, rounded, and sequences for it."""

from __future__ import annotations

import numpy as np
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import encodings
from edgert.kernels.quant import Matrix

from edgert.graph import Graph, Weight
from tests.tiny import tiny_graph, tiny_weights

Weights = dict[str, Matrix]
SIZES = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ff": 48, "vocab": 64}
TEACHER = tiny_graph(quant="f32", **SIZES)
ORIGINAL = tiny_weights(TEACHER)


def rounded(
    name: str, graph: Graph = TEACHER, weights: Weights = ORIGINAL
) -> tuple[Graph, Weights]:
    """The model with its matrices in an encoding, the embedding in int8-g32."""
    declared, found = {}, {}
    for weight, spec in graph.weights.items():
        matrix = "int8-g32" if weight == "embed" else name
        encoding = matrix if len(spec.shape) == 2 else "f32"
        declared[weight] = Weight(spec.shape, encoding)
        found[weight] = encodings.quantize(np.asarray(weights[weight]), encoding)
    return graph.replace(weights=declared), found


def sequences(count: int = 24, length: int = 16, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, SIZES["vocab"], (count, length)).astype(np.int32))


def log_odds(graph: Graph, weights: Weights, ids: np.ndarray) -> np.ndarray:
    """float64 [T, V]."""
    import torch

    logits = TorchGraph(graph, weights)(torch.from_numpy(ids[None]).long())[0].double()
    return np.asarray(logits.log_softmax(-1).numpy())


def divergence_between(
    teacher: tuple[Graph, Weights], model: tuple[Graph, Weights], rows: list[np.ndarray]
) -> float:
    """KL(teacher || model), nats a token."""
    total = 0.0
    for ids in rows:
        target, guess = log_odds(*teacher, ids), log_odds(*model, ids)
        total += float((np.exp(target) * (target - guess)).sum(-1).mean())
    return total / len(rows)


def divergence(graph: Graph, weights: Weights, rows: list[np.ndarray]) -> float:
    """KL(original || model), nats a token."""
    return divergence_between((TEACHER, ORIGINAL), (graph, weights), rows)
