"""What llama.cpp's script writes for dense models: keys, and what it does to their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

NAMES = {
    "gpt_neox": "gptneox", "internlm3": "llama", "ministral3": "mistral3", "olmo3": "olmo2",
    "phi": "phi2",
}  # fmt: skip
PERMUTED = ("granite", "mistral3")
TURNED = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
MASKS = (".attn.bias", ".attn.masked_bias")


def _size(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _sizes(writer: Any, config: Any, inner: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)


def _common(writer: Any, config: Any) -> None:
    """What the script writes of every model that does not say otherwise."""
    _sizes(writer, config, config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    every = dict(config.rope_parameters or {})
    ropes = every.get("full_attention", every)
    _scaling(writer, ropes)
    if ropes.get("rope_theta") is not None:
        writer.add_rope_freq_base(ropes["rope_theta"])
    local = every.get("sliding_attention") or {}
    if local.get("rope_theta") is not None:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if (eps := getattr(config, name, None)) is not None:
            writer.add_layer_norm_eps(eps)
    if (size := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(size)
        writer.add_value_length(size)


def _scaling(writer: Any, ropes: Mapping[str, Any]) -> None:
    import gguf

    kind, types = ropes.get("rope_type"), gguf.RopeScalingType
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(types.LINEAR if kind == "linear" else types.YARN)
    writer.add_rope_scaling_factor(ropes["factor"])
    if kind == "linear":
        return
    writer.add_rope_scaling_orig_ctx_len(ropes["original_max_position_embeddings"])
    for key, name in (
        ("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow"),
    ):  # fmt: skip
        if ropes.get(key) is not None:
            getattr(writer, f"add_rope_scaling_yarn_{name}")(ropes[key])


def _llama(writer: Any, config: Any) -> None:
    _common(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_size(config))


def _gemma(writer: Any, config: Any) -> None:
    _sizes(writer, config, config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _olmo(writer: Any, config: Any) -> None:
    _common(writer, config)
    if hasattr(config, "sliding_window"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([k == "sliding_attention" for k in config.layer_types])


def _granite(writer: Any, config: Any) -> None:
    _common(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _glm4(writer: Any, config: Any) -> None:
    _common(writer, config)
    share = config.rope_parameters.get("partial_rotary_factor", 0.5)
    writer.add_rope_dimension_count(int(_size(config) * share))


def _phi2(writer: Any, config: Any) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    _sizes(writer, config, 4 * width)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    share = config.rope_parameters["partial_rotary_factor"]
    writer.add_rope_dimension_count(int(share * width) // heads)


def _stablelm(writer: Any, config: Any) -> None:
    _sizes(writer, config, config.intermediate_size)
    share = config.rope_parameters.get("partial_rotary_factor", 0.25)
    writer.add_rope_dimension_count(int(share * _size(config)))
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)


def _gpt2(writer: Any, config: Any) -> None:
    _sizes(writer, config, 4 * config.n_embd)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gptneox(writer: Any, config: Any) -> None:
    _sizes(writer, config, config.intermediate_size)
    share = config.rope_parameters.get("partial_rotary_factor", 0.25)
    writer.add_rope_dimension_count(int(share * _size(config)))
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)


def _cohere2(writer: Any, config: Any) -> None:
    import gguf

    _common(writer, config)
    writer.add_logit_scale(config.logit_scale)
    writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_size(config))
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _exaone4(writer: Any, config: Any) -> None:
    _common(writer, config)
    writer.add_vocab_size(config.vocab_size)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([k == "sliding_attention" for k in config.layer_types])


def _ministral3(writer: Any, config: Any) -> None:
    _llama(writer, config)
    writer.add_rope_scaling_yarn_log_mul(config.rope_parameters["mscale_all_dim"])
    writer.add_attn_temperature_scale(config.rope_parameters["llama_4_scaling_beta"])


WRITERS: Mapping[str, Callable[[Any, Any], None]] = {
    "apertus": _llama, "cohere2": _cohere2, "ernie4_5": _common, "exaone4": _exaone4,
    "gemma": _gemma, "glm4": _glm4, "gpt2": _gpt2, "gpt_neox": _gptneox, "granite": _granite,
    "internlm3": _llama, "ministral3": _ministral3, "olmo2": _olmo, "olmo3": _olmo, "phi": _phi2,
    "stablelm": _stablelm, "starcoder2": _common,
}  # fmt: skip


def tensors(
    found: Iterator[tuple[str, Any]], writer: Any, config: Any
) -> Iterator[tuple[str, Any]]:
    """The tensors as the script writes them: GPT-2's matrices turned, rows of GPT-NeoX's queries,
    keys and values one after the other; the numbers of xIELU become keys."""
    told: dict[str, list[float]] = {}
    for key, tensor in found:
        if key.endswith(MASKS):
            continue
        if config.model_type == "gpt2" and TURNED.fullmatch(key):
            tensor = tensor.t().contiguous()
        elif ".query_key_value." in key:
            heads = config.num_attention_heads
            split = tensor.view(heads, 3, -1, *tensor.shape[1:])
            tensor = split.transpose(0, 1).reshape(tensor.shape)
        elif number := re.fullmatch(r".*\.act_fn\.(\w+)", key):
            told.setdefault(number[1], []).append(float(tensor))
            continue
        yield key, tensor
    for name, values in told.items():
        getattr(writer, f"add_xielu_{name}")(values)
