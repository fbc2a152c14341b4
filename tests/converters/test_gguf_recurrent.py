"""GGUF files of models with state spaces or short convolutions: names, changed tensors, missing
keys, blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.gguf_architectures import ARCHITECTURES
from edgert.converters.sources.gguf_config import hf_name

from edgert.errors import ConvertError
from tests.closeness import assert_close
from tests.converters import gguf_recurrent
from tests.converters.gguf_files import encoded, write_model
from tests.converters.test_gguf import RMS, bundle_of, expected, logits, model_of, prompt

pytest.importorskip("gguf", reason="gguf is not installed")
NAMES = {
    ("lfm2", "output_norm.weight"): "model.embedding_norm.weight",
    ("lfm2", "token_embd_norm.weight"): "model.embedding_norm.weight",
    ("lfm2", "blk.2.shortconv.conv.weight"): "model.layers.2.conv.conv.weight",
    ("falcon-h1", "blk.2.ffn_norm"): "model.layers.2.pre_ff_layernorm.weight",
    ("falcon-h1", "blk.2.ffn_norm.weight"): "model.layers.2.pre_ff_layernorm.weight",
    ("mamba2", "blk.0.ssm_dt.bias"): "backbone.layers.0.mixer.dt_bias",
    ("mamba2", "blk.0.ssm_a"): "backbone.layers.0.mixer.A_log",
    ("mamba2", "blk.0.ssm_a.weight"): "blk.0.ssm_a.weight",
    ("granitehybrid", "blk.1.ffn_up_shexp.weight"): "model.layers.1.shared_mlp.up_proj.weight",
}


@pytest.mark.parametrize(("architecture", "name"), NAMES)
def test_names(architecture: str, name: str) -> None:
    assert hf_name(ARCHITECTURES[architecture], name) == NAMES[architecture, name]


def test_a_tensor_under_two_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gguf_recurrent.tensors

    def doubled(*args: Any) -> Iterator[tuple[str, Any]]:
        for key, tensor in plain(*args):
            yield key, tensor
            if key == "model.layers.0.pre_ff_layernorm.weight":
                yield "blk.0.ffn_norm.weight", tensor

    monkeypatch.setattr(gguf_recurrent, "tensors", doubled)
    write_model(model_of("falcon_h1", monkeypatch), tmp_path / "m.gguf")
    with pytest.raises(ConvertError, match="which another one is as well"):
        convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False)


def test_a_decay_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = model_of("mamba2", monkeypatch, num_hidden_layers=1)
    with torch.no_grad():
        model.backbone.layers[0].mixer.A_log[3] = -torch.inf
    write_model(model, tmp_path / "m.gguf")
    with pytest.raises(ConvertError, match="A_log") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False)
    assert caught.value.code == "weight-values"


def test_keys_that_a_hybrid_lacks_say_what_llama_cpp_takes_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No multipliers, queries by the head's size, and positions: as in files of Bamba."""
    gone = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale",
            "rope.scaling.finetuned")  # fmt: skip
    plain = gguf_recurrent.WRITTEN["granitemoehybrid"]

    def without(writer: Any, config: Any) -> None:
        plain(writer, config)
        for key in gone:
            del writer.kv_data[0][f"granitehybrid.{key}"]

    monkeypatch.setitem(gguf_recurrent.WRITTEN, "granitemoehybrid", without)
    ones = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0)
    model = model_of(
        "granitemoehybrid", monkeypatch, **ones, attention_multiplier=16**-0.5,
        position_embedding_type="rope",
    )  # fmt: skip
    write_model(model, tmp_path / "m.gguf")
    ids = prompt(31)
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), ids)
    assert_close("granted", expected(model, ids), got, rms=RMS)


def kind_of(key: str, rows: Any) -> str:
    """Ups in another type than gates, with which they are one matrix of the family."""
    if "norm" in key or rows.ndim != 2 or rows.shape[1] % 32:
        return "F32"
    return "Q4_0" if ".ffn_up." in key else "Q8_0"


def test_blocks_stay_where_the_family_has_rows_together_or_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = model_of("granitemoehybrid", monkeypatch)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            halves = weight.chunk(2) if "input_linear" in name else [weight]
            for half, key in zip(halves, (name, "blk.0.ffn_up.weight"), strict=False):
                _, back = encoded(half.numpy(), kind_of(key, half))
                half.copy_(torch.from_numpy(back))
    write_model(model, tmp_path / "m.gguf", kind_of)
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    found = {w.name: w for w in report.weights}
    assert not {name for name, w in found.items() if w.error}
    assert [found[f"layers.0.gate_up.{i}"].encoding for i in (0, 1)] == ["int8-g32", "int4-g32"]
    assert {found[f"layers.0.{key}"].encoding for key in ("z", "xbc", "dt")} == {"int8-g32"}
    ids = prompt(31)
    assert_close("blocks", expected(model, ids), logits(tmp_path / "m.edge", ids), rms=RMS)
