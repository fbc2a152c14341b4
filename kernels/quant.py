"""Quantization, in NumPy: formulas of the stored formats that `encodings.py` lists.

int4-g32 and int8-g32 are symmetric, one float16 scale for 32 consecutive inputs of one output row,
stored as onnxruntime's MatMulNBits stores them:

    int4-g32   q uint8 [N, KB, 16]   low nibble = even input, value = (nibble - 8) * scale
    int8-g32   q uint8 [N, KB, 32]   value = (byte - 128) * scale
    both       scales float16 [N, KB], KB = ceil(K / 32), inputs past K are zero

The scale follows the element of largest magnitude, sign included, so that it lands on the code with
the widest reach (-8; the same choice as GGUF's Q4_0). int8 uses max|w| / 127 (as Q8_0).

int8-channel has one float32 scale a row (output channel), as checkpoints of 8-bit weights and
activations have it:

    int8-channel   q uint8 [N, KB, 32], scales float32 [N, 1], value = (byte - 128) * scale

Stored tensors go by their part of the name: {"q": ..., "scales": ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import GROUP, INT4_OFFSET, INT8_OFFSET, blocks_of

F32 = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]
Blocks = tuple[NDArray[np.int8], F32]  # codes [N, KB, 32] and their scales [N, KB]
HALF_MAX = 65504.0


@dataclass(frozen=True)
class Quantized:
    """A weight whose encoding is more than a plain array: the encoding's name, the logical shape
    and the stored tensors by their part of the name ("q", "scales", ...)."""

    encoding: str
    shape: tuple[int, ...]
    tensors: Tensors

    @property
    def q(self) -> NDArray[np.uint8]:
        return self.tensors["q"]

    @property
    def scales(self) -> NDArray[np.float16]:
        return self.tensors["scales"]


Matrix = NDArray[np.float32] | NDArray[np.float16] | Quantized


def grouped(w: F32) -> F32:
    """[N, K] as float32 [N, KB, 32], zero-padded."""
    n, k = w.shape
    padded = k if k % GROUP == 0 else blocks_of(k) * GROUP
    if padded != k:
        w = np.pad(w, ((0, 0), (0, padded - k)))
    return np.ascontiguousarray(w, dtype=np.float32).reshape(n, padded // GROUP, GROUP)


def _scaled(groups: F32, scale: F32) -> tuple[F32, NDArray[np.float16]]:
    """Groups over their float16-rounded scales; a scale that rounds to zero gives zeros."""
    if scale.size and not np.abs(scale).max() <= HALF_MAX:
        raise ValueError(f"scale {np.abs(scale).max():g} does not fit float16 (max {HALF_MAX:g})")
    half = scale.astype(np.float16)
    values = half.astype(np.float32)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
    return groups * inverse[..., None], half


def _extremes(groups: F32) -> F32:
    """The element of largest magnitude of each group, the first of equals, sign included."""
    peak = np.abs(groups).argmax(axis=-1)
    return np.take_along_axis(groups, peak[..., None], axis=-1)[..., 0]


def quantize_int4(w: F32) -> Tensors:
    """Round-to-nearest int4-g32 of a float32 [N, K] matrix. Raises ValueError on scale overflow."""
    groups = grouped(w)
    levels, scales = _scaled(groups, _extremes(groups) / -8.0)
    np.rint(levels, out=levels)
    levels += 8.0
    np.clip(levels, 0, 15, out=levels)
    pairs = levels.astype(np.uint8).view("<u2")  # even input in the low byte
    pairs |= pairs >> 4
    return {"q": pairs.astype(np.uint8), "scales": scales}


def quantize_int8(w: F32) -> Tensors:
    """Round-to-nearest int8-g32 of a float32 [N, K] matrix. Raises ValueError on scale overflow."""
    groups = grouped(w)
    levels, scales = _scaled(groups, np.abs(groups).max(axis=-1) / 127.0)
    np.rint(levels, out=levels)
    np.clip(levels, -127, 127, out=levels)
    levels += 128.0
    return {"q": levels.astype(np.uint8), "scales": scales}


def quantize_channels(w: F32) -> Tensors:
    """Round-to-nearest int8-channel of a float32 [N, K] matrix, codes -127 to 127. Raises
    ValueError for values that are not finite."""
    scales = np.abs(w).max(axis=1, keepdims=True, initial=0.0).astype(np.float32) / np.float32(127)
    if not np.isfinite(scales).all():
        raise ValueError("a scale would be infinite or no number")
    levels = np.rint(grouped(w) * _inverse(scales)[:, :, None])
    return {"q": (levels + 128.0).astype(np.uint8), "scales": scales}


def _inverse(scales: F32) -> F32:
    """1 / scale, and 0 where a scale is 0 or too small to have an inverse."""
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def quantize_f16(w: F32) -> Tensors:
    """A float32 array rounded to float16. Raises ValueError for values that it cannot hold."""
    with np.errstate(over="ignore"):
        half = w.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"value {np.abs(w).max():g} does not fit float16 (max {HALF_MAX:g})")
    return {"": half}


def blocks_int4(tensors: Tensors) -> Blocks:
    """Signed codes and scales of int4-g32."""
    q = tensors["q"]
    codes = np.empty((*q.shape[:2], GROUP), np.int8)
    codes[..., 0::2] = (q & 15).astype(np.int8) - INT4_OFFSET
    codes[..., 1::2] = (q >> 4).astype(np.int8) - INT4_OFFSET
    return codes, tensors["scales"].astype(np.float32)


def blocks_int8(tensors: Tensors) -> Blocks:
    """Signed codes and scales of int8-g32."""
    codes = (tensors["q"].astype(np.int16) - INT8_OFFSET).astype(np.int8)
    return codes, tensors["scales"].astype(np.float32)


def blocks_channels(tensors: Tensors) -> Blocks:
    """Signed codes [N, 1, KB * 32] and scales [N, 1] of int8-channel."""
    codes = (tensors["q"].astype(np.int16) - INT8_OFFSET).astype(np.int8)
    return codes.reshape(len(codes), 1, -1), tensors["scales"]


def channel_fault(shape: tuple[int, ...]) -> str:
    """Why a weight of this shape cannot have one scale a row, or "": sums of products of codes are
    exact in 32 bits."""
    most = (2**31 - 1) // (128 * 128) // GROUP * GROUP
    return f"has rows of {shape[1]}, expected at most {most}" if shape[1] > most else ""


def channel_damage(tensors: Tensors, shape: tuple[int, ...]) -> str:
    """What is wrong with stored values of int8-channel, or ""."""
    if not np.isfinite(tensors["scales"]).all():
        return "has scales that are not finite"
    if (tensors["q"].reshape(shape[0], -1)[:, shape[1] :] != INT8_OFFSET).any():
        return "has codes past its inputs that are not zero"
    return ""


def values_of(blocks: Blocks, shape: tuple[int, ...]) -> F32:
    """Codes times scales as float32 [N, K]."""
    codes, scales = blocks
    n, k = shape
    values = codes.astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(values.reshape(n, -1)[:, :k])


def quantize_rows(x: F32, *, whole: bool = False) -> Blocks:
    """Activations of a quantized product: int8 codes [T, KB, 32] and scales float32 [T, KB].

    scale = max|x| / 127 of each block of 32, code = round-half-even(x / scale). whole: rows are one
    block each, [T, 1, KB * 32] and [T, 1].
    """
    groups = grouped(x)
    if whole:
        groups = groups.reshape(len(x), 1, -1)
    scale = (np.abs(groups).max(axis=-1) * np.float32(1 / 127)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return np.rint(groups * inverse[..., None]).astype(np.int8), scale
