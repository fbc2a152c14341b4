"""GGUF files of models with experts and latent attention: tensors that they have in other pieces,
rows in other orders, and what a file asks of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.gguf_config import sampling_of
from edgert.converters.sources.gguf_tensors import KEPT
from edgert.kernels.encodings import dequantize

from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from edgert.storage.gguf_header import read_gguf
from tests.closeness import assert_close
from tests.converters.checkpoints import CASES, make_model
from tests.converters.gguf_files import TYPES, write_model
from tests.converters.test_families import run
from tests.converters.test_gguf import GRANTED, bundle_of, expected, logits, model_of, prompt
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
    turned = {f"layers.{layer}.k_b" for layer in range(3)}  # columns in the file, rows here
    assert {w.name for w in report.weights if w.error} == turned
    assert max(w.error for w in report.weights) < 0.01
    dense = values(bundle_of(tmp_path / "m.gguf", tmp_path / "f32.edge", quant="f32"))
    kept = values(tmp_path / "m.edge")
    assert all(np.array_equal(kept[name], dense[name]) for name in dense if name not in turned)


def test_blocks_of_keys_apart_come_out_as_they_are(latent: Any, tmp_path: Path) -> None:
    write_model(latent, tmp_path / "m.gguf", "Q8_0", apart=True)
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    apart = {f"layers.{layer}.{name}" for layer in range(3) for name in ("k_b", "v_b")}
    assert apart <= {w.name for w in report.weights}
    assert not {w.name for w in report.weights if w.error}


@pytest.mark.parametrize(
    ("still", "keys", "values_"),
    [(32, "Q5_0", "Q4_K"), (32, "IQ4_NL", "Q6_K"), (256, "Q4_K", "Q3_K"), (16, "F16", "Q4_0")],
)
def test_heads_take_blocks_of_keys_and_values_as_they_are(
    still: int, keys: str, values_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the types that llama.cpp falls back to where rows are no whole blocks, and of others. The
    CPU computes with them as the reference does."""
    sizes = {"kv_lora_rank": 256, "qk_nope_head_dim": still, "v_head_dim": 32}
    model = model_of(LATENT, monkeypatch, **sizes, num_hidden_layers=2)

    def kinds(key: str, rows: Any) -> str:
        return keys if ".k_b_" in key else values_ if ".v_b_" in key else "F32"

    read = write_model(model, tmp_path / "m.gguf", kinds, apart=True)
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", golden=False, progress=False)
    assert not {w.name for w in report.weights if w.error}
    answers, dense = [], values(tmp_path / "m.edge")
    with Bundle.open(tmp_path / "m.edge") as bundle:
        for role, kind in (("k_b", keys), ("v_b", values_)):
            weight = bundle.graph().weights[f"layers.1.{role}"]
            wanted = read[f"model.layers.1.self_attn.{role}_proj.weight"]
            assert weight.encoding == (KEPT[kind].encoding if kind in KEPT else "f16")
            assert np.array_equal(dense[f"layers.1.{role}"], wanted.reshape(weight.shape))
        for device in ("reference", "cpu"):
            session = open_session(bundle, SessionOptions(device, threads=1, kv_bits=32))
            answers.append(run(session, prompt(24)))
            session.close()
    assert_close("heads", *answers, rms=2e-2)


