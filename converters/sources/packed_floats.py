"""Packed matrices whose values no encoding has: their codes are chosen anew, or they become floats.

    bitsandbytes        weight uint8 [N K / 2], absmax of each `blocksize` values, in codes itself
                        where it is nested; the first of two codes in the high half
    fp8                 weight F8_E4M3 [N, K], weight_scale_inv of tiles of weight_block_size

Formulas: bitsandbytes (`QuantState`), DeepSeek-V3 (`weight_dequant`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...storage.typed import Reader
from ..families.recipe import F32
from .checkpoint import Tensor, widened
from .packed import Entries, Float, whole

FLOATS = ("F16", "BF16", "F32")


def floats(tensor: Tensor) -> F32:
    """All of a float tensor as float32."""
    return widened(whole(tensor), tensor.dtype)


def _table() -> F32:
    """The value of every byte: a sign, four bits of exponent less 7, three of the fraction."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    size[(byte & 127) == 127] = np.nan
    signed: F32 = np.where(byte < 128, size, -size).astype(np.float32)
    return signed


E4M3 = _table()


def e4m3(bits: NDArray[np.uint8]) -> F32:
    """Bytes of F8_E4M3 as float32."""
    values: F32 = E4M3[bits]
    return values


def fp8(settings: Mapping[str, Any], entries: Entries) -> None:
    """FP8 with a scale for each tile."""
    tile = settings.get("weight_block_size") or [128, 128]
    good = isinstance(tile, list) and len(tile) == 2 and all(type(t) is int and t > 0 for t in tile)
    if not good or settings.get("fmt", "e4m3") != "e4m3":
        raise entries.fault(f"weight_block_size {str(tile)[:40]}, expected two sizes, and e4m3")
    high, wide = tile
    for stem in entries.stems(".weight_scale_inv"):
        q = entries.take(f"{stem}.weight", "F8_E4M3", rank=2)
        n, k = q.shape
        scale = entries.shaped(f"{stem}.weight_scale_inv", (-(-n // high), -(-k // wide)), *FLOATS)

        def read(start: int, stop: int, q: Tensor = q, scale: Tensor = scale, k: int = k) -> F32:
            first = start // high
            tiles = widened(scale.raw(first, -(-stop // high)), scale.dtype)
            rows = tiles[np.arange(start, stop) // high - first].repeat(wide, axis=1)[:, :k]
            values: F32 = e4m3(q.raw(start, stop)) * rows
            return values

        entries.made[f"{stem}.weight"] = Float((n, k), read)


def bitsandbytes(settings: Mapping[str, Any], entries: Entries) -> None:
    """Four bits by a table of 16 values (nf4, fp4)."""
    ends = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
    for end in ends:
        for stem in entries.stems(end):
            _by_table(stem, end, entries)


class _State(msgspec.Struct):
    """What bitsandbytes says of a matrix."""

    blocksize: int
    shape: tuple[int, int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


STATE = Reader(_State)


def _by_table(stem: str, end: str, entries: Entries) -> None:
    name = f"{stem}.weight"
    raw = entries.take(f"{stem}{end}", "U8", rank=1)
    if raw.shape[0] > 1 << 16:
        raise entries.fault(f"tensor {stem + end!r} has {raw.shape[0]} bytes")
    try:
        state = STATE.decode(whole(raw).tobytes())
    except msgspec.DecodeError as error:
        raise entries.fault(f"tensor {stem + end!r}: {error}") from None
    (n, k), size = state.shape, state.blocksize
    good = n > 0 and k > 0 and n < 1 << 31 and k < 1 << 31 and size > 0 and not k % 2
    if not good or k % size:
        raise entries.fault(f"tensor {name!r} {[n, k]} in blocks of {size}")
    blocks = n * k // size
    q = entries.take(name, "U8")
    if q.shape not in ((n * k // 2, 1), (n * k // 2,), (1, n * k // 2)):
        raise entries.fault(f"tensor {name!r} is {list(q.shape)}, expected {[n * k // 2, 1]}")
    table = entries.shaped(f"{name}.quant_map", (16,), "F32")
    nested = state.nested_blocksize > 0
    peaks = entries.shaped(f"{name}.absmax", (blocks,), "U8" if nested else "F32")
    inner = outer = None
    if nested:
        outer = entries.shaped(
            f"{name}.nested_absmax", (-(-blocks // state.nested_blocksize),), "F32"
        )
        inner = entries.shaped(f"{name}.nested_quant_map", (256,), "F32")

    def read(start: int, stop: int) -> F32:
        flat = q.flat_bytes(start * k // 2, stop * k // 2)
        codes = np.stack([flat >> 4, flat & 15], axis=-1).reshape(stop - start, -1, size)
        first, last = start * k // size, stop * k // size
        scale = peaks.raw(first, last)
        if inner is not None and outer is not None:
            each = floats(outer)[np.arange(first, last) // state.nested_blocksize]
            scale = floats(inner)[scale] * each + np.float32(state.nested_offset)
        values: F32 = floats(table)[codes] * scale.reshape(stop - start, -1, 1)
        return values.reshape(stop - start, k)

    entries.made[name] = Float((n, k), read)
