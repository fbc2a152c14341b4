"""Documents behind each other in a training sequence are computed as if apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgert.converters.linearize import LinearizeOptions, plan
from edgert.converters.torch_graph import TorchGraph
from edgert.converters.torch_packed import documents_of, packed
from torch import Tensor

from edgert.errors import ConvertError
from edgert.graph import Graph
from tests.session.families import family_graph
from tests.tiny import tiny_graph, tiny_weights

ENDS = ([1, 20, 37], [5, 6, 50])  # where documents end in two sequences of 60 tokens


def documents() -> Tensor:
    tokens = torch.zeros(2, 60, dtype=torch.long)
    for row, ends in zip(tokens, ENDS, strict=True):
        row[ends] = 9
    return documents_of(tokens, 9)


def hybrid() -> tuple[Graph, dict[str, Tensor]]:
    """Layers of linear attention with a window, of full attention, and of a sliding window."""
    graph = tiny_graph(quant="f32", layers=4, window=8)
    asked = LinearizeOptions(1, chunk=16, window=True)
    turned = plan.hybrid_graph(graph, [0], asked)
    weights = {n: torch.from_numpy(np.array(w)) for n, w in tiny_weights(graph).items()}
    random = torch.Generator().manual_seed(1)
    for name, weight in turned.weights.items():
        if name not in weights:
            weights[name] = torch.randn(weight.shape, generator=random) * 0.3
    return turned, {name: weights[name] for name in turned.weights}


def apart(model: TorchGraph, tokens: Tensor, own: Tensor) -> Tensor:
    """Each document's rows from itself alone, put together again."""
    rows = []
    for text, document in zip(tokens, own, strict=True):
        parts = [model(text[None, document == n])[0] for n in range(int(document.max()) + 1)]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_places_begin_anew() -> None:
    found = packed(torch.tensor([[4, 4, 7, 4, 4, 4]]))
    assert found.place.tolist() == [[0, 1, 0, 0, 1, 2]]
    assert found.document.tolist() == [[1, 1, 2, 3, 3, 3]]
    assert documents_of(torch.tensor([[3, 1, 3, 3, 1]]), 3).tolist() == [[0, 1, 1, 2, 3]]


def test_oracle_7_a_hybrid_of_packed_documents() -> None:
    graph, weights = hybrid()
    assert {"causal_conv", "linear_attention", "attention"} <= {n.op for n in graph.nodes}
    model, own = TorchGraph(graph, weights), documents()
    tokens = torch.randint(0, 90, (2, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = apart(model, tokens, own)
        found = model(tokens, documents=own)
        mixed = model(tokens)
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()
    assert (mixed - wanted).abs().max() > 1e-2 * wanted.abs().max()


def test_gradients_of_packed_documents() -> None:
    graph, weights = hybrid()
    own, grads = documents(), []
    tokens = torch.randint(0, 90, (2, 60), generator=torch.Generator().manual_seed(3))
    for whole in (True, False):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items() if n != "inv_freq"}
        model = TorchGraph(graph, weights | leaves)
        rows = model(tokens, documents=own) if whole else apart(model, tokens, own)
        rows.square().mean().backward()
        grads.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, wanted in grads[1].items():
        found = grads[0][name]
        assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-8, name


def test_learned_positions_begin_anew() -> None:
    graph, arrays = family_graph("gpt2")
    model = TorchGraph(graph, arrays)
    tokens = torch.randint(0, 120, (2, 60), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = apart(model, tokens, documents())
        found = model(tokens, documents=documents())
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next", "phi3"])
def test_states_that_do_not_begin_anew_are_refused(family: str) -> None:
    graph, arrays = family_graph(family)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(ConvertError, match="where documents are packed") as info:
        TorchGraph(graph, arrays)(tokens, documents=torch.zeros_like(tokens))
    assert info.value.code == "torch-packed"
