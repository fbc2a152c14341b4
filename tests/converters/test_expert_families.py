"""Checkpoints with experts: what their matrices are stored as, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.families import build
from edgert.converters.linearize.options import LinearizeOptions
from edgert.converters.linearize.plan import turnable
from edgert.converters.sources.base import open_source
from edgert.converters.stages.compot import targets_of
from edgert.converters.stages.mixed import Mixed
from edgert.converters.stages.quantize import Quantize
from edgert.converters.stages.read import read
from edgert.converters.weights import whole
from edgert.kernels.encodings import ENCODINGS, asked
from safetensors.numpy import load_file, save_file

from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import expected_logits, make_model, prompt, write_checkpoint
from tests.converters.expert_cases import CONFIGS
from tests.converters.test_families import run
from tests.session.families import family_graph

QWEN, GRANITE = CONFIGS["Qwen3-30B-A3B"], CONFIGS["granite-3.1-1b-a400m"]
GPT, DEEP = CONFIGS["gpt-oss-20b"], CONFIGS["DeepSeek-V2-Lite"]
MINI = CONFIGS["MiniCPM3-4B"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    write_checkpoint("granitemoe", folder)
    return folder


def test_experts_are_stored_in_codes_and_routers_in_16_bits(
    checkpoint: Path, tmp_path: Path
) -> None:
    convert(checkpoint, tmp_path / "out.edge", quant="int4", method="rtn", golden=False,
            progress=False)  # fmt: skip
    with Bundle.open(tmp_path / "out.edge") as bundle:
        weights = bundle.graph().weights
        assert weights["layers.0.experts_gate_up"].encoding == "int4-g32"
        assert weights["layers.2.experts_down"].encoding == "int4-g32"
        assert weights["layers.1.router"].encoding == "f16"
        answers = [
            run(open_session(bundle, SessionOptions(device, threads=1)), prompt(40))
            for device in ("reference", "cpu")
        ]
    assert_close("int4 experts", *answers, rms=2e-2)


def test_methods_that_need_inputs_say_that_experts_are_rounded(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(notices, "_shown", set())
    convert(checkpoint, tmp_path / "out.edge", quant="int4", method="hqq", golden=False,
            progress=False)  # fmt: skip
    assert "hqq chooses no codes of experts yet: theirs are rounded to nearest" in caplog.text


# How far logits of weights rounded to so many bits may be from those of floats.
LOST = {32: 1e-4, 16: 5e-3, 8: 0.06, 6: 0.08, 5: 0.15, 4: 0.25, 3: 0.5, 2: 0.9}


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """Logits of the checkpoint's own values."""
    return expected_logits(make_model("granitemoe"), prompt(40))


@pytest.mark.parametrize("encoding", sorted(set(asked().values())))
def test_every_encoding_that_may_be_asked_for_gives_close_logits(
    encoding: str, checkpoint: Path, tmp_path: Path, exact: np.ndarray
) -> None:
    out = tmp_path / "out.edge"
    convert(checkpoint, out, quant=encoding, method="rtn", golden=False, progress=False)
    answers = []
    with Bundle.open(out) as bundle:
        weights = bundle.graph().weights
        assert {w.encoding for name, w in weights.items() if "experts_" in name} == {encoding}
        for device, threads in (("reference", 1), ("cpu", 1), ("cpu", 2)):
            session = open_session(bundle, SessionOptions(device, threads=threads, kv_bits=32))
            answers.append(run(session, prompt(40)))
            session.close()
    assert_close(encoding, *answers[:2], rms=1e-2)
    assert np.array_equal(answers[1], answers[2])
    assert_close(f"{encoding} of floats", exact, answers[1], rms=LOST[ENCODINGS[encoding].bits])


