"""Rows of GGUF's architectures for dense models: Llama's relatives with other norms, windows and
feed-forwards, and the older ones with layer norms.

What llama.cpp knows by heart stands here as well: which layers of EXAONE 4 and Command R have a
window, that norms say whether StableLM's halves stand side by side, that Granite's attention is
scaled as ever where no file says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ..families.ministral3 import BETA, ORIGINAL
from ..families.sliding import FULL, SLIDING
from .gguf_keys import Architecture, Change, Config, Keys, turning

BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # norms behind each half
GLM4 = {
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
APERTUS = {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}
XIELU = {
    "xielu.alpha_p": ("mlp.act_fn.alpha_p", (1,)), "xielu.alpha_n": ("mlp.act_fn.alpha_n", (1,)),
    "xielu.beta": ("mlp.act_fn.beta", ()), "xielu.eps": ("mlp.act_fn.eps", ()),
}  # fmt: skip
STARCODER2 = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
PHI = {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
NEOX = {
    "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
}  # fmt: skip
# Granite 4.0 without a mixer is written as a Granite, with the mixers' sizes all the same.
MIXERS = frozenset(
    "ssm.conv_kernel ssm.state_size ssm.group_count ssm.inner_size ssm.time_step_rank".split()
)
SLIDES = frozenset(
    {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}
)
TURNING = frozenset({"rope.dimension_count"})
PARALLEL = frozenset({"use_parallel_residual"})
TEMPERATURE = frozenset(
    {"attention.temperature_scale", "attention.temperature_length",
     "rope.scaling.yarn_log_multiplier"}
)  # fmt: skip
EVERY = 4  # layers, of which the last has no window, where a file does not say
TANH = "gelu_pytorch_tanh"
NEOX_20B = 44  # layers of GPT-NeoX 20B, whose GELU is the approximation


def _theta(config: Config) -> float:
    """What positions turn by; llama.cpp's default, not the family's, where it is not told."""
    config["rope_theta"] = found = float(config["rope_theta"] or 10_000.0)
    return found


def _kinds(keys: Keys, config: Config) -> None:
    """Which layers have a window, of a file that has one."""
    if keys.meta.is_array(f"{keys.name}.attention.sliding_window_pattern"):
        named = {0.0: FULL, 1.0: SLIDING}
        found = keys.each("attention.sliding_window_pattern") or []
        config["layer_types"] = [named.get(value, "neither") for value in found]
    else:
        every = keys.whole("attention.sliding_window_pattern")
        every = EVERY if every is None else every
        count = min(config["num_hidden_layers"], limits.LAYERS)
        full = [every > 0 and (layer + 1) % every == 0 for layer in range(count)]
        config["layer_types"] = [FULL if whole else SLIDING for whole in full]
    base, local = _theta(config), keys.number("rope.freq_base_swa")
    if local not in (None, base):
        keys.faults.append(f"rope.freq_base_swa is {local}, expected rope.freq_base, {base}")


def _olmo2(keys: Keys, config: Config) -> None:
    """OLMo 3 is OLMo 2 with a window."""
    _theta(config)
    window = keys.whole("attention.sliding_window")
    if window:
        config |= {"model_type": "olmo3", "sliding_window": window}
        _kinds(keys, config)


def _whole_factor(keys: Keys, config: Config) -> None:
    """Older files have the whole factor of attention, as the checkpoints do, where llama.cpp takes
    it for one beside YaRN's own."""
    whole = keys.number("rope.scaling.attn_factor")
    if whole and "factor" in (scaling := config.get("rope_scaling") or {}):
        scaling["attention_factor"] = whole


def granite_factors(keys: Keys, config: Config) -> None:
    """Multipliers; of none, or 0, there are none, and attention is scaled by the head's size."""
    usual = {"attention_multiplier": max(config["head_dim"], 1) ** -0.5}
    for ours, key in MULTIPLIERS.items():
        config[ours] = keys.number(key) or usual.get(ours, 1.0)
    if keys.flag("rope.scaling.finetuned") is False:
        keys.faults.append("rope.scaling.finetuned is false: attention without positions")
    config["attention_bias"] = keys.has("attn_q.bias")


def _unscaled(config: Config) -> None:
    """The same model whose rows between layers are 1 / residual_multiplier times as large, which
    norms do not see: products keep their codes, where a factor beside them would have others."""
    residual, eps = config["residual_multiplier"], config["rms_norm_eps"]
    if 1e-9 < residual < 1e9 and 0 < eps / residual**2 < 1:
        config["embedding_multiplier"] /= residual
        config |= {"residual_multiplier": 1.0, "rms_norm_eps": eps / residual**2}


def _granite(keys: Keys, config: Config) -> None:
    granite_factors(keys, config)
    _unscaled(config)
    config["mlp_bias"] = keys.has("ffn_up.bias")


def _starcoder2(keys: Keys, config: Config) -> None:
    config |= {"hidden_act": TANH, "use_bias": keys.has("attn_q.bias")}


def _glm4(keys: Keys, config: Config) -> None:
    turning(keys, config)
    config["attention_bias"] = keys.has("attn_q.bias")


def _phi2(keys: Keys, config: Config) -> None:
    turning(keys, config)
    config["hidden_act"] = "gelu_new"


def _stablelm(keys: Keys, config: Config) -> None:
    """Halves stand side by side where the second one has no norm, whatever the file's key says."""
    turning(keys, config)
    config["use_qkv_bias"] = keys.has("attn_q.bias")
    config["use_parallel_residual"] = not keys.has("ffn_norm.weight")
    if keys.has("attn_q_norm.weight"):
        keys.faults.append(
            "tensor 'blk.0.attn_q_norm.weight' is there, expected queries as they are"
        )


