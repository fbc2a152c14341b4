"""Tiles of quantized products by 8 rows and 2 tokens, for ISAs with small registers.

Half a weight block (8 rows x 32 inputs) is 16 NEON registers, which leaves as many for the tokens;
smmla takes two rows and two tokens in any case. Sums are exact and blocks come in order, so a value
has the bits that the row kernels of `linear.py` give it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd import f32, load_f32, store_f32
from ..simd_math import fma, mul, splat, splat_i32, to_f32
from ..simd_pairs import (
    first_token,
    pair_dot,
    pair_f32,
    pair_i32,
    pair_inputs,
    pair_scales,
    second_token,
)


def paired_tile(unpack: Any, apart: int, block_bytes: int, ask: Any, *, corrected: bool) -> Any:
    """A tile kernel (w, blocks, x, n, acc, past), as `tile_int4` in `linear.py`.

    unpack: 8 rows x 8 inputs at an address; the next 8 inputs lie `apart` bytes further. ask: what
    to do before a block at w, for n tokens: ask(w, n, past). corrected: whether weights carry an
    offset, which the tokens' corrections take off.
    """

    @njit(error_model="numpy")
    def tile(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        scales = x + blocks * n * 32
        corrections = scales + blocks * n * 4
        for t in range(n + n % 2):
            store_f32(acc + 64 * t, splat(f32(0.0)))
        for _ in range(blocks):
            ask(w, n, past)
            for half in range(2):
                ws, v = pair_scales(w + 16 * half), w + 32 + 32 * half
                w0, w1 = unpack(v), unpack(v + apart)
                w2, w3 = unpack(v + 2 * apart), unpack(v + 3 * apart)
                for t in range(0, n, 2):
                    u = min(t + 1, n - 1)  # a last odd token goes twice
                    p, q = x + 32 * t, x + 32 * u
                    s = splat_i32(0)
                    if corrected:
                        s = pair_i32(corrections + 4 * t, corrections + 4 * u)
                    s = pair_dot(s, w0, pair_inputs(p, q))
                    s = pair_dot(s, w1, pair_inputs(p + 8, q + 8))
                    s = pair_dot(s, w2, pair_inputs(p + 16, q + 16))
                    s = pair_dot(s, w3, pair_inputs(p + 24, q + 24))
                    both = mul(ws, pair_f32(scales + 4 * t, scales + 4 * u))
                    at = acc + 64 * (t + half)
                    store_f32(at, fma(to_f32(s), both, load_f32(at)))
            w += block_bytes
            x += 32 * n
            scales += 4 * n
            corrections += 4 * n
        for t in range(0, n, 2):
            a, b = load_f32(acc + 64 * t), load_f32(acc + 64 * t + 64)
            store_f32(acc + 64 * t, first_token(a, b))
            store_f32(acc + 64 * t + 64, second_token(a, b))

    return tile
