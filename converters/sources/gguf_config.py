"""GGUF's metadata as the config.json that the model's family reads, and its tensors' names there.

Every key of an architecture's own is read, or has a value that says nothing, or is a fault: nothing
that llama.cpp computes may go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...storage.gguf_values import Metadata
from ..families import mtp
from ..families.config import refused, short
from ..families.recipe import Part
from .gguf_architectures import ARCHITECTURES
from .gguf_keys import Architecture, Change, Config, Keys

Vectors = Mapping[str, Callable[[], list[float]]]

HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
WHOLE = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}  # fmt: skip
STREAMS = {
    "altup_proj.weight": "model.altup_projections.",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.",
}  # stacks of matrices, one a stream
SHAPED = {
    "vocab_size_per_layer_input": "per_layer_token_embd.weight",
    "laurel_rank": "blk.0.laurel_l.weight",
}  # keys that are rows of tensors
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
STACKS: Mapping[str, tuple[str, ...]] = {
    "ffn_gate_exps": ("gate_proj",), "ffn_up_exps": ("up_proj",), "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}  # fmt: skip
KEYS_APART = ".attn_k_b."
BARE = (
    "self_attn.sinks",
    "altup.correct_output_scale",
    "layer_scalar",
    "linear_attn.dt_bias",
)  # names that the family has without an end
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
SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
UNSAMPLED = ("penalty_last_n", "xtc_probability", "mirostat")
VECTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


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
    keys = Keys(meta, name, faults, shapes)
    config: Config = {"model_type": row.model_type, "hidden_act": "silu"}
    for key, ours in SIZES.items():
        if key in row.sizes:
            continue
        value = keys.whole(key)
        if not value:
            faults.append(f"key '{name}.{key}' is {'missing' if value is None else 'zero'}")
        else:
            config[ours] = value
    if "attention.head_count_kv" not in row.sizes:
        kv = keys.whole("attention.head_count_kv")
        config["num_key_value_heads"] = kv or config.get("num_attention_heads")
    norm = "attention.layer_norm_epsilon" if row.layer_norm else "attention.layer_norm_rms_epsilon"
    eps = keys.number(norm)
    if eps is None:
        faults.append(f"key '{name}.{norm}' is missing")
    else:
        config[row.layer_norm or "rms_norm_eps"] = eps
    if not faults and "num_attention_heads" in config:
        size = keys.whole("attention.key_length")
        config["head_dim"] = size or config["hidden_size"] // config["num_attention_heads"]
    table = shapes.get("token_embd.weight", ())
    if len(table) == 2:
        config["vocab_size"] = table[0]
    else:
        faults.append("tensor 'token_embd.weight' is missing, or no matrix")
    if faults:
        return config
    for ours, tensor in SHAPED.items():
        if len(shape := shapes.get(tensor, ())) == 2:
            config[ours] = shape[0]
    config["rope_theta"] = keys.number("rope.freq_base") or None
    if row.model_type.startswith("gemma"):
        del config["hidden_act"]
    row.more(keys, config)
    if row.model_type in ("arcee", "gpt_oss", "hunyuan_v1_dense", "llama", "qwen3", "smollm3"):
        config["attention_bias"] = keys.has("attn_q.bias")
    if row.model_type in ("arcee", "llama", "smollm3"):
        config["mlp_bias"] = keys.has("ffn_up.bias")
    if row.factors is not None:
        own = vectors.get("rope_freqs.weight", list)
        row.factors(keys, config, own())
        vectors = {name: read for name, read in vectors.items() if name != "rope_freqs.weight"}
    scaling = _scaling(keys, config, vectors)
    if scaling and row.factors is not None:
        faults.append(f"rope scaling {scaling['rope_type']!r}, expected none")
    if row.model_type == "gpt_oss":  # its own ramp is not cut to whole channels
        scaling = {**scaling, "truncate": False} if scaling else {"rope_type": "default"}
    if scaling:
        config["rope_scaling"] = scaling
    row.last(keys, config)
    _check(keys, row, config)
    return {key: value for key, value in config.items() if value is not None or key in _NULLS}


_NULLS = (
    "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "q_lora_rank"
)  # fmt: skip


def _scaling(keys: Keys, config: Config, vectors: Vectors) -> Config | None:
    """rope_scaling. Factors of each frequency (Llama 3's, or LongRoPE's) come as tensors."""
    kind = keys.text("rope.scaling.type") or "linear"  # as llama.cpp has it
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1.0
    original = keys.whole("rope.scaling.original_context_length")
    attention = keys.number("rope.scaling.attn_factor") or 1.0
    held = [name for name in VECTORS if name in vectors]
    if held not in ([], ["rope_freqs.weight"], list(VECTORS[1:])):
        keys.faults.append(f"tensors {held}, expected {VECTORS[0]!r} alone, or both others")
    if "rope_factors_long.weight" in vectors and "rope_factors_short.weight" in vectors:
        found: Config = {
            "rope_type": "longrope", "short_factor": vectors["rope_factors_short.weight"](),
            "long_factor": vectors["rope_factors_long.weight"](),
        }  # fmt: skip
        if original and "original_max_position_embeddings" not in config:
            found["original_max_position_embeddings"] = original
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
            "original_max_position_embeddings": config.get("max_position_embeddings"),
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
    if more := keys.number("rope.scaling.yarn_log_multiplier"):
        found["mscale"] = found["mscale_all_dim"] = float(f"{10 * more:.6g}")
    usual = 0.1 * float(np.log(max(factor, 1.0))) + 1.0
    whole = keys.number("rope.scaling.yarn_attn_factor") or 1.0
    if whole != 1 and not abs(whole - usual) <= 1e-5:
        keys.faults.append(f"rope.scaling.yarn_attn_factor is {whole}, expected 1 or {usual:.7g}")
    if attention != 1:
        found["attention_factor"] = attention * usual
    return found


def _stripped(keys: Keys) -> dict[str, str]:
    """Keys of the architecture without its name."""
    return {key.removeprefix(f"{keys.name}."): key for key in keys.meta if _own(keys, key)}


def _own(keys: Keys, key: str) -> bool:
    return key.startswith(f"{keys.name}.")


def _check(keys: Keys, row: Architecture, config: Config) -> None:
    """Faults: keys that nothing reads, and sizes that contradict each other."""
    size, faults, meta = config.get("head_dim"), keys.faults, keys.meta
    values = keys.whole("attention.value_length")
    if values not in (None, size) and "attention.value_length" not in row.keys:
        faults.append(f"attention.value_length is {values}, expected key_length, {size}")
    turning = keys.whole("rope.dimension_count")
    if turning not in (None, 0, size) and "rope.dimension_count" not in row.keys:
        faults.append(f"rope.dimension_count is {turning}, expected the head's size, {size}")
    for short_name, key in _stripped(keys).items():
        if short_name in READ | row.keys | IGNORED:
            continue
        value = meta.plain(key)
        neutral = NEUTRAL.get(short_name, ())
        if not any(value is not None and value == ok for ok in neutral):
            but = f", but for {' or '.join(map(short, neutral))}" if neutral else ""
            faults.append(f"key {key!r} (= {meta.shown(key)[:60]}) is unknown{but}")


def sampling_of(meta: Metadata) -> dict[str, Any]:
    """What a file asks of sampling, by transformers' names; others stay under GGUF's own."""
    asked: dict[str, Any] = {}
    for key in (*SAMPLING, *UNSAMPLED):
        value = meta.number(f"general.sampling.{key}")
        if value is not None:
            value = float(f"{value:.7g}")
            asked[SAMPLING.get(key, key)] = int(value) if value.is_integer() else value
    if order := meta.text("general.sampling.sequence", 256):
        asked["sequence"] = order
    if asked.get("penalty_last_n") == 0:  # penalises nothing
        asked.pop("repetition_penalty", None)
    if {"temperature", "top_k", "top_p", "min_p"} & set(asked):
        asked["do_sample"] = True
    return asked


_NUMBERED = re.compile(r"model\.layers\.(\d{1,6})\.(nextn\.)?")
BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z0-9_.]+?)(?:\.(weight|bias))?")


def hf_name(row: Architecture, name: str) -> str:
    """The family's name of a tensor; GGUF's own where there is none."""
    found = BLOCK.fullmatch(name)
    if found is None:
        stem, _, end = name.rpartition(".")
        whole = row.whole.get(stem) or WHOLE.get(stem)
        return f"{whole}.{end}" if whole else name
    layer, role, end = found.groups()
    whole = row.own.get(f"{role}.{end or ''}")
    ours = whole or row.own.get(role) or LAYER.get(role)
    if ours is None:
        return name
    bare = whole or end is None or ours in BARE
    return f"{row.prefix}.{int(layer)}.{ours}" + ("" if bare else f".{end}")


def drafting_name(name: str, layers: int, more: int) -> str:
    """A tensor's name by the family's, of a model of so many layers: so many more guess."""
    found = _NUMBERED.match(name)
    if found is None or not layers <= int(found[1]) < layers + more:
        return name
    at = "" if found[2] else f"layers.{int(found[1]) - layers}."
    return f"{mtp.PREFIX}.{at}{name[found.end() :]}"


def change_of(row: Architecture, name: str) -> Change:
    """How a tensor differs from the family's."""
    return row.changes.get(re.sub(r"^blk\.\d{1,6}\.", "", name), Change())


