"""Checkpoints in codes: taken over exactly where an encoding matches, else chosen anew and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.kernels.encodings import dequantize
from safetensors.numpy import load_file, save_file

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from edgert.session.reference import ReferenceSession
from tests.arm.check_kernels import LIMITS
from tests.closeness import assert_close
from tests.converters.checkpoints import CASES, expected_logits, prompt, write_checkpoint
from tests.converters.packers import (
    BY_TOKEN,
    METHODS,
    compressed,
    compressed_int8,
    gptq_ordered,
    repack,
    scheme,
)
from tests.converters.test_families import run
from tests.converters.test_layouts import change

RMS = 1e-4


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose rows are whole groups of 64, head and embedding apart."""
    folder = tmp_path_factory.mktemp("packed") / "m"
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"intermediate_size": 128, "head_dim": 32}
        patch.setitem(CASES, "llama-untied", ("LlamaConfig", sizes))
        write_checkpoint("llama-untied", folder)
    return folder


def copied(plain: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def reference(folder: Path, values: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """transformers' logits of the float checkpoint with these values."""
    from transformers import AutoModelForCausalLM

    save_file(values, folder / "model.safetensors", {"format": "pt"})
    change(folder, quantization_config=None)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    return np.asarray(expected_logits(model.eval(), ids))


def dense(bundle: Path, ids: np.ndarray) -> np.ndarray:
    """Logits of the values that a bundle holds, computed in floats."""
    with Bundle.open(bundle) as opened:
        graph, weights = opened.graph(), opened.weights()
    plain = graph.replace(weights={n: type(w)(w.shape) for n, w in graph.weights.items()})
    return run(ReferenceSession(plain, {n: dequantize(w) for n, w in weights.items()}), ids)


SLOW = ("gptq-v2", "gptq-3", "gptq-8", "gptq-whole", "compressed", "nf4-plain")


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else []) for m in METHODS]
)
def test_logits_are_those_of_the_methods_own_values(name: str, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "m")
    values = repack(folder, name)
    out, kept = tmp_path / "m.edge", METHODS[name][2]
    report = convert(folder, out, golden=False, progress=False)
    stored = {w.name: w for w in report.weights}
    matrices = [w for w in report.weights if w.name.startswith("layers.") and len(w.shape) == 2]
    if kept:
        assert {w.encoding.startswith(kept) for w in matrices} == {True}, stored
        assert max(w.error for w in report.weights) == 0
    else:
        assert {w.encoding for w in matrices} == {"int8-g32"}
        assert 0 < min(w.error for w in matrices)
        assert max(w.error for w in matrices) < 0.01
        assert "int8-g32: largest error of a weight" in report.summary()
        convert(folder, out, quant="f32", golden=False, progress=False, force=True)
    ids = prompt(63)
    got = dense(out, ids)
    assert_close(name, reference(folder, values, ids), got, rms=RMS)


