"""What keys of config.json say beyond the fields of a family: nothing, or something else.

Published configs carry keys of training programs, of other runtimes and of relatives of their
architecture. A key says nothing if its value is null, if it is one of IGNORED, if it switches off
(NEUTRAL) what its family does not have, or if it repeats another key under an old name (ALIASES).
Whatever else is there may change the mathematics, and is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# Keys that do not change what a causal language model computes, whatever their value.
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _flash_attn_2_enabled _from_model_config _name_or_path _experts_implementation architectures
    attn_implementation base_model_pp_plan base_model_tp_plan dtype finetuning_task id2label
    keys_to_ignore_at_inference label2id model_name model_type name_or_path num_labels
    problem_type task_specific_params torch_dtype torchscript transformers.js_config
    transformers_version
    bos_token bos_token_id decoder_start_token_id eos_token eos_token_id image_token_id
    image_token_index ignore_index mask_token_id pad_token pad_token_id prefix sep_token_id
    tokenizer_class tokenizer_name unk_token unk_token_id video_token_id vision_end_token_id
    vision_start_token_id vision_token_id
    aux_loss_alpha attention_dropout attention_dropout_prob attention_probs_dropout_prob
    attn_dropout attn_pdrop classifier_dropout classifier_dropout_prob dropout drop_path_rate
    embd_pdrop embedding_dropout embedding_initializer_range ffn_dropout ffn_pdrop
    gradient_checkpointing gradient_checkpointing_kwargs hidden_dropout hidden_dropout_prob
    init_device init_method_std init_std initializer_cutoff_factor initializer_factor
    initializer_range label_smoothing layerdrop mlp_dropout mtp_loss_scaling_factor
    neftune_noise_alpha output_router_logits pretraining_seq_length pretraining_tp
    residual_dropout resid_dropout resid_pdrop router_aux_loss_coef router_jitter_noise
    router_z_loss_coef seq_aux sequence_parallel summary_first_dropout training_seq_length
    use_label_smoothing z_loss z_loss_coef z_loss_coefficient z_loss_weight
    max_batch_size max_seq_len max_seq_length max_sequence_length model_max_length seq_len
    seq_length
    attention_softmax_in_fp32 fa2 flash_attention flash_attn fp32_residual fuse_cross_entropy
    fuse_linear_cross_entropy fuse_norm fuse_swiglu make_vocab_size_divisible_by
    pad_vocab_size_multiple pad_vocab_size_multiple_of pad_vocab_size_to_multiple_of
    residual_in_fp32 softmax_in_fp32 tensor_parallel_degree tp_size use_bfloat16 use_cache
    use_flash_attention use_flash_attention_2 use_flash_attention_3 use_flash_attn
    use_flash_attn_2 use_fp16 use_sdpa use_xformers
    bad_words_ids begin_suppress_tokens cache_implementation diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff
    eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_decoder_ids
    forced_eos_token_id guidance_scale length_penalty max_length max_new_tokens max_time min_length
    min_new_tokens min_p no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores penalty_alpha remove_invalid_values
    renormalize_logits repetition_penalty return_dict return_dict_in_generate sequence_bias
    stop_strings suppress_tokens temperature tf_legacy_loss top_k top_p typical_p use_return_dict
    """.split()
)
IGNORED_PREFIXES = ("unsloth_",)

OFF: tuple[Any, ...] = (False, 0)
EMPTY: tuple[Any, ...] = ([], {}, "")
ONE: tuple[Any, ...] = (1,)


