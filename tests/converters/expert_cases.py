"""Tiny random checkpoints of families with experts or latent attention, as rows of
`checkpoints.CASES`, and published configs of them, as rows of `published.CONFIGS`."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3,
            "moe_intermediate_size": 48, "norm_topk_prob": True,
        },
    ),
    "qwen3_moe-shares": (
        "Qwen3MoeConfig",
        {
            "head_dim": 16, "attention_bias": True, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "norm_topk_prob": False, "mlp_only_layers": [1],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_moe-step": (
        "Qwen3MoeConfig",
        {
            "head_dim": 16, "num_experts": 3, "num_experts_per_tok": 1, "decoder_sparse_step": 2,
            "moe_intermediate_size": 16, "norm_topk_prob": True,
        },
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        {
            "num_local_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 32,
            "embedding_multiplier": 3.0, "logits_scaling": 2.5, "residual_multiplier": 0.3,
            "attention_multiplier": 0.1, "tie_word_embeddings": True,
        },
    ),
    "granitemoe-bias": (
        "GraniteMoeConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 3, "attention_bias": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48,
            "head_dim": 16, "sliding_window": 40, "swiglu_limit": 1.5,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 128,
            },
        },
    ),
    "gpt_oss-plain": (
        "GptOssConfig",
        {
            "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32,
            "attention_bias": False, "layer_types": ["full_attention"] * 3,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {
            "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "moe_intermediate_size": 32, "first_k_dense_replace": 1, "q_lora_rank": None,
            "kv_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 16,
            "routed_scaling_factor": 1.7, "n_group": 1, "topk_group": 1,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32,
                "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.9,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "deepseek_v2-narrow": (
        "DeepseekV2Config",
        {
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "q_lora_rank": 48, "kv_lora_rank": 36,
            "qk_nope_head_dim": 12, "qk_rope_head_dim": 12, "v_head_dim": 24,
            "attention_bias": True, "n_shared_experts": 1,
        },
    ),
    "minicpm3": (
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 48,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "scale_emb": 3,
            "dim_model_base": 24,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.5, 1.6, 1.7, 1.8, 1.9],
                "long_factor": [1.0, 2.0, 4.0, 7.5, 8.0, 8.5, 9.0, 9.5],
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "minicpm3-plain": (
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 30,
            "qk_nope_head_dim": 10, "qk_rope_head_dim": 12, "attention_bias": True,
            "scale_depth": None, "dim_model_base": None, "scale_emb": 1,
            "tie_word_embeddings": False,
        },
    ),
    "granitemoehybrid-experts": (
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32,
            "shared_intermediate_size": 96, "residual_multiplier": 0.3, "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 8,
            "mamba_d_state": 16,
        },
    ),
    "qwen3_next-experts": (
        "Qwen3NextConfig",
        {
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48, "norm_topk_prob": False, "head_dim": 16,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 24, "head_dim": 32, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
}  # fmt: skip

MINICPM_FACTORS = [
    1.0591234137867171, 1.1241891283591912, 1.2596935748670968, 1.5380380402321725,
    2.093982484148734, 3.1446935121267696, 4.937952647693647, 7.524541999994549,
    10.475458000005451, 13.062047352306353, 14.85530648787323, 15.906017515851266,
    16.461961959767827, 16.740306425132904, 16.87581087164081, 16.940876586213285,
]  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "granite-3.1-1b-a400m": {
        "architectures": ["GraniteMoeForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.1, "attention_multiplier": 0.015625, "bos_token_id": 0,
        "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 512,
        "logits_scaling": 6.0, "max_position_embeddings": 131072, "model_type": "granitemoe",
        "num_attention_heads": 16, "num_experts_per_tok": 8, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
        "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1500000.0, "router_aux_loss_coef": 0.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.47.0.dev0", "use_cache": True, "vocab_size": 49155,
    },
    "DeepSeek-V2-Lite": {
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 100000,
        "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
        "pretraining_tp": 1, "q_lora_rank": None, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn",
        },
        "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        "seq_aux": True, "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy",
        "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True,
        "v_head_dim": 128, "vocab_size": 102400,
    },
    "MiniCPM3-4B": {
        "architectures": ["MiniCPM3ForCausalLM"], "bos_token_id": 1, "dim_model_base": 256,
        "eos_token_id": [2, 73440], "hidden_act": "silu", "hidden_size": 2560,
        "initializer_range": 0.1, "intermediate_size": 6400, "kv_lora_rank": 256,
        "max_position_embeddings": 32768, "model_type": "minicpm3", "num_attention_heads": 40,
        "num_hidden_layers": 62, "num_key_value_heads": 40, "q_lora_rank": 768,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "type": "longrope", "original_max_position_embeddings": 32768,
            "long_factor": MINICPM_FACTORS, "short_factor": MINICPM_FACTORS,
        },
        "scale_depth": 1.4, "scale_emb": 12, "torch_dtype": "bfloat16",
        "transformers_version": "4.41.0", "use_cache": True, "vocab_size": 73448,
    },
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02,
        "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
        },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088,
    },
}  # fmt: skip
PARAMETERS = {
    "Qwen3-30B-A3B": 30532.1,
    "DeepSeek-V2-Lite": 15706.5,
    "MiniCPM3-4B": 4073.9,
    "gpt-oss-20b": 20914.8,
    "granite-3.1-1b-a400m": 1334.6,
}  # millions

# What stands in for the numbers of experts where `published.shrunk` makes a config small.
SMALL = {
    "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 3,
    "experts_per_token": 3, "moe_intermediate_size": 48,
    "n_routed_experts": 8, "kv_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "q_lora_rank": 48, "dim_model_base": 24,
}  # fmt: skip
