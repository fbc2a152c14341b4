"""Architectures of GGUF files with state spaces or short convolutions in their layers, as rows of
`gguf_architectures.ARCHITECTURES`.

Facts that no file tells, as llama.cpp has them: steps of a state space have no limits; what comes
out of one is gated, then normed by groups; a layer without heads of keys is no attention; Granite's
attention has positions unless `rope.scaling.finetuned` is false. A Falcon-H1's multipliers are in
its tensors (the tied head of one is scaled as the embedding is).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import limits
from .gguf_keys import F32, Architecture, Change, Config, Keys

KV = "attention.head_count_kv"
NOTHING = frozenset({"context_length", "feed_forward_length", "attention.head_count", KV})
SSM = frozenset(
    "ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank ssm.group_count".split()
)
MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}  # fmt: skip
CONV = {"shortconv.conv": "conv.conv", "shortconv.in_proj": "conv.in_proj",
        "shortconv.out_proj": "conv.out_proj"}  # fmt: skip
LFM2 = {
    **CONV, "attn_norm": "operator_norm", "ffn_norm": "ffn_norm",
    "attn_output": "self_attn.out_proj", "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm", "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
}  # fmt: skip


def _mixer_names(module: str) -> dict[str, str]:
    """The tensors of a Mamba-2 mixer."""
    return {
        "ssm_in": f"{module}.in_proj", "ssm_conv1d": f"{module}.conv1d",
        "ssm_dt.bias": f"{module}.dt_bias", "ssm_a.": f"{module}.A_log", "ssm_d.": f"{module}.D",
        "ssm_norm": f"{module}.norm", "ssm_out": f"{module}.out_proj",
    }  # fmt: skip


def _logarithms(found: F32) -> F32:
    """A_log of A = -exp(A_log); of numbers from 0 on none, which whoever reads them tells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(-found.astype(np.float64)).astype(np.float32)


