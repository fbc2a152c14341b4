"""Experts in MXFP4, as gpt-oss is published: taken over exactly, chosen anew, refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export
from edgert.kernels.encodings import dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import Session, SessionOptions, open_session
from tests.arm.check_kernels import LIMITS
from tests.closeness import assert_close
from tests.converters.checkpoints import CASES, expected_logits, make_model, prompt, write_tokenizer
from tests.converters.test_families import LENGTHS, RMS, run
from tests.converters.test_gguf import write_model
from tests.converters.test_layouts import change
from tests.converters.test_packed import dense
from tests.session.test_recurrent_families import greedy

U8 = NDArray[np.uint8]
SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
AT = "model.layers.1.mlp.experts."


def packed(weight: torch.Tensor) -> tuple[U8, U8, torch.Tensor]:
    """A stack [E, K, N] as blocks [E, N, K / 32, 16] and scales, to nearest, and the values that
    transformers makes of them."""
    from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

    rows = weight.transpose(1, 2).detach().numpy()
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))).astype(np.int64) - 2
    scaled = groups / np.exp2(exponents)[..., None]
    codes = np.abs(np.array(FP4_VALUES) - scaled[..., None]).argmin(-1).astype(np.uint8)
    blocks = np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4)
    scales = np.ascontiguousarray((exponents + 127).astype(np.uint8))
    values = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    return blocks, scales, values


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small gpt-oss in the published layout, and transformers' model of its values."""
    folder = tmp_path_factory.mktemp("mxfp4") / "m"
    kind, changes = CASES["gpt_oss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CASES, "gpt_oss", (kind, {**changes, "intermediate_size": 96}))
        model = make_model("gpt_oss")
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            del tensors[name]
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], values = packed(weight)
            weight.data.copy_(values)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder, quantization_config=SETTINGS)
    write_tokenizer(folder)
    return folder, model


