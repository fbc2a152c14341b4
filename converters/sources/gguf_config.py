"""GGUF's metadata as the config.json that the model's family reads, and its tensors' names there.

One row of ARCHITECTURES for each architecture. Every key of an architecture's own is read, or has
a value that says nothing, or is a fault: nothing that llama.cpp computes may go unnoticed. What it
knows by heart stands here as well: Gemma's large models scale queries by their own rule, and every
fourth layer of SmolLM3 has no positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...storage.gguf_values import Metadata
from ..families.config import short

Config = dict[str, Any]
Vectors = Mapping[str, Callable[[], list[float]]]

HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
STACKS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
GRANITE = {"ffn_gate_inp": "block_sparse_moe.router.layer"}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
READ = frozenset(
    """
    context_length embedding_length block_count feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon
    attention.key_length attention.value_length rope.dimension_count rope.freq_base
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.attn_factor rope.scaling.finetuned rope.scale_linear
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_attn_factor
    """.split()
)
# Values that say nothing; a key that is not there says nothing either.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.max_alibi_bias": (0,), "attention.clamp_kqv": (0,),
    "expert_count": (0,), "expert_used_count": (0,), "logit_scale": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,), "rope.scaling.yarn_log_multiplier": (0,),
    "attention.scale": (0,), "use_parallel_residual": (False,), "nextn_predict_layers": (0,),
}  # fmt: skip
IGNORED = frozenset({"tensor_data_layout", "attention.layer_norm_epsilon", "embedding_length_out"})
VECTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Architecture:
    """How one is read. model_type: of the family. own: names of tensors of a layer, beside LAYER.
    more: adds keys of the family, from metadata. keys: that `more` reads. interleaved: whether rows
    of q and k stand in pairs, as llama.cpp turns them. shifted: whether norms have their 1 added.
    experts: what the family calls the module of stacked experts, "" without.
    """

    model_type: str
    more: Callable[[_Keys, Config], None] = lambda keys, config: None
    keys: frozenset[str] = frozenset()
    own: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    shifted: bool = False
    experts: str = ""


class _Keys:
    """The keys of one architecture."""

    def __init__(self, meta: Metadata, name: str, faults: list[str]) -> None:
        self.meta, self.name, self.faults = meta, name, faults

    def whole(self, key: str) -> int | None:
        """A whole number; where a file has one for each layer, they must be equal."""
        full = f"{self.name}.{key}"
        if self.meta.is_array(full):
            each = self.meta.numbers(full)
            if each is None or not each.size or each.dtype.kind not in "iu" or np.ptp(each):
                self.faults.append(f"key {full!r} differs between layers, expected one number")
                return None
            return int(each[0])
        return self.meta.whole(full)

    def number(self, key: str) -> float | None:
        """A number, without the digits that float32 added to it."""
        value = self.meta.number(f"{self.name}.{key}")
        return None if value is None else float(f"{value:.7g}")

    def text(self, key: str) -> str | None:
        return self.meta.text(f"{self.name}.{key}")


def _window(keys: _Keys, config: Config) -> None:
    config["sliding_window"] = keys.whole("attention.sliding_window") or None


def _gemma(keys: _Keys, config: Config, large: int) -> None:
    """Queries are scaled by the head's size; of the largest model, by the width for each head."""
    _window(keys, config)
    heads = config.get("num_attention_heads") or 1
    if config.get("num_hidden_layers") == large:
        config["query_pre_attn_scalar"] = config.get("hidden_size", 0) / heads
    else:
        config["query_pre_attn_scalar"] = config.get("head_dim", 0)
    config["final_logit_softcapping"] = keys.number("final_logit_softcapping") or None


def _gemma2(keys: _Keys, config: Config) -> None:
    _gemma(keys, config, 46)
    config["attn_logit_softcapping"] = keys.number("attn_logit_softcapping") or None


def _gemma3(keys: _Keys, config: Config) -> None:
    _gemma(keys, config, 62)
    local = keys.number("rope.freq_base_swa") or keys.number("rope.local.freq_base")
    config["rope_local_base_freq"] = local or 10_000.0
    config["rope_theta"] = config.get("rope_theta") or 1_000_000.0
    if f"{keys.name}.attention.sliding_window_pattern" in keys.meta:
        config["sliding_window_pattern"] = keys.whole("attention.sliding_window_pattern")


def _phi3(keys: _Keys, config: Config) -> None:
    _window(keys, config)
    turning, size = keys.whole("rope.dimension_count"), config["head_dim"]
    if turning and turning != size:
        config["partial_rotary_factor"] = turning / size
    original = keys.whole("rope.scaling.original_context_length")
    if original:
        config["original_max_position_embeddings"] = original


def _arcee(keys: _Keys, config: Config) -> None:
    config["hidden_act"] = "relu2"


