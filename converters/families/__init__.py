"""Model families: one file each, named by the `model_type` of config.json.

A family turns a config into a graph and a map from checkpoint tensors to graph weights. Nothing
downstream of it knows which family a model came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from ...errors import ConvertError
from . import linear, two_mamba
from .config import refused
from .keys import says_nothing
from .recipe import FamilyModel, Part, Recipe

__all__ = ["COMPOSITES", "FAMILIES", "FamilyModel", "Part", "Recipe", "build", "plan", "refused"]

FAMILIES: Mapping[str, str] = {
    "2mamba": "two_mamba",
    "falcon_h1": "falcon_h1",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "granitemoehybrid": "granitemoehybrid",
    "lfm2": "lfm2",
    "llama": "llama",
    "mamba2": "mamba2",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5_text": "qwen3_5_text",
    "qwen3_next": "qwen3_next",
    "smollm3": "smollm3",
}
# Models of several parts whose text part is a family: its name, and values of absent keys.
COMPOSITES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
        },
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {
            "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288,
            "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
            "max_position_embeddings": 32_768, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
COMPOSITE_CLASSES = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}
# Keys beside the parts of such a model that its text does not depend on.
BESIDE = frozenset(
    """
    text_config vision_config mm_tokens_per_image tie_word_embeddings
    image_token_index boi_token_index eoi_token_index image_token_id boi_token_id eoi_token_id
    """.split()
)


def build(config: Mapping[str, Any]) -> FamilyModel:
    """Graph and recipes of a checkpoint's config.json. Raises one ConvertError with all faults."""
    faults: list[str] = []
    model = plan(config, faults)
    if faults:
        raise refused(faults)
    return model


def plan(config: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Like `build`, but faults that leave a graph to compare tensors with go into `faults`."""
    config = text_config(config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        _refuse_composite(kind, config.get("text_config"))
        near = difflib.get_close_matches(str(kind)[:64], FAMILIES, 3, 0.5) or sorted(FAMILIES)
        raise ConvertError(
            f"config.json says model_type {str(kind)[:64]!r}, edgert converts {sorted(FAMILIES)}; "
            f"nearest: {', '.join(near)}",
            code="model-type",
            hint="edgert does not guess: a checkpoint of another architecture needs its own family "
            "in converters/families",
            model_type=kind,
        )
    module = import_module(f".{FAMILIES[kind]}", __name__)
    if linear.KEY not in config or module is two_mamba:
        model: FamilyModel = module.build(config, faults)
        return model
    rest, layers, spec = linear.split(config, faults)
    return linear.hybrid(module.build(rest, faults), layers, spec, faults)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text part, of the models in COMPOSITES; others as they are."""
    kind, inner = config.get("model_type"), config.get("text_config")
    if not isinstance(kind, str) or kind not in COMPOSITES or not isinstance(inner, dict):
        return config
    family, defaults = COMPOSITES[kind]
    unknown = sorted(k for k in config if k not in BESIDE and not says_nothing(k, config))
    if unknown or inner.get("model_type", family) != family:
        _refuse_composite(kind, {"model_type": family}, unknown)
    own = inner.get("tie_word_embeddings", defaults.get("tie_word_embeddings", True))
    tied = config.get("tie_word_embeddings", own)
    known = {key: value for key, value in inner.items() if key != "architectures"}
    return {**defaults, **known, "model_type": family, "tie_word_embeddings": tied}


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config names the architecture that its model_type has in transformers, which then
    loads it by its own classes whatever code comes with it."""
    kind, found = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str):
        return False
    if kind not in FAMILIES:
        return kind in COMPOSITE_CLASSES and found == [COMPOSITE_CLASSES[kind]]
    own: str = import_module(f".{FAMILIES[kind]}", __name__).SCHEMA.architecture
    return found in ([own], [own.replace("ForCausalLM", "Model")])


def _refuse_composite(kind: Any, inner: Any, unknown: Sequence[str] = ()) -> None:
    """A clearer refusal where a part of the checkpoint is of a known family. unknown: keys beside
    the parts."""
    part = inner.get("model_type") if isinstance(inner, dict) else None
    if isinstance(part, str) and part in FAMILIES:
        raise ConvertError(
            f"config.json says model_type {str(kind)[:64]!r}: a model of several parts, of which "
            f"edgert knows the text part, {part!r}; expected that part alone"
            + (f", or no keys {list(unknown)[:8]} beside it" if unknown else ""),
            code="model-type",
            hint=f"take a text-only checkpoint of the family; of composite models edgert converts "
            f"the text of {sorted(COMPOSITES)}",
            model_type=kind,
        )
