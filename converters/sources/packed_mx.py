"""Experts in MXFP4, as gpt-oss is published (OCP Microscaling Formats 1.0).

    <module>.experts.gate_up_proj_blocks   uint8 [E, 2F, C / 32, 16]   gates and ups in turn, the
                                           first of two codes in the low half
    <module>.experts.gate_up_proj_scales   uint8 [E, 2F, C / 32]       exponents, 127 added
    <module>.experts.down_proj_blocks      uint8 [E, C, F / 32, 16]
    <module>.experts.down_proj_scales      uint8 [E, C, F / 32]

Doubled, the values of a code are whole numbers up to 12, so that int5-g32 has them all: experts
become tensors of their own, in that encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.encodings import ENCODINGS
from ...kernels.grid import Grid, pack_codes
from ...kernels.ops_experts import EXPERTS
from ..families.recipe import F32
from .checkpoint import Tensor
from .packed import INSTEAD, Entries
from .stacked import STACKS

U8 = NDArray[np.uint8]
BYTES = 16  # of a block's 32 codes
GRID = Grid(5, 2 * BYTES, symmetric=True)  # the smallest that has all values
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # doubled


def microscaled(codes: U8, exponents: U8) -> dict[str, NDArray[Any]]:
    """Values of E2M1, codes [N, KB, 32], times 2^(exponent - 127), exponents [N, KB], as the
    tensors of int5-g32.

    The same values where float16 has a power of two for them; below 2^-24 rounded to multiples of
    that. Scales beyond 2^15, and exponent 255, which is no number, become infinite, for `damage` to
    tell.
    """
    powers = exponents.astype(np.int64) - 128
    held = np.clip(powers, -24, 15)
    values = np.rint(E2M1[codes] * np.exp2(np.minimum(powers - held, 0))[..., None])
    scales = np.where(powers > held, np.inf, np.exp2(held))
    return {
        "q": pack_codes((values.astype(np.int8) + GRID.middle).astype(np.uint8), GRID.bits),
        "scales": scales.astype(np.float16),
    }


def gguf_mxfp4(rows: U8) -> dict[str, NDArray[Any]]:
    """The same of rows of GGUF's blocks [N, KB * 17]: an exponent, then codes 0 to 15 in low
    halves and the others in high ones."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 1 + BYTES)
    packed = blocks[..., 1:]
    return microscaled(np.concatenate([packed & 15, packed >> 4], axis=-1), blocks[..., 0])


class Microscaled:
    """A matrix [N, K] of one expert: rows first, first + step ... of those of blocks and scales."""

    dtype, kept, instead = "F32", GRID.name, INSTEAD

    def __init__(self, blocks: Tensor, scales: Tensor, expert: int, first: int, step: int) -> None:
        _, rows, self.groups, _ = blocks.shape
        self.shape = (rows // step, 2 * BYTES * self.groups)
        self._blocks, self._scales = blocks, scales
        self._first, self._step = expert * rows + first, step

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Rows [start, stop) as the tensors of int5-g32, by key."""
        low = self._first + start * self._step
        high = self._first + (stop - 1) * self._step + 1
        each = self.groups
        packed = self._blocks.flat_bytes(low * each * BYTES, high * each * BYTES)
        pairs = packed.reshape(-1, each, BYTES)[:: self._step]
        codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:2], 2 * BYTES)
        exponents = self._scales.flat_bytes(low * each, high * each).reshape(-1, each)
        return microscaled(codes, exponents[:: self._step])

    def rows(self, start: int, stop: int) -> F32:
        """The same rows as float32."""
        shape = (stop - start, self.shape[1])
        with np.errstate(invalid="ignore"):  # readers tell what is no number
            return ENCODINGS[self.kept].dequantize(self.stored(start, stop), shape)


def mxfp4(settings: Mapping[str, Any], entries: Entries) -> None:
    """Stacked experts in MXFP4, by the names of the module's tensors."""
    for stem in entries.stems("_blocks"):
        kind = next((kind for kind in STACKS if stem.endswith(f".{kind}")), "")
        if not kind.startswith("experts."):
            raise entries.fault(f"tensor '{stem}_blocks' is in MXFP4, expected experts alone")
        keys, module = STACKS[kind], stem.removesuffix(kind)
        blocks = entries.take(f"{stem}_blocks", "U8", rank=4)
        experts, rows, groups, width = blocks.shape
        if not 0 < experts <= EXPERTS or rows % len(keys) or not rows * groups or width != BYTES:
            raise entries.fault(
                f"tensor '{stem}_blocks' is {list(blocks.shape)}, expected [1 to {EXPERTS} "
                f"experts, a multiple of {len(keys)}, blocks, {BYTES}]"
            )
        scales = entries.shaped(f"{stem}_scales", (experts, rows, groups), "U8")
        for expert in range(experts):
            for first, key in enumerate(keys):
                made = Microscaled(blocks, scales, expert, first, len(keys))
                entries.made[f"{module}experts.{expert}.{key}.weight"] = made