def _gpt2(keys: Keys, config: Config) -> None:
    config["hidden_act"] = "gelu_new"


def _gptneox(keys: Keys, config: Config) -> None:
    """GELU as the models were trained; llama.cpp approximates it in all of them."""
    turning(keys, config)
    config |= {
        "hidden_act": "gelu_fast" if config["num_hidden_layers"] == NEOX_20B else "gelu",
        "use_parallel_residual": keys.flag("use_parallel_residual") is not False,
        "attention_bias": keys.has("attn_qkv.bias"),
    }


def _by_head(config: Mapping[str, Any], count: int) -> NDArray[np.int64] | None:
    """Rows [q | k | v] as q, k and v of each head in turn."""
    heads = int(config["num_attention_heads"])
    if count % (3 * heads):
        return None
    return np.arange(count).reshape(3, heads, -1).swapaxes(0, 1).reshape(-1)


def _cohere2(keys: Keys, config: Config) -> None:
    config["sliding_window"] = keys.whole("attention.sliding_window") or 0
    config["logit_scale"] = keys.number("logit_scale") or 1.0
    _kinds(keys, config)


def _exaone4(keys: Keys, config: Config) -> None:
    """Older files of the model of 64 layers do not tell its window. In other models llama.cpp
    leaves out a window that the family has."""
    known = 4096 if config["num_hidden_layers"] == 64 else None
    window = keys.whole("attention.sliding_window")
    config["sliding_window"] = window = (known if window is None else window) or None
    if window:
        _kinds(keys, config)


def _ernie4_5(keys: Keys, config: Config) -> None:
    _theta(config)
    config["use_bias"] = keys.has("attn_q.bias")


def _mistral3(keys: Keys, config: Config) -> None:
    """Ministral 3, whose queries grow along the text; Mistral Small 3 where they do not."""
    _theta(config)
    length = keys.whole("attention.temperature_length")
    original = keys.whole("rope.scaling.original_context_length")
    if length and length != original:
        keys.faults.append(
            f"attention.temperature_length is {length}, expected that of YaRN, {original}"
        )
    if not keys.number("attention.temperature_scale"):
        config |= {"model_type": "mistral", "sliding_window": None}


def _temperature(keys: Keys, config: Config) -> None:
    """YaRN's weight as it is, where DeepSeek's files have a tenth of it, and growth of queries."""
    scaling = config.setdefault("rope_scaling", {"rope_type": "default"})
    if "mscale" in scaling:
        more = keys.number("rope.scaling.yarn_log_multiplier")
        scaling |= {"mscale": 1.0, "mscale_all_dim": more}
    if growth := keys.number("attention.temperature_scale"):
        scaling[BETA] = growth
        scaling.setdefault(ORIGINAL, config["max_position_embeddings"])


def _apertus(keys: Keys, config: Config) -> None:
    _theta(config)
    config |= {"hidden_act": "xielu", "attention_bias": keys.has("attn_q.bias")}


def _as_default(keys: Keys, config: Config) -> None:
    """What is not scaled is not the family's default."""
    config.setdefault("rope_scaling", {"rope_type": "default"})


ROWS: dict[str, Architecture] = {
    "apertus": Architecture("apertus", _apertus, own=APERTUS, told=XIELU, last=_as_default),
    "cohere2": Architecture(
        "cohere2", _cohere2, SLIDES | {"logit_scale"}, layer_norm="layer_norm_eps"
    ),
    "ernie4_5": Architecture("ernie4_5", _ernie4_5),
    "exaone4": Architecture("exaone4", _exaone4, SLIDES, BEHIND),
    "gemma": Architecture("gemma", shifted=True),
    "glm4": Architecture("glm4", _glm4, TURNING, GLM4),
    "gpt2": Architecture(
        "gpt2", _gpt2, own=GPT2, prefix="transformer.h", layer_norm="layer_norm_eps", turned=True,
        pre="gpt-2",
        whole={
            "token_embd": "transformer.wte", "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
        },
    ),
    "gptneox": Architecture(
        "gpt_neox", _gptneox, TURNING | PARALLEL, NEOX, prefix="gpt_neox.layers",
        layer_norm="layer_norm_eps", pre="olmo",
        whole={"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm"},
        changes={f"attn_qkv.{end}": Change(order=_by_head) for end in ("weight", "bias")},
    ),
    "granite": Architecture(
        "granite", _granite, frozenset(MULTIPLIERS.values()) | MIXERS
        | {"expert_shared_feed_forward_length"}, interleaved=True
    ),
    "mistral3": Architecture(
        "ministral3", _mistral3, TEMPERATURE, interleaved=True, also=("mistral",),
        last=_temperature,
    ),
    "olmo2": Architecture(
        "olmo2", _olmo2, SLIDES, BEHIND, also=("olmo3",), last=_whole_factor
    ),
    "phi2": Architecture(
        "phi", _phi2, TURNING, PHI, layer_norm="layer_norm_eps", pre="phi-2",
        whole={"output_norm": "model.final_layernorm"},
    ),
    "stablelm": Architecture(
        "stablelm", _stablelm, TURNING | PARALLEL, layer_norm="layer_norm_eps"
    ),
    "starcoder2": Architecture(
        "starcoder2", _starcoder2, own=STARCODER2, layer_norm="norm_epsilon", pre="starcoder"
    ),
}  # fmt: skip
