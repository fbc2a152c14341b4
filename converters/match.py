"""Comparing a checkpoint with what its family expects: nothing missing, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .families import Recipe
from .sources.base import PlannedPart, SourceTensor
from .sources.checkpoint import FLOATS
from .weights import spans_of

# Buffers that old checkpoints store and every implementation computes.
COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias"
    r"|layers\.\d+\.attention\.bias|h\.\d+\.attn\.bias)$"  # GPT-NeoX's and GPT-2's masks
)


def match_tensors(parts: Sequence[PlannedPart], tensors: Mapping[str, SourceTensor]) -> list[str]:
    """Faults: missing and unexpected tensors, wrong shapes and types, tied ones that differ."""
    faults: list[str] = []
    used: set[str] = set()
    for part in parts:
        for recipe in part.weights.values():
            _match_recipe(recipe, tensors, used, faults)
        for copy, name in part.tied.items():
            if {copy, name} <= set(tensors):
                used.add(copy)
                if not same_values(tensors[name], tensors[copy]):
                    faults.append(
                        f"tensor {copy!r} differs from {name!r}, expected equal values: the config "
                        "says tie_word_embeddings (where both are meant, set that to false)"
                    )
    for name in sorted(set(tensors) - used):
        if not COMPUTED.search(name):
            faults.append(f"tensor {name!r} {list(tensors[name].shape)} is unexpected")
    return faults


def _match_recipe(
    recipe: Recipe, tensors: Mapping[str, SourceTensor], used: set[str], faults: list[str]
) -> None:
    """The tensors of one weight: there, of the right shape, of a float type."""
    for part in recipe.parts:
        name = part.name if part.name in tensors else part.alias
        if name not in tensors:
            also = f" (or {part.alias!r})" if part.alias else ""
            faults.append(f"tensor {part.name!r}{also} {list(part.shape)} is missing")
            continue
        used.add(name)
        tensor = tensors[name]
        if tensor.shape != part.shape:
            faults.append(f"tensor {name!r} is {list(tensor.shape)}, expected {list(part.shape)}")
        if tensor.dtype not in FLOATS:
            faults.append(f"tensor {name!r} is {tensor.dtype}, expected one of {list(FLOATS)}")


def same_values(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors are equal, looked at in pieces."""
    if a.shape != b.shape or {a.dtype, b.dtype} - set(FLOATS):
        return False
    return all(
        np.array_equal(a.rows(start, stop), b.rows(start, stop))
        for start, stop in spans_of(a.shape)
    )
