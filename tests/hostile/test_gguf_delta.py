"""Hostile GGUF models with the gated delta rule, or of Gemma 4: rows H15 to H17."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.convert import convert

from edgert.errors import ConvertError
from tests.gguf_bytes import ARRAY, F32, I32, Made, Tensor, Typed
from tests.hostile.gguf_models import FF, VOCAB, WIDTH, model, tensors
from tests.hostile.test_gguf_source import of, refusal

HUGE = 1 << 31


def delta(name: str = "qwen35", **more: Any) -> dict[str, Any]:
    good = {
        "attention.key_length": 16, "rope.dimension_count": 8,
        "rope.dimension_sections": [2, 1, 1, 0], "ssm.conv_kernel": 4, "ssm.state_size": 8,
        "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 32,
    }  # fmt: skip
    if name == "qwen3next":
        del good["rope.dimension_sections"]
    if name != "qwen35":
        good |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16,
                 "expert_shared_feed_forward_length": 16}  # fmt: skip
    return of(name, **{**good, **more})


def gemma(**more: Any) -> dict[str, Any]:
    good = {
        "attention.key_length": 16, "attention.value_length": 16, "attention.key_length_swa": 16,
        "attention.value_length_swa": 16, "rope.dimension_count_swa": 16,
        "attention.sliding_window": 8, "attention.sliding_window_pattern": [False],
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
    }  # fmt: skip
    return of("gemma4", **{**good, **more})


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "sections": (
        delta(**{"rope.dimension_sections": None}), r"dimension_sections is \[\], expected those",
    ),
    "an-axis-more": (
        delta(**{"rope.dimension_sections": [1, 1, 1, 1]}), "expected those of three axes in turn",
    ),
    "axes-apart": (delta(**{"rope.dimension_sections": [4, 0, 0, 0]}), "expected those of three"),
    "endless-axes": (
        delta(**{"rope.dimension_sections": Typed(ARRAY, (F32, [float("nan")] * 4))}),
        "expected those of three",
    ),
    "inner": (delta(**{"ssm.inner_size": 33}), "ssm.inner_size is 33, expected a multiple of 4"),
    "no-inner": (delta(**{"ssm.inner_size": None}), "'linear_value_head_dim' is 0, expected 1"),
    "values": (
        delta(**{"ssm.time_step_rank": HUGE, "ssm.inner_size": HUGE}),
        "'linear_num_value_heads' is 2147483648",
    ),
    "no-values": (delta(**{"ssm.time_step_rank": 0}), "'linear_num_value_heads' is 0"),
    "keys": (delta(**{"ssm.group_count": 3}), "'linear_num_value_heads' is 4, expected a multiple"),
    "no-keys": (delta(**{"ssm.group_count": None}), "'linear_num_key_heads' is 0"),
    "size": (delta(**{"ssm.state_size": HUGE}), "'linear_key_head_dim' is 2147483648"),
    "conv": (delta(**{"ssm.conv_kernel": HUGE}), "'linear_conv_kernel_dim' is 2147483648"),
    "interval": (delta(full_attention_interval=0), "'full_attention_interval' is 0"),
    "recurrent": (
        delta(**{"attention.recurrent_layers": Typed(ARRAY, (I32, [2]))}), "'layer_types' has 1",
    ),
    "recurrents": (
        delta(**{"attention.recurrent_layers": [True] * 5000}), r"entries of \['neither'\]",
    ),
    "turning": (delta(**{"rope.dimension_count": HUGE}), "partial_rotary_factor 134217728"),
    "guessing": (delta(nextn_predict_layers=1), "nextn_predict_layers is 1, expected fewer than 1"),
    "layers": (delta(block_count=HUGE, nextn_predict_layers=HUGE - 1), "tensors? .*is missing"),
    "experts": (delta("qwen35moe", expert_count=HUGE), "'num_experts' is 2147483648"),
    "no-experts": (delta("qwen35moe", expert_count=None), "'num_experts' is 0"),
    "shared": (
        delta("qwen35moe", expert_shared_feed_forward_length=HUGE),
        "'shared_expert_intermediate_size' is 2147483648",
    ),
    "no-experts-next": (delta("qwen3next", expert_count=0), "expert_count is 0 or missing"),
    "gemma-kinds": (gemma(**{"attention.sliding_window_pattern": [False] * 5000}), "expected 1, "),
    "gemma-last": (gemma(**{"attention.sliding_window_pattern": [True]}), "the last without a"),
    "gemma-shared": (gemma(**{"attention.shared_kv_layers": HUGE}), "2147483648 of them that"),
    "gemma-heads": (gemma(**{"attention.key_length_swa": HUGE}), "value_length_swa is 16, "),
    "gemma-size": (
        gemma(**{key: HUGE for key in ("attention.key_length_swa", "attention.value_length_swa",
                                       "rope.dimension_count_swa")}),
        "'head_dim' is 2147483648",
    ),
    "gemma-experts": (gemma(expert_count=128), "expert_count is 128, expected none"),
    "gemma-widths": (gemma(feed_forward_length=Typed(ARRAY, (I32, [64, 64]))), "no list of 1"),
    "gemma-negative": (gemma(feed_forward_length=Typed(ARRAY, (I32, [-64]))), "no list of 1"),
    "gemma-groups": (
        gemma(**{"attention.head_count_kv": Typed(ARRAY, (F32, [1.0]))}), "no list of 1",
    ),
    "gemma-each": (
        gemma(embedding_length_per_layer_input=HUGE), "'hidden_size_per_layer_input' is 2147483648",
    ),
    "gemma-factors": (gemma(), "'rope_freqs.weight' has 0 factors"),
    "gemma-base": (gemma(**{"rope.freq_base_swa": None}), r"is missing, for \['sliding_attention'"),
    "gemma-scaled": (gemma(**{"rope.scaling.factor": 4.0}), "rope scaling 'linear', expected none"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_h16_metadata_that_no_model_has(name: str, tmp_path: Path) -> None:
    changes, says = FAULTS[name]
    made = model(changes)
    if name.startswith("gemma") and name != "gemma-factors":
        made = replace(made, tensors=[*made.tensors, floats("rope_freqs.weight", 1.0, 8)])
    with pytest.raises(ConvertError, match=says):
        raise refusal(made, tmp_path)


SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,), "blk.0.post_attention_norm.weight": (WIDTH,),
    "blk.0.attn_qkv.weight": (64, WIDTH), "blk.0.attn_gate.weight": (32, WIDTH),
    "blk.0.ssm_beta.weight": (4, WIDTH), "blk.0.ssm_alpha.weight": (4, WIDTH),
    "blk.0.ssm_out.weight": (WIDTH, 32), "blk.0.ssm_norm.weight": (8,), "blk.0.ssm_a": (4,),
    "blk.0.ssm_dt.bias": (4,), "blk.0.ffn_gate.weight": (FF, WIDTH),
    "blk.0.ffn_up.weight": (FF, WIDTH), "blk.0.ffn_down.weight": (WIDTH, FF),
}  # fmt: skip


def linear(**changed: Tensor) -> Made:
    """A good model of one layer, but for changes, by name with "_" for "."."""
    found = tensors(SHAPES)
    found["blk.0.ssm_a"] = floats("blk.0.ssm_a", -0.5, 4)
    found["blk.0.ssm_conv1d.weight"] = floats("blk.0.ssm_conv1d.weight", 0.1, 4, 64)
    for name, tensor in changed.items():
        found[next(key for key in found if key.replace(".", "_") == name)] = tensor
    return replace(model(delta()), tensors=list(found.values()))


def floats(name: str, value: float, *shape: int) -> Tensor:
    """A tensor of one value; its shape as GGUF has it."""
    count = 1
    for size in shape:
        count *= size
    return Tensor(name, shape, 0, struct.pack(f"<{count}f", *[value] * count))


def test_the_good_model_is_good(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(linear().bytes())
    report = convert(tmp_path / "m.gguf", tmp_path / "out.edge", progress=False)
    anew = {w.name for w in report.weights if w.error > 1e-6}
    assert anew == {"layers.0.o"}  # heads of 8 columns in blocks of 32


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"blk_0_ssm_a": floats("blk.0.ssm_a", 0.5, 4)}, "4 NaN and 0 infinite values"),
        ({"blk_0_ssm_a": floats("blk.0.ssm_a", -0.5, 3)}, r"is \[3\], expected \[4\]"),
        (
            {"blk_0_ssm_conv1d_weight": floats("blk.0.ssm_conv1d.weight", 0.1, 4, 63)},
            r"is \[63, 1, 4\], expected \[64, 1, 4\]",
        ),
        (
            {"blk_0_ssm_conv1d_weight": floats("blk.0.ssm_conv1d.weight", 0.1, 64)},
            r"is \[64, 1\], expected \[64, 1, 4\]",
        ),
        (
            {"blk_0_ssm_out_weight": floats("blk.0.ssm_out.weight", 0.1, 31, WIDTH)},
            r"is \[32, 31\], expected \[32, 32\]",
        ),
        (
            {"blk_0_ssm_dt_bias": floats("blk.0.ffn_norm.weight", 1.0, WIDTH)},
            "which another one is as well",
        ),
    ],
)
def test_h15_tensors_that_do_not_fit(changed: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    error = refusal(linear(**changed), tmp_path)
    with pytest.raises(type(error), match=says):
        raise error
