"""Weights in GGUF's blocks, kept byte for byte: formulas of ggml's formats in NumPy.

    form = FORMS["q4_k"]
    form.dequantize({"blocks": rows}, (n, k))      # uint8 [N, K / 256 * 144] -> float32 [N, K]

A row is blocks of 256 or 32 inputs, each with a float16 scale d, and a float16 minimum m where the
format has one. A superblock of 256 has a scale s and a minimum t of few bits for each `sub` inputs
besides, and a code c of few bits for each input:

    w = d * s * (c - middle) - m * t

Formats whose codes go through a table have the table's values as their codes. Layouts of the bytes:
https://github.com/ggml-org/ggml, `ggml-common.h`, and `dequantize_row_*` of `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .quant import F32, Blocks, Quantized, Tensors

U8 = NDArray[np.uint8]
KEY = "blocks"  # of the one tensor that stores a weight
BLOCK, SUPER = 32, 256
TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


class Fields(NamedTuple):
    """The numbers in blocks [N, B, bytes]. codes: [N, B, values], uint8 or the table's int8.
    d, m: float16 [N, B, 1]. s, t: [N, B, values / sub]. m, s, t: None where the format has none."""

    codes: NDArray[Any]
    d: NDArray[np.float16]
    m: NDArray[np.float16] | None = None
    s: NDArray[Any] | None = None
    t: NDArray[Any] | None = None


@dataclass(frozen=True)
class Form:
    """One format. values, nbytes: of a block. bits: of a code as kernels read it. sub: inputs that
    share a scale s. middle: the code of zero. fields: reads the bytes of blocks."""

    name: str
    values: int
    nbytes: int
    bits: int
    sub: int
    fields: Callable[[U8], Fields]
    middle: int = 0
    minima: bool = False
    packed: str = ""  # the encoding as which it is packed: the same values in more bytes

    @property
    def scaled(self) -> bool:
        """Whether it has superblocks, with scales of their parts."""
        return self.values == SUPER

    def row_bytes(self, k: int) -> int:
        """Bytes of a row of k inputs."""
        return k // self.values * self.nbytes

    def parts(self, tensors: Tensors) -> Fields:
        """The numbers of stored rows."""
        rows = np.ascontiguousarray(tensors[KEY])
        return self.fields(rows.reshape(len(rows), -1, self.nbytes))

    def dequantize(self, tensors: Tensors, shape: tuple[int, ...]) -> F32:
        """Stored rows as float32 [N, K], with the roundings of ggml's own function."""
        found = self.parts(tensors)
        scales, minima = self._steps(found)
        codes = self._signed(found).reshape(*scales.shape, self.sub).astype(np.float32)
        codes *= scales[..., None]
        if minima is not None:
            codes -= minima[..., None]
        return codes.reshape(shape)

    def blocks(self, tensors: Tensors) -> Blocks:
        """Codes less their middle, int8 [N, K / sub, sub], and their scales [N, K / sub]."""
        found = self.parts(tensors)
        scales, _ = self._steps(found)
        signed = self._signed(found)
        return signed.reshape(len(signed), -1, self.sub), scales.reshape(len(signed), -1)

    def lows(self, tensors: Tensors) -> F32:
        """What is taken off each value of a group: float32 [N, K / sub]."""
        _, minima = self._steps(self.parts(tensors))
        if minima is None:
            raise ValueError(f"{self.name} has no minima")
        return minima.reshape(len(minima), -1)

    def damage(self, tensors: Tensors, shape: tuple[int, ...]) -> str:
        """What is wrong with the values of stored rows, or ""."""
        found = self.parts(tensors)
        halves = [half for half in (found.d, found.m) if half is not None]
        bad = sum(int(np.count_nonzero(~np.isfinite(half))) for half in halves)
        count = sum(half.size for half in halves)
        return f"{bad} of {count} scales are not finite, expected none" if bad else ""

    def widened(self, tensors: Tensors, shape: tuple[int, ...]) -> Quantized:
        """The same values in the encoding `packed`: codes of a table as int8-g32."""
        found = self.parts(tensors)
        codes = (found.codes.astype(np.int16) + 128).astype(np.uint8)
        return Quantized(self.packed, shape, {"q": codes, "scales": found.d[..., 0]})

    def _steps(self, found: Fields) -> tuple[F32, F32 | None]:
        """Scales and minima of all parts of blocks [N, B, values / sub]."""
        d = found.d.astype(np.float32)
        scales = d if found.s is None else d * found.s.astype(np.float32)
        if found.m is None:
            return scales, None
        m = found.m.astype(np.float32)
        return scales, m if found.t is None else m * found.t.astype(np.float32)

    def _signed(self, found: Fields) -> NDArray[np.int8]:
        """Codes less their middle."""
        return found.codes.astype(np.int8) - np.int8(self.middle)


def _half(blocks: U8, at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)


