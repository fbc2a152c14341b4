"""Rows of GGUF's architectures with the gated delta rule, as Qwen has it, and the row of Gemma 4.

In files of Qwen 3.5 the value heads of delta layers are not beside those that share a key head with
them, as the family has them: the first of each key head come first, then the second of each. Their
rows are taken in the family's order, the columns of `ssm_out` as well. `ssm_a` is -exp(A_log).
Qwen3-Next keeps the family's order; its older files have the input's projections in one tensor,
`ssm_in`.

llama.cpp has the size of keys for that of values, where files tell both, and weights of picked
experts always sum to 1. A text's positions are equal on all axes that a rotary embedding has, so
sections say nothing; behind those of the three axes none may be left. Gemma 4's factors of
frequencies are 1 for pairs that turn and 1e30 for those that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gguf_keys import F32, Architecture, Change, Config, Keys, window

DELTA = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log", "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}  # fmt: skip
QWEN35 = {
    **DELTA,
    "ssm_beta": "linear_attn.in_proj_b", "ssm_alpha": "linear_attn.in_proj_a",
    "nextn.eh_proj": "nextn.fc", "nextn.enorm": "nextn.pre_fc_norm_embedding",
    "nextn.hnorm": "nextn.pre_fc_norm_hidden", "nextn.shared_head_norm": "nextn.norm",
    "nextn.embed_tokens": "nextn.embed_tokens", "nextn.shared_head_head": "nextn.lm_head",
}  # fmt: skip
QWEN3NEXT = {
    **DELTA, "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba"
}  # fmt: skip
SHARED = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
GEMMA4 = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection", "post_norm": "post_per_layer_input_norm",
    "layer_output_scale": "layer_scalar",
}  # fmt: skip
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
CAP = 30.0  # of logits, where a file of Gemma 4 tells none
STILL = 1e29  # a factor from which on a pair does not turn


def _delta(keys: Keys, config: Config) -> None:
    inner, heads = (keys.whole(f"ssm.{key}") or 0 for key in ("inner_size", "time_step_rank"))
    if heads and inner % heads:
        keys.faults.append(f"ssm.inner_size is {inner}, expected a multiple of {heads} heads")
    every = keys.whole("full_attention_interval")
    turning, size = keys.whole("rope.dimension_count"), config["head_dim"]
    config |= {
        "linear_conv_kernel_dim": keys.whole("ssm.conv_kernel") or 0,
        "linear_key_head_dim": keys.whole("ssm.state_size") or 0,
        "linear_value_head_dim": inner // heads if heads else 0,
        "linear_num_key_heads": keys.whole("ssm.group_count") or 0,
        "linear_num_value_heads": heads,
        "full_attention_interval": 4 if every is None else every,
        "partial_rotary_factor": 1.0 if turning is None or not size else turning / size,
    }
    linear = keys.each("attention.recurrent_layers")
    if linear is not None:
        kinds = {0.0: FULL, 1.0: LINEAR}
        found = [kinds.get(value, "neither") for value in linear]
        config["layer_types"] = found[: config["num_hidden_layers"]]


def _experts(keys: Keys, config: Config) -> None:
    """What is missing is none, lest a family's default stand for it."""
    dense = keys.whole("feed_forward_length") or 0
    config |= {
        "num_experts": keys.whole("expert_count") or 0,
        "num_experts_per_tok": keys.whole("expert_used_count") or 0,
        "moe_intermediate_size": keys.whole("expert_feed_forward_length") or 0,
        "shared_expert_intermediate_size":
            keys.whole("expert_shared_feed_forward_length") or dense,
        "intermediate_size": dense or 1,  # no layer is dense
    }  # fmt: skip


def _qwen35(keys: Keys, config: Config) -> None:
    """Layers behind those of the model guess one token more."""
    guessing, layers = keys.whole("nextn_predict_layers") or 0, config["num_hidden_layers"]
    if guessing >= layers:
        keys.faults.append(f"nextn_predict_layers is {guessing}, expected fewer than {layers}")
        return
    config["num_hidden_layers"] = layers - guessing
    _delta(keys, config)
    sections = keys.each("rope.dimension_sections") or []
    axes, beyond = sections[:3], sum(sections[3:])
    apart = len(axes) < 3 or any(i >= 3 * axes[i % 3] for i in range(_small(sum(axes))))
    if apart or beyond:
        keys.faults.append(
            f"rope.dimension_sections is {sections[:8]}, expected those of three axes in turn"
        )


