"""Column-sparse codes as they are stored: a bit mask and values in ascending order of atoms.

Little-endian. mask: uint64 `[n, ceil(k / 64)]`, atom a is bit `a % 64` of word `a // 64`;
bits past k are 0 and every row has s ones. values: `[n, s]` as fp16, or codes of b bits, low bits
first, padded with the zero code `2 ** (b - 1)` to a multiple of 32 for each output, and an fp16
scale for every 32: `value = (code - 2 ** (b - 1)) * scale`. A mask is for disks: computing from it
is several times slower than from indices or from the dense code (`expand`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from . import checks
from .budget import VALUE_GROUP, WORD

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Packed:
    """A stored S `[k, n]`. Either `values` fp16 `[n, s]`, or `codes` uint8 `[n, s_pad * bits / 8]`
    and `scales` fp16 `[n, s_pad / 32]`, with `s_pad` the next multiple of 32."""

    k: int
    s: int
    mask: NDArray[np.uint64]
    values: NDArray[np.float16] | None = None
    bits: int = 16
    codes: NDArray[np.uint8] | None = None
    scales: NDArray[np.float16] | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.mask, self.values, self.codes, self.scales)
        return sum(part.nbytes for part in parts if part is not None)


def pack_mask(idx: Any, k: int) -> NDArray[np.uint64]:
    """Words `[n, ceil(k / 64)]` of supports `idx [n, s]` (integers, ascending, below k).

    Raises ConvertError for indices out of range or not ascending.
    """
    found = np.asarray(idx)
    k = checks.whole(k, "k", 1)
    if found.dtype.kind not in "iu" or found.ndim != 2 or not found.size:
        raise ConvertError(f"supports are {found.dtype} {found.shape}, expected integers [n, s]")
    wide = found.astype(np.int64)
    if wide.min() < 0 or wide.max() >= k or (np.diff(wide, axis=1) <= 0).any():
        raise ConvertError(
            f"supports hold atoms from {wide.min()} to {wide.max()}, expected ascending indices "
            f"from 0 to {k - 1}"
        )
    bits = np.zeros((len(wide), -(-k // WORD) * WORD), np.uint8)
    np.put_along_axis(bits, wide, 1, axis=1)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")


def unpack_mask(mask: Any, k: int, s: int) -> NDArray[np.int32]:
    """Supports `[n, s]`, ascending, of words `[n, ceil(k / 64)]`.

    Raises ConvertError for another shape or type, bits past k, and rows that do not have s ones.
    """
    k = checks.whole(k, "k", 1)
    s = checks.whole(s, "s", 1, k)
    words = np.asarray(mask)
    if words.dtype.newbyteorder("<") != np.dtype("<u8") or words.ndim != 2:
        raise ConvertError(f"the mask is {words.dtype} {words.shape}, expected uint64 [n, words]")
    if words.shape[1] != -(-k // WORD):
        raise ConvertError(f"the mask has {words.shape[1]} words, expected {-(-k // WORD)}")
    octets = np.ascontiguousarray(words.astype("<u8")).view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    if bits[:, k:].any():
        raise ConvertError(f"the mask has bits past atom {k - 1}, expected zeros there")
    counts = bits.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(counts != s)
    if len(wrong):
        raise ConvertError(f"row {wrong[0]} of the mask has {counts[wrong[0]]} bits, expected {s}")
    return np.nonzero(bits)[1].reshape(len(words), s).astype(np.int32)


def compress(idx: Any, values: Any, k: int, bits: int = 16) -> Packed:
    """Store supports `idx [n, s]` and `values [n, s]` (real, finite); bits: 16 (fp16) or 2 to 8.

    Codes are rounded to nearest, symmetric, with the value of largest magnitude of each 32 at the
    edge of the range (scales may be negative). Raises ConvertError for shapes that differ, values
    that fp16 cannot hold, and other bits.
    """
    mask = pack_mask(idx, k)
    found = checks.matrix(values, "values")
    if found.shape != np.shape(idx):
        raise ConvertError(f"values have shape {found.shape}, expected {np.shape(idx)}")
    if bits == 16:
        return Packed(k, found.shape[1], mask, _half(found, "values"))
    codes, scales = quantize_values(found, bits)
    return Packed(k, found.shape[1], mask, None, bits, pack_codes(codes, bits), scales)


def expand(packed: Packed) -> NDArray[np.float32]:
    """S as a dense float32 matrix `[k, n]`. Raises ConvertError if `packed` breaks its format."""
    idx = unpack_mask(packed.mask, packed.k, packed.s)
    dense = np.zeros((len(idx), packed.k), np.float32)
    np.put_along_axis(dense, idx.astype(np.int64), stored_values(packed), axis=1)
    return dense.T


def stored_values(packed: Packed) -> NDArray[np.float32]:
    """The values `[n, s]` of a stored S, float32. Raises ConvertError if shapes do not fit."""
    n, s = len(packed.mask), packed.s
    padded = -(-s // VALUE_GROUP) * VALUE_GROUP
    if packed.bits == 16:
        _expect("values", packed.values, (n, s), np.float16)
        return np.asarray(packed.values, np.float32)
    checks.one_of(str(packed.bits), "bits", tuple(map(str, BITS)))
    _expect("codes", packed.codes, (n, padded * packed.bits // 8), np.uint8)
    _expect("scales", packed.scales, (n, padded // VALUE_GROUP), np.float16)
    codes = unpack_codes(np.asarray(packed.codes), packed.bits)
    signed = codes.astype(np.float32) - (1 << (packed.bits - 1))
    scales = np.repeat(np.asarray(packed.scales, np.float32), VALUE_GROUP, axis=1)
    return (signed * scales)[:, :s]


def quantize_values(values: Any, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes uint8 `[n, s_pad]` (padded with the zero code) and scales fp16 `[n, s_pad / 32]`.

    Raises ConvertError for values that are not finite, scales beyond fp16 and other bits.
    """
    found = checks.matrix(values, "values")
    checks.one_of(str(bits), "bits", tuple(map(str, BITS)))
    n, s = found.shape
    zero, padded = 1 << (bits - 1), -(-s // VALUE_GROUP) * VALUE_GROUP
    groups = np.zeros((n, padded))
    groups[:, :s] = found
    groups = groups.reshape(n, -1, VALUE_GROUP)
    peak = np.abs(groups).argmax(axis=2)[..., None]
    scales = _half(np.take_along_axis(groups, peak, axis=2)[..., 0] / -zero, "scales")
    wide = scales.astype(np.float64)[..., None]
    safe = np.where(wide == 0, 1.0, wide)
    steps = np.where(wide == 0, 0.0, np.rint(groups / safe))
    codes = np.clip(steps + zero, 0, 2 * zero - 1).astype(np.uint8)
    return codes.reshape(n, padded), scales


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes `[n, c]`, c a multiple of 8, as bytes `[n, c * bits / 8]`, low bits first."""
    planes = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`."""
    planes = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, bits)
    return np.packbits(planes, axis=-1, bitorder="little")[..., 0]


def _half(values: Any, what: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = np.asarray(values).astype(np.float16)
    if not np.isfinite(half).all():
        raise ConvertError(
            f"{what} reach {np.abs(values).max():g}, expected at most 65504, the largest of fp16",
            hint="scale the atoms first (factors.gauge)",
        )
    return half


def _expect(what: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if array is None or array.shape != shape or array.dtype != dtype:
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise ConvertError(f"{what} are {got}, expected {np.dtype(dtype)} {shape}")