def _table(values: tuple[Any, ...], keys: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(keys.split(), values)


# Keys of other architectures, with the values that mean that there is nothing of the kind.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **_table(
        OFF,
        """
        _remove_final_layer_norm add_cross_attention add_bias_linear add_qkv_bias alibi
        alibi_bias_max altup_num_inputs apply_residual_connection_post_layernorm attention_bias
        attention_out_bias attention_sink_size attn_logit_cap attn_logit_softcap
        attn_logit_softcapping attn_output_gate attn_qkv_bias attn_soft_cap
        attn_temperature_tuning bias chunk_size_feed_forward clip_qkv
        elementwise_attn_output_gate embed_scale_by_dim final_logit_softcap
        final_logit_softcapping first_k_dense_replace fused_attention gated_attention
        headwise_attn_output_gate hidden_size_per_layer_input is_encoder_decoder is_moe
        kv_lora_rank layer_scale lm_head_bias logit_cap logit_softcap logits_soft_cap lora_rank
        mlp_bias moe moe_intermediate_size moe_num_experts mtp_num_layers mup n_routed_experts
        n_shared_experts no_rope_layer_interval norm_after norm_topk_prob normalize_embedding
        normalize_embeddings num_experts num_experts_per_tok num_experts_per_token
        num_kv_shared_layers num_local_experts num_memory_tokens num_nextn_predict_layers
        num_shared_experts o_bias out_bias parallel_attn parallel_residual post_norm q_lora_rank
        qk_layer_norm qk_layernorm qk_norm qkv_bias relative_attention residual_gating
        rms_norm_unit_offset rope_interleaved rope_interleave scale_attn_by_inverse_layer_idx
        scale_emb_by_dim scale_embedding scale_embeddings shared_expert_intermediate_size
        shared_intermediate_size sliding_window_size softcap sparse_attention
        tie_encoder_decoder tie_weights tie_word_embedding use_alibi use_attention_gate
        use_attention_sinks use_attn_gate use_bias use_bidirectional_attention use_cla
        use_dynamic_ntk use_embedding_norm use_gated_attention use_l2_norm use_layer_scale
        use_linear_attention use_lm_head_bias use_logn_attn use_lora use_memory use_mla use_mlp_bias
        use_moe use_mrope use_mtp use_mup use_o_bias use_parallel_residual use_post_norm
        use_qk_layernorm use_qk_norm use_qkv_bias use_residual_scaling use_sandwich_norm
        use_scaled_rope use_sink use_sinks use_sliding_window_layers use_sparse_attention
        qk_layer_norms use_resampler use_unpadded_lm_head use_v_norm v_norm vocab_pad
        """,
    ),
    **_table(
        (*OFF, *EMPTY),
        """
        attention_chunk_size chunk_size cross_attention_layers dual_chunk_attention_config
        linear_attn_config mlp_only_layers moe_layers per_layer_config pruned_heads
        quantization sparse_config sparse_attention_config
        """,
    ),
    **_table(
        ONE,
        """
        attention_in_multiplier attention_out_multiplier attn_output_multiplier
        cla_share_factor decoder_sparse_step depth_scale emb_scale embed_scale
        embedding_multiplier embedding_multiplier_scale embedding_scale
        full_attn_mod input_emb_scale interpolate_factor key_multiplier
        lm_head_multiplier logit_multiplier logit_scale logits_multiplier logits_scale
        logits_scaling mlp_multiplier moe_layer_freq mup_width_multiplier output_logit_multiplier
        output_multiplier output_multiplier_scale partial_rotary_factor residual_multiplier
        residual_scale residual_scaling resid_scale rope_percent rope_ratio rope_scaling_factor
        rotary_pct rotary_percent scale_emb width_multiplier width_scale
        """,
    ),
    **_table(
        (True,),
        """
        causal is_causal pre_norm scale_attn_weights use_glu
        use_gated_mlp use_pre_norm use_rms_norm use_rmsnorm use_rope use_rotary
        use_rotary_embeddings use_rotary_emb use_swiglu
        """,
    ),
    "is_decoder": (False, True),
    "mlp_multipliers": ([1, 1],),
    "norm_type": ("rms", "rms_norm", "rmsnorm", "RMSNorm"),
    "normalization_type": ("rms", "rms_norm", "rmsnorm", "RMSNorm"),
    "position_embedding_type": ("rope", "rotary"),
    "positional_encoding": ("rope", "rotary"),
    "position_encoding_type": ("rope", "rotary"),
    "tie_last_hidden_states": (True,),
}  # fmt: skip
# Other names of fields; they say nothing where they say the same.
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_kv_heads", "num_kv_heads", "num_query_groups"), "num_key_value_heads"),
    **dict.fromkeys(("d_model", "dim", "n_embd"), "hidden_size"),
    **dict.fromkeys(("d_ff", "ffn_dim", "ffn_hidden_size", "n_inner"), "intermediate_size"),
    **dict.fromkeys(
        ("max_position", "n_ctx", "n_positions", "context_length"), "max_position_embeddings"
    ),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "norm_eps"), "rms_norm_eps"),
    **dict.fromkeys(("rope_base", "rope_freq_base", "rotary_emb_base"), "rope_theta"),
    **dict.fromkeys(("activation_function", "hidden_activation"), "hidden_act"),
    **dict.fromkeys(("tie_weights", "tie_word_embedding"), "tie_word_embeddings"),
    "attn_bias": "attention_bias",
    "n_vocab": "vocab_size",
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
OF_EXPERTS = re.compile(
    r"moe_\w+|num_experts_\w+|router_\w+|(n_|num_)?shared_expert\w*|norm_topk\w*"
    r"|decoder_sparse_step|topk_\w+|n_group|scoring_func|routed_scaling_factor"
)


