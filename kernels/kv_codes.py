"""Keys and values in codes of 8 and 4 bits: the formulas, and how a page of 64 tokens holds them.

Keys have outlying channels, values have not (KIVI, arXiv 2402.02750). So keys share a scale and a
minimum by channel, over 32 consecutive tokens, and values by token, over 32 channels:

    scale = (max - min) / (2^b - 1)     code = round((x - min) / scale), 0 where the scale is 0

both in float16, of values that are float16 themselves. Keys have 8 bits, values 8 or 4. A page of
G heads of size D, DP = D rounded up to 16, NG = D / 32 rounded up:

    K page   codes uint8 [G][4][D][16], the token is the lane; then float16 [G][2][2][DP]:
             of each 32 tokens scales, then minima
    V page   codes [G][64][DP] of 8 bits, or [G][64][NG][16] of 4, whose low halves are a group's
             first 16 channels; then float16 [G][NG][2][64]: of each 32 channels scales, then minima

A page is coded once its 64 tokens are there. A token sees the page that it stands in as float16, so
what it sees depends on its place alone; those before it as codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import CODE_CHANNELS, CODE_TOKENS, PAGE
from .quant import F32

LANES = 16
CODED = {8: 8, 4: 4}  # bits of a cache whose pages are coded -> bits of its values' codes
U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]


class Codes(NamedTuple):
    """Codes uint8 as the values they stand for, scales and minima float16 as `PARAMETERS` says."""

    codes: U8
    scales: F16
    minima: F16


def page_sizes(heads: int, size: int, bits: int) -> tuple[int, int]:
    """Bytes of a K and of a V page of codes."""
    padded, groups = -(-size // LANES) * LANES, -(-size // CODE_CHANNELS)
    row = padded if CODED[bits] == 8 else groups * CODE_CHANNELS // 2
    parameters = 4 * (PAGE // CODE_TOKENS) * padded, 4 * groups * PAGE
    return heads * (PAGE * size + parameters[0]), heads * (PAGE * row + parameters[1])


def _coded(x: F32, axis: int, bits: int) -> Codes:
    """Values float32 that are float16 values, coded along an axis, all of which share a scale."""
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    levels = np.float32((1 << bits) - 1)
    scale = ((high - low) * (np.float32(1.0) / levels)).astype(np.float16)
    wide = scale.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(wide > 0, np.float32(1.0) / wide, np.float32(0.0))
    codes = np.clip(np.rint((x - low) * inverse), 0, levels).astype(np.uint8)
    return Codes(codes, scale.squeeze(axis), low.squeeze(axis).astype(np.float16))


def code_keys(k: F32) -> Codes:
    """Keys [64, G, D] -> codes [64, G, D], scales and minima [2, G, D] of each 32 tokens."""
    halves = k.reshape(PAGE // CODE_TOKENS, CODE_TOKENS, *k.shape[1:])
    made = _coded(halves, 1, 8)
    return made._replace(codes=made.codes.reshape(k.shape))


def code_values(v: F32, bits: int) -> Codes:
    """Values [64, G, D] -> codes [64, G, D], scales and minima [64, G, NG] of each 32 channels."""
    parts = [_coded(v[..., at : at + CODE_CHANNELS], -1, bits)
             for at in range(0, v.shape[-1], CODE_CHANNELS)]  # fmt: skip
    return Codes(
        np.concatenate([part.codes for part in parts], -1),
        np.stack([part.scales for part in parts], -1),
        np.stack([part.minima for part in parts], -1),
    )


def keys_of(made: Codes) -> F32:
    """Keys float32 [64, G, D] that codes stand for."""
    scales, minima = (np.repeat(p.astype(np.float32), CODE_TOKENS, axis=0) for p in made[1:])
    out: F32 = made.codes * scales + minima
    return out


def values_of(made: Codes) -> F32:
    """Values float32 [64, G, D] that codes stand for."""
    size = made.codes.shape[-1]
    scales, minima = (
        np.repeat(p.astype(np.float32), CODE_CHANNELS, axis=-1)[..., :size] for p in made[1:]
    )
    out: F32 = made.codes * scales + minima
    return out


def key_page(k: F32) -> U8:
    """Keys [64, G, D] as the bytes of a K page."""
    _, heads, size = k.shape
    padded, made = -(-size // LANES) * LANES, code_keys(k)
    codes = made.codes.reshape(PAGE // LANES, LANES, heads, size).transpose(2, 0, 3, 1)
    parameters = np.zeros((heads, PAGE // CODE_TOKENS, 2, padded), np.float16)
    parameters[:, :, 0, :size] = made.scales.transpose(1, 0, 2)
    parameters[:, :, 1, :size] = made.minima.transpose(1, 0, 2)
    return np.concatenate([codes.ravel(), parameters.ravel().view(np.uint8)])


def value_page(v: F32, bits: int) -> U8:
    """Values [64, G, D] as the bytes of a V page of codes of `bits` bits."""
    _, heads, size = v.shape
    groups, made = -(-size // CODE_CHANNELS), code_values(v, bits)
    wide = -(-size // LANES) * LANES if bits == 8 else groups * CODE_CHANNELS
    codes = np.zeros((heads, PAGE, wide), np.uint8)
    codes[..., :size] = made.codes.transpose(1, 0, 2)
    if bits == 4:
        pairs = codes.reshape(heads, PAGE, groups, 2, LANES)
        codes = pairs[..., 0, :] | pairs[..., 1, :] << 4
    parameters = np.stack([made.scales, made.minima]).transpose(2, 3, 0, 1)  # [G, NG, 2, 64]
    return np.concatenate([codes.ravel(), np.ascontiguousarray(parameters).ravel().view(np.uint8)])
