"""GGUF files as sources: every family against transformers and llama.cpp, every type of blocks
against the package's own dequantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.kernels.encodings import dequantize
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.session.base import Feed, Session
from edgert.session.reference import ReferenceSession
from tests.closeness import assert_close
from tests.converters.checkpoints import CASES, make_model
from tests.converters.gguf_files import write_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

RMS = 1e-4
# Cases of which a GGUF file does not tell all, and what it takes for granted there.
UNTOLD = ("llama-dynamic", "mistral-window", "qwen2-window", "smollm3-head", "smollm3-window",
          "gemma2-mild", "gemma3-scaled")  # fmt: skip
GRANTED: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "num_hidden_layers": 6, "layer_types": None},
    "smollm3": {
        "no_rope_layers": None, "no_rope_layer_interval": 4, "num_hidden_layers": 4,
    },
}  # fmt: skip


def model_of(case: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    kind, changes = CASES[case]
    monkeypatch.setitem(CASES, case, (kind, {**changes, **GRANTED.get(case, {}), **more}))
    return make_model(case)


def bundle_of(path: Path, out: Path, **options: Any) -> Path:
    convert(path, out, progress=False, golden=False, **options)
    return out


def logits(bundle: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Of the reference session, with every weight dequantized."""
    with Bundle.open(bundle) as opened:
        dense = {name: dequantize(w) for name, w in opened.weights().items()}
        graph = opened.graph()
    plain = {name: type(w)(w.shape, "f32") for name, w in graph.weights.items()}
    return rows(ReferenceSession(graph.replace(weights=plain), dense), ids)


def rows(session: Session, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    state = session.new_state()
    out = session.step([Feed(state, ids, "all")])[0].logits
    session.close()
    return out


def expected(model: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        found = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
    return np.asarray(found.numpy(), np.float32)


def prompt(length: int, vocab: int = 256) -> NDArray[np.int32]:
    return np.random.default_rng(length).integers(0, vocab, length).astype(np.int32)


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNTOLD])
def test_a_family_is_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(case, monkeypatch)
    write_model(model, tmp_path / "m.gguf")
    ids = prompt(63)
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), ids)
    assert_close(case, expected(model, ids), got, rms=RMS)
