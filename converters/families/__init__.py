"""Model families: one file each, named by the `model_type` of config.json.

A family turns a config into a graph and a map from checkpoint tensors to graph weights. Nothing
downstream of it knows which family a model came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ...errors import ConvertError
from .config import refused
from .recipe import FamilyModel, Part, Recipe

__all__ = ["FAMILIES", "FamilyModel", "Part", "Recipe", "build", "plan"]

FAMILIES: Mapping[str, str] = {
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "llama": "llama",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
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
    model: FamilyModel = module.build(config, faults)
    return model


def _refuse_composite(kind: Any, inner: Any) -> None:
    """A clearer refusal where a part of the checkpoint is of a known family."""
    part = inner.get("model_type") if isinstance(inner, dict) else None
    if isinstance(part, str) and part in FAMILIES:
        raise ConvertError(
            f"config.json says model_type {str(kind)[:64]!r}: a model of several parts, of which "
            f"edgert knows the text part, {part!r}; expected that part alone",
            code="model-type",
            hint="take a text-only checkpoint of the family, or save this one's language model by "
            "itself with transformers",
            model_type=kind,
        )
