"""Column-sparse codes of COMPOT (arXiv 2602.15200): the factor S of y = (x A) S.

    w = quantize(values, mask, bits=4)   # float32 and bool [N, K] -> the encoding sparse4-s448
    densified(w)                         # the same values as int4-g64, int8-g32 or float16

S is stored as a weight [N, K] of a `linear` node: N outputs, K atoms, and exactly `count` kept
values in every row (`sparse{bits}-s{count}`), some of which may be zero. W = ceil(K / 64):

    mask    uint8 [N, 8 W]                   bit a % 8 of byte a // 8: whether atom a is kept. Bits
                                             past K are 0, every row has `count` ones.
    q       uint8 [N, ceil(count * b / 8)]   codes of the kept values in ascending order of atoms, a
                                             stream of bits as in `grid.py`, the last byte filled
                                             with zeros: value = (code - 2^(b-1)) * scale
    scales  float16 [N, W]                   one for the kept values among atoms 64 g to 64 g + 63
    values  float16 [N, count]               of 16 bits, instead of q and scales

Scales belong to atoms, not to so many kept values, so that the dense form has the same codes and
scales. A mask is for disks: computing from it is several times slower than from the dense form or
from indices, one of which is made when weights are packed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import GROUP, blocks_of
from .grid import Grid, pack_codes, unpack_codes
from .quant import F32, Matrix, Quantized, Tensors, quantize_f16

U8 = NDArray[np.uint8]
BITS = (2, 3, 4, 5, 6, 8, 16)
WORD = 64  # atoms that share a scale, and bits of a mask's word
INDEXED = 1 << 16  # atoms that an index of 16 bits can name
FORMS = tuple(f"sparse{bits}-s<count>" for bits in BITS)
PIECE = 1 << 20  # elements of the dense form that are worked on at once
_NAME = re.compile(r"sparse(2|3|4|5|6|8|16)-s([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class Sparse:
    """Rows of `count` kept values of `bits` each."""

    bits: int
    count: int

    @property
    def name(self) -> str:
        """Of the encoding."""
        return f"sparse{self.bits}-s{self.count}"

    @property
    def grid(self) -> Grid:
        """The rule of the codes."""
        return Grid(self.bits, WORD, symmetric=True)

    @property
    def dense(self) -> str:
        """The encoding of the dense form."""
        if self.bits == 16:
            return "f16"
        return "int8-g32" if self.bits == 8 else f"int{self.bits}-g64"

    def fault(self, shape: tuple[int, ...]) -> str:
        """Why a weight [N, K] cannot be stored so, or ""."""
        if self.count <= shape[1]:
            return ""
        return f"has rows of {shape[1]}, expected at least the {self.count} values that are kept"

    def damage(self, tensors: Tensors, shape: tuple[int, ...]) -> str:
        """What is wrong with the stored tensors, or "": what kernels rely on, scales that are not
        finite, and bits that must be 0. Takes little memory, whatever the size."""
        n, k = shape
        for rows in pieces(n, k):
            if wrong := mask_fault(tensors["mask"][rows], k, self.count, first=rows.start):
                return wrong
        if self.bits == 16:
            return ""
        scales = tensors["scales"]
        if bad := int(np.count_nonzero(~np.isfinite(scales))):
            return f"{bad} of {scales.size} scales are not finite, expected none"
        used = self.count * self.bits % 8
        if used and (tensors["q"][:, -1] >> used).any():
            return "bits past the last code of a row are set, expected zeros"
        return ""

    def support(self, tensors: Tensors, k: int) -> NDArray[np.int64]:
        """Kept atoms [N, count], ascending. ValueError for a mask that breaks the format."""
        kept = self._kept(tensors, k)
        return np.nonzero(kept)[1].reshape(len(kept), self.count)

    def _kept(self, tensors: Tensors, k: int) -> NDArray[np.bool_]:
        """bool [N, 64 W]."""
        mask = np.ascontiguousarray(tensors["mask"])
        if wrong := mask_fault(mask, k, self.count):
            raise ValueError(f"{self.name}: {wrong}")
        return np.unpackbits(mask, axis=1, bitorder="little").view(np.bool_)

    def codes(self, tensors: Tensors) -> U8:
        """Stored codes [N, count]."""
        return unpack_codes(np.ascontiguousarray(tensors["q"]), self.bits, self.count)

    def densify(self, tensors: Tensors, shape: tuple[int, ...]) -> Matrix:
        """The same values in the encoding `dense`, kept or not. ValueError as `support`."""
        n, k = shape
        kept = self._kept(tensors, k)
        if self.bits == 16:
            half = np.zeros(kept.shape, np.float16)
            half[kept] = tensors["values"].reshape(-1)
            return np.ascontiguousarray(half[:, :k])
        codes = np.full(kept.shape, self.grid.middle, np.uint8)
        codes[kept] = self.codes(tensors).reshape(-1)
        scales = tensors["scales"]
        if self.bits < 8:
            q = pack_codes(codes.reshape(n, -1, WORD), self.bits)
            return Quantized(self.dense, shape, {"q": q, "scales": scales})
        blocks = blocks_of(k)
        q = codes.reshape(n, -1, GROUP)[:, :blocks]
        scales = scales.repeat(WORD // GROUP, axis=1)[:, :blocks]
        tensors = {"q": np.ascontiguousarray(q), "scales": np.ascontiguousarray(scales)}
        return Quantized(self.dense, shape, tensors)


def parse(name: str) -> Sparse | None:
    """The codes that a name stands for, None for all other names: no leading zeros, no count that
    a dimension could not have."""
    found = _NAME.fullmatch(name)
    return Sparse(int(found[1]), int(found[2])) if found else None


def pieces(n: int, k: int) -> Iterator[slice]:
    """Rows [0, n) in pieces of a multiple of 16 that take little memory."""
    step = max(16, PIECE // max(1, k) // 16 * 16)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


@lru_cache(maxsize=1)
def _ones() -> U8:
    """How many ones every number of 16 bits has."""
    bits = np.unpackbits(np.arange(1 << 16, dtype="<u2").view(np.uint8))
    counts: U8 = bits.reshape(-1, 16).sum(axis=1, dtype=np.uint8)
    return counts


def mask_fault(mask: U8, k: int, count: int, *, first: int = 0) -> str:
    """What is wrong with rows of a mask, or ""; first: the number of the first one."""
    mask = np.ascontiguousarray(mask)
    past = mask[:, k // 8 :].copy()
    if k % 8:
        past[:, 0] >>= k % 8
    if (rows := np.flatnonzero(past.any(axis=1))).size:
        return f"row {first + rows[0]} of the mask has bits past its {k} atoms, expected zeros"
    ones = _ones()[mask.view("<u2")].sum(axis=1, dtype=np.int64)
    if (rows := np.flatnonzero(ones != count)).size:
        return f"row {first + rows[0]} of the mask keeps {ones[rows[0]]} atoms, expected {count}"
    return ""


def pack_mask(mask: NDArray[np.bool_]) -> U8:
    """bool [N, K] as stored, [N, 8 ceil(K / 64)]."""
    n, k = mask.shape
    wide = np.zeros((n, -(-k // WORD) * WORD), np.bool_)
    wide[:, :k] = mask
    return np.packbits(wide, axis=1, bitorder="little")


def quantize(values: F32, mask: NDArray[np.bool_], bits: int) -> Quantized:
    """Kept values rounded to nearest; bits: one of BITS.

    values: float32 [N, K]; where mask, bool [N, K], is False they count as zeros. Every row of the
    mask has as many ones, at least one. ValueError for other masks and bits, and for values that
    the encoding cannot hold: NaN, infinity, scales beyond float16.
    """
    if bits not in BITS:
        raise ValueError(f"bits is {bits}, expected one of {list(BITS)}")
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape != values.shape or not mask.size:
        raise ValueError(
            f"the mask is {mask.dtype} {list(mask.shape)}, expected bool {list(values.shape)}"
        )
    counts = np.count_nonzero(mask, axis=1)
    if counts.min() != counts.max() or not counts[0]:
        raise ValueError(
            f"rows of the mask keep {counts.min()} to {counts.max()} values, expected as many in "
            "every row, at least one"
        )
    form = Sparse(bits, int(counts[0]))
    dense = np.where(mask, values, np.float32(0)).astype(np.float32, copy=False)
    tensors: dict[str, NDArray[Any]] = {"mask": pack_mask(mask)}
    if bits == 16:
        tensors["values"] = quantize_f16(dense[mask].reshape(-1, form.count))[""]
        return Quantized(form.name, mask.shape, tensors)
    groups = form.grid.grouped(dense)
    steps = form.grid.fit(groups)
    codes = form.grid.encode(groups, steps).reshape(len(mask), -1)[:, : mask.shape[1]]
    tensors["q"] = pack_codes(codes[mask].reshape(-1, form.count), bits)
    tensors["scales"] = steps.scales
    return Quantized(form.name, mask.shape, tensors)


def densified(w: Quantized) -> Matrix:
    """A sparse weight in its dense encoding: the values that `dequantize` gives, bit for bit.

    int{b}-g64 of 2 to 6 bits, int8-g32 of 8 (each scale twice), a float16 array of 16. ValueError
    for weights that are not sparse, and for a mask that breaks the format.
    """
    form = parse(w.encoding)
    if form is None:
        raise ValueError(f"a weight in {w.encoding}, expected one of {list(FORMS)}")
    return form.densify(w.tensors, w.shape)


def onnx_form(encoding: str, *, standard: bool) -> str:
    """The encoding in which ONNX ops read a sparse weight: of so many bits as they know."""
    form = parse(encoding)
    if form is None or form.bits in (8, 16):
        return form.dense if form else ""
    bits = 8 if form.bits > 4 else 2 if form.bits == 2 and not standard else 4
    return Grid(bits, WORD, symmetric=True).name


def for_onnx(w: Quantized, *, standard: bool) -> Matrix:
    """A sparse weight in its `onnx_form`: the same values, codes moved to the wider zero code."""
    name, dense = onnx_form(w.encoding, standard=standard), densified(w)
    if not isinstance(dense, Quantized) or dense.encoding == name:
        return dense
    bits, wide = int(dense.encoding[3]), int(name[3])
    codes = unpack_codes(dense.q, bits, WORD) + np.uint8((1 << wide - 1) - (1 << bits - 1))
    return Quantized(name, w.shape, {"q": pack_codes(codes, wide), "scales": dense.scales})


def linear_compot(x: F32, a: F32, s: F32) -> F32:
    """y = (x A) S: float32 [T, M], [M, K] and [K, N] -> [T, N]."""
    return np.asarray((x @ a) @ s, np.float32)
