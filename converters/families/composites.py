"""Models of several parts, of which the text is a family: what their config says of it.

text_config   the text's own config, with defaults for keys that it leaves out
flat          the first configs of some have the text's keys beside those of the vision part
mrope         positions on three axes are those of pictures; of text alone they are equal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .keys import says_nothing


@dataclass(frozen=True)
class Composite:
    """architecture: the class of the whole. texts: family by model_type of its text part, the
    first where that is not said. defaults: values of absent keys of the text. beside: further keys
    that its text does not depend on. flat: whether the text's keys may be the model's."""

    architecture: str
    texts: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    flat: bool = False


COMPOSITES: Mapping[str, Composite] = {
    "gemma3": Composite(
        "Gemma3ForConditionalGeneration",
        {"gemma3_text": "gemma3_text"},
        {
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
        },
    ),
    "gemma3n": Composite(
        "Gemma3nForConditionalGeneration",
        {"gemma3n_text": "gemma3n_text"},
        {
            "vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384,
            "num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
        },
        frozenset(
            "audio_config audio_soft_tokens_per_image audio_token_id boa_token_id eoa_token_id "
            "eoa_token_index vision_soft_tokens_per_image".split()
        ),
    ),
    "gemma4": Composite(
        "Gemma4ForConditionalGeneration",
        {"gemma4_text": "gemma4_text"},
        {
            "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
        },
        frozenset(
            "audio_config audio_token_id boa_token_id eoa_token_id eoa_token_index "
            "vision_soft_tokens_per_image".split()
        ),
    ),
    "mistral3": Composite(
        "Mistral3ForConditionalGeneration",
        {"mistral": "mistral", "ministral3": "ministral3", "ministral": "ministral"},
        beside=frozenset(
            "spatial_merge_size vision_feature_layer projector_hidden_act "
            "multimodal_projector_bias".split()
        ),
    ),
    "qwen2_5_vl": Composite(
        "Qwen2_5_VLForConditionalGeneration",
        {"qwen2_5_vl_text": "qwen2"},
        {
            "max_position_embeddings": 32_768, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        flat=True,
    ),
    "qwen3_5": Composite(
        "Qwen3_5ForConditionalGeneration",
        {"qwen3_5_text": "qwen3_5_text"},
        {
            "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288,
            "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
            "max_position_embeddings": 32_768, "tie_word_embeddings": False,
        },
    ),
    "qwen3_5_moe": Composite(
        "Qwen3_5MoeForConditionalGeneration",
        {"qwen3_5_moe_text": "qwen3_5_moe_text"},
        {
            "vocab_size": 248_320, "hidden_size": 2048, "num_hidden_layers": 40,
            "num_attention_heads": 16, "num_key_value_heads": 2,
            "max_position_embeddings": 32_768, "tie_word_embeddings": False,
        },
    ),
    "qwen3_vl": Composite(
        "Qwen3VLForConditionalGeneration",
        {"qwen3_vl_text": "qwen3"},
        {
            "max_position_embeddings": 128_000, "num_key_value_heads": 32, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
    ),
    "smolvlm": Composite(
        "SmolVLMForConditionalGeneration",
        {"llama": "llama"},
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
        frozenset({"_pad_token_id", "perceiver_config", "pixel_shuffle_factor", "scale_factor"}),
    ),
}  # fmt: skip
# Keys beside the parts of such a model that its text does not depend on.
BESIDE = frozenset(
    """
    text_config vision_config mm_tokens_per_image tie_word_embeddings
    image_token_index boi_token_index eoi_token_index image_token_id boi_token_id eoi_token_id
    """.split()
)
AXES = ("qwen2_5_vl", "qwen3_vl")  # whose rope keys speak of axes that their families do not know


def text_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]] | None:
    """Family of the text part, its config, and unknown keys beside it; None for other models."""
    kind, inner = config.get("model_type"), config.get("text_config")
    if not isinstance(kind, str) or kind not in COMPOSITES:
        return None
    whole = COMPOSITES[kind]
    beside = BESIDE | whole.beside
    if not isinstance(inner, dict):
        if not whole.flat or inner is not None:
            return None
        inner = {key: config[key] for key in config if key not in (*beside, "model_type")}
        config = {key: config[key] for key in config if key not in inner}
    unknown = sorted(k for k in config if k not in beside and not says_nothing(k, config))
    first = next(iter(whole.texts))
    found = inner.get("model_type", first)
    family = whole.texts.get(found, "") if isinstance(found, str) else ""
    own = inner.get("tie_word_embeddings", whole.defaults.get("tie_word_embeddings", True))
    text = {k: v for k, v in inner.items() if k not in whole.beside and k != "architectures"}
    if kind in AXES:
        text |= {
            key: _turned(text[key]) for key in ("rope_scaling", "rope_parameters") if key in text
        }
    tied = config.get("tie_word_embeddings", own)
    known = {"model_type": family, "tie_word_embeddings": tied}
    return family, {**whole.defaults, **text, **known}, unknown


def _turned(rope: Any) -> Any:
    """Rope parameters of text alone, where all axes are one."""
    if not isinstance(rope, dict):
        return rope
    kept = {k: v for k, v in rope.items() if k not in ("mrope_section", "mrope_interleaved")}
    return {k: "default" if v == "mrope" and "type" in k else v for k, v in kept.items()} or None
