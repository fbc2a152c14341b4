"""The layer of a checkpoint that predicts one token more, as a draft part beside the model.

The text does not depend on it, and transformers does not read it. One that is not whole, is stored
in codes, or is another than its family is known to have, is left out, with a notice that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...notices import notice
from .. import families
from ..families import FamilyModel, mtp
from ..match import match_tensors
from .base import PlannedPart, SourceTensor
from .stacked import unstacked

PREFIX = f"{mtp.PREFIX}."
WHO = ("qwen3_next", "qwen3_5")  # how the model types begin that may have such layers
Tensors = dict[str, SourceTensor]


def drafting(config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]) -> Tensors:
    """The tensors of such layers; none of other models, where these names mean nothing known."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind.startswith(WHO):
        return {}
    return {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def special_ids(tokenizer: Mapping[str, Any], *configs: Mapping[str, Any]) -> list[int]:
    """Ids of added tokens of a tokenizer.json, and of those that end an answer."""
    added = tokenizer.get("added_tokens")
    found = [t.get("id") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    for config in configs:
        ends = config.get("eos_token_id")
        found += ends if isinstance(ends, list) else [ends]
    return [token for token in found if type(token) is int]


def planned(
    config: Mapping[str, Any],
    model: FamilyModel,
    own: Mapping[str, SourceTensor],
    tensors: Mapping[str, SourceTensor],
    special: Iterable[int],
) -> tuple[PlannedPart, Tensors] | None:
    """The part of the layer with the tensors `own`, beside a planned model with `tensors`, and its
    tensors by the names that it has for them; None where it has none that is usable."""
    if not own:
        return None
    found = families.draft_of(config, model, list(special))
    if found is None:
        _left_out(own, "its layers were turned into others")
        return None
    layer, ids = found
    apart = unstacked(layer, own)
    graph, recipes = layer.graph, layer.tensors
    taps = (mtp.tap(model),)
    part = PlannedPart("draft", "draft", graph, recipes, taps=taps, ids=tuple(ids))
    names = {each for r in recipes.values() for p in r.parts for each in (p.name, p.alias)}
    shared = {name: tensors[name] for name in names if name in tensors}
    if faults := match_tensors([part], {**shared, **apart}):
        _left_out(own, faults[0])
        return None
    return part, apart


def _left_out(own: Mapping[str, SourceTensor], why: str) -> None:
    notice(f"{len(own)} tensors of layers that predict further tokens are left out: {why}")
