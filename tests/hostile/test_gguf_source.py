"""Hostile GGUF models: rows H03, H06 and H14 to H17 for metadata, tensors and parts of a file."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.base import open_source

from edgert.errors import ConvertError
from tests.gguf_bytes import ARRAY, I32, TEXT, Made, Tensor, Typed
from tests.hostile.gguf_models import FF, KEYS, WIDTH, model, q8_0, tensors


def refusal(made: Made | bytes, folder: Path) -> ConvertError:
    """The error of a conversion, which leaves nothing behind."""
    path = folder / "m.gguf"
    path.write_bytes(made if isinstance(made, bytes) else made.bytes())
    with pytest.raises(ConvertError) as caught:
        convert(path, folder / "out.edge", progress=False)
    assert sorted(p.name for p in folder.iterdir() if ".stage" not in p.name) == ["m.gguf"]
    assert caught.value.hint
    return caught.value


def test_the_good_model_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model().bytes())
    report = convert(path, tmp_path / "out.edge", progress=False)
    assert {w.encoding for w in report.weights} == {"f32", "int8-g32"}
    assert max(w.error for w in report.weights) == 0
    assert report.quant == "as the source"
    with open_source(path) as source:
        assert source.name == "m"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "architecture 'mamba', of GGUF files"),
    "no-architecture": ({"general.architecture": None}, "no architecture"),
    "projector": ({"general.architecture": "clip"}, "architecture 'clip'"),
    "missing-size": ({"llama.block_count": None}, "'llama.block_count' is missing"),
    "text-for-size": ({"llama.block_count": "1"}, "expected a whole number"),
    "layers": ({"llama.block_count": 1 << 31}, "num_hidden_layers"),
    "no-heads": ({"llama.attention.head_count": 0}, "head_count' is zero"),
    "heads-by-layer": (
        {"llama.attention.head_count": Typed(ARRAY, (I32, [2, 4]))}, "differs between layers",
    ),
    "fewer-than-none": (
        {"llama.attention.head_count_kv": Typed(ARRAY, (I32, [-1]))}, "is -1, expected a whole",
    ),
    "unknown-key": ({"llama.no_such": 5}, "'llama.no_such' .= 5. is unknown"),
    "experts": ({"llama.expert_count": 8}, "'llama.expert_count' .= 8. is unknown, but for 0"),
    "scaling": ({"llama.rope.scaling.type": "su"}, "expected none, linear, yarn"),
    "values": ({"llama.attention.value_length": 8}, "value_length is 8"),
    "rotary": ({"llama.rope.dimension_count": 8}, "dimension_count is 8"),
    "eps": ({"llama.attention.layer_norm_rms_epsilon": 2.0}, "rms_norm_eps"),
    "tokens": ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
    "few-tokens": (
        {"tokenizer.ggml.tokens": ["<s>"], "tokenizer.ggml.token_type": None}, "token",
    ),
    "no-end": (
        {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF}, "no eos token",
    ),
    "template": ({"tokenizer.chat_template": "x" * 300_000}, "a text of at most 262144 bytes"),
    "template-kind": ({"tokenizer.chat_template": 5}, "expected a text"),
    "not-utf8": (
        {"tokenizer.ggml.merges": Typed(ARRAY, (TEXT, [b"\xff \xfe"]))}, "expected UTF-8",
    ),
    "temperature": ({"general.sampling.temp": -1.0}, "general.sampling 'temperature' is '-1'"),
    "no-number": (
        {"general.sampling.top_p": float("nan")}, "general.sampling 'top_p' is 'nan', expected",
    ),
    "text-for-sampling": ({"general.sampling.top_k": "40"}, "expected a number"),
    "split": ({"split.count": 3}, "is one of 3 parts"),
    "splits": ({"split.count": 1 << 30}, "is one of 1073741824 parts"),
}  # fmt: skip


def of(name: str, **more: Any) -> dict[str, Any]:
    """Keys of another architecture with the sizes of the good model."""
    sizes = {k.partition(".")[2]: v for k, v in KEYS.items() if k.startswith("llama.")}
    own = {f"{name}.{key}": value for key, value in {**sizes, **more}.items()}
    gone = dict.fromkeys((k for k in KEYS if k.startswith("llama.")), None)
    return {"general.architecture": name, **gone, **own}


def latent(**more: Any) -> dict[str, Any]:
    good = {
        "attention.head_count_kv": 2, "attention.kv_lora_rank": 32, "attention.key_length": 16,
        "attention.value_length": 8, "rope.dimension_count": 8, "expert_count": 4,
        "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 16,
        "expert_weights_scale": 1.0,
    }  # fmt: skip
    return of("deepseek2", **{**good, **more})


def picked(**more: Any) -> dict[str, Any]:
    good = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
    return of("gpt-oss", **{**good, **more})


LATENT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "gating": (latent(expert_gating_func=2), "expert_gating_func is 2, expected 1"),
    "normed": (latent(expert_weights_norm=True), "'norm_topk_prob' is True, expected False"),
    "normed-kind": (latent(expert_weights_norm=1), "expected true or false"),
    "groups": (latent(expert_group_count=8), "'n_group' is 8, expected 1"),
    "no-rank": (latent(**{"attention.kv_lora_rank": 0}), "'kv_lora_rank' is 0, expected 1"),
    "rank": (latent(**{"attention.kv_lora_rank": 1 << 31}), "'kv_lora_rank' is 2147483648"),
    "queries": (latent(**{"attention.q_lora_rank": 1 << 31}), "'q_lora_rank' is 2147483648"),
    "no-turning": (latent(**{"rope.dimension_count": 0}), "'head_dim' is 0"),
    "turning": (latent(**{"rope.dimension_count": 24}), "'qk_nope_head_dim' is -8, expected 1"),
    "values": (latent(**{"attention.value_length": 24}), "'v_head_dim' is 24, expected at most"),
    "one-head": (latent(**{"attention.head_count_kv": 1}), "'num_key_value_heads' is 1, expected"),
    "half-told": (
        latent(**{"attention.key_length_mla": 16, "attention.head_count_kv": 1}),
        "'num_key_value_heads' is 1, expected",
    ),
    "experts": (latent(expert_count=1 << 31), "'n_routed_experts' is 2147483648, expected 1 to"),
    "no-experts": (latent(expert_used_count=None), "'num_experts_per_tok' is 0, expected 1 to 4"),
    "shared": (latent(expert_shared_count=0), "'n_shared_experts' is 0"),
    "width": (latent(expert_feed_forward_length=24), "'moe_intermediate_size' is 24, expected a"),
    "scale": (latent(expert_weights_scale=-1.0), "'routed_scaling_factor' is -1.0, expected"),
    "stretch": (
        latent(**{
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.yarn_log_multiplier": float("inf"),
        }), "mscale",
    ),
    "gpt-oss-picked": (picked(expert_used_count=None), "'num_experts_per_tok' is 0, expected 1"),
    "gpt-oss-experts": (picked(expert_count=None), "'num_local_experts' is 0, expected 1 to"),
    "gpt-oss-width": (picked(expert_feed_forward_length=20), "'intermediate_size' is 20, expected"),
    "gpt-oss-gating": (picked(expert_gating_func=2), "'gpt-oss.expert_gating_func' .= 2. is unkn"),
    "gpt-oss-window": (
        picked(**{"attention.sliding_window": Typed(I32, -1)}), "expected a whole number",
    ),
}  # fmt: skip


def streams(**more: Any) -> dict[str, Any]:
    good = {
        "altup.num_inputs": 2, "embedding_length_per_layer_input": 16, "attention.key_length": 16,
        "attention.sliding_window": 8, "attention.sliding_window_pattern": [False],
        "activation_sparsity_scale": [1.5],
    }  # fmt: skip
    return of("gemma3n", **{**good, **more})


STREAM_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "streams": (streams(**{"altup.num_inputs": 1 << 31}), "'altup_num_inputs' is 2147483648"),
    "no-streams": (streams(**{"altup.num_inputs": None}), "'altup_num_inputs' is 0"),
    "active": (streams(**{"altup.active_idx": 2}), "'altup_active_idx' 2"),
    "each": (streams(embedding_length_per_layer_input=1 << 31), "'hidden_size_per_layer_input' is"),
    "shared-keys": (streams(**{"attention.shared_kv_layers": 1}), "'num_kv_shared_layers' is 1"),
    "kinds": (
        streams(**{"attention.sliding_window_pattern": [True] * 5000}), "'layer_types' has 1 entr",
    ),
    "kinds-kind": (streams(**{"attention.sliding_window_pattern": 5}), "expected an array"),
    "cuts": (streams(activation_sparsity_scale=[float("nan")]), "'activation_sparsity_pattern' is"),
    "cut-of-all": (streams(activation_sparsity_scale=[99.0]), "'activation_sparsity_pattern' is"),
    "more-cuts": (streams(activation_sparsity_scale=[0.5] * 9), "expected 1 numbers"),
}  # fmt: skip


def mixed(name: str, **more: Any) -> dict[str, Any]:
    good = {
        "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 4,
        "ssm.group_count": 1,
    }  # fmt: skip
    return of(name, **{**good, **more})


def mamba2(**more: Any) -> dict[str, Any]:
    none = dict.fromkeys(("attention.head_count_kv", "rope.dimension_count"))
    return mixed("mamba2", **{"attention.head_count": 0, "feed_forward_length": 0, **none, **more})


def conv(**more: Any) -> dict[str, Any]:
    return of("lfm2", **{"shortconv.l_cache": 3, **more})


KV, LARGE = "attention.head_count_kv", 1 << 31
RECURRENT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "mamba2-heads": (mamba2(**{"attention.head_count": 2}), "head_count' is 2, expected 0"),
    "mamba2-layers": (mamba2(block_count=LARGE), "'num_hidden_layers' is 2147483648"),
    "mixers": (mamba2(**{"ssm.time_step_rank": LARGE}), "2147483648 heads of a mixer"),
    "no-mixers": (mamba2(**{"ssm.time_step_rank": None}), "0 heads of a mixer"),
    "inner": (mamba2(**{"ssm.inner_size": LARGE}), "536870912 head size of a mixer"),
    "odd-inner": (mamba2(**{"ssm.inner_size": 80}), "4 heads of 20 are 80 channels, expected 64"),
    "no-groups": (mamba2(**{"ssm.group_count": None}), "0 groups of a mixer"),
    "states": (mamba2(**{"ssm.state_size": LARGE}), "2147483648 state of a mixer"),
    "convolution": (mamba2(**{"ssm.conv_kernel": LARGE}), "a convolution of 2147483648"),
    "falcon-h1-mixers": (mixed("falcon-h1", **{"ssm.time_step_rank": 3}), "3 heads of 21 are 63"),
    "lfm2-width": (conv(**{"shortconv.l_cache": LARGE}), "'conv_L_cache' is 2147483648"),
    "lfm2-no-width": (conv(**{"shortconv.l_cache": None}), "'conv_L_cache' is 0"),
    "lfm2-layers": (conv(block_count=LARGE), "'num_hidden_layers' is 2147483648"),
    "lfm2-kinds": (conv(**{KV: Typed(ARRAY, (I32, [1] * 5000))}), "1 entries of .'neither'"),
    "lfm2-more-kinds": (conv(**{KV: Typed(ARRAY, (I32, [1, 0]))}), "'layer_types' has 2 entries"),
    "lfm2-no-heads": (conv(**{KV: Typed(ARRAY, (I32, [-1]))}), "is -1, expected a whole"),
    "lfm2-heads": (conv(**{KV: Typed(ARRAY, (I32, [1, 2]))}), "differs between layers"),
    "hybrid-kinds": (mixed("granitehybrid", **{KV: "1"}), "expected a whole number"),
    "hybrid-heads": (
        mixed("granitehybrid", **{"attention.head_count": 64, "rope.dimension_count": None}),
        "'head_dim' is 0, expected 1",
    ),
    "hybrid-turning": (
        mixed("granitehybrid", **{"rope.dimension_count": 8}), "rope.dimension_count is 8",
    ),
    "hybrid-switch": (
        mixed("granitehybrid", **{"rope.scaling.finetuned": 1}), "expected true or false",
    ),
    "hybrid-scale": (
        mixed("granitehybrid", **{"attention.scale": float("nan")}), "attention_multiplier' is nan",
    ),
    "hybrid-experts": (
        mixed("granitehybrid", expert_count=LARGE), "'num_local_experts' is 2147483648, expected 1",
    ),
    "hybrid-shared": (
        mixed("granitehybrid", expert_count=4, expert_used_count=2),
        "'shared_intermediate_size' is 0, expected 1",
    ),
}  # fmt: skip
FAULTS |= LATENT_FAULTS | STREAM_FAULTS | RECURRENT_FAULTS


def normed(name: str, **more: Any) -> dict[str, Any]:
    """Of an architecture with layer norms."""
    return of(name, **{"attention.layer_norm_epsilon": 1e-5, **more})


def grown(**more: Any) -> dict[str, Any]:
    good = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16, "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.1,
    }  # fmt: skip
    return of("mistral3", **{**good, **more})


SLIDE = {"attention.sliding_window": 8}
DENSE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no-epsilon": (of("gpt2"), "'gpt2.attention.layer_norm_epsilon' is missing"),
    "no-cut": ({**of("granite"), "tokenizer.ggml.pre": None}, "cuts texts by None"),
    "epsilon": (
        normed("phi2", **{"attention.layer_norm_epsilon": 2.0}), "'layer_norm_eps' is 2.0, expect",
    ),
    "turning": (
        normed("stablelm", **{"rope.dimension_count": 24}), "partial_rotary_factor 1.5",
    ),
    "narrow-turning": (of("glm4", **{"attention.head_count": 64}), "'head_dim' is 0, expected"),
    "narrow-factors": (of("granite", **{"attention.head_count": 64}), "expected the head.s size"),
    "odd-turning": (
        normed("gptneox", **{"rope.dimension_count": 3}), "expected an even number of channel",
    ),
    "sections": (of("glm4", **{"rope.dimension_sections": [1, 2]}), "'glm4.rope.dimension_section"),
    "no-positions": (
        of("granite", **{"rope.scaling.finetuned": False}), "attention without positions",
    ),
    "moe-no-positions": (
        of("granitemoe", **{"rope.scaling.finetuned": False}), "attention without positions",
    ),
    "logit-scale": (of("granite", logit_scale=float("inf")), "'logits_scaling' is inf, expected a"),
    "deepstack": (of("granite", deepstack_mapping=[0]), "'granite.deepstack_mapping' .= an array"),
    "no-window": (normed("cohere2", logit_scale=0.5), "'sliding_window' is 0, expected 1 or more"),
    "window-layers": (
        normed("cohere2", block_count=1 << 31, **SLIDE), "'num_hidden_layers' is 2147483648",
    ),
    "window-kinds": (
        of("exaone4", **SLIDE, **{"attention.sliding_window_pattern": [True] * 5000}),
        "'layer_types' has 1 entr",
    ),
    "window-base": (
        of("olmo2", **SLIDE, **{"rope.freq_base_swa": 5.0}), "rope.freq_base_swa is 5.0, expecte",
    ),
    "growth": (grown(**{"attention.temperature_scale": float("inf")}), "llama_4_scaling_beta is i"),
    "growth-length": (
        grown(**{"attention.temperature_length": 8}), "temperature_length is 8, expected that of",
    ),
    "growth-alone": (
        of("mistral3", **{"attention.temperature_scale": 0.1}), "'original_max_position_embedd",
    ),
    "no-numbers": (of("apertus"), "'xielu.alpha_p' is missing, expected a number for each of 1"),
    "more-numbers": (
        {**of("apertus"), "xielu.alpha_p": [0.1] * 9}, "'xielu.alpha_p' is an array of 9, expec",
    ),
    "no-array": ({**of("apertus"), "xielu.alpha_p": 0.1}, "expected an array of numbers"),
    "attention-factor": (
        of("qwen2", **{
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.yarn_attn_factor": 1.5,
        }), "yarn_attn_factor is 1.5, expected 1 or 1.13",
    ),
}  # fmt: skip
FAULTS |= DENSE_FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_h16_metadata_that_no_model_has(name: str, tmp_path: Path) -> None:
    changes, says = FAULTS[name]
    with pytest.raises(ConvertError, match=says):
        raise refusal(model(changes), tmp_path)


def test_h15_tensors_that_do_not_fit(tmp_path: Path) -> None:
    wide = Tensor("blk.0.ffn_up.weight", (WIDTH, FF - 1), 8, q8_0((FF - 1, WIDTH)))
    made = model(blk_0_ffn_up_weight=wide, blk_0_attn_k_weight=None)
    other = Tensor("blk.7.attn_k.weight", (WIDTH, 16), 8, q8_0((16, WIDTH)))
    strange = Tensor("blk.0.attn_sinks.weight", (2,), 0, bytes(8))
    error = refusal(replace(made, tensors=[*made.tensors, other, strange]), tmp_path)
    for part in (
        "4 faults found", "'model.layers.0.self_attn.k_proj.weight' [16, 32] is missing",
        "is [63, 32], expected [64, 32]", "'model.layers.7.self_attn.k_proj.weight' [16, 32] is un",
        "'blk.0.attn_sinks.weight' [2] is unexpected",
    ):  # fmt: skip
        assert part in error.message


def test_h15_queries_keys_and_values_in_one_that_do_not_fit(tmp_path: Path) -> None:
    """What is no whole number of heads is not taken apart, and no row of heads by turns."""
    for name, rows, says in (
        ("phi2", 63, "'blk.0.attn_qkv.weight' .63, 32. is unexpected"),
        ("phi2", 68, "q_proj.weight' is .34, 32., expected .32, 32."),
        ("gptneox", 95, "query_key_value.weight' is .95, 32., expected .96, 32."),
    ):
        one = Tensor("blk.0.attn_qkv.weight", (WIDTH, rows), 8, q8_0((rows, WIDTH)))
        made = model(normed(name, **{"rope.dimension_count": 8}))
        with pytest.raises(ConvertError, match=says):
            raise refusal(replace(made, tensors=[*made.tensors, one]), tmp_path)


def test_h15_types_that_are_not_read(tmp_path: Path) -> None:
    rows = Tensor("blk.0.ffn_up.weight", (WIDTH, FF), 24, bytes(FF * WIDTH))
    error = refusal(model(blk_0_ffn_up_weight=rows), tmp_path)
    assert "tensor 'blk.0.ffn_up.weight' is I8, expected one of ['F32', 'F16'" in error.message


def test_h17_exponents_of_mxfp4_that_are_no_numbers(tmp_path: Path) -> None:
    blocks = b"".join(bytes([255 - i % 2 * 130]) + bytes(range(16)) for i in range(FF))
    rows = Tensor("blk.0.ffn_up.weight", (WIDTH, FF), 39, blocks)
    error = refusal(model(blk_0_ffn_up_weight=rows), tmp_path)
    assert error.code == "weight-values"
    assert "32 of 64 scales are not finite" in error.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_h17_scales_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    rows = Tensor("blk.0.ffn_up.weight", (WIDTH, FF), 8, q8_0((FF, WIDTH), value))
    error = refusal(model(blk_0_ffn_up_weight=rows), tmp_path)
    assert error.code == "weight-values"
    assert "'model.layers.0.mlp.up_proj.weight'" in error.message
    assert "64 of 64 scales are not finite" in error.message
    vector = Tensor("output_norm.weight", (WIDTH,), 0, struct.pack("<f", value) * WIDTH)
    assert refusal(model(output_norm_weight=vector), tmp_path).code == "weight-values"


def parts(folder: Path, count: int = 3) -> list[Path]:
    """The good model in several files."""
    whole, paths = list(tensors().values()), []
    for index in range(count):
        more = {"split.no": index, "split.count": count, "split.tensors.count": len(whole)}
        keys = {**KEYS, **more} if index == 0 else more
        path = folder / f"m-{index + 1:05}-of-{count:05}.gguf"
        path.write_bytes(Made(keys, whole[index::count]).bytes())
        paths.append(path)
    return paths


def test_parts_of_a_file_are_one_model(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    for source in (paths[0], paths[2], tmp_path):
        report = convert(source, tmp_path / "out.edge", progress=False, golden=False, force=True)
        assert report.name == "m"
        assert len(report.weights) == 9


def test_h15_parts_that_are_missing_or_foreign(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    out, third = tmp_path / "out.edge", paths[2].read_bytes()
    paths[2].unlink()
    with pytest.raises(ConvertError, match=r"\['m-00003-of-00003.gguf'\] beside it") as caught:
        convert(paths[0], out)
    assert caught.value.code == "gguf-split"
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(ConvertError, match="is part 1 of 3, expected part 2 of 3"):
        convert(paths[0], out)
    paths[2].write_bytes(third[:-40])
    with pytest.raises(ConvertError, match="bytes are missing"):
        convert(paths[0], out)
    paths[2].unlink()
    paths[2].symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConvertError, match="beside it"):
        convert(paths[0], out)


def test_h14_a_folder_of_several_models_is_not_guessed(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m.gguf"):
        (tmp_path / name).write_bytes(model().bytes())
    with pytest.raises(ConvertError, match="holds 2 GGUF models") as caught:
        convert(tmp_path, tmp_path / "out.edge")
    assert "m-Q4_K_M.gguf" in caught.value.hint