def test_mixed_encodings_are_refused(checkpoint: Path) -> None:
    with open_source(checkpoint) as source:
        (part,) = read(source).parts
        stage = Mixed(1 << 30, Calibration("text", sequences=1, length=8))
        with pytest.raises(ConvertError, match="has experts, expected a model without"):
            stage.run(part, None)  # type: ignore[arg-type]
        assert Quantize("int4-g32", "int8-g32").nbytes(part) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[:-1], r"layers.1.block_sparse_moe.experts.7.up_proj.weight' .*is missing"),
        (lambda t: np.concatenate([t, t]), r"experts.15.up_proj.weight' .*is unexpected"),
        (lambda t: t.reshape(-1, 64), r"input_linear.weight' \[512, 64\] is unexpected"),
        (lambda t: t[:, 1:], r"input_linear.weight' \[8, 63, 64\] is unexpected"),
        (lambda t: t[:, 2:], r"experts.0.gate_proj.weight' is \[31, 64\], expected \[32, 64\]"),
        (lambda t: t[:, :, 1:], r"gate_proj.weight' is \[32, 63\], expected \[32, 64\]"),
    ],
)
def test_stacked_tensors_of_other_sizes_are_refused(
    checkpoint: Path, tmp_path: Path, change: Any, says: str
) -> None:
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    for path in checkpoint.iterdir():
        (spoiled / path.name).write_bytes(path.read_bytes())
    tensors = load_file(spoiled / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.input_linear.weight"
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, spoiled / "model.safetensors")
    with pytest.raises(ConvertError, match=says):
        convert(spoiled, tmp_path / "out.edge", quant="f32", progress=False)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**QWEN, "num_experts_per_tok": 129}, "'num_experts_per_tok' is 129, expected 1 to 64"),
        ({**QWEN, "num_experts": 4}, "'num_experts_per_tok' is 8, expected 1 to 4"),
        ({**QWEN, "num_experts_per_tok": 0}, "'num_experts_per_tok' is 0"),
        ({**QWEN, "num_experts": 1 << 20}, "'num_experts' is 1048576, expected 1 to 1024"),
        ({**QWEN, "num_local_experts": 64}, "'num_local_experts' is 64, expected 'num_experts'"),
        ({k: v for k, v in QWEN.items() if k != "num_experts"}, "'num_experts' is missing"),
        ({**QWEN, "moe_intermediate_size": 770}, "is 770, expected a multiple of 16"),
        ({**QWEN, "moe_intermediate_size": 0}, "is 0, expected a multiple of 16"),
        ({**QWEN, "decoder_sparse_step": 0}, "'decoder_sparse_step' is 0, expected 1 or more"),
        ({**QWEN, "use_sliding_window": True}, "'use_sliding_window' is True, expected False"),
        ({**QWEN, "shared_expert_intermediate_size": 768}, "'shared_expert_intermediate_size'"),
        ({**QWEN, "norm_topk_prob": "yes"}, "'norm_topk_prob' is 'yes'"),
        ({**GPT, "experts_per_token": 2}, "is 2, expected 'num_experts_per_tok', 4"),
        ({**DEEP, "v_head_dim": 200}, "'v_head_dim' is 200, expected at most the 192 of a key"),
        ({**DEEP, "qk_rope_head_dim": 63}, "'qk_rope_head_dim' 63, expected multiples of an even"),
        ({**DEEP, "kv_lora_rank": 500}, "'kv_lora_rank' 500 and 'qk_rope_head_dim' 64, expected"),
        ({**DEEP, "qk_rope_head_dim": 0}, "'qk_rope_head_dim' is 0, expected 1 to"),
        ({**DEEP, "num_key_value_heads": 4}, "'num_key_value_heads' is 4, expected"),
        ({**DEEP, "q_lora_rank": 0}, "'q_lora_rank' is 0, expected 1 or more, or null"),
        ({**DEEP, "topk_method": "group_limited_greedy"}, "'topk_method' is .*expected 'greedy'"),
        ({**DEEP, "n_group": 8}, "'n_group' is 8, expected 1"),
        ({**DEEP, "n_shared_experts": 0}, "'n_shared_experts' is 0"),
        ({**GPT, "swiglu_limit": 0.0}, "'swiglu_limit' is 0.0, expected a positive number"),
        ({**GPT, "swiglu_alpha": 1.0}, "'swiglu_alpha' is 1.0, expected 1.702"),
        ({**GPT, "layer_types": ["full_attention"]}, "'layer_types' has 1 entries"),
        ({**MINI, "qk_rope_head_dim": 31}, "'qk_rope_head_dim' 31, expected multiples of an even"),
        ({**MINI, "v_head_dim": 100}, "'v_head_dim' is 100, expected at most the 96 of a key"),
        ({**MINI, "v_head_dim": 0}, "'v_head_dim' is 0, expected 1 to"),
        ({**MINI, "kv_lora_rank": 0}, "'kv_lora_rank' is 0, expected 1 to"),
        ({**MINI, "num_key_value_heads": 8}, "'num_key_value_heads' is 8, expected"),
        ({**MINI, "scale_depth": 0.0}, "'scale_depth' is 0.0, expected a positive number"),
        ({**MINI, "scale_emb": -1}, "'scale_emb' is -1.0, expected a positive number"),
        ({**MINI, "dim_model_base": 0}, "'dim_model_base' is 0.0, expected a positive number"),
        ({**GRANITE, "num_local_experts": -1}, "'num_local_experts' is -1, expected 1 to 1024"),
        ({**GRANITE, "intermediate_size": 500}, "is 500, expected a multiple of 16"),
    ],
)
def test_configs_that_no_model_has_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        build(config)


def test_routers_and_experts_are_not_factored() -> None:
    targets = targets_of(build(QWEN).graph)
    assert "layers.0.qkv" in targets
    assert not [name for name in targets if "router" in name or "experts" in name]


def test_layers_with_sinks_are_not_linearized() -> None:
    graph, _ = family_graph("gpt_oss")
    with pytest.raises(ConvertError, match="no layer can be linearized"):
        turnable(graph, LinearizeOptions())


def test_turned_stacks_are_read_by_columns(tmp_path: Path) -> None:
    """gpt-oss has its matrices turned, gates and ups in alternating columns."""
    model = write_checkpoint("gpt_oss", tmp_path / "m")
    with open_source(tmp_path / "m") as source:
        (part,) = read(source).parts
        module = model.model.layers[1].mlp.experts
        both, bias = module.gate_up_proj.detach().numpy(), module.gate_up_proj_bias.detach().numpy()
        wanted = [both[:, :, at::2].transpose(0, 2, 1).reshape(-1, 64) for at in (0, 1)]
        found = part.weights["layers.1.experts_gate_up"]
        assert np.array_equal(whole(found), np.concatenate(wanted))
        assert np.array_equal(found.rows(45, 51), np.concatenate(wanted)[45:51])
        wanted = [bias[:, at::2].reshape(-1) for at in (0, 1)]
        assert np.array_equal(
            whole(part.weights["layers.1.experts_gate_up_bias"]), np.concatenate(wanted)
        )
        down = module.down_proj.detach().numpy().transpose(0, 2, 1).reshape(-1, 48)
        assert np.array_equal(whole(part.weights["layers.1.experts_down"]), down)