def _qwen3moe(keys: _Keys, config: Config) -> None:
    """The weights of picked experts always sum to 1."""
    config["num_experts"] = keys.whole("expert_count")
    config["num_experts_per_tok"] = keys.whole("expert_used_count")
    config["moe_intermediate_size"] = keys.whole("expert_feed_forward_length")
    config["norm_topk_prob"] = True


def _granitemoe(keys: _Keys, config: Config) -> None:
    config["num_local_experts"] = keys.whole("expert_count")
    config["num_experts_per_tok"] = keys.whole("expert_used_count")
    own = keys.whole("expert_feed_forward_length")
    config["intermediate_size"] = own or config["intermediate_size"]
    for ours, key in MULTIPLIERS.items():
        config[ours] = keys.number(key)


MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
}  # fmt: skip
WINDOW = frozenset({"attention.sliding_window"})
EXPERTS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
HUNYUAN = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "arcee": Architecture("arcee", _arcee, interleaved=True),
    "gemma2": Architecture("gemma2", _gemma2, WINDOW | CAPS, GEMMA, shifted=True),
    "gemma3": Architecture(
        "gemma3_text", _gemma3,
        WINDOW | {
            "final_logit_softcapping", "rope.freq_base_swa", "rope.local.freq_base",
            "attention.sliding_window_pattern",
        },
        GEMMA, shifted=True,
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", own=HUNYUAN),
    "granitemoe": Architecture(
        "granitemoe", _granitemoe, EXPERTS | set(MULTIPLIERS.values()), GRANITE, interleaved=True,
        experts="block_sparse_moe.experts",
    ),
    "llama": Architecture("llama", interleaved=True),
    "phi3": Architecture("phi3", _phi3, WINDOW, FUSED),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture(
        "qwen3_moe", _qwen3moe, EXPERTS, {"ffn_gate_inp": "mlp.gate"}, experts="mlp.experts"
    ),
    "smollm3": Architecture("smollm3", interleaved=True),
}  # fmt: skip


def architecture_of(meta: Metadata) -> tuple[str, Architecture]:
    """The name of a file's architecture and its row. Raises ConvertError for others."""
    name = meta.text("general.architecture", 64)
    found = ARCHITECTURES.get(name or "")
    if name is None or found is None:
        kind = "no architecture" if name is None else f"architecture {name!r}"
        raise ConvertError(
            f"{meta.where} has {kind}, of GGUF files edgert converts {sorted(ARCHITECTURES)}",
            code="model-type",
            hint="a projector of pictures (mmproj) or an adapter is no model of its own; of other "
            "architectures try the repository that the file was made from",
            model_type=name,
        )
    return name, found