@pytest.fixture(scope="module")
def bundle(published: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mxfp4") / "m.edge"
    report = convert(published[0], out, golden=False, progress=False)
    assert max(w.error for w in report.weights) == 0
    assert {w.encoding for w in report.weights if "experts_" in w.name} == {"int5-g32", "f32"}
    return out


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_are_transformers(length: int, published: tuple[Path, Any], bundle: Path) -> None:
    ids = prompt(length)
    assert_close("mxfp4", expected_logits(published[1], ids), dense(bundle, ids), rms=RMS)


def test_values_are_transformers_own(published: tuple[Path, Any], bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        weights = opened.weights()
        for layer, module in enumerate(published[1].model.layers):
            both = module.mlp.experts.gate_up_proj.detach().numpy().transpose(0, 2, 1)
            down = module.mlp.experts.down_proj.detach().numpy().transpose(0, 2, 1)
            halves = [both[:, at::2].reshape(-1, 64) for at in (0, 1)]
            found = weights[f"layers.{layer}.experts_gate_up"]
            assert np.array_equal(np.concatenate(halves), dequantize(found))
            found = weights[f"layers.{layer}.experts_down"]
            assert np.array_equal(down.reshape(-1, 96), dequantize(found))


def opened(bundle: Bundle, device: str) -> Session:
    bits = 0 if device == "ort-cpu" else 32
    return open_session(bundle, SessionOptions(device, threads=1, kv_bits=bits))


def test_the_cpu_computes_codes_as_the_reference_does(bundle: Path) -> None:
    found = []
    for device in ("reference", "cpu"):
        with Bundle.open(bundle) as held, closing(opened(held, device)) as session:
            found.append(run(session, prompt(40)))
    assert_close("int5-g32", *found, rms=LIMITS[32])


def test_greedy_text_through_onnxruntime(published: tuple[Path, Any], tmp_path: Path) -> None:
    out = tmp_path / "m.edge"
    convert(published[0], out, quant="f32", golden=False, progress=False)
    export(out)
    rows, texts = [], []
    for device in ("cpu", "ort-cpu"):
        with Bundle.open(out) as held, closing(opened(held, device)) as session:
            rows.append(run(session, prompt(40)))
            texts.append(greedy(session)[0])
    assert_close("f32", *rows, rms=RMS)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 4, "a text of few tokens proves little"


def test_codes_chosen_anew_say_what_they_lose(published: tuple[Path, Any], tmp_path: Path) -> None:
    report = convert(published[0], tmp_path / "m.edge", quant="int4", method="rtn", golden=False,
                     progress=False)  # fmt: skip
    lost = {w.name: w.error for w in report.weights if w.encoding == "int4-g32"}
    assert {f"layers.{i}.experts_{slot}" for i in range(3) for slot in ("gate_up", "down")} < set(
        lost
    )
    assert 0.01 < min(lost.values()) < max(lost.values()) < 0.2
    assert "int4-g32: largest error of a weight" in report.summary()


def test_a_gguf_file_of_it_is_the_same_model(
    published: tuple[Path, Any], bundle: Path, tmp_path: Path
) -> None:
    """Its blocks have the codes in another order."""
    model = published[1]
    model.config.swiglu_limit = 7.0  # which no file tells
    write_model(model, tmp_path / "m.gguf", lambda key, _: "MXFP4" if ".experts." in key else "F32")
    report = convert(tmp_path / "m.gguf", tmp_path / "g.edge", golden=False, progress=False)
    assert max(w.error for w in report.weights) == 0
    with Bundle.open(bundle) as first, Bundle.open(tmp_path / "g.edge") as second:
        ours, theirs = first.weights(), second.weights()
        names = [name for name in ours if "experts_" in name]
        assert len(names) == 12
        for name in names:
            assert np.array_equal(dequantize(ours[name]), dequantize(theirs[name])), name


def cut(tensors: dict[str, Any], name: str, change: Callable[[Any], Any]) -> None:
    tensors[AT + name] = np.ascontiguousarray(change(tensors[AT + name]))


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no-scales": (lambda t: t.pop(f"{AT}down_proj_scales"), "down_proj_scales' is not there"),
    "no-blocks": (lambda t: t.pop(f"{AT}down_proj_blocks"), "down_proj_scales'"),
    "scales": (
        lambda t: cut(t, "down_proj_scales", lambda x: x[:, 1:]), r"is \[8, 63, 3\], expected",
    ),
    "floats": (
        lambda t: cut(t, "down_proj_scales", lambda x: x.astype(np.float32)), "F32, expected U8",
    ),
    "narrow": (
        lambda t: cut(t, "gate_up_proj_blocks", lambda x: x[..., :15]), r"is \[8, 192, 2, 15\]",
    ),
    "odd": (lambda t: cut(t, "gate_up_proj_blocks", lambda x: x[:, 1:]), r"is \[8, 191, 2, 16\]"),
    "axes": (
        lambda t: cut(t, "gate_up_proj_blocks", lambda x: x.reshape(8, 192, 32)), "4 axes",
    ),
    "empty": (lambda t: cut(t, "gate_up_proj_blocks", lambda x: x[:0]), r"is \[0, 192, 2, 16\]"),
    "many": (
        lambda t: cut(t, "down_proj_blocks", lambda x: np.zeros((1025, 2, 1, 16), np.uint8)),
        r"is \[1025, 2, 1, 16\], expected \[1 to 1024",
    ),
    "elsewhere": (
        lambda t: t.update({"model.norm_blocks": t[f"{AT}down_proj_blocks"]}), "experts alone",
    ),
    "twice": (
        lambda t: t.update({f"{AT}0.up_proj.weight": np.zeros((96, 64), np.float32)}),
        "in codes and without",
    ),
}  # fmt: skip


def spoiled(published: tuple[Path, Any], folder: Path, spoil: Callable[[Any], Any]) -> Path:
    folder.mkdir()
    for file in published[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_h15_blocks_that_do_not_fit(case: str, published: tuple[Path, Any], tmp_path: Path) -> None:
    spoil, says = HOSTILE[case]
    folder = spoiled(published, tmp_path / "m", spoil)
    with pytest.raises(ConvertError, match=says):
        convert(folder, tmp_path / "m.edge", progress=False)
    assert not (tmp_path / "m.edge").exists()


def test_h15_blocks_of_another_size(published: tuple[Path, Any], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        for end in ("blocks", "scales"):
            cut(tensors, f"down_proj_{end}", lambda x: x[:, :, 1:])

    folder = spoiled(published, tmp_path / "m", spoil)
    with pytest.raises(ConvertError, match=r"7.down_proj.weight' is \[64, 64\], expected \[64, 96"):
        convert(folder, tmp_path / "m.edge", progress=False)


@pytest.mark.parametrize("quant", ["", "int4"])
def test_h17_exponents_that_are_no_numbers(
    quant: str, published: tuple[Path, Any], tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{AT}down_proj_scales"][3, 5, 1] = 255

    folder = spoiled(published, tmp_path / "m", spoil)
    options: dict[str, Any] = {"quant": quant, "method": "rtn"} if quant else {}
    with pytest.raises(ConvertError, match=r"3\.down_proj\.weight'") as caught:
        convert(folder, tmp_path / "m.edge", progress=False, **options)
    assert caught.value.code == "weight-values"


def test_without_its_config_it_is_refused(published: tuple[Path, Any], tmp_path: Path) -> None:
    folder = spoiled(published, tmp_path / "m", lambda tensors: None)
    change(folder, quantization_config=None)
    with pytest.raises(ConvertError, match="is quantized already"):
        convert(folder, tmp_path / "m.edge", progress=False)
