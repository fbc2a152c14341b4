"""Reading config.json with suspicion: typed, frozen, and no key goes unnoticed.

Every key of a config is a field of the family's `Config`, or fixed to values that this edgert
computes, or in an explicit list of keys that do not touch the logits. All faults are collected, so
that one error can name them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ... import limits
from ...errors import ConvertError
from ...storage.typed import Reader

# Keys that do not change what a causal language model computes.
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _from_model_config _name_or_path architectures
    attention_dropout attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label initializer_range
    keys_to_ignore_at_inference label2id length_penalty max_length max_seq_len max_sequence_length
    min_length model_max_length model_type gradient_checkpointing neftune_noise_alpha
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_flash_attention use_flash_attention_2 use_flash_attn use_return_dict
    """.split()
)
# Keys with one meaning that every family here has; anything else would change the logits.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
    "tie_last_hidden_states": (None, True),
}


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """What every family's config has. Sizes in elements, context in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads


T = TypeVar("T", bound=Decoder)


@dataclass(frozen=True)
class Schema:
    """What a family accepts. architecture: the class name in `architectures`."""

    architecture: str
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def read_config(raw: Mapping[str, Any], kind: type[T], schema: Schema, faults: list[str]) -> T:
    """The typed config; soft faults go into `faults`, unreadable fields raise ConvertError."""
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    fixed = {**FIXED, **schema.fixed}
    _check_architecture(raw.get("architectures"), schema, faults)
    for key, value in raw.items():
        if (
            key in fields
            or key in IGNORED
            or key in schema.ignored
            or _says_nothing(key, raw, fields)
        ):
            continue
        if key == "quantization_config":
            if value is None:
                continue
            faults.append("the checkpoint is quantized already, expected its float original")
        elif key not in fixed:
            faults.append(f"config key {key!r} (= {_short(value)}) is unknown")
        elif not any(type(value) is type(ok) and value == ok for ok in fixed[key]):
            allowed = " or ".join(_short(ok) for ok in fixed[key])
            faults.append(f"config {key!r} is {_short(value)}, expected {allowed}")
    values, broken = {}, []
    for name, spec in fields.items():
        if name not in raw:
            if spec.required:
                broken.append(f"config key {name!r} is missing")
            continue
        try:
            values[name] = Reader(spec.type).convert(raw[name])
        except msgspec.ValidationError as error:
            broken.append(f"config {name!r} is {_short(raw[name])}: {error}")
    if broken:
        raise refused([*broken, *faults])
    config = kind(**values)
    broken = list(_size_faults(config))
    if broken:
        raise refused([*broken, *faults])
    return config


def _says_nothing(key: str, raw: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Keys of sliding windows beside a family without them, with values that mean there are none;
    `layer_types` of one kind, where that is the kind of all layers anyway."""
    if key == "use_sliding_window":
        return raw[key] is False
    if key in ("sliding_window", "max_window_layers"):
        return raw[key] is None or raw.get("use_sliding_window") is False
    if key != "layer_types" or "use_sliding_window" in fields:
        return False
    window = fields.get("sliding_window")
    slides = window is not None and raw.get("sliding_window", window.default) is not None
    kinds = raw[key] if isinstance(raw[key], list) else []
    expected = "sliding_attention" if slides else "full_attention"
    return len(kinds) == raw.get("num_hidden_layers") and all(k == expected for k in kinds)


def _check_architecture(found: Any, schema: Schema, faults: list[str]) -> None:
    base = schema.architecture.replace("ForCausalLM", "Model")
    if found is not None and found not in ([schema.architecture], [base]):
        faults.append(
            f"config 'architectures' is {_short(found)}, expected [{schema.architecture!r}]"
        )


def _size_faults(config: Decoder) -> list[str]:
    """Sizes that no model has; checked before anything is allocated from them."""
    caps = {
        "vocab_size": limits.TENSOR_DIM - 1,
        "hidden_size": limits.TENSOR_DIM - 1,
        "intermediate_size": limits.TENSOR_DIM - 1,
        "num_hidden_layers": limits.LAYERS,
        "num_attention_heads": limits.HEADS,
        "max_position_embeddings": limits.CONTEXT_TOKENS,
    }
    sizes = {name: (getattr(config, name), cap) for name, cap in caps.items()}
    sizes["num_key_value_heads"] = (config.kv_heads, limits.HEADS)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None and sizes["num_attention_heads"][0] > 0:
        head_dim = config.hidden_size // config.num_attention_heads
    sizes["head_dim"] = (head_dim, limits.HEAD_DIM)
    out = [
        f"config {name!r} is {n}, expected 1 to {cap}"
        for name, (n, cap) in sizes.items()
        if n is None or not 1 <= n <= cap
    ]
    if not out and config.num_attention_heads % config.kv_heads:
        out.append(
            f"config 'num_attention_heads' is {config.num_attention_heads}, expected a multiple of "
            f"'num_key_value_heads' {config.kv_heads}"
        )
    if not out and getattr(config, "head_dim", None) is None:
        if config.hidden_size % config.num_attention_heads:
            out.append(
                f"config 'hidden_size' is {config.hidden_size}, expected a multiple of "
                f"'num_attention_heads' {config.num_attention_heads}"
            )
    if not 0 < config.rms_norm_eps < 1:
        out.append(f"config 'rms_norm_eps' is {config.rms_norm_eps}, expected 0 to 1")
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refused(faults: list[str]) -> ConvertError:
    """The one error that lists everything found wrong with a checkpoint."""
    shown = faults[: limits.LISTED_FAULTS]
    more = len(faults) - len(shown)
    lines = "".join(f"\n  - {fault}" for fault in shown)
    lines += f"\n  - and {more} more" if more else ""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return ConvertError(
        f"this checkpoint cannot be converted, {count} found:{lines}",
        code="checkpoint",
        hint="edgert converts only what it computes exactly; check that the checkpoint is complete "
        "and unmodified, or update edgert",
        faults=faults,
    )