def test_keys_of_another_size_than_the_heads_are_refused(
    latent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel more of the keys and one less of the values are as many rows of both."""
    from tests.converters import gguf_files

    plain = gguf_files._apart

    def moved(*args: Any) -> Any:
        for key, tensor in plain(*args):
            if key.endswith("k_b_proj.weight"):
                yield key, tensor.repeat(1, 1, 2)[:, :, :33]
            else:
                yield key, tensor[:, :-1] if key.endswith("v_b_proj.weight") else tensor

    monkeypatch.setattr(gguf_files, "_apart", moved)
    write_model(latent, tmp_path / "m.gguf", apart=True)
    with pytest.raises(ConvertError, match=r"kv_b_proj.weight' .* is missing"):
        convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False)


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


def carried(
    model: Any, kinds: Any, folder: Path, *, layer: int = 1
) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Encodings of the stacks of a file's layer, their values, and those that the package reads.
    The CPU computes with them as the reference does."""
    read = write_model(model, folder / "m.gguf", kinds)
    convert(folder / "m.gguf", folder / "m.edge", golden=False, progress=False)
    stacks = {
        key: next(v for name, v in read.items() if f".{layer}." in name and name.endswith(end))
        for key in ("gate", "up", "down")
        for end in [f"experts.{key}_proj"]
    }
    answers = []
    with Bundle.open(folder / "m.edge") as bundle:
        names = {slot: f"layers.{layer}.experts_{slot}" for slot in ("gate_up", "down")}
        weights, specs = bundle.weights(), bundle.graph().weights
        found = {slot: dequantize(weights[name]) for slot, name in names.items()}
        encodings = {slot: specs[name].encoding for slot, name in names.items()}
        for device in ("reference", "cpu"):
            session = open_session(bundle, SessionOptions(device, threads=1, kv_bits=32))
            answers.append(run(session, prompt(24)))
            session.close()
    assert_close("experts", *answers, rms=2e-2)
    wanted = {"gate_up": np.concatenate([stacks["gate"], stacks["up"]]), "down": stacks["down"]}
    return encodings, found, {slot: wanted[slot].reshape(x.shape) for slot, x in found.items()}


WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in ("F32", "F16", "BF16")])
def test_stacks_are_taken_over_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("granitemoe", monkeypatch, **WIDE)
    encodings, found, wanted = carried(model, kind, tmp_path)
    assert set(encodings.values()) == {KEPT[kind].encoding}
    for slot, rows in wanted.items():
        assert np.array_equal(found[slot], rows), slot


@pytest.mark.parametrize("case", ["qwen3_moe", "deepseek_v2", "gpt_oss"])
def test_stacks_of_every_architecture_keep_their_blocks(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix in a type of its own, as llama.cpp mixes them."""
    sizes = {"moe_intermediate_size": 256} if case != "gpt_oss" else {}
    model = model_of(case, monkeypatch, **WIDE, **sizes)

    def kinds(key: str, rows: Any) -> str:
        return "F32" if ".experts." not in key else "Q6_K" if ".down" in key else "Q4_K"

    encodings, found, wanted = carried(model, kinds, tmp_path)
    assert encodings == {"gate_up": "q4_k", "down": "q6_k"}
    for slot, rows in wanted.items():
        assert np.array_equal(found[slot], rows), slot


def test_gates_and_ups_of_two_types_are_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one matrix, which nothing divides."""
    model = model_of("granitemoe", monkeypatch, **WIDE)

    def kinds(key: str, rows: Any) -> str:
        return "Q4_K" if ".experts.gate" in key else "Q5_K" if ".experts." in key else "F32"

    encodings, found, wanted = carried(model, kinds, tmp_path)
    assert encodings == {"gate_up": "int8-g32", "down": "q5_k"}
    assert np.array_equal(found["down"], wanted["down"])
    assert_close("anew", wanted["gate_up"], found["gate_up"], rms=1e-2)


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
    made = {f"general.sampling.{k}": v for k, v in keys.items()}
    path.write_bytes(small({**made, "tokenizer.ggml.suppress_tokens": [3, 5]}).bytes())
    assert "do_sample" not in sampling_of(read_gguf(path).metadata)
    convert(path, tmp_path / "m.edge", golden=False, progress=False)
    for key in ("xtc_probability = 0.5", "mirostat = 2", "sequence = kpt", "penalty_last_n = 64",
                "suppress_tokens = [3, 5]"):  # fmt: skip
        assert key in caplog.text
