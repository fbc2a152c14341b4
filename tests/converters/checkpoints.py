"""Tiny random checkpoints of every family, written by transformers, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.converters.expert_cases import CASES as EXPERTS
from tests.tiny import BOS, EOS, SPECIAL, TEMPLATE, tiny_tokenizer

VOCAB, CONTEXT = 272, 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.0, 4.0, 7.5],
}

NO_ATTENTION = dict.fromkeys(
    ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    ...,
)

# What GPT-2's config calls sizes.
GPT2: dict[str, Any] = {
    **dict.fromkeys(("intermediate_size", "num_key_value_heads", "pad_token_id"), ...),
    **dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), ...
    ),
    "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT,
}  # fmt: skip

# case -> (transformers' config class, changes to SIZES; ... for keys that it does not have)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", {"num_key_value_heads": 4, "head_dim": 24}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama-dynamic": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral-window": ("MistralConfig", {"sliding_window": 40}),
    "mistral-full": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-head": ("Qwen2Config", {"head_dim": 32}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
    ),
    "qwen2-yarn": (
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e6,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "sliding_window": 48, "query_pre_attn_scalar": 20}),
    "gemma2-mild": (
        "Gemma2Config",
        {"head_dim": 16, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "sliding_window": 37,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3-scaled": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": 20.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("Phi3Config", {"sliding_window": 50}),
    "phi3-head": ("Phi3Config", {"head_dim": 32}),
    "phi3-longrope": (
        "Phi3Config",
        {
            "rope_parameters": {**LONG, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 128,
        },
    ),
    "smollm3": (
        "SmolLM3Config",
        {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    ),
    "smollm3-head": ("SmolLM3Config", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    "smollm3-window": (
        "SmolLM3Config",
        {
            "no_rope_layer_interval": 3,
            "use_sliding_window": True,
            "sliding_window": 45,
            "tie_word_embeddings": False,
        },
    ),
    "gemma": ("GemmaConfig", {"head_dim": 32, "num_key_value_heads": 1}),
    "ministral": (
        "MinistralConfig",
        {
            "sliding_window": 40, "head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "ministral3": (
        "Ministral3Config",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 512, "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "ministral3-far": (
        "Ministral3Config",
        {
            "head_dim": 16, "sliding_window": 300,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.4,
            },
        },
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0, "logits_scaling": 2.5, "residual_multiplier": 0.3,
            "attention_multiplier": 0.1, "attention_bias": True, "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "internlm3": (
        "InternLM3Config",
        {
            "head_dim": None, "attention_bias": True, "mlp_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 5e7},
        },
    ),
    "olmo2": ("Olmo2Config", {"num_key_value_heads": 2}),
    "olmo3": (
        "Olmo3Config",
        {
            "sliding_window": 40, "num_hidden_layers": 4,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "beta_fast": 32,
                    "beta_slow": 1, "attention_factor": 1.1386294361119891,
                    "original_max_position_embeddings": 128,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "exaone4": (
        "Exaone4Config",
        {"sliding_window": 40, "sliding_window_pattern": 2, "tie_word_embeddings": True},
    ),
    "exaone4-full": (
        "Exaone4Config",
        {
            "sliding_window": None, "layer_types": ["full_attention"] * 3,
            "rope_parameters": LLAMA3,
        },
    ),
    "ernie4_5": ("Ernie4_5Config", {"head_dim": 24, "use_bias": True}),
    "helium": ("HeliumConfig", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "glm4": ("Glm4Config", {"head_dim": 32, "attention_bias": True}),
    "cohere2": (
        "Cohere2Config",
        {"sliding_window": 40, "logit_scale": 0.25, "num_hidden_layers": 4, "pad_token_id": 0},
    ),
    "cohere2-bias": (
        "Cohere2Config",
        {
            "sliding_window": 33, "attention_bias": True, "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "stablelm": (
        "StableLmConfig",
        {"use_qkv_bias": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "stablelm-parallel": ("StableLmConfig", {"use_parallel_residual": True}),
    "phi": ("PhiConfig", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 40}),
    "starcoder2-untied": ("Starcoder2Config", {"use_bias": False, "tie_word_embeddings": False}),
    "gpt_neox": ("GPTNeoXConfig", {"num_key_value_heads": ...}),
    "gpt_neox-serial": (
        "GPTNeoXConfig",
        {
            "num_key_value_heads": ..., "use_parallel_residual": False, "attention_bias": False,
            "hidden_act": "gelu_new", "tie_word_embeddings": True,
        },
    ),
    "arcee": ("ArceeConfig", {}),
    "arcee-bias": (
        "ArceeConfig",
        {
            "attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "apertus": ("ApertusConfig", {"rope_parameters": LLAMA3}),
    "apertus-bias": ("ApertusConfig", {"attention_bias": True, "tie_word_embeddings": True}),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {
            "head_dim": 32, "tie_word_embeddings": True, "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0,
            },
        },
    ),
    "hunyuan-bias": (
        "HunYuanDenseV1Config", {"head_dim": 16, "attention_bias": True, "pad_token_id": 0}
    ),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-untied": (
        "GPT2Config",
        {
            **GPT2, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True,
            "activation_function": "relu", "n_inner": 80,
        },
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            "head_dim": 16, "intermediate_size": [96, 96, 64, 96, 80, 96], "num_hidden_layers": 6,
            "sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 240, "altup_num_inputs": 3, "altup_active_idx": 1,
            "laurel_rank": 12, "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0, 0.8, 0.0],
        },
    ),
    "gemma3n-whole": (
        "Gemma3nTextConfig",
        {
            "head_dim": 32, "num_hidden_layers": 2, "sliding_window": 512,
            "layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": VOCAB,
            "num_key_value_heads": 4, "tie_word_embeddings": False, "attention_bias": True,
            "final_logit_softcapping": 20.0, "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCAB, "sliding_window": 40, "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True, "final_logit_softcapping": 5.0, "pad_token_id": 0,
        },
    ),
    "gemma4-equal": (
        "Gemma4TextConfig",
        {
            "head_dim": 32, "global_head_dim": 48, "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True, "num_global_key_value_heads": 1, "sliding_window": 37,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "attention_bias": True, "tie_word_embeddings": False, "pad_token_id": 0,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv"], "pad_token_id": 0},
    ),
    "lfm2-bias": (
        "Lfm2Config",
        {
            "layer_types": ["full_attention", "conv", "conv"], "conv_bias": True,
            "conv_L_cache": 4, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False,
            "pad_token_id": 0,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {
            **NO_ATTENTION, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2,
            "pad_token_id": 0,
        },
    ),
    "mamba2-tied": (
        "Mamba2Config",
        {
            "num_hidden_layers": 2,
            **NO_ATTENTION, "num_heads": 6, "head_dim": 20, "hidden_size": 60, "state_size": 24,
            "n_groups": 1, "conv_kernel": 3, "use_bias": True, "use_conv_bias": False,
            "pad_token_id": 0, "tie_word_embeddings": True, "time_step_limit": [0.2, 1.5],
        },
    ),
    "falcon_h1": (
        "FalconH1Config",
        {
            "num_hidden_layers": 2,
            "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16,
            "mamba_n_groups": 2, "embedding_multiplier": 2.5, "lm_head_multiplier": 0.3,
            "attention_in_multiplier": 1.5, "attention_out_multiplier": 0.9,
            "key_multiplier": 0.6, "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.4,
            "mlp_multipliers": [0.8, 0.6], "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3],
            "pad_token_id": 0,
        },
    ),
    "falcon_h1-norm": (
        "FalconH1Config",
        {
            "num_hidden_layers": 2,
            "mamba_d_ssm": None, "mamba_n_heads": 8, "mamba_d_state": 24, "mamba_rms_norm": True,
            "mamba_norm_before_gate": False, "mamba_conv_bias": False,
            "tie_word_embeddings": True, "lm_head_multiplier": 0.7, "pad_token_id": 0,
        },
    ),
    "falcon_h1-before": (
        "FalconH1Config",
        {
            "mamba_d_ssm": 48, "mamba_n_heads": 3, "mamba_d_state": 8, "mamba_rms_norm": True,
            "num_hidden_layers": 2, "pad_token_id": 0,
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mamba_n_heads": 8, "mamba_d_state": 16, "embedding_multiplier": 3.0,
            "logits_scaling": 2.5, "residual_multiplier": 0.3, "attention_multiplier": 0.1,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid-rope": (
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 80,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_conv_bias": False,
            "mamba_proj_bias": True, "attention_bias": True, "position_embedding_type": "rope",
            "residual_multiplier": 0.5,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "num_experts": 0, "head_dim": 32, "linear_key_head_dim": 16, "num_hidden_layers": 4,
            "linear_value_head_dim": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        },
    ),
    "qwen3_next-listed": (
        "Qwen3NextConfig",
        {
            "mlp_only_layers": [0, 1, 2], "num_experts": 4, "head_dim": 16, "attention_bias": True,
            "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_conv_kernel_dim": 2,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            "linear_num_key_heads": 2, "linear_num_value_heads": 6, "num_hidden_layers": 4,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5,
                "mrope_section": [3, 3, 2], "mrope_interleaved": True,
            },
        },
    ),
    "qwen3_5-tied": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 16, "linear_key_head_dim": 20, "linear_value_head_dim": 12,
            "linear_num_key_heads": 3, "linear_num_value_heads": 3, "tie_word_embeddings": True,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "attention_bias": True,
        },
    ),
}  # fmt: skip

CASES |= EXPERTS


def make_model(case: str) -> Any:
    """A transformers model with weights, norms and biases that all matter."""
    import torch
    import transformers

    torch.set_num_threads(1)
    kind, changes = CASES[case]
    sizes = {key: value for key, value in {**SIZES, **changes}.items() if value is not ...}
    config = getattr(transformers, kind)(**sizes)
    torch.manual_seed(sum(map(ord, case)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    scatter(model)
    return model.float().eval()


def scatter(model: Any) -> None:
    """Random weights, norms and biases that all matter."""
    import torch

    kind = model.config.model_type
    gemma = kind.startswith("gemma") and not kind.startswith(("gemma3n", "gemma4"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.3 if weight.dim() == 1 else 1.4 / weight.shape[1] ** 0.5
            centre = 1.0 if "norm" in name and not gemma else 0.0
            weight.copy_(centre + spread * torch.randn_like(weight))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.6 + 0.1 * int(name.split(".")[-2]))
        model.tie_weights()


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of tests/tiny.py."""
    import json

    (folder / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
    config = {
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_checkpoint(case: str, folder: Path, **options: Any) -> Any:
    """A checkpoint directory; returns the model. options go to save_pretrained."""
    model = make_model(case)
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return model


def prompt(count: int, seed: int = 0) -> np.ndarray:
    """Token ids int32 [count]."""
    return np.random.default_rng(seed).integers(4, 260, count).astype(np.int32)


def expected_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """transformers' logits float32 [T, V]."""
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    logits: np.ndarray = out.logits[0].numpy()
    return logits