def _vector(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (int(np.prod(shape, dtype=object)),)


def _channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a convolution [C, K] that has one input for each channel."""
    return (shape[0], 1, *shape[1:])


CONVOLVED = Change(_channels)
MIXED: Mapping[str, Change] = {
    "ssm_a": Change(_vector, _logarithms), "ssm_d": Change(_vector),
    "ssm_norm.weight": Change(_vector), "ssm_conv1d.weight": CONVOLVED,
}  # fmt: skip


def _mixer(keys: Keys) -> dict[str, Any]:
    """Sizes of a mixer: what is missing is none, lest a family's default stand for it."""
    inner = keys.whole("ssm.inner_size") or 0
    heads = keys.whole("ssm.time_step_rank") or 0
    return {
        "inner": inner, "heads": heads, "head_dim": inner // max(1, heads),
        "state": keys.whole("ssm.state_size") or 0, "groups": keys.whole("ssm.group_count") or 0,
        "width": keys.whole("ssm.conv_kernel") or 0,
    }  # fmt: skip


def _mamba2(keys: Keys, config: Config) -> None:
    """Sizes of attention and feed-forward, and the context, are of nothing."""
    found = _mixer(keys)
    for key in sorted(NOTHING - {"context_length"}):
        if value := keys.whole(key):
            keys.faults.append(f"key '{keys.name}.{key}' is {value}, expected 0")
    config |= {
        "num_heads": found["heads"], "head_dim": found["head_dim"],
        "state_size": found["state"], "n_groups": found["groups"], "conv_kernel": found["width"],
        "expand": found["inner"] // config["hidden_size"], "use_bias": keys.has("ssm_in.bias"),
        "use_conv_bias": keys.has("ssm_conv1d.bias"),
        "layer_norm_epsilon": config.pop("rms_norm_eps"),
    }  # fmt: skip


def _attached(keys: Keys) -> Config:
    """The mixer of a config that has attention beside it."""
    found = _mixer(keys)
    return {
        "mamba_n_heads": found["heads"], "mamba_d_head": found["head_dim"],
        "mamba_d_state": found["state"], "mamba_n_groups": found["groups"],
        "mamba_d_conv": found["width"], "mamba_conv_bias": keys.has("ssm_conv1d.bias"),
    }  # fmt: skip


def _falcon_h1(keys: Keys, config: Config) -> None:
    config |= {
        **_attached(keys), "mamba_d_ssm": keys.whole("ssm.inner_size") or 0,
        "mamba_rms_norm": keys.has("ssm_norm.weight"), "mamba_norm_before_gate": False,
    }  # fmt: skip


def _kinds(keys: Keys, config: Config, without: str) -> list[str]:
    """Type of each layer, `without` where it has no heads of keys; how many these are in others."""
    heads = keys.whole(KV, zeros=True)
    config["num_key_value_heads"] = heads or config["num_attention_heads"]
    if keys.meta.is_array(f"{keys.name}.{KV}"):
        each = keys.each(KV) or []
    else:
        count = min(config["num_hidden_layers"], limits.LAYERS)
        each = [float(1 if heads is None else heads)] * count
    return ["full_attention" if n > 0 else without if n == 0 else "neither" for n in each]


def _lfm2(keys: Keys, config: Config) -> None:
    config |= {
        "norm_eps": config["rms_norm_eps"], "conv_L_cache": keys.whole("shortconv.l_cache") or 0,
        "block_auto_adjust_ff_dim": False, "layer_types": _kinds(keys, config, "conv"),
        "rope_theta": config["rope_theta"] or 10_000.0,
    }  # fmt: skip


def _granite_hybrid(keys: Keys, config: Config) -> None:
    """Without experts the feed-forward of all rows has the width of a usual one."""
    experts, width = keys.whole("expert_count") or 0, config["intermediate_size"]
    shared = keys.whole("expert_shared_feed_forward_length") or 0
    usual = max(config["head_dim"], 1)  # of more heads than channels, which the family refuses
    config |= {
        **_attached(keys), "mamba_proj_bias": keys.has("ssm_in.bias"),
        "mamba_expand": (keys.whole("ssm.inner_size") or 0) // config["hidden_size"],
        "layer_types": _kinds(keys, config, "linear_attention"),
        "position_embedding_type":
            "nope" if keys.flag("rope.scaling.finetuned") is False else "rope",
        "attention_bias": keys.has("attn_q.bias"), "num_local_experts": experts,
        "num_experts_per_tok": keys.whole("expert_used_count") or 0,
        "shared_intermediate_size": shared if experts else width,
        "intermediate_size": keys.whole("expert_feed_forward_length") or width,
        "attention_multiplier": keys.number("attention.scale") or usual**-0.5,
    }  # fmt: skip
    for ours, key in MULTIPLIERS.items():
        config[ours] = keys.number(key) or 1.0
    _unscaled(config)


def _unscaled(config: Config) -> None:
    """The same model with rows between layers 1 / residual_multiplier times as large, which norms
    do not see: products keep their codes, where a factor beside them would have others."""
    residual, eps = config["residual_multiplier"], config["rms_norm_eps"]
    if 1e-9 < residual < 1e9 and 0 < eps / residual**2 < 1:
        config["embedding_multiplier"] /= residual
        config |= {
            "residual_multiplier": 1.0, "rms_norm_eps": eps / residual**2, "mamba_norm_eps": eps,
        }  # fmt: skip


FALCON_H1 = {
    **_mixer_names("mamba"), "ffn_norm": "pre_ff_layernorm",
    "ffn_norm.": "pre_ff_layernorm.weight",  # as it is called in files of llama.cpp's script
    "ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
}  # fmt: skip
SHARED = {"gate": "shared_mlp.gate_proj", "up": "shared_mlp.up_proj",
          "down": "shared_mlp.output_linear"}  # fmt: skip
GRANITE_HYBRID = {
    **_mixer_names("mamba"), "ffn_gate_inp": "block_sparse_moe.router.layer",
    **{f"ffn_{key}{end}": name for key, name in SHARED.items() for end in ("", "_shexp")},
}  # fmt: skip
ROWS: Mapping[str, Architecture] = {
    "falcon-h1": Architecture(
        "falcon_h1", _falcon_h1, SSM, FALCON_H1, whole={"output_norm": "model.final_layernorm"},
        changes=MIXED,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid", _granite_hybrid,
        SSM | set(MULTIPLIERS.values()) | {
            "attention.scale", "expert_count", "expert_used_count", "expert_feed_forward_length",
            "expert_shared_feed_forward_length",
        },
        GRANITE_HYBRID, interleaved=True, experts="block_sparse_moe.experts", changes=MIXED,
        split={"shared_mlp.input_linear": (SHARED["gate"], SHARED["up"])}, sizes=frozenset({KV}),
    ),
    "lfm2": Architecture(
        "lfm2", _lfm2, frozenset({"shortconv.l_cache"}), LFM2, sizes=frozenset({KV}),
        whole={"token_embd_norm": "model.embedding_norm", "output_norm": "model.embedding_norm"},
        changes={"shortconv.conv.weight": CONVOLVED},
    ),
    "mamba2": Architecture(
        "mamba2", _mamba2, SSM, {**_mixer_names("mixer"), "attn_norm": "norm"},
        whole={"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f"},
        changes=MIXED, prefix="backbone.layers", sizes=NOTHING,
    ),
}  # fmt: skip
