"""Stored formats of b bits in groups: one rule for bits 2 to 8 and groups of 32, 64 and 128 inputs.

    grid = Grid(bits=3, group=64, symmetric=False)      # the encoding uint3-g64
    tensors = grid.quantize(w)                          # float32 [N, K] -> {"q", "scales", "zeros"}
    grid.dequantize(tensors, (N, K))                    # float32 [N, K]

A weight is (code - zero) * scale, KB = ceil(K / group) groups a row:

    q       uint8 [N, KB, group * b / 8]     the codes of a group as one stream of bits
    scales  float16 [N, KB]
    zeros   uint8 [N, ceil(KB * b / 8)]      the zero codes of a row as one stream of bits,
                                             asymmetric only; symmetric: zero = 2^(b - 1)

In a stream code i takes the bits i * b to i * b + b - 1, counted from the lowest bit of the first
byte: the order of onnxruntime's MatMulNBits, which reads 2, 4 and 8 bits as they are stored.
int4-g32 and int8-g32 of `quant.py` follow the same rule. Eight codes are b bytes, so a group is a
whole number of bytes, and what unpacks one unpacks all.

Codes past K have the value zero, bits past the last zero code are 0. A group whose scale is zero,
or too small for float16, is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quant import F32, HALF_MAX, Blocks, Tensors

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
BLOCK = 32  # inputs that share a scale of activations


def pack_codes(codes: U8, bits: int) -> U8:
    """Codes [.., n] below 2^bits as a stream of bits [.., ceil(n * bits / 8)], low bits first."""
    lead, n = codes.shape[:-1], codes.shape[-1]
    if n % 8:
        codes = np.pad(codes, [(0, 0)] * len(lead) + [(0, -n % 8)])
    eights = codes.reshape(*lead, -1, 8)
    words = np.zeros(eights.shape[:-1], "<u8")
    for i in range(8):
        words |= eights[..., i].astype(np.uint64) << np.uint64(bits * i)
    stream = words.view(np.uint8).reshape(*words.shape, 8)[..., :bits].reshape(*lead, -1)
    return np.ascontiguousarray(stream[..., : -(-n * bits // 8)])


def unpack_codes(stream: U8, bits: int, n: int) -> U8:
    """The n codes [.., n] of a stream of bits."""
    lead, eights = stream.shape[:-1], -(-n // 8)
    short = eights * bits - stream.shape[-1]
    if short:
        stream = np.pad(stream, [(0, 0)] * len(lead) + [(0, short)])
    padded = np.zeros((*lead, eights, 8), np.uint8)
    padded[..., :bits] = stream.reshape(*lead, eights, bits)
    words = padded.view("<u8")  # [.., eights, 1]
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    codes: U8 = ((words >> shifts) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return codes.reshape(*lead, -1)[..., :n]


@dataclass(frozen=True)
class Steps:
    """Scales and zero codes of groups. scales: float16 [N, KB]. zeros: uint8 [N, KB]."""

    scales: F16
    zeros: U8

    @property
    def inverse(self) -> F32:
        """1 / scale, 0 where the scale is zero."""
        wide = self.scales.astype(np.float32)
        return np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` in groups of `group` inputs, with zero points unless `symmetric`."""

    bits: int
    group: int
    symmetric: bool

    @property
    def name(self) -> str:
        """Of the encoding."""
        return f"{'int' if self.symmetric else 'uint'}{self.bits}-g{self.group}"

    @property
    def middle(self) -> int:
        """The zero code of symmetric groups."""
        return 1 << (self.bits - 1)

    @property
    def codes(self) -> tuple[int, int]:
        """Lowest and highest code: all but 0 of symmetric 8 bits, as in int8-g32."""
        return int(self.symmetric and self.bits == 8), (1 << self.bits) - 1

    def groups_of(self, k: int) -> int:
        """KB: groups of a row of k inputs."""
        return -(-k // self.group)

    def grouped(self, w: F32) -> F32:
        """[N, K] as float32 [N, KB, group], padded with zeros."""
        n, k = w.shape
        wide = np.zeros((n, self.groups_of(k) * self.group), np.float32)
        wide[:, :k] = w
        return wide.reshape(n, -1, self.group)

    def fit(self, groups: F32) -> Steps:
        """Steps of groups [.., group] whose extremes land on the outermost codes.

        Symmetric: scale = e / -2^(b-1) with e the element of largest magnitude, sign included; of 8
        bits max|w| / 127. Asymmetric: scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale) with
        lo = min(w, 0), hi = max(w, 0). ValueError for scales beyond float16, NaN and infinity.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.symmetric:
                low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
                half = _half((high - low) / np.float32(self.codes[1]))
                inverse = Steps(half, np.zeros(half.shape, np.uint8)).inverse
                zeros = np.clip(np.rint(-low * inverse), 0, self.codes[1]).astype(np.uint8)
                return Steps(half, zeros)
            if self.bits == 8:
                half = _half(np.abs(groups).max(-1) / np.float32(127))
            else:
                peak = np.abs(groups).argmax(-1)
                extreme = np.take_along_axis(groups, peak[..., None], -1)[..., 0]
                half = _half(extreme / np.float32(-self.middle))
        return Steps(half, np.full(half.shape, self.middle, np.uint8))

    def encode(self, groups: F32, steps: Steps) -> U8:
        """The nearest codes of groups [.., group]: clip(round(w / scale) + zero)."""
        levels = np.rint(groups * steps.inverse[..., None])
        levels += steps.zeros[..., None]
        codes: U8 = np.clip(levels, *self.codes, out=levels).astype(np.uint8)
        return codes

    def decode(self, codes: U8, steps: Steps) -> F32:
        """Values of codes [.., group]: (code - zero) * scale."""
        signed = codes.astype(np.float32) - steps.zeros[..., None]
        values: F32 = signed * steps.scales.astype(np.float32)[..., None]
        return values

    def store(self, codes: U8, steps: Steps) -> Tensors:
        """The stored tensors of codes [N, KB, group]."""
        tensors: dict[str, NDArray[Any]] = {"q": pack_codes(codes, self.bits)}
        tensors["scales"] = steps.scales
        if not self.symmetric:
            tensors["zeros"] = pack_codes(steps.zeros, self.bits)
        return tensors

    def restore(self, tensors: Tensors) -> tuple[U8, Steps]:
        """Codes [N, KB, group] and steps of stored tensors."""
        scales = tensors["scales"]
        if self.symmetric:
            zeros = np.full(scales.shape, self.middle, np.uint8)
        else:
            zeros = unpack_codes(tensors["zeros"], self.bits, scales.shape[1])
        return unpack_codes(tensors["q"], self.bits, self.group), Steps(scales, zeros)

    def quantize(self, w: F32) -> Tensors:
        """A float32 [N, K], rounded to nearest. ValueError for what float16 scales do not reach."""
        groups = self.grouped(w)
        steps = self.fit(groups)
        return self.store(self.encode(groups, steps), steps)

    def dequantize(self, tensors: Tensors, shape: tuple[int, ...]) -> F32:
        """Stored tensors as float32 [N, K]."""
        n, k = shape
        values = self.decode(*self.restore(tensors)).reshape(n, -1)
        return np.ascontiguousarray(values[:, :k])

    def blocks(self, tensors: Tensors) -> Blocks:
        """code - zero as int8 [N, KB * group / 32, 32], and a scale for each 32. Not for asymmetric
        codes of 8 bits, whose differences int8 does not hold."""
        codes, steps = self.restore(tensors)
        signed = (codes.astype(np.int16) - steps.zeros[..., None]).astype(np.int8)
        scales = steps.scales.astype(np.float32).repeat(self.group // BLOCK, axis=1)
        return signed.reshape(len(signed), -1, BLOCK), scales

    def damage(self, tensors: Tensors, shape: tuple[int, ...]) -> str:
        """What is wrong with the values of stored tensors, or ""; `w` of these is [N, K]."""
        bad = int(np.count_nonzero(~np.isfinite(tensors["scales"])))
        if bad:
            return f"{bad} of {tensors['scales'].size} scales are not finite, expected none"
        codes, steps = self.restore(tensors)
        flat = codes.reshape(len(codes), -1)[:, shape[1] :]
        if flat.size and (found := np.count_nonzero(flat != steps.zeros[:, -1:])):
            return f"{found} of {flat.size} codes past the rows' ends are not the zero code"
        if not self.symmetric and not np.array_equal(
            pack_codes(steps.zeros, self.bits), tensors["zeros"]
        ):
            return "bits past the last zero code are set, expected zeros"
        return ""


def _half(scale: F32) -> F16:
    if scale.size and not np.abs(scale).max() <= HALF_MAX:
        raise ValueError(f"scale {np.abs(scale).max():g} does not fit float16 (max {HALF_MAX:g})")
    return scale.astype(np.float16)
