"""Comparing a checkpoint with what its family expects: nothing missing, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from .families import FamilyModel
from .quantize.rtn import CHUNK
from .sources.checkpoint import FLOATS, Tensor

# Buffers that old checkpoints store and every implementation computes.
COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias)$")


def match_tensors(model: FamilyModel, tensors: Mapping[str, Tensor]) -> list[str]:
    """Faults: missing and unexpected tensors, wrong shapes and types, tied tensors that differ."""
    faults, used = [], set()
    for recipe in model.tensors.values():
        for part in recipe.parts:
            name = part.name if part.name in tensors else part.alias
            if name not in tensors:
                also = f" (or {part.alias!r})" if part.alias else ""
                faults.append(f"tensor {part.name!r}{also} {list(part.shape)} is missing")
                continue
            used.add(name)
            info = tensors[name].info
            if info.shape != part.shape:
                faults.append(f"tensor {name!r} is {list(info.shape)}, expected {list(part.shape)}")
            if info.dtype not in FLOATS:
                faults.append(f"tensor {name!r} is {info.dtype}, expected one of {list(FLOATS)}")
    for tied, name in model.tied.items():
        if {tied, name} <= set(tensors):
            used.add(tied)
            if not same_values(tensors[name], tensors[tied]):
                faults.append(
                    f"tensor {tied!r} differs from {name!r}, expected equal values: the config "
                    "says tie_word_embeddings (where both are meant, set that to false)"
                )
    for name in sorted(set(tensors) - used):
        if not COMPUTED.search(name):
            faults.append(f"tensor {name!r} {list(tensors[name].info.shape)} is unexpected")
    return faults


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, looked at in pieces."""
    if a.info.shape != b.info.shape or {a.info.dtype, b.info.dtype} - set(FLOATS):
        return False
    step = max(1, CHUNK // max(1, int(np.prod(a.info.shape[1:], dtype=np.int64))))
    return all(
        np.array_equal(a.rows(start, stop), b.rows(start, stop))
        for start in range(0, a.info.shape[0], step)
        for stop in [min(start + step, a.info.shape[0])]
    )