ODD = {
    "asymmetric": (
        {**BY_TOKEN, "symmetric": False}, {"num_bits": 8, "strategy": "channel"}, compressed_int8,
    ),
    "four-bits": (BY_TOKEN, {"strategy": "channel"}, lambda w: compressed(w, group=w.shape[1])),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_activations_that_are_left_as_they_are_are_told_of(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Only 8 bits by tokens beside 8-bit weights by rows are computed as they ask."""
    inputs, weights, packer = ODD[name]
    monkeypatch.setitem(METHODS, name, (scheme(inputs, group_size=None, **weights), packer, ""))
    folder = copied(plain, tmp_path / "m")
    repack(folder, name)
    report = convert(folder, tmp_path / "m.edge", golden=False, progress=False)
    assert "int8-channel" not in {w.encoding for w in report.weights}
    assert "activations are not quantized as its scheme asks" in caplog.text


@pytest.mark.parametrize("name", ["gptq-zeros", "awq"])
def test_the_cpu_session_computes_them(name: str, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "m")
    repack(folder, name)
    convert(folder, tmp_path / "m.edge", golden=False, progress=False)
    found = []
    for device in ("reference", "cpu"):
        with Bundle.open(tmp_path / "m.edge") as bundle:
            session = open_session(bundle, SessionOptions(device, threads=1, kv_bits=32))
            found.append(run(session, prompt(63)))
            session.close()
    assert_close(name, *found, rms=LIMITS[32])


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, each with tensors of its own, whose rows are whole groups of 64."""
    folder = tmp_path_factory.mktemp("packed-experts") / "m"
    with pytest.MonkeyPatch.context() as patch:
        kind, changes = CASES["qwen3_moe"]
        sizes = {"moe_intermediate_size": 64, "num_hidden_layers": 2}
        patch.setitem(CASES, "qwen3_moe", (kind, {**changes, **sizes}))
        write_checkpoint("qwen3_moe", folder)
    return folder


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed-w8a8"])
def test_experts_keep_their_codes(name: str, experts: Path, tmp_path: Path) -> None:
    folder = copied(experts, tmp_path / "m")
    values = repack(folder, name)
    out, found = tmp_path / "m.edge", []
    report = convert(folder, out, golden=False, progress=False)
    stacks = [w for w in report.weights if "experts_" in w.name]
    assert {w.encoding for w in stacks} == {METHODS[name][2]}
    assert max(w.error for w in stacks) == 0
    ids = prompt(63)
    for device in ("reference", "cpu"):
        with Bundle.open(out) as bundle:
            session = open_session(bundle, SessionOptions(device, threads=1, kv_bits=32))
            found.append(run(session, ids))
            session.close()
    assert_close(name, *found, rms=2e-2)
    assert_close(name, reference(folder, values, ids), dense(out, ids), rms=RMS)


def test_an_order_of_importance_is_refused_and_can_be_chosen_anew(
    plain: Path, tmp_path: Path
) -> None:
    folder = copied(plain, tmp_path / "m")
    values = repack(folder, "gptq", gptq_ordered)
    with pytest.raises(ConvertError, match="groups by their order of importance") as caught:
        convert(folder, tmp_path / "m.edge", golden=False, progress=False)
    assert caught.value.code == "act-order"
    assert "--quant int4" in caught.value.hint
    convert(folder, tmp_path / "m.edge", quant="f32", golden=False, progress=False)
    ids = prompt(63)
    got = dense(tmp_path / "m.edge", ids)
    assert_close("act order", reference(folder, values, ids), got, rms=RMS)


def test_ends_may_be_stored_otherwise(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "m")
    repack(folder, "gptq")
    report = convert(folder, tmp_path / "m.edge", embed_quant="int8", golden=False, progress=False)
    found = {w.name: w.encoding for w in report.weights}
    assert (found["embed"], found["head"]) == ("int8-g32", "int8-g32")
    assert found["layers.0.qkv"] == "int4-g64"
    with Bundle.open(tmp_path / "m.edge") as bundle:
        told = bundle.manifest.provenance
    assert told is not None
    assert told.command == "edgert convert m -o m.edge --embed-quant int8-g32"


SPOILED: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": ("gptq", {"qzeros": None}, "qzeros' is not there, expected I32"),
    "scales": ("gptq", {"scales": np.ones((1, 8), np.float16)}, "scales' is"),
    "types": ("gptq", {"qweight": np.ones((8, 8), np.float32)}, "qweight' is F32, expected I32"),
    "groups": ("gptq", {"g_idx": 9}, "names groups beyond"),
    "axes": ("awq", {"qweight": np.ones(8, np.int32)}, "expected 2 axes"),
    "told": ("compressed", {"weight_shape": np.array([1 << 40, 64])}, "of 4 bits in groups"),
    "state": (
        "nf4", {"weight.quant_state.bitsandbytes__nf4": np.zeros(8, np.uint8)}, "does not hold",
    ),
    "tiles": ("fp8", {"weight_scale_inv": np.ones((9, 9), np.float32)}, "weight_scale_inv' is"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_h15_parts_that_do_not_fit(case: str, plain: Path, tmp_path: Path) -> None:
    name, changes, says = SPOILED[case]
    folder = copied(plain, tmp_path / "m")

    def spoiled(w: np.ndarray) -> Any:
        tensors, values = METHODS[name][1](w)
        tensors |= changes
        if tensors.get("g_idx") is changes.get("g_idx", ""):
            tensors["g_idx"] = np.full(w.shape[1], 9, np.int32)
        return {end: t for end, t in tensors.items() if t is not None}, values

    repack(folder, name, spoiled)
    with pytest.raises(ConvertError, match=says) as caught:
        convert(folder, tmp_path / "m.edge", progress=False)
    assert caught.value.code == "packed"
    assert not (tmp_path / "m.edge").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": "4"}, "'bits' is 4, expected a number"),
        ({"bits": 5}, "5 bits in the format"),
        ({"group_size": 0}, "in groups of 0"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "compressed-tensors"}, "0 groups of schemes"),
        ({"quant_method": "quip"}, "is quantized already"),
    ],
)
def test_h16_methods_and_settings_that_are_not_read(
    changes: dict[str, Any], says: str, plain: Path, tmp_path: Path
) -> None:
    folder = copied(plain, tmp_path / "m")
    repack(folder, "gptq")
    change(folder, quantization_config={**METHODS["gptq"][0], **changes})
    with pytest.raises(ConvertError, match=says):
        convert(folder, tmp_path / "m.edge", progress=False)


def test_h17_scales_that_are_no_numbers(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "m")
    repack(folder, "gptq")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = np.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConvertError, match="scales are not finite") as caught:
        convert(folder, tmp_path / "m.edge", progress=False)
    assert caught.value.code == "weight-values"
