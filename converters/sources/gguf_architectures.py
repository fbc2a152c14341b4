"""The architectures of GGUF files that are read, a row of ARCHITECTURES each: the family, names of
tensors, and what the family's config takes from an architecture's own keys.

What llama.cpp knows by heart stands here as well: Gemma's large models scale queries by their own
rule, every fourth layer of SmolLM3 has no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

from . import gguf_delta, gguf_dense, gguf_recurrent
from .gguf_dense import MIXERS, MULTIPLIERS, granite_factors
from .gguf_keys import Architecture, Config, Keys, turning, window

GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA3N = {
    **GEMMA,
    "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm", "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs", "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm", "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right", "laurel_post_norm": "laurel.post_laurel_norm",
}  # fmt: skip
GRANITE = {"ffn_gate_inp": "block_sparse_moe.router.layer"}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPT_OSS = {
    "post_attention_norm": "post_attention_layernorm", "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
}  # fmt: skip
NARROW = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}
DEEPSEEK = {
    **NARROW,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}


def _gemma(keys: Keys, config: Config, large: int) -> None:
    """Queries are scaled by the head's size; of the largest model, by the width for each head."""
    window(keys, config)
    heads = config.get("num_attention_heads") or 1
    if config.get("num_hidden_layers") == large:
        config["query_pre_attn_scalar"] = config.get("hidden_size", 0) / heads
    else:
        config["query_pre_attn_scalar"] = config.get("head_dim", 0)
    config["final_logit_softcapping"] = keys.number("final_logit_softcapping") or None


def _gemma2(keys: Keys, config: Config) -> None:
    """What the first files do not tell is as the published models have it."""
    _gemma(keys, config, 46)
    told = {key: f"{keys.name}.{key}" in keys.meta for key in (*CAPS, *WINDOW)}
    config["attn_logit_softcapping"] = keys.number("attn_logit_softcapping") or None
    if not told["attn_logit_softcapping"]:
        config["attn_logit_softcapping"] = 50.0
    if not told["final_logit_softcapping"]:
        config["final_logit_softcapping"] = 30.0
    if not told["attention.sliding_window"]:
        config["sliding_window"] = 4096


def _gemma3(keys: Keys, config: Config) -> None:
    _gemma(keys, config, 62)
    local = keys.number("rope.freq_base_swa") or keys.number("rope.local.freq_base")
    config["rope_local_base_freq"] = local or 10_000.0
    config["rope_theta"] = config.get("rope_theta") or 1_000_000.0
    if f"{keys.name}.attention.sliding_window_pattern" in keys.meta:
        config["sliding_window_pattern"] = keys.whole("attention.sliding_window_pattern")


def _gemma3n(keys: Keys, config: Config) -> None:
    """What older files do not tell is as the published models have it."""
    window(keys, config)
    local = keys.number("rope.freq_base_swa") or keys.number("rope.local.freq_base")
    config |= {
        "rope_local_base_freq": local or 10_000.0,
        "rope_theta": config.get("rope_theta") or 1_000_000.0,
        "final_logit_softcapping": keys.number("final_logit_softcapping") or 30.0,
        "altup_num_inputs": keys.whole("altup.num_inputs") or 0,
        "altup_active_idx": keys.whole("altup.active_idx") or 0,
        "hidden_size_per_layer_input": keys.whole("embedding_length_per_layer_input") or 0,
        "num_kv_shared_layers": keys.whole("attention.shared_kv_layers") or 0,
    }
    slides = keys.each("attention.sliding_window_pattern")
    if slides is not None:
        kinds = {0.0: "full_attention", 1.0: "sliding_attention"}
        config["layer_types"] = [kinds.get(value, "neither") for value in slides]
    cuts = keys.each("activation_sparsity_scale")
    if cuts is not None:  # in deviations, of which the config has the shares below them
        shares = [float(f"{NormalDist().cdf(cut):.7g}") for cut in cuts]
        config["activation_sparsity_pattern"] = shares


def _phi3(keys: Keys, config: Config) -> None:
    window(keys, config)
    turning(keys, config)
    original = keys.whole("rope.scaling.original_context_length")
    if original:
        config["original_max_position_embeddings"] = original


def _arcee(keys: Keys, config: Config) -> None:
    config["hidden_act"] = "relu2"


def _qwen3moe(keys: Keys, config: Config) -> None:
    """The weights of picked experts always sum to 1."""
    config["num_experts"] = keys.whole("expert_count")
    config["num_experts_per_tok"] = keys.whole("expert_used_count")
    config["moe_intermediate_size"] = keys.whole("expert_feed_forward_length")
    config["norm_topk_prob"] = True


def _local_experts(keys: Keys, config: Config) -> None:
    """What is missing is none, lest a family's default stand for it."""
    config["num_local_experts"] = keys.whole("expert_count") or 0
    config["num_experts_per_tok"] = keys.whole("expert_used_count") or 0
    own = keys.whole("expert_feed_forward_length")
    config["intermediate_size"] = own or config["intermediate_size"]


def _gpt_oss(keys: Keys, config: Config) -> None:
    """Every second layer has a window, from the first on, as the family has it."""
    window(keys, config)
    _local_experts(keys, config)


