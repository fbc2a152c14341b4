"""The search for layers that can read the keys and values of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters import kv_share
from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.recipes import Asked, is_kept, resolve
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels.states import BorrowedState

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.evaluation.verify import greedy
from edgert.session import SessionOptions, open_session

from ..session.families import family_graph
from .test_linear_families import SIZES, tensors_of, write_checkpoint

SIX = {"num_hidden_layers": 6}
TEXT = "What is said here is said again, and said again, until nobody hears it. " * 60


def pieces(count: int = 6, length: int = 80) -> list[Any]:
    return list(np.random.default_rng(2).integers(0, 120, (count, length)).astype(np.int32))


def test_pairs_come_from_the_most_dissimilar_down() -> None:
    graph, weights = family_graph("llama", **SIX)
    model = TorchGraph(graph, weights)
    means = kv_share.averages(model, pieces(), range(6))
    keys = [means[layer][0].double().numpy() for layer in range(6)]
    values = [means[layer][1].double().numpy() for layer in range(6)]
    assert keys[0].shape == (2, 80, 16)
    expected = sorted(
        (
            (np.linalg.norm(keys[i] - keys[j], axis=-1).mean()
             + np.linalg.norm(values[i] - values[j], axis=-1).mean(), i, j)
            for i in range(6) for j in range(i)
        ),
        reverse=True,
    )  # fmt: skip
    assert kv_share.pairs_of(graph, means) == [(i, j) for _, i, j in expected]


def test_what_is_shared_costs_less_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = family_graph("llama", **SIX)
    monkeypatch.setattr(kv_share, "LIMIT", 10.0)
    every = kv_share.search(graph, weights, pieces(), 3)
    assert len(every.shared) == 3
    assert [every.kv_map[layer] for layer in every.shared] == list(every.shared.values())
    assert all(every.kv_map[owner] == owner <= layer for layer, owner in every.shared.items())
    assert every.kl > 0
    monkeypatch.setattr(kv_share, "LIMIT", every.kl / 2)
    fewer = kv_share.search(graph, weights, pieces(), 3)
    assert fewer.kl <= every.kl / 2
    assert fewer.refused > 0
    assert fewer.least > every.kl / 2
    monkeypatch.setattr(kv_share, "LIMIT", 0.0)
    none = kv_share.search(graph, weights, pieces(), 3)
    assert (none.kv_map, none.kl, len(none.shared)) == (tuple(range(6)), 0.0, 0)


def test_layers_of_other_heads_never_share() -> None:
    graph, weights = family_graph(
        "ministral", num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2
    )
    means = kv_share.averages(TorchGraph(graph, weights), pieces(), range(4))
    assert sorted(kv_share.pairs_of(graph, means)) == [(2, 0), (3, 1)]
    graph, _ = family_graph("llama", num_hidden_layers=3, kv_map=[0, 0, 2])
    with pytest.raises(ConvertError, match="1 layers with keys and values of their own"):
        kv_share.layers_of(graph)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last layers hardly change their rows, so that they may share."""
    folder = tmp_path_factory.mktemp("share") / "checkpoint"
    config = SIZES | {"model_type": "llama", "rope_theta": 5000.0, "num_hidden_layers": 4}
    tensors = tensors_of(config)
    for name in tensors:
        if "o_proj" in name and not name.startswith("model.layers.0."):
            tensors[name] = tensors[name] * np.float32(0.01)
    write_checkpoint(folder, config, tensors)
    return folder


@pytest.mark.parametrize("quant", ["f32", "int4"])
def test_a_conversion_says_what_it_did(checkpoint: Path, tmp_path: Path, quant: str) -> None:
    text = Calibration(TEXT, sequences=6, length=128)
    given: dict[str, Any] = {"quant": quant, "calibration": text, "progress": False}
    report = convert(checkpoint, tmp_path / "out.edge", kv_share=2, golden=False, **given)
    told = report.details["kv-share"]
    assert len(told["shared"]) == told["asked"] == 2
    assert 0 <= told["kl"] <= kv_share.LIMIT
    assert told["held_kl"] <= 2 * kv_share.LIMIT
    assert told["cache"] == 0.5
    with Bundle.open(tmp_path / "out.edge") as bundle:
        graph = bundle.graph()
        assert sum(isinstance(s, BorrowedState) for s in graph.states.values()) == 2
        assert bundle.manifest.report["stages"]["kv-share"]["model"]["kv_map"] == told["kv_map"]
        assert bundle.manifest.provenance is not None
        assert "--kv-share 2" in bundle.manifest.provenance.command
        sessions = [
            open_session(bundle, SessionOptions(d, threads=1)) for d in ("cpu", "reference")
        ]
        if quant == "f32":
            texts = [greedy(session, [5, 9, 14], 16) for session in sessions]
            assert texts[0] == texts[1]
        for session in sessions:
            session.close()


def test_it_is_off_unless_asked_for() -> None:
    assert resolve(Asked(quant="f32")).kv_share == 0
    plan = resolve(Asked(quant="f32", kv_share=3))
    assert (plan.kv_share, plan.calibration is not None) == (3, True)
    assert plan.options()[-4:-2] == ["--kv-share", "3"]
    assert is_kept(Asked())
    assert not is_kept(Asked(kv_share=1))


@pytest.mark.parametrize("value", [-1, "2", True, 1.5])
def test_numbers_that_are_none(value: Any) -> None:
    with pytest.raises(ConvertError, match=r"kv.share"):
        resolve(Asked(quant="f32", kv_share=value))
