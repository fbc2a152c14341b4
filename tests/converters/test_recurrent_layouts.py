"""Checkpoints of recurrent families as they lie on the hub, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.families import build
from edgert.kernels.ops import CATALOGUE

from edgert.bundle import Bundle, describe
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import (
    CASES,
    SIZES,
    expected_logits,
    prompt,
    scatter,
    write_checkpoint,
    write_tokenizer,
)
from tests.converters.published import CONFIGS, shrunk
from tests.converters.test_families import RMS, run
from tests.converters.test_layouts import Arrays, change, compare, ours, refusal, theirs

DRAFTING = {"mtp.fc.weight": np.ones((64, 128), np.float32)}


@pytest.mark.parametrize("case", ["qwen3_5", "qwen3_next"])
def test_layers_for_drafts_are_left_out(tmp_path: Path, case: str) -> None:
    write_checkpoint(case, tmp_path / case)
    change(tmp_path / case, lambda tensors: {**tensors, **DRAFTING})
    compare(tmp_path / case)


def test_such_layers_of_other_families_are_unexpected(tmp_path: Path) -> None:
    write_checkpoint("lfm2", tmp_path / "m")
    change(tmp_path / "m", lambda tensors: {**tensors, **DRAFTING})
    assert "tensor 'mtp.fc.weight' [64, 128] is unexpected" in refusal(tmp_path / "m").message


def test_the_text_of_a_composite_qwen_3_5(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    _, changes = CASES["qwen3_5"]
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 64, "num_position_embeddings": 16,
    }  # fmt: skip
    config = transformers.Qwen3_5Config(text_config={**SIZES, **changes}, vision_config=vision)
    model = transformers.Qwen3_5ForConditionalGeneration(config).float().eval()
    scatter(model)
    folder = tmp_path / "qwen3_5"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    names = set(model.state_dict())
    assert any("visual" in name for name in names)
    assert any(name.startswith("model.language_model.") for name in names)
    got = ours(folder)  # before transformers reads it by its text class
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 260, 63))[None]
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits[0].numpy()
    assert_close("composite", want, got, rms=RMS)


def test_absent_keys_of_a_composite_config_have_their_defaults() -> None:
    whole = {"model_type": "qwen3_5", "text_config": {"num_hidden_layers": 4}, "vision_config": {}}
    graph = build(whole).graph
    assert (graph.context, graph.outputs[0].shape) == (32_768, ("R", 248_320))
    assert "head" in graph.weights, "its head is not tied unless it says so"


def test_old_names_and_an_infinite_limit_of_mamba_2(tmp_path: Path) -> None:
    def old(tensors: Arrays) -> Arrays:
        return {name.replace("embeddings.", "embedding."): a for name, a in tensors.items()}

    write_checkpoint("mamba2", tmp_path / "m")
    want = theirs(tmp_path / "m")
    change(tmp_path / "m", old, time_step_limit=[0.0, float("inf")])
    assert "Infinity" in (tmp_path / "m" / "config.json").read_text("utf-8")
    assert_close("old", want, ours(tmp_path / "m"), rms=RMS)


@pytest.mark.parametrize("word", ["NaN", "-Infinity"])
def test_other_words_are_no_numbers(tmp_path: Path, word: str) -> None:
    write_checkpoint("mamba2", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    found = {**json.loads(path.read_text("utf-8")), "time_step_limit": [0.0, 7.25]}
    path.write_text(json.dumps(found).replace("7.25", word), "utf-8")
    error = refusal(tmp_path / "m")
    assert error.code == "checkpoint-json"
    assert f"{word} is no JSON number" in error.message


@pytest.mark.parametrize("case", ["falcon_h1", "qwen3_5", "lfm2"])
def test_codes_are_chosen_by_a_calibration(tmp_path: Path, case: str) -> None:
    """Convolutions and vectors stay as they are, and the text hardly changes at int8."""
    model = write_checkpoint(case, tmp_path / "m")
    out = tmp_path / "out.edge"
    options = {"golden": False, "progress": False, "force": True}
    convert(tmp_path / "m", out, quant="int8", **options)
    with Bundle.open(out) as bundle:
        graph = bundle.graph("model")
        kept = {n for node in graph.nodes for s, n in node.weights.items()
                if s not in CATALOGUE[node.op].matrix}  # fmt: skip
        assert {graph.weights[name].encoding for name in kept} == {"f32"}
        session = open_session(bundle, SessionOptions("cpu", threads=1))
        got = run(session, prompt(63))
        session.close()
    assert_close("int8", expected_logits(model, prompt(63)), got, rms=0.08)
    few = Calibration.sample(sequences=4, length=64)
    convert(tmp_path / "m", out, quant="int4", method="gptq", calibration=few, **options)
    with Bundle.open(out) as bundle:
        found = {weight.encoding for weight in bundle.graph("model").weights.values()}
    assert found == {"f32", "int4-g32", "int8-g32"}


@pytest.mark.parametrize(
    ("name", "layers", "held"),
    [
        ("mamba2-130m", 24, 24 * 4 * (24 * 64 * 128 + 3 * 1792)),
        ("Falcon-H1-0.5B", 36, 36 * 4 * (24 * 64 * 128 + 3 * 1792)),
        ("LFM2-350M", 16, 10 * 4 * (2 + 64) * 1024),
        ("Qwen3.5-27B", 64, 48 * 4 * (48 * 128 * 128 + 3 * 10240)),
    ],
)
def test_layers_and_what_their_states_hold(name: str, layers: int, held: int) -> None:
    graph = build(CONFIGS[name]).graph
    assert describe.layers(graph) == layers
    assert describe.state_bytes(graph) == held


NEXT = {
    **shrunk("Qwen3-4B"), "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"],
    "num_experts": 512, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "norm_topk_prob": True,
    "shared_expert_intermediate_size": 512,
}  # fmt: skip
for key in ("max_window_layers", "sliding_window", "use_sliding_window", "attention_bias"):
    NEXT.pop(key)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**NEXT, "num_experts_per_tok": 65}, "'num_experts_per_tok' is 65, expected 1 to 64"),
        ({**NEXT, "mlp_only_layers": [0, 2], "moe_intermediate_size": 8},
         "'moe_intermediate_size' is 8, expected a multiple of 16"),
        ({**NEXT, "shared_expert_intermediate_size": 0}, "'shared_expert_intermediate_size' is 0"),
        ({**NEXT, "decoder_sparse_step": 0}, "'decoder_sparse_step' is 0, expected 1 or more"),
        ({**CONFIGS["granite-4.0-h-1b"], "num_local_experts": 2000, "num_experts_per_tok": 2},
         "'num_local_experts' is 2000, expected 1 to 1024"),
        ({**CONFIGS["granite-4.0-h-1b"], "mamba_n_heads": 40},
         "40 heads of 64 are 2560 channels, expected 3072"),
        ({**CONFIGS["granite-4.0-h-1b"], "position_embedding_type": "alibi"},
         "'position_embedding_type' is 'alibi', expected rope or nope"),
        ({**CONFIGS["granite-4.0-h-1b"], "residual_multiplier": 0.0},
         "'residual_multiplier' is 0.0, expected a positive number"),
        ({**CONFIGS["Falcon-H1-0.5B"], "mamba_proj_bias": True},
         "'mamba_proj_bias' is True, expected False"),
        ({**CONFIGS["Falcon-H1-0.5B"], "ssm_multipliers": [1.0, 2.0]},
         "'ssm_multipliers' is .*expected 5 positive numbers"),
        ({**CONFIGS["Falcon-H1-0.5B"], "mamba_d_head": "some"}, "expected a size or auto"),
        ({**CONFIGS["mamba2-130m"], "time_step_limit": [0.5, 0.1]}, "steps from 0.5 to 0.1"),
        ({**CONFIGS["mamba2-130m"], "n_groups": 7}, "no multiple of 7 groups"),
        ({**CONFIGS["mamba2-130m"], "conv_kernel": 1}, "a convolution of 1, expected 2 to 16"),
        ({**CONFIGS["mamba2-130m"], "rms_norm": False}, "'rms_norm' is False, expected True"),
        ({**CONFIGS["LFM2-350M"], "conv_dim": 512}, "has widths .*'hidden_size' 1024"),
        ({**CONFIGS["LFM2-350M"], "conv_L_cache": 40}, "'conv_L_cache' is 40, expected 2 to 16"),
        ({**CONFIGS["LFM2-350M"], "layer_types": ["conv"] * 15}, "'layer_types' has 15 entries"),
        ({**CONFIGS["Qwen3.5-27B"], "linear_num_value_heads": 47},
         "'linear_num_value_heads' is 47, expected a multiple"),
        ({**CONFIGS["Qwen3.5-27B"], "attn_output_gate": False},
         "'attn_output_gate' is False, expected True"),
    ],
)  # fmt: skip
def test_what_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        build(config)