def says_nothing(key: str, raw: Mapping[str, Any]) -> bool:
    """Whether a key that no field of the family reads says nothing beyond them."""
    value = raw[key]
    if value is None or key in IGNORED or key.startswith(IGNORED_PREFIXES):
        return True
    if any(_same(value, neutral) for neutral in NEUTRAL.get(key, ())):
        return True
    if key in ALIASES and raw.get(ALIASES[key]) is not None:
        return _same(value, raw[ALIASES[key]])
    if key in COMPUTED:
        return _is_close(value, COMPUTED[key], raw)
    if OF_EXPERTS.fullmatch(key):  # of a dense model that says so
        said = [raw[other] for other in EXPERTS if other in raw]
        return bool(said) and not any(said)
    return key == "no_rope_layers" and isinstance(value, list) and all(v == 1 for v in value)


def _same(value: Any, other: Any) -> bool:
    """Equal, with numbers as numbers; but true is not 1."""
    if type(value) is type(other):
        return bool(value == other)
    numbers = (int, float) if other is not False else (int, float, bool)
    return type(value) in numbers and type(other) in (int, float, bool) and bool(value == other)


def _head_dim(raw: Mapping[str, Any]) -> float:
    return float(raw.get("head_dim") or raw["hidden_size"] / raw["num_attention_heads"])


# Keys whose neutral value follows from sizes.
COMPUTED: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    **dict.fromkeys(
        ("attention_multiplier", "attention_scale", "attn_scale", "softmax_scale"),
        lambda raw: _head_dim(raw) ** -0.5,
    ),
    "query_pre_attn_scalar": _head_dim,
    **dict.fromkeys(
        ("head_size", "attention_head_dim", "kv_channels", "head_dim", "rotary_dim"), _head_dim
    ),
    # MiniCPM: layers are scaled by scale_depth / sqrt(layers), the head's input by the other two
    "scale_depth": lambda raw: math.sqrt(raw["num_hidden_layers"]),
    "dim_model_base": lambda raw: float(raw["hidden_size"]),
}


def _is_close(
    value: Any, expected: Callable[[Mapping[str, Any]], float], raw: Mapping[str, Any]
) -> bool:
    try:
        return type(value) in (int, float) and math.isclose(value, expected(raw), rel_tol=1e-6)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False  # sizes that are missing, or none, are a fault of their own
