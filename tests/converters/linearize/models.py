"""A tiny model that looks things up: pairs of a key and its value, which every text deals anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels.quant import Matrix

from edgert.graph import Graph
from tests.tiny import tiny_graph, tiny_weights

VOCAB, KEYS, PAIRS, LENGTH = 32, 12, 4, 64
SIZES = {
    "layers": 2, "width": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "ff": 96, "vocab": VOCAB,
}  # fmt: skip


class Teacher(NamedTuple):
    graph: Graph
    weights: dict[str, Matrix]
    train: np.ndarray
    held: np.ndarray
    nats: float


def texts(count: int, seed: int) -> np.ndarray:
    """int32 [count, LENGTH]: a key, its value, and so on, some pairs of keys and values a text."""
    rng = np.random.default_rng(seed)
    rows = np.empty((count, LENGTH), np.int32)
    for row in rows:
        keys = rng.permutation(KEYS)[:PAIRS]
        values = KEYS + rng.integers(0, VOCAB - KEYS, PAIRS)
        picked = rng.integers(0, PAIRS, LENGTH // 2)
        row[::2], row[1::2] = keys[picked], values[picked]
    return rows


def trained(steps: int = 300, batch: int = 16) -> Teacher:
    """A softmax model after some seconds of training."""
    torch.manual_seed(0)
    graph = tiny_graph(quant="f32", **SIZES)
    weights = {n: torch.from_numpy(np.array(w)) for n, w in tiny_weights(graph).items()}
    leaves = [w.requires_grad_() for name, w in weights.items() if "inv_freq" not in name]
    model, rows = TorchGraph(graph, weights), texts(4000, 1)
    optimizer = torch.optim.AdamW(leaves, 3e-3, weight_decay=0.01)
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30) * (1 - step / steps) + 1e-5
        at = step * batch % (len(rows) - batch)
        tokens = torch.from_numpy(rows[at : at + batch]).long()
        odds = model(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(odds, tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    arrays = {name: np.asarray(w.detach().numpy()) for name, w in weights.items()}
    return Teacher(graph, arrays, rows.reshape(-1), texts(24, 2).reshape(-1), loss.item())
