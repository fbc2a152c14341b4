"""Tiny configs of every family, and random weights for the graphs made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from edgert.converters import families
from edgert.kernels.quant import Matrix

from edgert.graph import Graph

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
_GEMMA = {key: value for key, value in _COMMON.items() if key != "hidden_act"} | {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_DELTA = {
    "head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


def _without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in _COMMON.items() if key not in keys}


_LAYER_NORM = _without("rms_norm_eps") | {"layer_norm_eps": 1e-5}
# Families without recurrent states whose greedy text is compared on all executors.
DENSE = (
    "gemma", "ministral", "ministral3", "granite", "internlm3", "olmo2", "olmo3", "exaone4",
    "ernie4_5", "helium", "glm4", "cohere2", "stablelm", "phi", "starcoder2", "gpt_neox",
    "arcee", "apertus", "hunyuan_v1_dense", "gpt2", "gemma3n_text", "gemma4_text", "qwen3_moe",
    "granitemoe", "gpt_oss", "deepseek_v2", "minicpm3",
)  # fmt: skip
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": _COMMON,
    "llama-llama3-rope": _COMMON | {"model_type": "llama", "rope_scaling": _LLAMA3},
    "llama-head-8": _COMMON | {"model_type": "llama", "num_attention_heads": 8},
    "mistral": _COMMON | {"sliding_window": 40, "head_dim": 16, "tie_word_embeddings": False},
    "qwen2": _COMMON,
    "qwen3": _COMMON | {"head_dim": 32},
    "gemma2": _GEMMA
    | {"sliding_window": 40, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA
    | {"sliding_window": 40, "sliding_window_pattern": 2, "rope_local_base_freq": 1000.0},
    "gemma3n_text": _without("hidden_act")
    | {
        "head_dim": 16,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 100,
        "sliding_window": 40,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0],
    },
    "gemma4_text": _without("hidden_act", "rope_theta")
    | {
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 120,
        "sliding_window": 40,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
    },
    "phi3": _COMMON
    | {
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 2.0, 3.0, 4.0],
        },
    },
    "smollm3": _COMMON | {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2},
    "gemma": _without("hidden_act") | {"head_dim": 16, "hidden_act": "gelu"},
    "ministral": _COMMON
    | {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": _without("rope_theta")
    | {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 32.0,
            "llama_4_scaling_beta": 0.3,
            "original_max_position_embeddings": 32,
        },
    },
    "granite": _COMMON
    | {"residual_multiplier": 0.4, "logits_scaling": 1.5, "attention_multiplier": 0.2},
    "internlm3": _COMMON | {"head_dim": 16, "qkv_bias": True, "bias": True},
    "olmo2": _COMMON,
    "olmo3": _COMMON
    | {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": _COMMON | {"sliding_window": 40, "sliding_window_pattern": "LG"},
    "ernie4_5": _COMMON | {"head_dim": 16, "use_bias": True},
    "helium": _COMMON | {"head_dim": 16},
    "glm4": _COMMON | {"head_dim": 32},
    "cohere2": _LAYER_NORM | {"sliding_window": 40, "sliding_window_pattern": 2},
    "stablelm": _LAYER_NORM | {"partial_rotary_factor": 0.5, "use_parallel_residual": True},
    "phi": _LAYER_NORM | {"hidden_act": "gelu_new", "tie_word_embeddings": False},
    "starcoder2": _without("rms_norm_eps", "hidden_act")
    | {"hidden_act": "gelu_pytorch_tanh", "sliding_window": 40},
    "gpt_neox": _LAYER_NORM
    | {"hidden_act": "gelu", "tie_word_embeddings": False, "num_key_value_heads": None},
    "arcee": _without("hidden_act") | {"hidden_act": "relu2"},
    "apertus": _without("hidden_act") | {"hidden_act": "xielu"},
    "hunyuan_v1_dense": _COMMON
    | {"head_dim": 16, "rope_scaling": {"type": "dynamic", "alpha": 30.0, "factor": 1.0}},
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 1024,
        "vocab_size": 120,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": _COMMON
    | {
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
    "granitemoe": _COMMON
    | {"num_local_experts": 6, "num_experts_per_tok": 2, "residual_multiplier": 0.4},
    "deepseek_v2": _COMMON
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "minicpm3": _COMMON
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "scale_emb": 2.0,
        "dim_model_base": 48,
    },
    "gpt_oss": _COMMON
    | {
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 40,
        "swiglu_limit": 1.5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "truncate": False,
        },
    },
    "lfm2": _without("rms_norm_eps")
    | {"norm_eps": 1e-5, "layer_types": ["conv", "full_attention"], "head_dim": None},
    "mamba2": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 120,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 2,
        "hidden_act": "silu",
    },
    "falcon_h1": _COMMON
    | {
        "mamba_d_ssm": 96,
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_rms_norm": True,
        "ssm_in_multiplier": 1.25,
        "key_multiplier": 0.5,
    },
    "granitemoehybrid": _COMMON
    | {
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "layer_types": ["mamba", "attention"],
        "attention_multiplier": 0.2,
    },
    "qwen3_next": _COMMON | _DELTA | {"num_experts": 0},
    "qwen3_5_text": _COMMON | _DELTA,
    # all experts are picked: where float16 rounds, others could be, with an answer of their own
    "qwen3_5_moe_text": _COMMON
    | _DELTA
    | {
        "num_experts": 3,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
}
# Families of layers with recurrent states, for which QNN has no ops.
RECURRENT = (
    "lfm2", "mamba2", "falcon_h1", "granitemoehybrid", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text",
)  # fmt: skip


def family_graph(name: str, **changes: Any) -> tuple[Graph, dict[str, Matrix]]:
    """The f32 graph of a config above, with `changes`, and random weights."""
    config = {"model_type": name, **CONFIGS[name], **changes}
    model = families.build(config)
    rng = np.random.default_rng(3)
    weights: dict[str, Matrix] = {}
    biases = {node.weights.get("bias", "") for node in model.graph.nodes}
    for weight, recipe in model.tensors.items():
        shape = model.graph.weights[weight].shape
        if recipe.values is not None:
            weights[weight] = np.asarray(recipe.values, np.float32)
        elif len(shape) == 1:
            centre = 0 if weight in biases else 1
            weights[weight] = (centre + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        else:
            dense = rng.standard_normal(shape) / np.sqrt(shape[1])
            weights[weight] = dense.astype(np.float32)
    return model.graph, weights