def _nibbles(q: U8) -> U8:
    """Bytes [.., n] as codes [.., 2 n], the low halves first."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def _bits(q: U8, width: int, chunk: int) -> U8:
    """Pieces of `width` bits of bytes [.., n]: of each `chunk` bytes all lowest ones first."""
    lead = q.shape[:-1]
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    pieces: U8 = (q.reshape(*lead, -1, 1, chunk) >> shifts) & np.uint8((1 << width) - 1)
    return pieces.reshape(*lead, -1)


def _fifth(blocks: U8, at: int) -> U8:
    """The fifth bits of 32 codes, as bits of 4 bytes."""
    bits = np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")
    return bits << np.uint8(4)


def _q4_1(b: U8) -> Fields:
    return Fields(_nibbles(b[..., 4:]), _half(b, 0), -_half(b, 2))


def _q5_0(b: U8) -> Fields:
    return Fields(_nibbles(b[..., 6:]) | _fifth(b, 2), _half(b, 0))


def _q5_1(b: U8) -> Fields:
    return Fields(_nibbles(b[..., 8:]) | _fifth(b, 4), _half(b, 0), -_half(b, 2))


def _q2_k(b: U8) -> Fields:
    steps = b[..., :16]
    codes = _bits(b[..., 16:80], 2, 32)
    return Fields(codes, _half(b, 80), _half(b, 82), steps & 15, steps >> 4)


def _q3_k(b: U8) -> Fields:
    low = _bits(b[..., 32:96], 2, 32)
    high = _bits(b[..., :32], 1, 32)
    steps = _bits(b[..., 96:104], 4, 8) | _bits(b[..., 104:108], 2, 4) << np.uint8(4)
    return Fields(low | high << np.uint8(2), _half(b, 108), s=steps.astype(np.int8) - np.int8(32))


def _k_steps(b: U8) -> tuple[U8, U8]:
    """Scales and minima of 6 bits, eight of each in 12 bytes."""
    low, mid, high = b[..., :4], b[..., 4:8], b[..., 8:12]
    s = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=-1)
    t = np.concatenate([mid & 63, (high >> 4) | (mid >> 2 & 48)], axis=-1)
    return s, t


def _q4_k(b: U8) -> Fields:
    return Fields(_bits(b[..., 16:], 4, 32), _half(b, 0), _half(b, 2), *_k_steps(b[..., 4:16]))


def _q5_k(b: U8) -> Fields:
    codes = _bits(b[..., 48:], 4, 32) | _bits(b[..., 16:48], 1, 32) << np.uint8(4)
    return Fields(codes, _half(b, 0), _half(b, 2), *_k_steps(b[..., 4:16]))


def _q6_k(b: U8) -> Fields:
    codes = _bits(b[..., :128], 4, 64) | _bits(b[..., 128:192], 2, 32) << np.uint8(4)
    return Fields(codes, _half(b, 208), s=b[..., 192:208].view(np.int8))


def _iq4_nl(b: U8) -> Fields:
    return Fields(TABLE[_nibbles(b[..., 2:])], _half(b, 0))


def _iq4_xs(b: U8) -> Fields:
    high = np.ascontiguousarray(b[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    steps = _bits(b[..., 4:8], 4, 1) | (high.astype(np.uint8) & 3) << np.uint8(4)
    return Fields(
        TABLE[_bits(b[..., 8:], 4, 16)], _half(b, 0), s=steps.astype(np.int8) - np.int8(32)
    )


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("q4_1", BLOCK, 20, 4, 32, _q4_1, minima=True),
        Form("q5_1", BLOCK, 24, 5, 32, _q5_1, minima=True),
        Form("q2_k", SUPER, 84, 2, 16, _q2_k, minima=True),
        Form("q3_k", SUPER, 110, 3, 16, _q3_k, middle=4),
        Form("q4_k", SUPER, 144, 4, 32, _q4_k, minima=True),
        Form("q5_k", SUPER, 176, 5, 32, _q5_k, minima=True),
        Form("q6_k", SUPER, 210, 6, 16, _q6_k, middle=32),
        Form("iq4_nl", BLOCK, 18, 8, 32, _iq4_nl, packed="int8-g32"),
        Form("iq4_xs", SUPER, 136, 8, 32, _iq4_xs),
    )
}


def int4(rows: U8) -> dict[str, NDArray[Any]]:
    """Rows of Q4_0 blocks [N, KB * 18] as the tensors of int4-g32, bit for bit."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 18)
    codes = _nibbles(blocks[..., 2:])
    q = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    return {"q": q, "scales": _half(blocks, 0)[..., 0]}


def int5(rows: U8) -> dict[str, NDArray[Any]]:
    """Rows of Q5_0 blocks [N, KB * 22] as the tensors of int5-g32, bit for bit."""
    from .grid import pack_codes

    found = _q5_0(np.ascontiguousarray(rows).reshape(len(rows), -1, 22))
    return {"q": pack_codes(found.codes, 5), "scales": found.d[..., 0]}


def int8(rows: U8) -> dict[str, NDArray[Any]]:
    """Rows of Q8_0 blocks [N, KB * 34] as the tensors of int8-g32, bit for bit."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 34)
    return {"q": blocks[..., 2:] ^ np.uint8(128), "scales": _half(blocks, 0)[..., 0]}
