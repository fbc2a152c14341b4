"""Gemma 3n's text: as it is published, with weights in codes, with rows that are almost nothing,
and configs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import build
from safetensors.numpy import load_file, save_file

from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import expected_logits, prompt, write_checkpoint
from tests.converters.published import CONFIGS
from tests.converters.test_families import RMS, run
from tests.converters.test_layouts import change, compare, ours


def test_the_text_as_it_is_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside other parts, with keys and values that no layer reads."""
    monkeypatch.setattr(notices, "_shown", set())
    model = write_checkpoint("gemma3n", tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    found = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in load_file(path).items()
    }
    unread = "model.language_model.layers.5.self_attn"
    found |= {
        f"{unread}.k_proj.weight": np.ones((32, 64), np.float32),
        f"{unread}.v_proj.weight": np.ones((32, 64), np.float32),
        "model.audio_tower.conv.weight": np.ones((4, 4), np.float32),
        "model.embed_vision.embedding.weight": np.ones((4, 4), np.float32),
    }
    save_file(found, path, {"format": "pt"})
    text = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    whole = {
        "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n",
        "text_config": text, "vision_config": {"model_type": "gemma3n_vision"},
        "audio_config": {"model_type": "gemma3n_audio"}, "audio_soft_tokens_per_image": 188,
        "vision_soft_tokens_per_image": 256, "boi_token_id": 255999, "audio_token_id": 262273,
        "image_token_id": 262145, "eoa_token_id": 262272, "boa_token_id": 256000,
        "eoi_token_id": 262144, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "m" / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    assert_close("gemma3n", expected_logits(model, prompt(63)), ours(tmp_path / "m"), rms=RMS)
    assert "2 tensors of keys and values" in caplog.text


def test_streams_whose_size_is_below_the_floor(tmp_path: Path) -> None:
    """They are not brought to the size of others, but by what the floor allows."""
    write_checkpoint("gemma3n", tmp_path / "m")
    change(
        tmp_path / "m",
        lambda t: {
            n: x * np.float32(1e-4 if "altup_projections" in n else 1) for n, x in t.items()
        },
    )
    compare(tmp_path / "m")


def test_what_mixes_streams_has_16_bits(tmp_path: Path) -> None:
    write_checkpoint("gemma3n-whole", tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "out.edge", quant="int4", method="rtn", golden=False,
            progress=False)  # fmt: skip
    with Bundle.open(tmp_path / "out.edge") as bundle:
        weights = bundle.graph().weights
        for name in ("predict_router", "correct_router", "predicted_coefficients",
                     "corrected_coefficients", "streams_coefficients"):  # fmt: skip
            assert weights[f"layers.1.{name}"].encoding == "f16", name
        assert weights["layers.1.gate_up"].encoding == "int4-g32"
        answers = [
            run(open_session(bundle, SessionOptions(device, threads=1)), prompt(40))
            for device in ("reference", "cpu")
        ]
    assert_close("int4", *answers, rms=2e-2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"altup_num_inputs": 1}, "'altup_num_inputs' is 1"),
        ({"altup_num_inputs": 17}, "expected 2 to 16 streams"),
        ({"altup_active_idx": 4}, "'altup_active_idx' 4"),
        ({"hidden_size": 2040}, "of a multiple of 16 channels"),
        ({"altup_correct_scale": False}, "'altup_correct_scale' is False, expected True"),
        ({"laurel_rank": 0}, "'laurel_rank' is 0, expected 1"),
        ({"intermediate_size": [64] * 29}, "'intermediate_size' has 29 sizes, expected 30"),
        ({"intermediate_size": 1 << 21}, "'intermediate_size' is 2097152, expected 1 to 1048576"),
        ({"activation_sparsity_pattern": [1.0] * 30}, "expected 30 numbers from 0 to 1"),
        ({"activation_sparsity_pattern": [0.5]}, "expected 30 numbers from 0 to 1"),
        ({"num_kv_shared_layers": 30}, "expected fewer than 30 layers"),
        ({"num_kv_shared_layers": 27}, "behind one of each type"),
        ({"vocab_size_per_layer_input": 1000}, "and 258304 or more"),
        ({"hidden_size_per_layer_input": 250}, "expected a multiple of 16"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        build({**CONFIGS["gemma-3n-E2B"], **changes})
