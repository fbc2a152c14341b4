"""Matrices of recurrent states at rest, as bfloat16: half of their bytes.

Only what is kept to go on from later is rounded, once; what a sequence computes with stays float32.
Normalisers stay, too: the rows' weights are divided by what they add up to. Rounding to the nearest
changes an element by at most 2^-8 of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recurrent import F32, Parts

ROUNDED = "matrix"  # the part of a state that is


def to_bfloat16(x: F32) -> NDArray[np.uint16]:
    """The upper 16 bits of float32, rounded to nearest, ties to even. Finite values only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half: NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return half


def from_bfloat16(half: NDArray[np.uint16]) -> F32:
    """The same values as float32."""
    wide: F32 = (half.astype(np.uint32) << 16).view(np.float32)
    return wide


def halved(content: Mapping[str, Parts]) -> dict[str, Parts]:
    """A slot's content with its matrices as bfloat16."""
    return {
        name: {key: to_bfloat16(value) if key == ROUNDED else value for key, value in parts.items()}
        for name, parts in content.items()
    }


def widened(content: Mapping[str, Parts]) -> dict[str, Parts]:
    """A slot's content with all matrices as float32."""
    return {
        name: {
            key: from_bfloat16(value) if getattr(value, "dtype", None) == np.uint16 else value
            for key, value in parts.items()
        }
        for name, parts in content.items()
    }


def filed(content: Mapping[str, Parts]) -> dict[str, Parts]:
    """A slot's content as files hold it: bfloat16 as int16, for these have a name for that."""
    return {name: {k: _seen_as(v, np.uint16, np.int16) for k, v in parts.items()}
            for name, parts in content.items()}  # fmt: skip


def unfiled(content: Any) -> Any:
    """What `filed` gave with all matrices as float32; anything else as it is."""
    if not isinstance(content, Mapping):
        return content
    found = {
        name: {k: _seen_as(v, np.int16, np.uint16) if k == ROUNDED else v for k, v in parts.items()}
        for name, parts in content.items() if isinstance(parts, Mapping)
    }  # fmt: skip
    return {**content, **widened(found)}


def _seen_as(value: Any, old: type[np.generic], new: type[np.generic]) -> Any:
    return value.view(new) if getattr(value, "dtype", None) == old else value