def _narrow(keys: Keys, config: Config) -> None:
    """Sizes of heads as they are made whole; newer files have those of narrow rows for
    `key_length`, and one head that all share."""
    turning = keys.whole("rope.dimension_count") or 0
    whole = [keys.whole(f"attention.{key}_length_mla") for key in ("key", "value")]
    if None in whole:
        whole = [keys.whole(f"attention.{key}_length") for key in ("key", "value")]
    else:
        config["num_key_value_heads"] = config["num_attention_heads"]
    size, value = whole
    config |= {
        "head_dim": turning, "qk_rope_head_dim": turning,
        "qk_nope_head_dim": (size or 0) - turning, "v_head_dim": value,
        "kv_lora_rank": keys.whole("attention.kv_lora_rank") or 0,
        "q_lora_rank": keys.whole("attention.q_lora_rank") or None,
    }  # fmt: skip


def _minicpm3(keys: Keys, config: Config) -> None:
    """With the factors of the one published model, which no file tells."""
    _narrow(keys, config)
    config |= {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}


def _deepseek2(keys: Keys, config: Config) -> None:
    _narrow(keys, config)
    config |= {
        "v_head_dim": config["v_head_dim"] or 0,
        "first_k_dense_replace": keys.whole("leading_dense_block_count") or 0,
        "n_routed_experts": keys.whole("expert_count") or 0,
        "n_shared_experts": keys.whole("expert_shared_count") or 0,
        "num_experts_per_tok": keys.whole("expert_used_count") or 0,
        "moe_intermediate_size": keys.whole("expert_feed_forward_length") or 0,
        "routed_scaling_factor": keys.number("expert_weights_scale") or 1.0,
        "norm_topk_prob": bool(keys.flag("expert_weights_norm")),
        "n_group": keys.whole("expert_group_count") or 1,
        "topk_group": keys.whole("expert_group_used_count") or 1,
    }  # fmt: skip
    gating = keys.whole("expert_gating_func") or SOFTMAX
    if gating != SOFTMAX:
        keys.faults.append(
            f"expert_gating_func is {gating}, expected {SOFTMAX}: experts are picked by softmax"
        )


def _granitemoe(keys: Keys, config: Config) -> None:
    _local_experts(keys, config)
    granite_factors(keys, config)


WINDOW = frozenset({"attention.sliding_window"})
EXPERTS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
GATES = frozenset(
    """
    leading_dense_block_count expert_shared_count expert_weights_scale expert_weights_norm
    expert_gating_func expert_group_count expert_group_used_count
    """.split()
)
MLA = frozenset(
    """
    attention.kv_lora_rank attention.q_lora_rank attention.key_length_mla attention.value_length_mla
    attention.value_length rope.dimension_count rope.scaling.yarn_log_multiplier
    """.split()
)
SOFTMAX = 1  # of llama.cpp's ways to weigh experts
CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
HUNYUAN = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "arcee": Architecture("arcee", _arcee, interleaved=True),
    "deepseek2": Architecture(
        "deepseek_v2", _deepseek2, EXPERTS | GATES | MLA, DEEPSEEK, experts="mlp.experts"
    ),
    "gemma2": Architecture("gemma2", _gemma2, WINDOW | CAPS, GEMMA, shifted=True),
    "gemma3": Architecture(
        "gemma3_text", _gemma3,
        WINDOW | {
            "final_logit_softcapping", "rope.freq_base_swa", "rope.local.freq_base",
            "attention.sliding_window_pattern",
        },
        GEMMA, shifted=True,
    ),
    "gemma3n": Architecture(
        "gemma3n_text", _gemma3n,
        WINDOW | frozenset(
            """
            final_logit_softcapping rope.freq_base_swa rope.local.freq_base altup.num_inputs
            altup.active_idx embedding_length_per_layer_input attention.shared_kv_layers
            attention.sliding_window_pattern activation_sparsity_scale
            """.split()
        ),
        GEMMA3N,
    ),
    "gpt-oss": Architecture(
        "gpt_oss", _gpt_oss, EXPERTS | WINDOW, GPT_OSS, experts="mlp.experts"
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", own=HUNYUAN),
    "granitemoe": Architecture(
        "granitemoe", _granitemoe, EXPERTS | set(MULTIPLIERS.values()) | MIXERS, GRANITE,
        interleaved=True, experts="block_sparse_moe.experts",
    ),
    "llama": Architecture("llama", interleaved=True, also=("internlm3", "mistral")),
    "minicpm3": Architecture("minicpm3", _minicpm3, MLA, NARROW),
    "phi3": Architecture("phi3", _phi3, WINDOW | {"rope.dimension_count"}, FUSED),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture(
        "qwen3_moe", _qwen3moe, EXPERTS, {"ffn_gate_inp": "mlp.gate"}, experts="mlp.experts"
    ),
    "smollm3": Architecture("smollm3", interleaved=True),
    **gguf_delta.ROWS, **gguf_dense.ROWS, **gguf_recurrent.ROWS,
}  # fmt: skip