def _small(number: float) -> int:
    """A number of channels, 1 for what is none."""
    return int(number) if 0 < number < 1 << 16 else 1


def _qwen35moe(keys: Keys, config: Config) -> None:
    _qwen35(keys, config)
    _experts(keys, config)


def _qwen3next(keys: Keys, config: Config) -> None:
    _delta(keys, config)
    _experts(keys, config)
    config["in_proj_apart"] = any(name.endswith(".attn_qkv.weight") for name in keys.shapes)
    if not config["num_experts"]:
        keys.faults.append("expert_count is 0 or missing, expected 1 or more: no layer is dense")


def _value_rows(
    config: Mapping[str, Any], count: int, *, size: str = "", keys: bool = False
) -> NDArray[np.int64] | None:
    """Rows of value heads in the order of the key heads that they share. size: the config's name
    of rows a head, one without. keys: whether queries and keys come before them."""
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    each = config[size] if size else 1
    first = 2 * groups * config["linear_key_head_dim"] if keys else 0
    if not 0 < groups < heads or heads % groups or count != first + heads * each:
        return None
    rows = np.arange(first, count).reshape(heads // groups, groups, each)
    return np.concatenate([np.arange(first), rows.swapaxes(0, 1).reshape(-1)])


def _logarithm(decays: F32) -> F32:
    with np.errstate(invalid="ignore", divide="ignore"):  # readers tell what is no number
        return np.log(-decays)


def _convolved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], 1, *shape[1:])


def _one_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape[-1:])


PLAIN = {
    "ssm_conv1d.weight": Change(shape=_convolved), "ssm_a": Change(values=_logarithm),
    "ffn_gate_inp_shexp.weight": Change(shape=_one_row),
}  # fmt: skip
_HEADS = partial(_value_rows, size="linear_value_head_dim")
_CHANNELS = partial(_HEADS, keys=True)
TILED = {
    **PLAIN,
    "ssm_a": Change(values=_logarithm, order=_value_rows),
    "ssm_dt.bias": Change(order=_value_rows), "ssm_beta.weight": Change(order=_value_rows),
    "ssm_alpha.weight": Change(order=_value_rows), "attn_gate.weight": Change(order=_HEADS),
    "attn_qkv.weight": Change(order=_CHANNELS), "ssm_out.weight": Change(columns=_HEADS),
    "ssm_conv1d.weight": Change(shape=_convolved, order=_CHANNELS),
}  # fmt: skip


def _gemma4(keys: Keys, config: Config) -> None:
    """Sizes of layers with and without a window."""
    window(keys, config)
    found = keys.each("attention.sliding_window_pattern") or []
    count, slides = config["num_hidden_layers"], [value == 1.0 for value in found]
    shared = keys.whole("attention.shared_kv_layers") or 0
    whole, size = config["head_dim"], keys.whole("attention.key_length_swa") or 0
    whole_list = len(slides) == count and set(found) <= {0.0, 1.0}
    if not whole_list or slides[-1] or shared >= count:
        keys.faults.append(
            f"{len(slides)} layers in attention.sliding_window_pattern, {shared} of them that "
            f"share keys, expected {count}, the last without a window, and fewer that share"
        )
        return
    _whole_heads(keys, whole, size)
    if experts := keys.whole("expert_count"):
        keys.faults.append(f"expert_count is {experts}, expected none: dense models are read")
    own = [i for i, slid in enumerate(slides) if not slid and i < count - shared]
    equal = not any(f"blk.{i}.attn_v.weight" in keys.shapes for i in own)
    heads = _of_kinds(keys, "attention.head_count_kv", slides, config["num_attention_heads"])
    if not equal and heads[0] != heads[1]:
        keys.faults.append(f"attention.head_count_kv is {heads}, expected one number: heads have "
                           "values of their own")  # fmt: skip
    config |= {
        "head_dim": size, "global_head_dim": whole, "attention_k_eq_v": equal,
        "num_key_value_heads": heads[0], "num_global_key_value_heads": heads[1] if equal else None,
        "num_kv_shared_layers": shared,
        "layer_types": [SLIDING if slid else FULL for slid in slides],
        "hidden_size_per_layer_input": keys.whole("embedding_length_per_layer_input") or 0,
    }  # fmt: skip
    cap = keys.number("final_logit_softcapping")
    config["final_logit_softcapping"] = CAP if cap is None else cap or None
    widths = keys.layered("feed_forward_length", count) or [0]
    config["intermediate_size"] = widths[0]
    config["use_double_wide_mlp"] = widths[-1] == 2 * widths[0] > 0
    if widths != [widths[0]] * (count - shared) + [widths[-1]] * shared or (
        widths[-1] not in (widths[0], 2 * widths[0])
    ):
        keys.faults.append(
            f"feed_forward_length is {widths[:8]}, expected one number, or twice that of the "
            f"{shared} layers that share keys"
        )


