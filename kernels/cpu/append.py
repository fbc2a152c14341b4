"""Rotary embedding and cache append on the CPU: the step before `attention`.

Page layouts are in `attention.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from .. import simd
from ..simd import (
    add,
    f32,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f32,
    mul,
    splat,
    st_f16,
    st_f32,
    store_f16,
    store_f32,
    sub,
)
from .activation import norm_row
from .layout import PAGE
from .vm import kernel

# Operands of `rope_table`: 3 positions (int32 [T]), 4 inv_freq, 5 inv_freq_long or 0, 6 half,
# 7 long flags (int32 [T]), 8 out float32 [T][2][half] (cos, sin), 9 scale, 10 long scale.


@kernel
def rope_table(ins: int, thread: int, threads: int) -> None:
    """cos and sin of position * inv_freq for the rows of this step."""
    n = ld_i64(ld_i64(ins + 16))
    positions, short, far = ld_i64(ins + 24), ld_i64(ins + 32), ld_i64(ins + 40)
    half, flags, out = ld_i64(ins + 48), ld_i64(ins + 56), ld_i64(ins + 64)
    for t in range(n * thread // threads, n * (thread + 1) // threads):
        freq, scale = short, ld_f32(ins + 72)
        if far != 0 and ld_i32(flags + 4 * t) != 0:
            freq, scale = far, ld_f32(ins + 80)
        row = out + t * half * 8
        for i in range(half):
            angle = f32(f32(ld_i32(positions + 4 * t)) * ld_f32(freq + 4 * i))
            st_f32(row + 4 * i, f32(f32(math.cos(float(angle))) * scale))
            st_f32(row + 4 * (half + i), f32(f32(math.sin(float(angle))) * scale))


@njit(error_model="numpy")
def _rotate(x: int, table: int, half: int) -> None:
    whole = half - half % 16
    for i in range(0, whole, 16):
        cos, sin = load_f32(table + 4 * i), load_f32(table + 4 * (half + i))
        a, b = load_f32(x + 4 * i), load_f32(x + 4 * (half + i))
        store_f32(x + 4 * i, sub(mul(a, cos), mul(b, sin)))
        store_f32(x + 4 * (half + i), add(mul(b, cos), mul(a, sin)))
    for i in range(whole, half):
        cos1, sin1 = ld_f32(table + 4 * i), ld_f32(table + 4 * (half + i))
        a1, b1 = ld_f32(x + 4 * i), ld_f32(x + 4 * (half + i))
        st_f32(x + 4 * i, f32(f32(a1 * cos1) - f32(b1 * sin1)))
        st_f32(x + 4 * (half + i), f32(f32(b1 * cos1) + f32(a1 * sin1)))


@njit(error_model="numpy")
def _store_key(x: int, page: int, group: int, size: int, slot: int, wide: int) -> None:
    """One key into lane slot % 16 of its page."""
    at = page + ((group * 4 + slot // 16) * size * 16 + slot % 16) * wide
    for d in range(size):
        if wide == 4:
            st_f32(at + d * 64, ld_f32(x + 4 * d))
        else:
            st_f16(at + d * 32, ld_f32(x + 4 * d))


@njit(error_model="numpy")
def _store_value(x: int, page: int, group: int, size: int, slot: int, wide: int) -> None:
    padded = (size + 15) // 16 * 16
    at = page + (group * PAGE + slot) * padded * wide
    whole = size - size % 16
    for d in range(0, whole, 16):
        if wide == 4:
            store_f32(at + 4 * d, load_f32(x + 4 * d))
        else:
            store_f16(at + 2 * d, load_f32(x + 4 * d))
    for d in range(whole, size):
        if wide == 4:
            st_f32(at + 4 * d, ld_f32(x + 4 * d))
        else:
            st_f16(at + 2 * d, ld_f32(x + 4 * d))


@njit(error_model="numpy")
def _scale_row(x: int, size: int, scale: float) -> None:
    whole, wide = size - size % 16, splat(f32(scale))
    for d in range(0, whole, 16):
        store_f32(x + 4 * d, mul(load_f32(x + 4 * d), wide))
    for d in range(whole, size):
        st_f32(x + 4 * d, f32(ld_f32(x + 4 * d) * scale))


@njit(error_model="numpy")
def _store_int8(x: int, at: int, stride: int, size: int, scale_at: int) -> None:
    """A head vector as int8 at `at`, elements `stride` bytes apart, and its scale."""
    peak = f32(0.0)
    for d in range(size):
        peak = max(peak, abs(ld_f32(x + 4 * d)))
    st_f32(scale_at, f32(peak * f32(1.0 / 127.0)))
    inverse = f32(127.0) / peak if peak > f32(0.0) else f32(0.0)
    for d in range(size):
        code = np.rint(f32(ld_f32(x + 4 * d) * inverse))
        simd.st_i8(at + d * stride, types.int8(types.int32(code)))


# Operands of `append`: 3 qkv, 4 qkv stride in bytes, 5 H, 6 G, 7 D, 8 rope table or 0, 9 half,
# 10 q norm or 0, 11 k norm, 12 norm eps, 13 score scale, 14 positions, 15 page tables (int64
# address a row), 16 K pool, 17 V pool, 18 bytes of a K page, 19 bytes of a V page, 20 bytes of an
# element.


@kernel
def append(ins: int, thread: int, threads: int) -> None:
    """Norm and rotate queries (scaled, in place) and keys; store keys and values in their pages."""
    n = ld_i64(ld_i64(ins + 16))
    qkv, stride = ld_i64(ins + 24), ld_i64(ins + 32)
    heads, groups, size = ld_i64(ins + 40), ld_i64(ins + 48), ld_i64(ins + 56)
    table, half = ld_i64(ins + 64), ld_i64(ins + 72)
    q_norm, k_norm, eps, scale = (
        ld_i64(ins + 80), ld_i64(ins + 88), ld_f32(ins + 96), ld_f32(ins + 104),
    )  # fmt: skip
    positions, tables = ld_i64(ins + 112), ld_i64(ins + 120)
    k_pool, v_pool = ld_i64(ins + 128), ld_i64(ins + 136)
    k_page, v_page, wide = ld_i64(ins + 144), ld_i64(ins + 152), ld_i64(ins + 160)
    units = n * (heads + groups)
    for unit in range(units * thread // threads, units * (thread + 1) // threads):
        t, head = unit // (heads + groups), unit % (heads + groups)
        x = qkv + t * stride + head * size * 4
        if q_norm != 0:
            norm_row(x, q_norm if head < heads else k_norm, x, size, eps)
        if table != 0:
            _rotate(x, table + t * half * 8, half)
        if head < heads:
            _scale_row(x, size, scale)
            continue
        position = ld_i32(positions + 4 * t)
        page = ld_i32(ld_i64(tables + 8 * t) + 4 * (position // PAGE))
        g, slot = head - heads, position % PAGE
        k, v = k_pool + page * k_page, v_pool + page * v_page
        value = x + groups * size * 4
        if wide == 1:
            padded = (size + 15) // 16 * 16
            at = k + (g * 4 + slot // 16) * size * 16 + slot % 16
            _store_int8(x, at, 16, size, k + groups * PAGE * size + (g * PAGE + slot) * 4)
            scales = v + groups * PAGE * padded + (g * PAGE + slot) * 4
            _store_int8(value, v + (g * PAGE + slot) * padded, 1, size, scales)
        else:
            _store_key(x, k, g, size, slot, wide)
            _store_value(value, v, g, size, slot, wide)
