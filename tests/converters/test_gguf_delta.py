"""GGUF files of models with the gated delta rule: older layouts, blocks of heads in another order,
the layer that guesses, experts whose gates and ups are one stack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgert.converters.sources.base import open_source
from edgert.converters.sources.gguf_tensors import KEPT
from edgert.kernels.encodings import dequantize
from edgert.kernels.quant import Quantized
from numpy.typing import NDArray

from edgert.bundle import Bundle
from tests.closeness import assert_close
from tests.converters.gguf_files import write_model
from tests.converters.test_gguf import RMS, bundle_of, expected, logits, model_of, prompt
from tests.converters.test_mtp import assert_guesses, layer_of, tensors_of

GROUPS, SIZE = 2, 32  # key heads, rows of a head
SIZES: dict[str, Any] = {
    "linear_key_head_dim": SIZE, "linear_value_head_dim": SIZE, "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"], "hidden_size": 256,
}  # fmt: skip
AT = "model.layers.0.linear_attn"


def test_older_files_of_qwen3_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their one projection of the input is two in newer ones."""
    model = model_of("qwen3_next-experts", monkeypatch)
    write_model(model, tmp_path / "m.gguf", older=True)
    ids = prompt(20)
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), ids)
    assert_close("older", expected(model, ids), got, rms=RMS)


def test_layers_in_no_regular_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["full_attention", "linear_attention", "full_attention"]
    model = model_of("qwen3_5-tied", monkeypatch, layer_types=kinds)
    write_model(model, tmp_path / "m.gguf")
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), prompt(20))
    assert_close("kinds", expected(model, prompt(20)), got, rms=RMS)


def test_gemma_4_caps_logits_where_its_file_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(model_of("gemma4", monkeypatch, final_logit_softcapping=None), tmp_path / "m.gguf")
    with open_source(tmp_path / "m.gguf") as source:
        found: Any = source
        assert found.config["final_logit_softcapping"] == 30.0


def test_gates_and_ups_in_one_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3_moe", monkeypatch)
    for name, fused in (("two", False), ("one", True)):
        write_model(model, tmp_path / f"{name}.gguf", fused=fused)
    with open_source(tmp_path / "one.gguf") as one, open_source(tmp_path / "two.gguf") as two:
        assert set(one.tensors) == set(two.tensors)
        for name, tensor in two.tensors.items():
            count = tensor.shape[0]
            assert np.array_equal(one.tensors[name].rows(0, count), tensor.rows(0, count)), name


def grouped(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of value heads in the order of the key heads that they share."""
    each = rows.reshape(heads // GROUPS, GROUPS, -1, *rows.shape[1:])
    return each.swapaxes(0, 1).reshape(rows.shape)


@pytest.mark.parametrize(("kind", "heads"), [("Q8_0", 6), ("Q4_1", 6), ("Q4_K", 8)])
def test_heads_in_another_order_keep_their_blocks(
    kind: str, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows always; columns where a head is whole blocks, else their codes are chosen anew."""
    model = model_of("qwen3_5", monkeypatch, **SIZES, linear_num_value_heads=heads)
    whole, anew = (256, True) if kind == "Q4_K" else (32, False)  # values of a block
    read = write_model(
        model, tmp_path / "m.gguf", lambda name, rows: "F32" if rows.shape[-1] % whole else kind
    )
    before, qkv = 2 * GROUPS * SIZE, read[f"{AT}.in_proj_qkv.weight"]
    values = grouped(qkv[before:], heads)
    wanted = {
        f"{AT}.in_proj_qkv.weight": np.concatenate([qkv[:before], values]),
        f"{AT}.in_proj_b.weight": grouped(read[f"{AT}.in_proj_b.weight"], heads),
        f"{AT}.in_proj_z.weight": grouped(read[f"{AT}.in_proj_z.weight"], heads),
        f"{AT}.out_proj.weight": grouped(read[f"{AT}.out_proj.weight"].T, heads).T,
    }
    with open_source(tmp_path / "m.gguf") as source:
        for name, rows in wanted.items():
            tensor: Any = source.tensors[name]
            assert np.array_equal(tensor.rows(3, len(rows)), rows[3:]), name
            if anew and "out_proj" in name:
                assert (tensor.kept, tensor.instead) == ("", "int8-g32")
                continue
            assert tensor.kept == KEPT[kind].encoding
            codes = Quantized(tensor.kept, rows[3:].shape, tensor.stored(3, len(rows)))
            assert np.array_equal(dequantize(codes), rows[3:]), name


@pytest.mark.parametrize("case", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow)])
def test_the_layer_that_guesses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = model_of(case, monkeypatch)
    own = layer_of(model)
    added = {name: torch.from_numpy(t) for name, t in tensors_of(own, apart=False).items()}
    whole = SimpleNamespace(config=model.config, state_dict=lambda: {**model.state_dict(), **added})
    write_model(whole, tmp_path / "m.gguf")
    assert_guesses(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge", quant="f32"), model, own)


def test_a_layer_that_guesses_may_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with an embedding of its own is left out."""
    import torch

    model = model_of("qwen3_5", monkeypatch)
    added = {n: torch.from_numpy(t) for n, t in tensors_of(layer_of(model), apart=False).items()}
    table = model.state_dict()["model.embed_tokens.weight"]
    whole = SimpleNamespace(
        config=model.config,
        state_dict=lambda: {**model.state_dict(), **added, "nextn.embed_tokens.weight": table},
    )
    write_model(whole, tmp_path / "m.gguf")
    with Bundle.open(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge")) as opened:
        assert list(opened.manifest.parts) == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rms"),
    [
        ("qwen3_5", 1e-4), ("qwen3_5_moe", 1e-4), ("qwen3_next-experts", 1e-4),
        ("gemma4", 5e-3), ("gemma4-equal", 5e-3),  # its gelu is a table of float16
    ],
)  # fmt: skip
def test_llama_cpp_computes_the_same(
    case: str, rms: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So files are those that it reads."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, ids = model_of(case, monkeypatch), prompt(48)
    write_model(model, tmp_path / "m.gguf")
    options = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1}
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), type_k=0, type_v=0, **options)  # float32
    theirs.eval(ids.tolist())
    got = np.array(theirs.scores[: len(ids)])
    theirs.close()
    assert_close(case, expected(model, ids), got, rms=rms)
