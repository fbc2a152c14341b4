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
from ...roles import vocab_size
from . import linear, mtp, sharing, two_mamba
from .composites import COMPOSITES, text_of
from .config import Schema, refused
from .recipe import FamilyModel, Part, Recipe

__all__ = [
    "COMPOSITES", "FAMILIES", "FamilyModel", "Part", "Recipe", "build", "draft_of", "plan",
    "refused",
]  # fmt: skip

FAMILIES: Mapping[str, str] = {
    "2mamba": "two_mamba",
    "apertus": "apertus",
    "arcee": "arcee",
    "cohere2": "cohere2",
    "deepseek_v2": "deepseek_v2",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon_h1": "falcon_h1",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "gemma3n_text": "gemma3n_text",
    "gemma4_text": "gemma4_text",
    "glm4": "glm4",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitemoehybrid",
    "helium": "helium",
    "hunyuan_v1_dense": "hunyuan_v1_dense",
    "internlm3": "internlm3",
    "lfm2": "lfm2",
    "llama": "llama",
    "mamba2": "mamba2",
    "minicpm3": "minicpm3",
    "ministral": "ministral",
    "ministral3": "ministral3",
    "mistral": "mistral",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "phi": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5_moe_text": "qwen3_5_moe_text",
    "qwen3_5_text": "qwen3_5_text",
    "qwen3_moe": "qwen3_moe",
    "qwen3_next": "qwen3_next",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}


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
    kv_map: list[int] = []
    if sharing.KEY in config:
        config, kv_map = sharing.split(config, faults)
    module = import_module(f".{FAMILIES[kind]}", __name__)
    if linear.KEY not in config or module is two_mamba:
        model: FamilyModel = module.build(config, faults)
    else:
        rest, layers, spec = linear.split(config, faults)
        model = linear.hybrid(module.build(rest, faults), layers, spec, faults)
    return sharing.shared(model, kv_map, faults)


def draft_of(
    config: Mapping[str, Any], model: FamilyModel, special: Sequence[int]
) -> tuple[FamilyModel, list[int]] | None:
    """The layer that predicts one token more than a planned model, and the ids that its logits are
    of, `special` ones among them; None of families that have none, and of models whose layers were
    turned."""
    config = text_config(config)
    module = import_module(f".{FAMILIES[str(config['model_type'])]}", __name__)
    made = getattr(module, "draft", None)
    if made is None or linear.KEY in config or sharing.KEY in config:
        return None
    ids = mtp.guessed(vocab_size(model.graph), special)
    found: FamilyModel = made(config, model, ids)
    return found, ids


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text part, of the models in COMPOSITES; others as they are."""
    found = text_of(config)
    if found is None:
        return config
    family, text, unknown = found
    if unknown or not family:
        inner = config.get("text_config")
        said = inner.get("model_type") if isinstance(inner, dict) else None
        _refuse_composite(config["model_type"], {"model_type": family or said}, unknown)
        return config
    return text


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config names the architecture that its model_type has in transformers, which then
    loads it by its own classes whatever code comes with it."""
    kind, found = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str):
        return False
    if kind not in FAMILIES:
        return kind in COMPOSITES and found == [COMPOSITES[kind].architecture]
    schema: Schema = import_module(f".{FAMILIES[kind]}", __name__).SCHEMA
    return found in schema.classes


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
