"""config.json of published models and what they become; what is refused, and how."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from edgert.converters.families import build

from edgert.errors import ConvertError
from edgert.graph import Graph
from tests.converters.published import CONFIGS, PARAMETERS


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_published_configs_have_their_published_size(name: str) -> None:
    graph = build(CONFIGS[name]).graph
    graph.shapes()
    count = sum(int(np.prod(w.shape)) for n, w in graph.weights.items() if "inv_freq" not in n)
    assert count / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)


def attention(graph: Graph, layer: int) -> dict[str, Any]:
    node = next(n for n in graph.nodes if n.output == f"layers.{layer}.attention.y")
    return {**node.attrs, **node.weights}


def test_windows_and_positions_alternate_as_published() -> None:
    gemma2, gemma3 = build(CONFIGS["gemma-2-2b"]).graph, build(CONFIGS["gemma-3-1b"]).graph
    assert [attention(gemma2, i).get("window", 0) for i in range(4)] == [4096, 0, 4096, 0]
    assert [attention(gemma3, i).get("window", 0) for i in range(7)] == [512] * 5 + [0, 512]
    assert [attention(gemma3, i)["inv_freq"] for i in (0, 5)] == [
        "inv_freq_sliding",
        "inv_freq_full",
    ]
    smollm3 = build(CONFIGS["SmolLM3-3B"]).graph
    assert ["inv_freq" in attention(smollm3, i) for i in range(5)] == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert attention(build(CONFIGS["Phi-4-mini"]).graph, 0)["rope_switch"] == 4096


@pytest.mark.parametrize(
    "name", ["Llama-3.2-1B", "Qwen3-0.6B", "gemma-3-1b", "Phi-4-mini", "SmolLM3-3B"]
)
def test_old_and_new_rope_keys_agree(name: str) -> None:
    """What transformers 5 writes for the same model gives the same graph and frequencies."""
    import transformers

    old = CONFIGS[name]
    kind = transformers.CONFIG_MAPPING[old["model_type"]]
    new = kind(**copy.deepcopy(old)).to_diff_dict()  # it changes what it is given
    assert "rope_parameters" in new
    assert "rope_theta" not in new
    first, second = build(old), build(new)
    assert first.graph.to_json() == second.graph.to_json()
    for weight, recipe in first.tensors.items():
        if recipe.values is not None:
            assert np.array_equal(recipe.values, second.tensors[weight].values), weight


@pytest.mark.parametrize(
    ("name", "rotary", "weight", "buffer"),
    [
        ("Llama-3.2-1B", "llama.modeling_llama.LlamaRotaryEmbedding", "inv_freq", "inv_freq"),
        ("Phi-4-mini", "phi3.modeling_phi3.Phi3RotaryEmbedding", "inv_freq", "inv_freq"),
        ("SmolLM3-3B", "smollm3.modeling_smollm3.SmolLM3RotaryEmbedding", "inv_freq", "inv_freq"),
        (
            "gemma-3-1b", "gemma3.modeling_gemma3.Gemma3RotaryEmbedding", "inv_freq_full",
            "full_attention_inv_freq",
        ),
        (
            "gemma-3-1b", "gemma3.modeling_gemma3.Gemma3RotaryEmbedding", "inv_freq_sliding",
            "sliding_attention_inv_freq",
        ),
    ],
)  # fmt: skip
def test_frequencies_are_those_of_transformers(
    name: str, rotary: str, weight: str, buffer: str
) -> None:
    import importlib

    import transformers

    config = copy.deepcopy(CONFIGS[name])
    module, _, kind = f"transformers.models.{rotary}".rpartition(".")
    made = getattr(importlib.import_module(module), kind)(
        transformers.CONFIG_MAPPING[config["model_type"]](**config)
    )
    model = build(CONFIGS[name])
    found = model.tensors[weight].values
    np.testing.assert_allclose(found, getattr(made, buffer).numpy(), rtol=3e-7)
    scale = attention(model.graph, 0).get("rope_scale", 1.0)
    assert scale == pytest.approx(getattr(made, "attention_scaling", 1.0), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mystery": 3}, "config key 'mystery' (= 3) is unknown"),
        ({"hidden_act": "relu"}, "config 'hidden_act' is 'relu', expected 'silu'"),
        ({"rope_interleaved": True}, "config 'rope_interleaved' is True, expected False"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected ['LlamaForCausalLM']"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type is 'spiral', expected one of"),
        ({"rope_scaling": {"type": "linear"}}, "rope: key 'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope: factor is -1, expected"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "x": 1}}, "rope: key 'x' is unknown"),
        ({"rope_theta": 0}, "rope: rope_theta is 0.0, expected a number above 1"),
        ({"hidden_size": "576"}, "config 'hidden_size' is '576': Expected `int`, got `str`"),
        ({"hidden_size": True}, "config 'hidden_size' is True: Expected `int`, got `bool`"),
        ({"num_hidden_layers": 10**12}, "'num_hidden_layers' is 1000000000000, expected 1 to 1024"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0, expected 1 to"),
        ({"num_key_value_heads": 2}, "'num_attention_heads' is 9, expected a multiple of"),
        ({"hidden_size": 577}, "'hidden_size' is 577, expected a multiple of"),
        ({"rms_norm_eps": 0}, "config 'rms_norm_eps' is 0"),
        ({"max_position_embeddings": 1 << 30}, "'max_position_embeddings' is 1073741824"),
        ({"quantization_config": {"bits": 4}}, "is quantized already, expected its float original"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError) as info:
        build({**CONFIGS["SmolLM2-135M"], **change})
    assert message in info.value.message
    assert info.value.hint


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma-2-2b", {"query_pre_attn_scalar": -1}, "'query_pre_attn_scalar' is -1.0"),
        (
            "gemma-2-2b",
            {"attn_logit_softcapping": 0.0},
            "'attn_logit_softcapping' is 0.0",
        ),
        ("gemma-3-1b", {"final_logit_softcapping": -1}, "'final_logit_softcapping' is -1.0"),
        ("Phi-4-mini", {"use_qk_norm": True}, "'use_qk_norm' (= True) is unknown, but for False"),
        (
            "SmolLM2-135M",
            {"residual_multiplier": 0.22},
            "(= 0.22) is unknown, but for 1",
        ),
        (
            "SmolLM2-135M",
            {"attention_multiplier": 0.1},
            "'attention_multiplier' (= 0.1)",
        ),
        ("SmolLM2-135M", {"num_experts": 8}, "config key 'num_experts' (= 8) is unknown"),
        ("SmolLM2-135M", {"moe_intermediate_size": 768}, "'moe_intermediate_size' (= 768) is"),
        ("SmolLM2-135M", {"n_layers": 31}, "config key 'n_layers' (= 31) is unknown"),
        ("SmolLM2-135M", {"no_rope_layers": [1, 0]}, "config key 'no_rope_layers'"),
        ("SmolLM2-135M", {"hidden_act": None}, "config 'hidden_act' is None, expected 'silu'"),
        ("gemma-2-2b", {"layer_types": ["chunked_attention"] * 26}, "'layer_types' has 26 entries"),
        ("gemma-2-2b", {"sliding_window": None}, "'sliding_window' is null, expected a size"),
        ("gemma-3-1b", {"attn_logit_softcapping": 5.0}, "'attn_logit_softcapping' is 5.0"),
        ("gemma-3-1b", {"sliding_window_pattern": 0}, "'sliding_window_pattern' is 0, expected 1"),
        ("gemma-3-1b", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
        ("gemma-3-1b", {"rope_parameters": {"rope_type": "default"}}, "'rope_parameters' has"),
        ("Mistral-7B-v0.1", {"sliding_window": 0}, "'sliding_window' is 0, expected 1 or more"),
        ("Mistral-7B-v0.1", {"attention_bias": True}, "'attention_bias' is True, expected False"),
        ("Qwen2.5-0.5B", {"use_mrope": True}, "'use_mrope' is True, expected False"),
        ("Phi-4-mini", {"rope_scaling": {"type": "llama3"}}, "rope_type is 'llama3', expected"),
        ("Phi-4-mini", {"partial_rotary_factor": 0.5}, "short_factor has 48 numbers, expected 32"),
        ("SmolLM3-3B", {"no_rope_layers": [1, 2]}, "'no_rope_layers' is [1, 2], expected 36"),
        ("SmolLM3-3B", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "_interval' is 0"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConvertError) as info:
        build({**CONFIGS[name], **change})
    assert message in info.value.message


def test_one_error_lists_all_faults() -> None:
    config = {**CONFIGS["SmolLM2-135M"], "mystery": 1, "hidden_act": "relu", "rope_theta": -1}
    del config["hidden_size"]
    with pytest.raises(ConvertError) as info:
        build(config)
    for part in ("3 faults", "'hidden_size' is missing", "'mystery'", "'hidden_act'"):
        assert part in info.value.message


NASTY = (None, True, -1, 0, 3, 2**70, 1e308, 0.5, "", "x", [], [None], [1, "a"], {}, {"a": 1})


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_any_value_of_any_key_is_taken_or_refused(name: str) -> None:
    """Never another exception than ConvertError, and never a graph that does not check."""
    base = {**CONFIGS[name], "num_hidden_layers": 2, "no_rope_layers": None, "layer_types": None}
    keys = [
        *base,
        "rope_parameters",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "head_dim",
        "model_type",
        "partial_rotary_factor",
    ]
    refused = 0
    for key in dict.fromkeys(keys):
        for value in NASTY:
            changed = {**base, key: value}
            try:
                build(changed).graph.shapes()
            except ConvertError:
                refused += 1
    assert refused > 100


YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "mscale": 1.0,
    "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1, "attention_factor": None,
    "truncate": False, "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["yarn", "linear", "llama3", "longrope", "dynamic", "default"])
def test_any_rope_parameter_is_taken_or_refused(kind: str) -> None:
    extreme = (*NASTY, 1e-300, 1e-9, 1e11, 10**400, float("inf"), [1e-5] * 32, [0.0] * 32)
    needed = {
        "linear": ("factor",), "dynamic": ("factor",), "default": (), "yarn": tuple(YARN),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factor", "long_factor", "attention_factor", "factor"),
    }  # fmt: skip
    lists = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    good = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **lists}
    base = {**CONFIGS["SmolLM2-135M"], "num_hidden_layers": 1}
    start = YARN if kind == "yarn" else {k: good[k] for k in needed[kind] if k in good}
    built = build({**base, "rope_scaling": {**start, "rope_type": kind}})
    assert np.isfinite(built.tensors["inv_freq"].values).all()  # type: ignore[arg-type]
    for key in (*needed[kind], "rope_theta", "original_max_position_embeddings"):
        for value in extreme:
            params = {**start, "rope_type": kind, key: value}
            try:
                found = build({**base, "rope_scaling": params}).tensors["inv_freq"].values
            except ConvertError:
                continue
            assert np.isfinite(found).all(), params  # type: ignore[arg-type]
