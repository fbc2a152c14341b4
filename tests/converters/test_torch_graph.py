"""The torch implementation: batches, gradients, replaced weights, calibration hooks (values: see
the catalogue test)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgert.converters.torch_graph import TorchGraph

from edgert.errors import ConvertError
from edgert.roles import vocab_size
from edgert.session.base import Feed
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..session.families import CONFIGS, family_graph
from ..tiny import tiny_graph, tiny_weights

GRAPH = tiny_graph(quant="f32", window=5)
WEIGHTS = tiny_weights(GRAPH)
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 120, (3, 20)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_equals_the_reference(name: str) -> None:
    graph, weights = family_graph(name)
    session = ReferenceSession(graph, weights)
    tokens = np.random.default_rng(1).integers(0, 120, 150).astype(np.int32)
    expected = session.step([Feed(session.new_state(150), tokens, "all")])[0].logits
    got = TorchGraph(graph, weights)(torch.from_numpy(tokens)[None])[0]
    assert_close(name, expected, got.numpy(), rms=1e-5)


def test_a_batch_equals_its_sequences() -> None:
    module = TorchGraph(GRAPH, WEIGHTS)
    together = module(TOKENS)
    assert together.shape == (3, 20, vocab_size(GRAPH))
    for row in range(3):
        alone = module(TOKENS[row : row + 1])[0]
        assert_close(f"sequence {row}", alone.numpy(), together[row].numpy(), rms=1e-6)
    picked = module(TOKENS, torch.tensor([19, 3]))
    assert_close("rows", together[:, [19, 3]].numpy(), picked.numpy(), rms=1e-6)


def test_no_row_sees_the_future() -> None:
    module = TorchGraph(GRAPH, WEIGHTS)
    changed = TOKENS.clone()
    changed[:, 12:] = 5
    assert torch.equal(module(TOKENS)[:, :12], module(changed)[:, :12])


def test_gradients_agree_with_finite_differences() -> None:
    graph = tiny_graph(quant="f32", layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ff=12)
    module = TorchGraph(graph, tiny_weights(graph), dtype=torch.float64)
    name = "l0.qkv"
    weight = module.weights[name].requires_grad_()
    targets = TOKENS[:1, 1:].reshape(-1)

    def loss(w: torch.Tensor) -> torch.Tensor:
        out = module(TOKENS[:1], weights={name: w})[0, :-1]
        return torch.nn.functional.cross_entropy(out, targets)

    (slope,) = torch.autograd.grad(loss(weight), weight)
    direction = torch.randn_like(weight, generator=None)
    step = 1e-5
    with torch.no_grad():
        measured = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(measured), rel=1e-4)
    assert all(not w.requires_grad for n, w in module.weights.items() if n != name)


def test_watch_sees_every_linear_input() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def watch(node: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if node.op == "linear":  # type: ignore[attr-defined]
            seen[node.weights["weight"]] = tuple(inputs[0].shape)  # type: ignore[attr-defined]

    TorchGraph(GRAPH, WEIGHTS)(TOKENS, watch=watch)
    assert seen["l0.down"] == (3, 20, 96)
    assert set(seen) == {n.weights["weight"] for n in GRAPH.nodes if n.op == "linear"}


def test_missing_and_misshapen_weights() -> None:
    with pytest.raises(ConvertError, match=r"'l0\.qkv' is missing"):
        TorchGraph(GRAPH, {k: v for k, v in WEIGHTS.items() if k != "l0.qkv"})
    with pytest.raises(ConvertError, match=r"expected \(64,\)"):
        TorchGraph(GRAPH, {**WEIGHTS, "norm": np.ones(63, np.float32)})
