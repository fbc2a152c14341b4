"""config.json of published models, key for key as they stand on the hub, and small models made of
them: the same keys, smaller numbers."""

from __future__ import annotations

import copy
import math
from typing import Any

from tests.converters import expert_cases

Config = dict[str, Any]

COMMON = {"initializer_range": 0.02, "use_cache": True, "transformers_version": "4.47.0"}


def sizes(
    width: int, ff: int, layers: int, heads: int, kv: int, vocab: int, context: int
) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **COMMON,
    }


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "model_type": "llama",
    "rms_norm_eps": 1e-05,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "model_type": "mistral", "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "hidden_act": "silu", "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16", "use_sliding_window": False,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "model_type": "qwen3", "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma2", "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "final_logit_softcapping": None,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma3_text",
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "sliding_window": 512, "torch_dtype": "bfloat16",
}  # fmt: skip
PHI3 = {  # the auto_map of the older ones is asked about before a family sees the config
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "embd_pdrop": 0.0, "hidden_act": "silu", "model_type": "phi3",
    "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
PHI3_MINI = {
    **PHI3, "_name_or_path": "Phi-3-mini-4k-instruct", "bos_token_id": 1, "eos_token_id": 32000,
    "pad_token_id": 32000, "tie_word_embeddings": False,
}  # fmt: skip
EXAONE4 = {
    "architectures": ["Exaone4ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 361, "hidden_act": "silu", "model_type": "exaone4", "pad_token_id": 0,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
}  # fmt: skip
LFM2 = {
    "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256,
    "block_norm_eps": 1e-05, "block_out_init_scale": 1.0, "block_use_swiglu": True,
    "block_use_xavier_init": True, "bos_token_id": 1, "conv_L_cache": 3, "conv_bias": False,
    "conv_use_xavier_init": True, "eos_token_id": 7, "initializer_range": 0.02,
    "max_position_embeddings": 128000, "model_type": "lfm2", "norm_eps": 1e-05,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "pad_token_id": 0,
    "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0",
    "use_cache": True, "use_pos_enc": True, "vocab_size": 65536,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}  # fmt: skip
MAMBA2 = {
    "architectures": ["Mamba2ForCausalLM"], "chunk_size": 256, "conv_kernel": 4, "expand": 2,
    "head_dim": 64, "hidden_act": "silu", "initializer_range": 0.1, "layer_norm_epsilon": 1e-05,
    "model_type": "mamba2", "norm_before_gate": True, "rescale_prenorm_residual": False,
    "residual_in_fp32": True, "rms_norm": True, "state_size": 128, "time_step_floor": 0.0001,
    "time_step_limit": [0.0, math.inf], "time_step_max": 0.1, "time_step_min": 0.001,
    "time_step_rank": 256, "transformers_version": "4.43.0.dev0", "use_bias": False,
    "use_cache": True, "use_conv_bias": True,
}  # fmt: skip
FALCON_H1 = {
    "architectures": ["FalconH1ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_in_multiplier": 1.0, "attn_layer_indices": None, "bos_token_id": 1,
    "embedding_multiplier": 5.656854249492381, "eos_token_id": 11, "hidden_act": "silu",
    "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_norm_before_gate": False,
    "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_use_mlp": True, "mlp_bias": False,
    "mlp_expansion_factor": 8, "model_type": "falcon_h1", "num_logits_to_keep": 1,
    "pad_token_id": 0, "projectors_bias": False, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 100000000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GRANITE = {
    "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 100257, "embedding_multiplier": 12,
    "eos_token_id": 100257, "hidden_act": "silu", "init_method": "mup", "mamba_chunk_size": 256,
    "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_state": 128, "mamba_expand": 2,
    "mamba_n_groups": 1, "mamba_n_heads": 48, "mamba_proj_bias": False,
    "model_type": "granitemoehybrid", "normalization_function": "rmsnorm",
    "num_experts_per_tok": 0, "num_local_experts": 0, "output_router_logits": False,
    "pad_token_id": 100256, "position_embedding_type": "nope", "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000, "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_5 = {
    "architectures": ["Qwen3_5ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_output_gate": True, "dtype": "bfloat16", "eos_token_id": 248044,
    "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32", "mlp_only_layers": [],
    "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False, "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
        "rope_theta": 10000000, "rope_type": "default",
    },
}  # fmt: skip
SLOW = [round(1 + i / 9, 3) for i in range(48)]
FAST = [round(1 + i / 96, 3) for i in range(48)]

CONFIGS: dict[str, Config] = {
    "Llama-2-7b": {
        **sizes(4096, 11008, 32, 32, 32, 32000, 4096), **LLAMA,
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "bos_token_id": 1, "eos_token_id": 2,
        "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "llama-7b-2023": {  # before grouped queries and rotary bases were configured
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 2048, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.28.0", "use_cache": True, "vocab_size": 32000,
    },
    "Llama-3.1-8B": {
        **sizes(4096, 14336, 32, 32, 8, 128256, 131072), **LLAMA,
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": 128001, "mlp_bias": False, "pretraining_tp": 1, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "Llama-3.2-1B": {
        **sizes(2048, 8192, 16, 32, 8, 128256, 131072), **LLAMA,
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "mlp_bias": False,
        "pretraining_tp": 1, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    },
    "TinyLlama-1.1B": {
        **sizes(2048, 5632, 22, 32, 4, 32000, 2048), **LLAMA,
        "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pretraining_tp": 1,
        "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "SmolLM2-135M": {
        **sizes(576, 1536, 30, 9, 3, 49152, 8192), **LLAMA,
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
        "is_llama_config": True, "pretraining_tp": 1, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "SmolLM2-360M": {
        **sizes(960, 2560, 32, 15, 5, 49152, 8192), **LLAMA,
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "is_llama_config": True, "mlp_bias": False, "pad_token_id": 2, "pretraining_tp": 1,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
    "SmolLM2-1.7B": {
        **sizes(2048, 8192, 24, 32, 32, 49152, 8192), **LLAMA,
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "mlp_bias": False, "pad_token_id": 2, "pretraining_tp": 1, "rope_scaling": None,
        "rope_theta": 130000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    },
    "Mistral-7B-v0.1": {
        **sizes(4096, 14336, 32, 32, 8, 32000, 32768), **MISTRAL,
        "rope_theta": 10000.0, "sliding_window": 4096,
    },
    "Mistral-7B-v0.3": {
        **sizes(4096, 14336, 32, 32, 8, 32768, 32768), **MISTRAL,
        "attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
    },
    "Mistral-Nemo": {
        **sizes(5120, 14336, 40, 32, 8, 131072, 131072), **MISTRAL,
        "attention_dropout": 0.0, "head_dim": 128, "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "Qwen2-0.5B": {
        **sizes(896, 4864, 24, 14, 2, 151936, 131072), **QWEN2, "eos_token_id": 151643,
        "max_window_layers": 24, "sliding_window": 131072, "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        **sizes(896, 4864, 24, 14, 2, 151936, 32768), **QWEN2, "eos_token_id": 151643,
        "max_window_layers": 24, "sliding_window": 32768, "tie_word_embeddings": True,
        "use_mrope": False,
    },
    "Qwen2.5-1.5B-Instruct": {
        **sizes(1536, 8960, 28, 12, 2, 151936, 32768), **QWEN2, "eos_token_id": 151645,
        "max_window_layers": 21, "sliding_window": 32768, "tie_word_embeddings": True,
    },
    "Qwen2.5-7B-yarn": {  # the model card's recipe for long texts
        **sizes(3584, 18944, 28, 28, 4, 152064, 32768), **QWEN2, "eos_token_id": 151645,
        "max_window_layers": 28, "sliding_window": 131072, "tie_word_embeddings": False,
        "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
        },
    },
    "Qwen3-0.6B": {**sizes(1024, 3072, 28, 16, 8, 151936, 40960), **QWEN3, "max_window_layers": 28},
    "Qwen3-1.7B": {**sizes(2048, 6144, 28, 16, 8, 151936, 40960), **QWEN3, "max_window_layers": 28},
    "Qwen3-4B": {**sizes(2560, 9728, 36, 32, 8, 151936, 40960), **QWEN3, "max_window_layers": 36},
    "gemma-2-2b": {**sizes(2304, 9216, 26, 8, 4, 256000, 8192), **GEMMA2,
        "query_pre_attn_scalar": 256},
    "gemma-2-2b-it": {
        **sizes(2304, 9216, 26, 8, 4, 256000, 8192), **GEMMA2, "eos_token_id": [1, 107],
        "query_pre_attn_scalar": 256,
    },
    "gemma-2-9b": {
        **sizes(3584, 14336, 42, 16, 8, 256000, 8192), **GEMMA2, "query_pre_attn_scalar": 256,
        "sliding_window_size": 4096,
    },
    "gemma-3-270m": {
        **sizes(640, 2048, 18, 4, 1, 262144, 32768), **GEMMA3, "_sliding_window_pattern": 6,
        "eos_token_id": 1, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
        "use_bidirectional_attention": False,
    },
    "gemma-3-1b": {
        **sizes(1152, 6912, 26, 4, 1, 262144, 32768), **GEMMA3,
        "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window_pattern": 6,
    },
    "Phi-3-mini-4k": {
        **sizes(3072, 8192, 32, 32, 32, 32064, 4096), **PHI3_MINI,
        "rope_scaling": None, "sliding_window": 2047,
    },
    "Phi-3-mini-128k": {
        **sizes(3072, 8192, 32, 32, 32, 32064, 131072), **PHI3_MINI, "sliding_window": 262144,
        "rope_scaling": {"long_factor": SLOW, "short_factor": FAST, "type": "longrope"},
    },
    "Phi-3.5-mini": {
        **sizes(3072, 8192, 32, 32, 32, 32064, 131072), **PHI3_MINI,
        "_name_or_path": "Phi-3.5-mini-instruct", "sliding_window": 262144,
        "rope_scaling": {"long_factor": SLOW, "short_factor": FAST, "type": "longrope"},
    },
    "Phi-4-mini": {
        **sizes(3072, 8192, 32, 24, 8, 200064, 131072), **PHI3,
        "bos_token_id": 199999, "eos_token_id": 199999, "full_attn_mod": 1,
        "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
        "pad_token_id": 199999, "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": SLOW, "short_factor": [1.0] * 48, "type": "longrope"},
        "sliding_window": 262144, "tie_word_embeddings": True,
    },
    "phi-4": {
        **sizes(5120, 17920, 40, 40, 10, 100352, 16384), **PHI3,
        "bos_token_id": 100257, "eos_token_id": 100265, "pad_token_id": 100349,
        "original_max_position_embeddings": 16384, "rope_scaling": None, "rope_theta": 250000,
        "sliding_window": None, "tie_word_embeddings": False,
    },
    "gemma-2b": {  # its first revision
        **sizes(2048, 16384, 18, 8, 1, 256000, 8192), "architectures": ["GemmaForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1,
        "head_dim": 256, "hidden_act": "gelu", "model_type": "gemma", "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    },
    "Ministral-8B": {
        **sizes(4096, 12288, 36, 32, 8, 131072, 32768), "architectures": ["MinistralForCausalLM"],
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128,
        "hidden_act": "silu", "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 9,
        "model_type": "ministral", "rms_norm_eps": 1e-05, "rope_theta": 100000000.0,
        "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "granite-3.3-2b": {
        **sizes(2048, 8192, 40, 32, 8, 49159, 131072), "architectures": ["GraniteForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "attention_multiplier": 0.015625,
        "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu",
        "logits_scaling": 8.0, "mlp_bias": False, "model_type": "granite", "pad_token_id": 0,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
    "internlm3-8b": {
        **sizes(4096, 10240, 48, 32, 2, 128512, 32768), "architectures": ["InternLM3ForCausalLM"],
        "attention_dropout": 0.0, "bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "head_dim": 128, "hidden_act": "silu", "model_type": "internlm3", "pad_token_id": 2,
        "qkv_bias": False, "rms_norm_eps": 1e-05, "rope_theta": 50000000,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "OLMo-2-1B": {
        **sizes(2048, 8192, 16, 16, 16, 100352, 4096), "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257,
        "hidden_act": "silu", "model_type": "olmo2", "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    },
    "Olmo-3-7B": {
        **sizes(4096, 11008, 32, 32, 32, 100278, 65536), "architectures": ["Olmo3ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257,
        "hidden_act": "silu", "model_type": "olmo3", "pad_token_id": 100277,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
        "rms_norm_eps": 1e-06, "rope_theta": 500000, "sliding_window": 4096,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
            "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        "tie_word_embeddings": False, "dtype": "bfloat16",
    },
    "EXAONE-4.0-1.2B": {
        **sizes(2048, 4096, 30, 32, 8, 102400, 65536), **EXAONE4, "head_dim": 64,
        "layer_types": ["full_attention"] * 30, "sliding_window": None,
        "sliding_window_pattern": None, "tie_word_embeddings": True,
    },
    "EXAONE-4.0-32B": {
        **sizes(5120, 27392, 64, 40, 8, 102400, 131072), **EXAONE4, "head_dim": 128,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
        "sliding_window": 4096, "sliding_window_pattern": "LLLG", "tie_word_embeddings": False,
    },
    "ERNIE-4.5-0.3B": {
        **sizes(1024, 3072, 18, 16, 2, 103424, 131072), "architectures": ["Ernie4_5ForCausalLM"],
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu",
        "model_type": "ernie4_5", "pad_token_id": 0, "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_bias": False,
    },
    "helium-1-2b": {
        **sizes(2048, 8192, 28, 16, 8, 64000, 4096), "architectures": ["HeliumForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "head_dim": 128, "hidden_act": "silu", "mlp_bias": False, "model_type": "helium",
        "pad_token_id": 3, "rms_norm_eps": 1e-08, "rope_theta": 20000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "GLM-4-9B-0414": {
        **sizes(4096, 13696, 40, 32, 2, 151552, 32768), "architectures": ["Glm4ForCausalLM"],
        "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": [151329, 151336, 151338],
        "head_dim": 128, "hidden_act": "silu", "model_type": "glm4", "pad_token_id": 151329,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "command-r7b": {
        **sizes(4096, 14336, 32, 32, 8, 256000, 132096), "architectures": ["Cohere2ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 5,
        "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128,
        "hidden_act": "silu", "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25,
        "model_type": "cohere2", "order_of_interleaved_layers": "local_attn_first",
        "pad_token_id": 0, "position_embedding_type": "rope_gptj", "rope_scaling": None,
        "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096,
        "sliding_window_pattern": 4, "torch_dtype": "bfloat16", "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
    },
    "stablelm-2-1.6b": {
        **sizes(2048, 5632, 24, 32, 32, 100352, 4096), "architectures": ["StableLmForCausalLM"],
        "attention_dropout": 0.0, "bos_token_id": 100257, "eos_token_id": 100257,
        "hidden_act": "silu", "hidden_dropout": 0.0, "layer_norm_eps": 1e-05,
        "model_type": "stablelm", "partial_rotary_factor": 0.25, "rope_scaling": None,
        "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "float16",
        "use_qkv_bias": True,
    },
    "phi-2": {
        **sizes(2560, 10240, 32, 32, 32, 51200, 2048), "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "model_type": "phi",
        "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1,
        "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "starcoder2-3b": {
        **sizes(3072, 12288, 30, 24, 2, 49152, 16384), "architectures": ["Starcoder2ForCausalLM"],
        "activation_function": "gelu_pytorch_tanh", "attention_dropout": 0.1,
        "attention_softmax_in_fp32": True, "bos_token_id": 0, "embedding_dropout": 0.1,
        "eos_token_id": 0, "hidden_act": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-05,
        "mlp_type": "default", "model_type": "starcoder2", "norm_epsilon": 1e-05,
        "norm_type": "layer_norm", "residual_dropout": 0.1, "rope_theta": 999999.4420358813,
        "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
        "sliding_window": 4096, "use_bias": True,
    },
    "pythia-160m": {
        **{k: v for k, v in sizes(768, 3072, 12, 12, 12, 50304, 2048).items()
           if k != "num_key_value_heads"},
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "layer_norm_eps": 1e-05, "model_type": "gpt_neox",
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "torch_dtype": "float16", "use_parallel_residual": True,
    },
    "AFM-4.5B": {
        **sizes(2560, 18432, 36, 20, 4, 128004, 65536),
        "architectures": ["ArceeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 128, "hidden_act": "relu2",
        "mlp_bias": False, "model_type": "arcee", "pad_token_id": 128001, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "type": "yarn",
        },
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "Apertus-8B-2509": {
        **sizes(4096, 21504, 32, 32, 8, 131072, 65536),
        "architectures": ["ApertusForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 68, "hidden_act": "xielu", "hidden_dropout": 0.0,
        "mlp_bias": False, "model_type": "apertus", "pad_token_id": 3, "post_norm": False,
        "qk_norm": True, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3", "type": "llama3",
        },
        "rope_theta": 12000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "Hunyuan-1.8B-Instruct": {
        **sizes(2048, 6144, 32, 16, 4, 120818, 262144),
        "add_classification_head": False, "architectures": ["HunYuanDenseV1ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "attention_head_dim": 128,
        "bos_token_id": 120000, "cla_share_factor": 2, "class_num": 0, "dense_list": [2048, 0],
        "eod_token_id": 120020, "eos_token_id": 120020, "head_dim": 128, "hidden_act": "silu",
        "im_end_id": 5, "im_newline_id": 11, "im_start_id": 4, "mask_init_id": 12,
        "mlp_bias": False, "model_type": "hunyuan_v1_dense", "norm_type": "rms",
        "org_vocab_size": 120818, "pad_id": 120002, "pad_token_id": 120002, "pool_type": "last",
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
            "mscale_all_dim": 1.0, "type": "dynamic",
        },
        "rope_theta": 10000.0, "sep_token_id": 120007, "text_end_id": 8, "text_start_id": 7,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cla": False,
        "use_qk_norm": True, "use_rotary_pos_emb": True,
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "LFM2-350M": {
        **LFM2, "block_dim": 1024, "block_ff_dim": 6656, "conv_dim": 1024, "conv_dim_out": 1024,
        "hidden_size": 1024, "num_attention_heads": 16, "num_heads": 16,
    },
    "LFM2-1.2B": {
        **LFM2, "block_dim": 2048, "block_ff_dim": 12288, "conv_dim": 2048, "conv_dim_out": 2048,
        "hidden_size": 2048, "num_attention_heads": 32, "num_heads": 32,
    },
    "mamba2-130m": {
        **MAMBA2, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 768, "n_groups": 1,
        "num_heads": 24, "num_hidden_layers": 24, "pad_token_id": 0, "tie_word_embeddings": True,
        "vocab_size": 50288,
    },
    "Mamba-Codestral-7B": {
        **MAMBA2, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 4096, "n_groups": 8,
        "num_heads": 128, "num_hidden_layers": 64, "pad_token_id": 0, "tie_word_embeddings": False,
        "vocab_size": 32768,
    },
    "Falcon-H1-0.5B": {
        **sizes(1024, 2048, 36, 8, 2, 32784, 16384), **FALCON_H1,
        "attention_out_multiplier": 0.9375, "head_dim": 64, "key_multiplier": 0.390625,
        "lm_head_multiplier": 0.0390625, "mamba_chunk_size": 128, "mamba_d_head": 64,
        "mamba_d_ssm": 1536, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_n_heads": 24,
        "mlp_multipliers": [0.8838834764831844, 0.5859375], "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [
            0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738,
        ],
        "ssm_out_multiplier": 0.23570226039551587,
    },
    "granite-4.0-h-1b": {
        **sizes(1536, 4096, 40, 12, 4, 100352, 131072), **GRANITE,
        "attention_multiplier": 0.0078125, "logits_scaling": 6, "mamba_d_head": 64,
        "residual_multiplier": 0.22, "shared_intermediate_size": 4096,
        "layer_types": ["attention" if i % 10 == 5 else "mamba" for i in range(40)],
    },
    "Qwen3.5-27B": {
        **sizes(5120, 17408, 64, 24, 4, 248320, 262144), **QWEN3_5, "linear_num_value_heads": 48,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
        "tie_word_embeddings": False,
    },
    "gemma-3n-E2B": {
        **sizes(2048, 8192, 30, 8, 2, 262400, 32768), "altup_active_idx": 0,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20, "altup_coef_clip": 120.0,
        "altup_correct_scale": True, "altup_lr_multiplier": 1.0, "altup_num_inputs": 4,
        "architectures": ["Gemma3nForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 256,
        "intermediate_size": [8192] * 30,
        "laurel_rank": 64, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        "model_type": "gemma3n_text", "num_kv_shared_layers": 10, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
        "rope_theta": 1000000.0, "sliding_window": 512, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size_per_layer_input": 262144,
    },
    "SmolLM3-3B": {
        **sizes(2048, 11008, 36, 16, 4, 128256, 65536),
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": 128012, "hidden_act": "silu", "layer_types": ["full_attention"] * 36,
        "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "pad_token_id": 128004,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
        "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": False,
        "use_sliding_window": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    },
}  # fmt: skip

PARAMETERS = {  # millions, as published
    "Llama-2-7b": 6738.4, "llama-7b-2023": 6738.4, "Llama-3.1-8B": 8030.3, "Llama-3.2-1B": 1235.8,
    "TinyLlama-1.1B": 1100.0, "SmolLM2-135M": 134.5, "SmolLM2-360M": 361.8, "SmolLM2-1.7B": 1711.4,
    "Mistral-7B-v0.1": 7241.7, "Mistral-7B-v0.3": 7248.0, "Mistral-Nemo": 12247.8,
    "Qwen2-0.5B": 494.0, "Qwen2.5-0.5B": 494.0, "Qwen2.5-1.5B-Instruct": 1543.7,
    "Qwen2.5-7B-yarn": 7615.6, "Qwen3-0.6B": 596.0, "Qwen3-1.7B": 1720.6, "Qwen3-4B": 4022.5,
    "gemma-2-2b": 2614.3, "gemma-2-2b-it": 2614.3, "gemma-2-9b": 9241.7, "gemma-3-270m": 268.1,
    "gemma-3-1b": 999.9, "Phi-3-mini-4k": 3821.1, "Phi-3-mini-128k": 3821.1,
    "Phi-3.5-mini": 3821.1, "Phi-4-mini": 3836.0,
    "phi-4": 14659.5, "SmolLM3-3B": 3075.1, "LFM2-350M": 354.5, "LFM2-1.2B": 1170.3,
    "mamba2-130m": 129.0, "Mamba-Codestral-7B": 7285.4, "Falcon-H1-0.5B": 521.4,
    "granite-4.0-h-1b": 1461.5, "Qwen3.5-27B": 26896.0,
    "gemma-2b": 2506.2, "Ministral-8B": 8019.8, "granite-3.3-2b": 2533.5, "internlm3-8b": 8804.2,
    "OLMo-2-1B": 1484.9, "Olmo-3-7B": 7298.0, "EXAONE-4.0-1.2B": 1279.4,
    "EXAONE-4.0-32B": 32003.2, "ERNIE-4.5-0.3B": 360.7, "helium-1-2b": 2023.9,
    "GLM-4-9B-0414": 9400.3, "command-r7b": 8028.0, "stablelm-2-1.6b": 1644.5, "phi-2": 2779.7,
    "starcoder2-3b": 3030.4, "pythia-160m": 162.3,
    "Apertus-8B-2509": 8053.3, "Hunyuan-1.8B-Instruct": 1791.1, "gpt2": 124.4, "AFM-4.5B": 4619.2,
    "gemma-3n-E2B": 4437.5,  # of the text, without keys and values that no layer reads
}  # fmt: skip

CONFIGS |= expert_cases.CONFIGS
PARAMETERS |= expert_cases.PARAMETERS

VOCAB, CONTEXT, WINDOW, ORIGINAL = 272, 512, 40, 128


def shrunk(name: str) -> Config:
    """The config with every key kept and its numbers made small: ids below VOCAB, windows that a
    prompt passes, and a context of CONTEXT tokens where ORIGINAL ones came first."""
    config = copy.deepcopy(CONFIGS[name])
    kv = config.get("num_key_value_heads")
    mixers = {"mamba2": 6, "granitemoehybrid": 12}.get(config["model_type"], 6)
    groups = 1 if kv is None else config["num_attention_heads"] // kv
    heads, kv = {1: (3, 3), 3: (6, 2)}.get(groups, (4, 1 if kv == 1 else 2))
    small = {
        "vocab_size": VOCAB, "hidden_size": 16 * heads, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": CONTEXT,
        "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
        "sliding_window_size": WINDOW, "original_max_position_embeddings": ORIGINAL,
        "n_embd": 16 * heads, "n_head": heads, "n_layer": 3, "n_positions": CONTEXT,
        "n_ctx": CONTEXT, "attention_head_dim": 16,
        "max_window_layers": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        "block_dim": 16 * heads, "conv_dim": 16 * heads, "conv_dim_out": 16 * heads,
        "num_heads": mixers if "state_size" in config else heads, "state_size": 16,
        "mamba_d_ssm": 96, "mamba_n_heads": mixers, "mamba_d_head": 16, "mamba_d_state": 16,
        "shared_intermediate_size": 72, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 6, "block_ff_dim": 72,
        "block_multiple_of": 16, "full_attn_idxs": [1],
        "no_rope_layers": [1, 0, 1], "sliding_window_pattern": 2, "_sliding_window_pattern": 2,
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95, 0.0, 0.5],
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 250, "laurel_rank": 12,
    }  # fmt: skip
    if config.get("n_groups", 1) > 1:
        small["n_groups"] = 2
    config |= {key: value for key, value in small.items() if config.get(key) is not None}
    config |= {key: value for key, value in expert_cases.SMALL.items() if config.get(key)}
    if config["model_type"] == "gemma3n_text":
        config["query_pre_attn_scalar"] = 16  # it must be the head's size
    if config.get("num_local_experts"):
        config["intermediate_size"] = 80  # of an expert
    if kinds := config.get("layer_types"):
        config["layer_types"] = next(
            found for start in (4, 2) if set(found := kinds[start : start + 3]) == set(kinds)
        )
    scaling = config.get("rope_scaling")
    if scaling:
        size = config.get("qk_rope_head_dim", 16)
        pairs = int(size * config.get("partial_rotary_factor", 1)) // 2
        for key in {"short_factor", "long_factor"} & set(scaling):
            scaling[key] = scaling[key][:: len(scaling[key]) // pairs][:pairs]
        if "original_max_position_embeddings" in scaling:
            scaling["original_max_position_embeddings"] = ORIGINAL
    return config