def _whole_heads(keys: Keys, whole: int, size: int) -> None:
    """Faults of heads whose values have another size than their keys, or that turn in part."""
    expected = {
        "attention.value_length": whole, "rope.dimension_count": whole,
        "attention.value_length_swa": size, "rope.dimension_count_swa": size,
    }  # fmt: skip
    for key, value in expected.items():
        if keys.whole(key) != value:
            keys.faults.append(f"{key} is {keys.whole(key)}, expected {value}, that of keys")


def _of_kinds(keys: Keys, key: str, slides: list[bool], default: int) -> tuple[int, int]:
    """A number of layers with a window, and of those without."""
    each = keys.layered(key, len(slides)) or [default] * len(slides)
    last = {slid: n for n, slid in zip(each, slides, strict=True)}
    if any(n != last[slid] for n, slid in zip(each, slides, strict=True)):
        keys.faults.append(f"{key} is {each[:8]}, expected one number for each type of layer")
    return last.get(True, last[False]), last[False]


def _gemma4_turning(keys: Keys, config: Config, factors: list[float]) -> None:
    """The first pairs of layers without a window turn."""
    whole = config.get("global_head_dim", 0)
    turning = sum(factor == 1 for factor in factors)
    still = len(factors) - turning
    if 2 * len(factors) != whole or any(f != 1 for f in factors[:turning]) or not turning:
        keys.faults.append(f"'rope_freqs.weight' has {len(factors)} factors, the first {turning} "
                           f"of 1, expected {whole // 2}")  # fmt: skip
        return
    if still and min(factors[turning:]) < STILL:
        keys.faults.append(f"a factor of 'rope_freqs.weight' is {min(factors[turning:])}, expected "
                           "1, or 1e30 for pairs that do not turn")  # fmt: skip
    bases = {SLIDING: keys.number("rope.freq_base_swa"), FULL: config.pop("rope_theta")}
    if missing := [kind for kind, base in bases.items() if not base]:
        keys.faults.append(f"rope.freq_base or rope.freq_base_swa is missing, for {missing}")
    config["rope_parameters"] = {
        SLIDING: {"rope_type": "default", "rope_theta": bases[SLIDING]},
        FULL: {
            "rope_type": "proportional", "rope_theta": bases[FULL],
            "partial_rotary_factor": turning / len(factors),
        },
    }  # fmt: skip


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SSM = _named(
    """
    ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank ssm.group_count
    full_attention_interval attention.recurrent_layers rope.dimension_count
    """
)
_EXPERTS = _named(
    """
    feed_forward_length expert_count expert_used_count expert_feed_forward_length
    expert_shared_feed_forward_length
    """
)
_QWEN35 = _SSM | {"rope.dimension_sections", "nextn_predict_layers"}
_GEMMA4 = _named(
    """
    feed_forward_length attention.head_count_kv attention.value_length attention.key_length_swa
    attention.value_length_swa attention.sliding_window attention.sliding_window_pattern
    attention.shared_kv_layers embedding_length_per_layer_input rope.freq_base_swa
    rope.dimension_count rope.dimension_count_swa final_logit_softcapping
    expert_count expert_used_count expert_feed_forward_length
    """
)
_WIDTH = frozenset({"feed_forward_length"})
ROWS: dict[str, Architecture] = {
    "gemma4": Architecture(
        "gemma4_text", _gemma4, _GEMMA4, GEMMA4, factors=_gemma4_turning,
        sizes=_WIDTH | {"attention.head_count_kv"},
    ),
    "qwen35": Architecture(
        "qwen3_5_text", _qwen35, _QWEN35, QWEN35, shifted=True, changes=TILED, drafts=True
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text", _qwen35moe, _QWEN35 | _EXPERTS, {**QWEN35, **SHARED}, shifted=True,
        experts="mlp.experts", changes=TILED, drafts=True, sizes=_WIDTH,
    ),
    "qwen3next": Architecture(
        "qwen3_next", _qwen3next, _SSM | _EXPERTS, {**QWEN3NEXT, **SHARED}, shifted=True,
        experts="mlp.experts", changes=PLAIN, sizes=_WIDTH,
    ),
}  # fmt: skip
