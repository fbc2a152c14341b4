"""GGUF files of models with experts and latent attention: tensors that they have in other pieces,
rows in other orders, and what a file asks of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.gguf_config import sampling_of
from edgert.kernels.encodings import dequantize

from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.storage.gguf_header import read_gguf
from tests.closeness import assert_close
from tests.converters.checkpoints import CASES, make_model
from tests.converters.gguf_files import write_model
from tests.converters.test_gguf import GRANTED, bundle_of, expected, logits, prompt
from tests.hostile.gguf_models import model as small

LATENT = "deepseek_v2"


@pytest.fixture(scope="module")
def latent() -> Any:
    """A model whose rows are whole blocks of 32."""
    kind, changes = CASES[LATENT]
    sizes = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "qk_rope_head_dim": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CASES, LATENT, (kind, {**changes, **GRANTED[LATENT], **sizes}))
        return make_model(LATENT)


def values(bundle: Path) -> dict[str, Any]:
    with Bundle.open(bundle) as opened:
        return {name: dequantize(w) for name, w in opened.weights().items()}


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_keys_and_values_apart_are_one_matrix(kind: str, latent: Any, tmp_path: Path) -> None:
    found = []
    for name, apart in (("one", False), ("two", True)):
        write_model(latent, tmp_path / f"{name}.gguf", kind, apart=apart)
        found.append(bundle_of(tmp_path / f"{name}.gguf", tmp_path / f"{name}.edge"))
    first, second = map(values, found)
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    if kind == "F32":
        ids = prompt(63)
        assert_close("apart", expected(latent, ids), logits(found[1], ids), rms=1e-4)


def test_rows_in_another_order_keep_their_codes(latent: Any, tmp_path: Path) -> None:
    """Queries and the shared part of keys, whose rotary pairs are neighbours in the file."""
    write_model(latent, tmp_path / "m.gguf", "Q8_0")
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    assert {w.encoding for w in report.weights if len(w.shape) == 2} == {"int8-g32"}
    assert max(w.error for w in report.weights) == 0
    dense = values(bundle_of(tmp_path / "m.gguf", tmp_path / "f32.edge", quant="f32"))
    kept = values(tmp_path / "m.edge")
    assert all(np.array_equal(kept[name], dense[name]) for name in dense)


def test_blocks_of_keys_apart_are_chosen_anew(latent: Any, tmp_path: Path) -> None:
    write_model(latent, tmp_path / "m.gguf", "Q8_0", apart=True)
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    lost = {w.name for w in report.weights if w.error}
    assert lost == {f"layers.{layer}.kv_b" for layer in range(3)}
    assert max(w.error for w in report.weights) < 0.01


def test_keys_and_values_that_do_not_fit_are_refused(
    latent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.converters import gguf_files

    plain = gguf_files._apart

    def cut(*args: Any) -> Any:
        for key, tensor in plain(*args):
            yield key, tensor[:, :, :-1] if key.endswith("v_b_proj.weight") else tensor

    monkeypatch.setattr(gguf_files, "_apart", cut)
    write_model(latent, tmp_path / "m.gguf", apart=True)
    with pytest.raises(ConvertError, match=r"kv_b_proj.weight' .* is missing") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False)
    assert "'blk.0.attn_k_b.weight' [4, 64, 32] is unexpected" in caught.value.message


ASKED = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "penalty_repeat": 1.1}
SAMPLED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": (
        ASKED,
        {
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1,
        },
    ),
    "some": ({"temp": 0.7}, {"temperature": 0.7, "top_k": 50, "top_p": 1.0}),
    "penalty": ({"penalty_repeat": 1.2}, {"repetition_penalty": 1.2}),
    "penalty-of-none": ({"penalty_repeat": 1.2, "penalty_last_n": 0}, {}),
    "greedy": ({"temp": 0.0}, {"temperature": 0, "top_k": 50, "top_p": 1.0}),
    "nothing": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_keys_are_defaults(name: str, tmp_path: Path) -> None:
    asked, meant = SAMPLED[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(small({f"general.sampling.{k}": v for k, v in asked.items()}).bytes())
    convert(path, tmp_path / "m.edge", golden=False, progress=False)
    with Bundle.open(tmp_path / "m.edge") as bundle:
        assert bundle.manifest.text is not None
        assert bundle.manifest.text.generation == meant


def test_what_is_not_done_of_sampling_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_shown", set())
    keys = {"xtc_probability": 0.5, "mirostat": 2, "sequence": "kpt", "penalty_last_n": 64}
    path = tmp_path / "m.gguf"
    path.write_bytes(small({f"general.sampling.{k}": v for k, v in keys.items()}).bytes())
    assert "do_sample" not in sampling_of(read_gguf(path).metadata)
    convert(path, tmp_path / "m.edge", golden=False, progress=False)
    for key in ("xtc_probability = 0.5", "mirostat = 2", "sequence = kpt", "penalty_last_n = 64"):
        assert key in caplog.text
