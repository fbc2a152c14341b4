"""Metadata and tensors of GGUF files with state spaces or short convolutions, as llama.cpp's own
script writes them (`conversion/mamba.py`, `lfm2.py`, `falcon_h1.py`, `granite.py` there)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

NAMES = {"falcon_h1": "falcon-h1", "granitemoehybrid": "granitehybrid"}
QUICK = ("mamba2", "lfm2", "falcon_h1", "granitemoehybrid", "granitemoehybrid-experts")
NO_LIMIT = {"time_step_limit": (0.0, math.inf)}
# What a file does not tell, and what is taken for granted.
GRANTED: dict[str, dict[str, Any]] = {
    "mamba2-tied": NO_LIMIT,
    "lfm2-bias": {"conv_bias": False},
    "falcon_h1-norm": {"lm_head_multiplier": 1.0},  # the head is tied
    "falcon_h1-before": {"mamba_norm_before_gate": False},
    "granitemoehybrid-rope": {"intermediate_size": 80},  # what llama.cpp takes, without experts
}


def _sizes(writer: Any, config: Any, width: int = 0) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(width or config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _by_layer(writer: Any, config: Any) -> None:
    kinds = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if full else 0 for full in kinds])


def _inner(config: Any) -> int:
    return int(getattr(config, "mamba_d_ssm", None) or config.mamba_expand * config.hidden_size)


def _mixer(writer: Any, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_inner_size(_inner(config))
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_ssm_group_count(config.mamba_n_groups)


def _mamba2(writer: Any, config: Any) -> None:
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(2 * config.hidden_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(2 * config.hidden_size // config.head_dim)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)


def _falcon_h1(writer: Any, config: Any) -> None:
    _sizes(writer, config)
    _mixer(writer, config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)


def _granite(writer: Any, config: Any) -> None:
    _sizes(writer, config)
    _mixer(writer, config)
    _by_layer(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    turning = config.position_embedding_type == "rope"  # of Bamba alone, which is read alike
    writer.add_rope_scaling_finetuned(turning)


def _lfm2(writer: Any, config: Any) -> None:
    width = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        width = int(config.block_ffn_dim_multiplier * int(2 * width / 3))
        width = -(-width // config.block_multiple_of) * config.block_multiple_of
    _sizes(writer, config, width)
    _by_layer(writer, config)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_layer_norm_rms_eps(config.norm_eps)


WRITTEN: dict[str, Callable[[Any, Any], None]] = {
    "falcon_h1": _falcon_h1, "granitemoehybrid": _granite, "lfm2": _lfm2, "mamba2": _mamba2,
}  # fmt: skip


def tensors(state: Mapping[str, Any], config: Any) -> Iterator[tuple[str, Any]]:
    """The tensors as the script changes them, by names that the package knows."""
    for key, tensor in state.items():
        if config.model_type not in WRITTEN:
            yield key, tensor
            continue
        if config.model_type == "falcon_h1":
            tensor = _multiplied(key, tensor, config)
        name = key.replace(".dt_bias", ".dt_proj.bias")
        if key.endswith((".conv1d.weight", ".conv.conv.weight")):
            tensor = tensor.squeeze(1)
        elif key.endswith((".A_log", ".D")):
            tensor = (-tensor.exp() if key.endswith("A_log") else tensor)[:, None]
        elif key.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
            groups = getattr(config, "mamba_n_groups", 0) or config.n_groups
            tensor = tensor.view(groups, -1)
        if ".shared_mlp." in key:
            yield from _shared(key, tensor, config)
        else:
            yield name, tensor


def _shared(key: str, tensor: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """What all rows go through, beside experts or alone."""
    end = "_shexp.weight" if config.num_local_experts else ".weight"
    layer = key.split(".")[2]
    if key.endswith("output_linear.weight"):
        yield f"blk.{layer}.ffn_down{end}", tensor
        return
    for name, half in zip(("gate", "up"), tensor.chunk(2), strict=True):
        yield f"blk.{layer}.ffn_{name}{end}", half.contiguous()


def _multiplied(key: str, tensor: Any, config: Any) -> Any:
    """Falcon-H1's multipliers, which the script puts into matrices."""
    into, (gate, down) = config.attention_in_multiplier, config.mlp_multipliers
    factors = {
        "down_proj": down, "gate_proj": gate, "k_proj": config.key_multiplier * into,
        "q_proj": into, "v_proj": into, "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier, "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }  # fmt: skip
    parts = key.split(".")
    module = parts[-2] if len(parts) > 1 else ""
    if module == "in_proj":
        keys = config.mamba_n_groups * config.mamba_d_state
        inner = _inner(config)
        rows = (inner, inner, keys, keys, tensor.shape[0] - 2 * inner - 2 * keys)
        pieces = zip(tensor.split(rows), config.ssm_multipliers, strict=True)
        import torch

        return torch.cat([piece * config.ssm_in_multiplier * by for piece, by in pieces])
    return tensor * factors.get(module, 1.0)
