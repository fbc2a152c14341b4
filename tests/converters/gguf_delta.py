"""What llama.cpp's script writes of models with the gated delta rule, and of Gemma 4: keys, and
what it does to tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {
    "gemma4_text": "gemma4", "qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe",
    "qwen3_next": "qwen3next",
}  # fmt: skip
SECTIONS = [11, 11, 10, 0]  # of files whose config does not say


NEXT = {
    "fc": "eh_proj", "pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head_norm",
}  # fmt: skip


def hyperparameters(writer: Any, config: Any, guessing: int) -> bool:
    """Write the keys; whether the model is one of these. guessing: layers behind its own that guess
    tokens."""
    if config.model_type not in NAMES:
        return False
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + guessing)
    if guessing:
        writer.add_nextn_predict_layers(guessing)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "gemma4_text":
        _gemma4(writer, config)
        return True
    writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "intermediate_size"):
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    _delta(writer, config)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    return True


def _delta(writer: Any, config: Any) -> None:
    ropes, linear = config.rope_parameters, [k[0] == "l" for k in config.layer_types]
    writer.add_rope_freq_base(ropes["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * ropes["partial_rotary_factor"]))
    if config.model_type != "qwen3_next":
        sections = list(ropes.get("mrope_section", SECTIONS))
        writer.add_rope_dimension_sections([*sections, 0][:4])
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    turns = (n for n in range(2, 9) if linear == [(i + 1) % n > 0 for i in range(len(linear))])
    if every := next(turns, 0):
        writer.add_full_attention_interval(every)
    else:  # which the script never writes, and llama.cpp reads
        writer.add_array(f"{writer.arch}.attention.recurrent_layers", linear)


def _gemma4(writer: Any, config: Any) -> None:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    each = [config.per_layer_config[layer] for layer in range(len(slides))]
    groups = [layer.num_key_value_heads for layer in each]
    whole, shared = each[-1].head_dim, config.num_kv_shared_layers
    size = each[slides.index(True)].head_dim
    ropes, width = config.rope_parameters, config.intermediate_size
    writer.add_head_count_kv(groups if len(set(groups)) > 1 else groups[0])
    writer.add_feed_forward_length(
        [width * (1 + (i >= len(slides) - shared)) for i in range(len(slides))]
        if config.use_double_wide_mlp
        else width
    )
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(slides)
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    for key in ("key_length", "value_length"):
        getattr(writer, f"add_{key}")(whole)
        getattr(writer, f"add_{key}_swa")(size)
    writer.add_rope_dimension_count(whole)
    writer.add_rope_dimension_count_swa(size)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def factors(config: Any) -> dict[str, NDArray[np.float32]]:
    """Those of frequencies of Gemma 4's layers without a window."""
    if config.model_type != "gemma4_text":
        return {}
    size = config.per_layer_config[config.num_hidden_layers - 1].head_dim
    turning = int(size * config.rope_parameters["full_attention"]["partial_rotary_factor"] / 2)
    each = [1.0] * turning + [1e30] * (size // 2 - turning)
    return {"rope_freqs.weight": np.array(each, np.float32)}


def rewritten(
    tensors: Iterator[tuple[str, Any]], config: Any, older: bool
) -> Iterator[tuple[str, Any]]:
    """Tensors of these models as the script has them. older: as its first version for Qwen3-Next
    had them, with one projection of the input, and the gate of its shared expert as a vector."""
    kind = config.model_type
    for key, tensor in tensors:
        if kind == "gemma4_text":
            yield key + ".weight" * key.endswith("layer_scalar"), tensor
        elif kind not in NAMES:
            yield key, tensor
        elif key.endswith("in_proj_qkvz.weight") and not older:
            yield from _apart(key, tensor, config)
        elif older and key.endswith("shared_expert_gate.weight"):
            yield key, tensor[0]
        else:
            yield _changed(key, tensor, config)


def name_of(key: str, config: Any) -> str:
    """GGUF's name of a tensor of a layer that guesses, "" of others."""
    return f"blk.{config.num_hidden_layers}.{key}" if key.startswith("nextn.") else ""


def _guessing(key: str, config: Any) -> str:
    """The name of a layer that guesses as one behind the model's own."""
    role = key.removeprefix("mtp.").removesuffix(".weight")
    if role in NEXT:
        return f"nextn.{NEXT[role]}.weight"
    return key.replace("mtp.layers.0.", f"model.layers.{config.num_hidden_layers}.")


def _changed(key: str, tensor: Any, config: Any) -> tuple[str, Any]:
    import torch

    key = _guessing(key, config) if key.startswith("mtp.") else key
    if config.model_type != "qwen3_next" and "linear_attn." in key:
        tensor = _tiled(key, tensor, config)
    if key.endswith(".A_log"):
        tensor = -torch.exp(tensor)
    elif key.endswith(".dt_bias"):
        key = key.replace(".dt_bias", ".dt_proj.bias")
    elif "conv1d" in key:
        tensor = tensor.squeeze()
    elif key.endswith("norm.weight") and not key.endswith("linear_attn.norm.weight"):
        tensor = tensor + 1
    return key, tensor


def _tiled(key: str, tensor: Any, config: Any) -> Any:
    """Value heads in turns of their key heads: rows, of the projection out columns."""
    groups, heads = config.linear_num_key_heads, config.linear_num_value_heads
    size = config.linear_value_head_dim
    before = 2 * groups * config.linear_key_head_dim

    def turned(rows: Any) -> Any:
        each = rows.reshape(groups, heads // groups, len(rows) // heads, *rows.shape[1:])
        return each.transpose(0, 1).reshape(rows.shape)

    role = key.split("linear_attn.")[1].split(".")[0]
    if role in ("in_proj_qkv", "conv1d"):
        import torch

        assert len(tensor) == before + heads * size
        return torch.cat([tensor[:before], turned(tensor[before:])])
    if role == "out_proj":
        return turned(tensor.T).T.contiguous()
    return tensor if role == "norm" else turned(tensor)


def _apart(key: str, tensor: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """Rows of each key head (query, key, values, gates) as those of all heads, and the gates."""
    groups, size = config.linear_num_key_heads, config.linear_key_head_dim
    values = config.linear_num_value_heads // groups * config.linear_value_head_dim
    each = tensor.reshape(groups, 2 * size + 2 * values, -1)
    q, k, v, z = (part.reshape(-1, tensor.shape[1])
                  for part in each.split([size, size, values, values], dim=1))  # fmt: skip
    import torch

    yield key.replace("qkvz", "qkv"), torch.cat([q, k, v])
    yield key.replace("qkvz", "z"), z.contiguous()