def config_of(
    meta: Metadata, shapes: Mapping[str, tuple[int, ...]], vectors: Vectors, faults: list[str]
) -> Config:
    """config.json of a file. shapes: of its tensors, by GGUF's names. vectors: reads those that
    belong to the rotary frequencies, by name."""
    name, row = architecture_of(meta)
    keys = _Keys(meta, name, faults)
    config: Config = {"model_type": row.model_type, "hidden_act": "silu"}
    for key, ours in SIZES.items():
        value = keys.whole(key)
        if not value:
            faults.append(f"key '{name}.{key}' is {'missing' if value is None else 'zero'}")
        else:
            config[ours] = value
    kv = keys.whole("attention.head_count_kv")
    config["num_key_value_heads"] = kv or config.get("num_attention_heads")
    eps = keys.number("attention.layer_norm_rms_epsilon")
    if eps is None:
        faults.append(f"key '{name}.attention.layer_norm_rms_epsilon' is missing")
    else:
        config["rms_norm_eps"] = eps
    if not faults:
        size = keys.whole("attention.key_length")
        config["head_dim"] = size or config["hidden_size"] // config["num_attention_heads"]
    table = shapes.get("token_embd.weight", ())
    if len(table) == 2:
        config["vocab_size"] = table[0]
    else:
        faults.append("tensor 'token_embd.weight' is missing, or no matrix")
    if faults:
        return config
    config["rope_theta"] = keys.number("rope.freq_base") or None
    if row.model_type.startswith("gemma"):
        del config["hidden_act"]
    row.more(keys, config)
    if row.model_type in ("arcee", "hunyuan_v1_dense", "llama", "qwen3", "smollm3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if row.model_type in ("arcee", "llama", "smollm3"):
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    scaling = _scaling(keys, config, vectors)
    if scaling:
        config["rope_scaling"] = scaling
    _check(keys, row, config)
    return {key: value for key, value in config.items() if value is not None or key in _NULLS}


_NULLS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def _scaling(keys: _Keys, config: Config, vectors: Vectors) -> Config | None:
    """rope_scaling. Factors of each frequency (Llama 3's, or LongRoPE's) come as tensors."""
    kind = keys.text("rope.scaling.type") or "none"
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1.0
    original = keys.whole("rope.scaling.original_context_length")
    attention = keys.number("rope.scaling.attn_factor") or 1.0
    if "rope_factors_long.weight" in vectors and "rope_factors_short.weight" in vectors:
        found: Config = {
            "rope_type": "longrope", "short_factor": vectors["rope_factors_short.weight"](),
            "long_factor": vectors["rope_factors_long.weight"](),
        }  # fmt: skip
        if "rope.scaling.attn_factor" in _stripped(keys):
            found["attention_factor"] = attention
        return found
    if "rope_freqs.weight" in vectors:
        if kind != "none" and factor != 1:
            keys.faults.append(f"rope scaling {kind!r} beside 'rope_freqs.weight', expected one")
        each = vectors["rope_freqs.weight"]()
        return {
            "rope_type": "longrope", "short_factor": each, "long_factor": each,
            "attention_factor": attention,
            "original_max_position_embeddings": config["max_position_embeddings"],
        }  # fmt: skip
    if kind == "none" or (kind == "linear" and factor == 1):
        if attention != 1:
            keys.faults.append(f"rope.scaling.attn_factor is {attention} without scaling")
        return None
    if kind == "linear" or kind == "longrope":
        if kind == "longrope" or attention != 1:
            keys.faults.append(f"rope scaling {kind!r} with attn_factor {attention} and no factors")
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        keys.faults.append(f"rope scaling {kind[:40]!r}, expected none, linear, yarn or longrope")
        return None
    found = {"rope_type": "yarn", "factor": factor}
    if original:
        found["original_max_position_embeddings"] = original
    for ours in ("beta_fast", "beta_slow"):
        value = keys.number(f"rope.scaling.yarn_{ours}")
        if value is not None:
            found[ours] = value
    attention *= keys.number("rope.scaling.yarn_attn_factor") or 1.0
    if attention != 1:
        found["attention_factor"] = attention * (0.1 * np.log(factor) + 1.0)
    return found


def _stripped(keys: _Keys) -> dict[str, str]:
    """Keys of the architecture without its name."""
    return {key.removeprefix(f"{keys.name}."): key for key in keys.meta if _own(keys, key)}


def _own(keys: _Keys, key: str) -> bool:
    return key.startswith(f"{keys.name}.")


def _check(keys: _Keys, row: Architecture, config: Config) -> None:
    """Faults: keys that nothing reads, and sizes that contradict each other."""
    size, faults, meta = config["head_dim"], keys.faults, keys.meta
    values = keys.whole("attention.value_length")
    if values not in (None, size):
        faults.append(f"attention.value_length is {values}, expected key_length, {size}")
    turning = keys.whole("rope.dimension_count")
    if turning not in (None, 0, size) and row.model_type != "phi3":
        faults.append(f"rope.dimension_count is {turning}, expected the head's size, {size}")
    for short_name, key in _stripped(keys).items():
        if short_name in READ | row.keys | IGNORED:
            continue
        value = meta.plain(key)
        neutral = NEUTRAL.get(short_name, ())
        if not any(value is not None and value == ok for ok in neutral):
            but = f", but for {' or '.join(map(short, neutral))}" if neutral else ""
            faults.append(f"key {key!r} (= {meta.shown(key)[:60]}) is unknown{but}")


BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z0-9_]+)\.(weight|bias)")


def hf_name(row: Architecture, name: str) -> str:
    """The family's name of a tensor; GGUF's own where there is none."""
    found = BLOCK.fullmatch(name)
    if found is None:
        stem, _, end = name.rpartition(".")
        return f"{WHOLE[stem]}.{end}" if stem in WHOLE else name
    layer, role, end = found.groups()
    ours = row.own.get(role) or LAYER.get(role)
    return f"model.layers.{int(layer)}.{ours}.{end}" if ours else name


def experts_of(row: Architecture, name: str) -> tuple[str, str] | None:
    """What stands before and behind the number in the family's names of experts that a tensor
    stacks; None for other tensors."""
    found = BLOCK.fullmatch(name)
    if found is None or not row.experts or found[2] not in STACKS or found[3] != "weight":
        return None
    return f"model.layers.{int(found[1])}.{row.experts}.", f".{STACKS[found[2]]}.weight"


def heads_of(row: Architecture, name: str, config: Mapping[str, Any]) -> int:
    """Heads whose rows stand in pairs (2i, 2i + 1), where the family has (i, D/2 + i); 0: none."""
    found = BLOCK.fullmatch(name)
    if not row.interleaved or found is None or found[2] not in HEADS:
        return 0
    return int(config[HEADS[found[2]]])
