"""GGUF files of dense models that older scripts wrote, or that differ from what their architecture
is named for; matrices that stand otherwise than the family's keep their codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.base import open_source
from edgert.converters.sources.gguf_dense import ROWS
from edgert.converters.sources.gguf_tokenizer import CUTS
from edgert.kernels.encodings import dequantize

from edgert.bundle import Bundle
from tests.closeness import assert_close
from tests.converters.checkpoints import make_model
from tests.converters.gguf_files import write_model
from tests.converters.test_gguf import DENSE, bundle_of, expected, logits, model_of, prompt
from tests.hostile.gguf_models import WIDTH
from tests.hostile.gguf_models import model as small
from tests.hostile.test_gguf_source import of

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
RMS = 1e-4
# Of cases that llama.cpp does not read: it has no biases there, or windows in 64 layers alone.
READ: dict[str, dict[str, Any]] = {
    "ernie4_5": {"use_bias": False},
    "exaone4": {"num_hidden_layers": 64, "sliding_window_pattern": 4},
}


def assert_alike(file: Path, model: Any, out: Path) -> None:
    ids = prompt(63)
    assert_close(file.name, expected(model, ids), logits(bundle_of(file, out), ids), rms=RMS)


def values(file: Path) -> dict[str, Any]:
    """Weights of the bundle that a file becomes."""
    with Bundle.open(bundle_of(file, file.with_suffix(".edge"))) as bundle:
        return {name: dequantize(w) for name, w in bundle.weights().items()}


def test_queries_keys_and_values_in_one(tmp_path: Path) -> None:
    """As llama.cpp reads them in most architectures; here with rows of heads in pairs, and fewer
    keys than queries."""
    three = small()
    (tmp_path / "three.gguf").write_bytes(three.bytes())
    found = {tensor.name: tensor for tensor in three.tensors}
    parts = [found.pop(f"blk.0.attn_{key}.weight") for key in "qkv"]
    rows = sum(part.sizes[1] for part in parts)
    data = b"".join(part.data for part in parts)
    one = parts[0]._replace(name="blk.0.attn_qkv.weight", sizes=(WIDTH, rows), data=data)
    made = replace(three, tensors=[*found.values(), one])
    (tmp_path / "one.gguf").write_bytes(made.bytes())
    first, second = (values(tmp_path / f"{name}.gguf") for name in ("three", "one"))
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


class Fused:
    """A model whose queries, keys and values are one matrix, as phi-2 was first published."""

    def __init__(self, model: Any) -> None:
        self.config, self._tensors = model.config, model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        import torch

        found = dict(self._tensors)
        for layer in range(self.config.num_hidden_layers):
            for end in ("weight", "bias"):
                names = [f"model.layers.{layer}.self_attn.{key}_proj.{end}" for key in "qkv"]
                whole = torch.cat([found.pop(name) for name in names])
                found[f"model.layers.{layer}.self_attn.qkv_proj.{end}"] = whole
        return found


def test_phi_2s_first_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no name for how texts are cut either."""
    model = model_of("phi", monkeypatch)
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda *_: None)
    write_model(Fused(model), tmp_path / "m.gguf")
    assert_alike(tmp_path / "m.gguf", model, tmp_path / "m.edge")


def test_every_cut_that_files_do_not_name_is_known() -> None:
    assert {row.pre for row in ROWS.values()} - {""} <= set(CUTS)


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "glm4", "granite"])
def test_matrices_that_stand_otherwise_keep_their_codes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(model_of(case, monkeypatch), tmp_path / "m.gguf", "Q8_0")
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    matrices = [w for w in report.weights if len(w.shape) == 2 and w.name != "position_table"]
    assert {w.encoding for w in matrices} == {"int8-g32"}
    assert not [w.name for w in matrices if w.error]


def test_olmo_3s_first_files(tmp_path: Path) -> None:
    """They have the whole factor of attention under another key, and no ramp."""
    model = make_model("olmo3")
    factor = model.config.rope_parameters["full_attention"].pop("attention_factor")
    kind = gguf.GGUFValueType.FLOAT32
    keys = {"olmo2.rope.scaling.attn_factor": (factor, kind)}
    write_model(model, tmp_path / "m.gguf", keys=keys)
    with open_source(tmp_path / "m.gguf") as source:
        assert source.family == "olmo3"
    assert_alike(tmp_path / "m.gguf", make_model("olmo3"), tmp_path / "m.edge")


def read(folder: Path, name: str, **keys: Any) -> dict[str, Any]:
    """What the config of a file with these keys becomes."""
    path = folder / f"{name}.gguf"
    path.write_bytes(small(of(name, **keys)).bytes())
    with open_source(path) as source:
        return dict(source.config)


def test_what_files_do_not_tell(tmp_path: Path) -> None:
    """Every fourth layer of EXAONE 4 32B sees everything, the others 4096 tokens; of GPT-NeoX only
    that of 44 layers approximates GELU."""
    large = read(tmp_path, "exaone4", block_count=64)
    full = [i for i, kind in enumerate(large["layer_types"]) if kind == "full_attention"]
    assert (large["sliding_window"], full) == (4096, list(range(3, 64, 4)))
    assert read(tmp_path, "exaone4", block_count=30)["sliding_window"] is None
    eps = {"attention.layer_norm_epsilon": 1e-5}
    found = [read(tmp_path, "gptneox", block_count=n, **eps)["hidden_act"] for n in (12, 44)]
    assert found == ["gelu", "gelu_fast"]
    assert read(tmp_path, "granite", logit_scale=8.0)["attention_multiplier"] == 0.25
    assert read(tmp_path, "olmo2")["rope_theta"] == 1e4


def test_mistral_3_without_growing_queries_is_mistral(tmp_path: Path) -> None:
    """The text of Mistral Small 3.1, whose files have the architecture's name as well."""

    class Small:
        config = make_model("ministral3").config
        state_dict = make_model("mistral-full").state_dict

    model = make_model("mistral-full")
    Small.config.head_dim = model.config.head_dim
    Small.config.rope_parameters = {
        **model.config.rope_parameters, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0,
    }  # fmt: skip
    Small.config.rms_norm_eps = model.config.rms_norm_eps
    write_model(Small(), tmp_path / "m.gguf")
    with open_source(tmp_path / "m.gguf") as source:
        assert source.family == "mistral"
    assert_alike(tmp_path / "m.gguf", model, tmp_path / "m.edge")


@pytest.mark.slow
@pytest.mark.parametrize("case", DENSE)
def test_llama_cpp_reads_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written here is what its own script writes: its logits are transformers', up to a
    table of GELU in float16."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = model_of(case, monkeypatch, **READ.get(case, {}))
    write_model(model, tmp_path / "m.gguf")
    theirs = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1,
        type_k=0, type_v=0,
    )  # fmt: skip
    ids = prompt(63)
    theirs.eval(ids.tolist())
    assert_close(case, expected(model, ids), np.array(theirs.scores[: len(ids)]), rms=1e-3)
    theirs.close()