def pieces_of(row: Architecture, part: Part) -> list[Part]:
    """The tensors of a file that a tensor of the family is put together from, by its rows; itself
    where it is one."""
    found = re.fullmatch(rf"({re.escape(row.prefix)}\.\d+\.)(.+)\.weight", part.name)
    names = row.split.get(found[2], ()) if found else ()
    if not found or not names or part.rows is not None:
        return [part]
    shape = (part.shape[0] // len(names), *part.shape[1:])
    return [part._replace(name=f"{found[1]}{name}.weight", shape=shape) for name in names]


def experts_of(row: Architecture, name: str) -> tuple[str, tuple[str, ...]] | None:
    """What stands before and behind the number in the family's names of experts, or of matrices of
    streams, that a tensor stacks: several ends where each piece is that many tensors, one below the
    other. None for other tensors."""
    if name in STREAMS and "altup_router" in row.own:
        return STREAMS[name], (".weight",)
    found = BLOCK.fullmatch(name)
    if found is None or not row.experts or found[2] not in STACKS:
        return None
    ends = tuple(f".{key}.{found[3]}" for key in STACKS[found[2]])
    return f"{row.prefix}.{int(found[1])}.{row.experts}.", ends


def joined_name(row: Architecture, name: str) -> tuple[str, str]:
    """Of keys of latent attention, which some files have apart from the values: GGUF's names of the
    values and of both in one. Empty for other tensors."""
    if "attn_kv_b" not in row.own or not name.endswith(f"{KEYS_APART}weight"):
        return "", ""
    other, whole = (name.replace(KEYS_APART, f".attn_{key}_b.") for key in ("v", "kv"))
    return other, whole


def apart_of(
    row: Architecture, name: str, count: int, config: Mapping[str, Any]
) -> list[tuple[str, tuple[int, int]]]:
    """Of queries, keys and values in one, where the family has them apart: GGUF's name of each, and
    its rows. None of other tensors, or of so many rows as do not fit."""
    found = BLOCK.fullmatch(name)
    if found is None or found[2] != "attn_qkv" or "attn_qkv" in row.own:
        return []
    heads, groups = (int(config[f"num_{key}_heads"]) for key in ("attention", "key_value"))
    size, rest = divmod(count, heads + 2 * groups)
    if rest:
        return []
    ends = np.cumsum([0, heads * size, groups * size, groups * size]).tolist()
    names = [name.replace("attn_qkv", f"attn_{key}") for key in "qkv"]
    return list(zip(names, pairwise(ends), strict=True))


def told_of(
    meta: Metadata, row: Architecture, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[float, tuple[int, ...]]]]:
    """Tensors that a file has among its keys: the family's name, value and shape of each. Raises
    ConvertError where they are missing, or not as many as layers."""
    layers = config["num_hidden_layers"]
    for key, (ours, shape) in row.told.items():
        found = meta.numbers(key)
        if found is None or found.size != layers:
            size = "missing" if found is None else f"an array of {found.size}"
            raise refused([f"key {key!r} is {size}, expected a number for each of {layers} layers"])
        for layer, value in enumerate(found):
            yield f"{row.prefix}.{layer}.{ours}", (float(value), shape)


def heads_of(row: Architecture, name: str, config: Mapping[str, Any]) -> int:
    """Heads whose rows stand in pairs (2i, 2i + 1), where the family has (i, D/2 + i); 0: none."""
    found = BLOCK.fullmatch(name)
    if not row.interleaved or found is None or found[2] not in HEADS:
        return 0
    return int(config[HEADS[found[2]]])
