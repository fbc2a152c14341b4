"""Models with draft heads of random weights, whose guesses are right now and then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.draft.shape import embedding_node, head_graph, shape_for
from edgert.kernels.encodings import dequantize, quantize
from edgert.kernels.ops import CATALOGUE
from edgert.kernels.quant import Matrix

from edgert.graph import Graph, Weight
from edgert.session.base import Session
from edgert.session.cpu import CpuSession
from edgert.text.model import TextModel
from edgert.text.speculative.head import HeadModel, chain_of

from ...session.families import family_graph
from ...tiny import VOCAB, tiny_graph, tiny_weights
from .models import CONTEXT, text_model, tokenizer

IDS = np.array([i for i in range(VOCAB) if i % 5], np.int64)  # what the head can guess
FAMILIES = ("lfm2", "qwen3_next", "mamba2")  # short convolutions, gated delta, state space
KINDS = ("kv", "kv8", "window", *FAMILIES)


def target(kind: str) -> tuple[Graph, Mapping[str, Matrix]]:
    """A tiny model of a kind of state."""
    if kind in FAMILIES:
        return family_graph(kind, vocab_size=VOCAB)
    graph = tiny_graph(quant="int4", context=CONTEXT, layers=3, window=40 * (kind == "window"))
    return graph, tiny_weights(graph)


def random_head(graph: Graph, weights: Mapping[str, Matrix], *, encoding: str = "int8-g32") -> Any:
    """A head's graph and weights: its guesses follow the model's last tap, with noise."""
    made = head_graph(shape_for(graph, len(IDS)))
    rng, width = np.random.default_rng(3), made.weights["norm"].shape[0]
    held: dict[str, Matrix] = {}
    for name, spec in made.weights.items():
        if len(spec.shape) == 1:
            held[name] = np.ones(spec.shape, np.float32)
        else:
            held[name] = (0.3 * rng.standard_normal(spec.shape) / spec.shape[1] ** 0.5).astype("f4")
    half = len(held["inv_freq"])  # type: ignore[arg-type]
    held["inv_freq"] = (10_000.0 ** (-np.arange(half) / half)).astype(np.float32)
    held["fc"][:, -width:] += np.eye(width, dtype=np.float32)  # type: ignore[index]
    outputs = [n for n in graph.nodes if n.op == "linear"][-1].weights["weight"]
    held["head"] = dequantize(weights[outputs])[IDS]
    stored = {
        name: Weight(spec.shape, encoding if len(spec.shape) == 2 else "f32")
        for name, spec in made.weights.items()
    }
    held = {n: quantize(np.asarray(w), stored[n].encoding) for n, w in held.items()}
    return made.replace(weights=stored), held


def lookup_of(graph: Graph, weights: Mapping[str, Matrix]) -> Any:
    node = embedding_node(graph)
    op, held = CATALOGUE[node.op], {s: weights[n] for s, n in node.weights.items()}
    return lambda tokens: op.reference([tokens], held, op.check_attrs(node.attrs))


def with_head(
    session: Session, weights: Mapping[str, Matrix], folder: Path, head: Session | None = None
) -> TextModel:
    """A model over a session whose head has random weights."""
    made, held = random_head(session.graph, weights)
    taps = shape_for(session.graph, len(IDS)).taps

    def opened() -> HeadModel:
        own = head or CpuSession(made, held, threads=1, cache=folder)
        return HeadModel(
            own, tokenizer(), ids=IDS, taps=taps, lookup=lookup_of(session.graph, weights),
            chain=chain_of(own, session, session.graph, IDS),
        )  # fmt: skip

    return text_model(session, head=opened)


def model_with_head(kind: str, folder: Path) -> TextModel:
    graph, weights = target(kind)
    kv_bits = 8 * (kind == "kv8")
    session = CpuSession(graph, weights, threads=1, cache=folder, kv_bits=kv_bits)
    return with_head(session, weights, folder)
