"""Rotary embedding and cache append on the CPU: the step before `attention`.

Page layouts are in `attention.py`; where pages are coded, those of float16 are written here.
"""

from __future__ import annotations

from numba import njit, types

from ..attention_lower import APPEND, ROPE_TABLE
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i32, ld_i64, load_f32, st_f16, st_f32, store_f16, store_f32
from ..simd_math import add, mul, splat, sub
from .activation import norm_row
from .layout import PAGE
from .scalar_math import cos_sin, exp64, log64
from .vm import kernel


@kernel
def rope_table(ins: int, thread: int, threads: int) -> None:
    """cos and sin of position * inv_freq for the rows of this step."""
    n = ld_i64(ld_i64(ins + COUNT))
    positions, apart = ld_i64(ins + ROPE_TABLE.positions), ld_i64(ins + ROPE_TABLE.axis_stride)
    axes, out = ld_i64(ins + ROPE_TABLE.axes), ld_i64(ins + ROPE_TABLE.table)
    short, long = ld_i64(ins + ROPE_TABLE.inv_freq), ld_i64(ins + ROPE_TABLE.inv_freq_long)
    half, flags = ld_i64(ins + ROPE_TABLE.half), ld_i64(ins + ROPE_TABLE.long_flags)
    growth, length = ld_f32(ins + ROPE_TABLE.growth), ld_i64(ins + ROPE_TABLE.length)
    for t in range(n * thread // threads, n * (thread + 1) // threads):
        freq, scale = short, ld_f32(ins + ROPE_TABLE.scale)
        if long != 0 and ld_i32(flags + 4 * t) != 0:
            freq, scale = long, ld_f32(ins + ROPE_TABLE.long_scale)
        row, at = out + t * half * 8, positions + 4 * t
        slower = 0.0  # per frequency, as a logarithm
        if length != 0 and ld_i32(at) >= length:
            stretch = growth * (ld_i32(at) + 1.0) / length - growth + 1.0
            slower = log64(stretch) / (half - 1.0)
        for i in range(half):
            axis = ld_i32(axes + 4 * i) * apart if axes != 0 else 0
            turn = ld_f32(freq + 4 * i)
            if slower != 0.0:
                turn = f32(turn * exp64(-slower * i))
            angle = f32(f32(ld_i32(at + axis)) * turn)
            cos, sin = cos_sin(types.float64(angle))
            st_f32(row + 4 * i, f32(f32(cos) * scale))
            st_f32(row + 4 * (half + i), f32(f32(sin) * scale))


@njit(error_model="numpy")
def rotate(x: int, table: int, half: int) -> None:
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
def _store_key(x: int, page: int, group: int, size: int, slot: int, element: int) -> None:
    """One key into lane slot % 16 of its page."""
    at = page + ((group * 4 + slot // 16) * size * 16 + slot % 16) * element
    for d in range(size):
        if element == 4:
            st_f32(at + d * 64, ld_f32(x + 4 * d))
        else:
            st_f16(at + d * 32, ld_f32(x + 4 * d))


@njit(error_model="numpy")
def _store_value(x: int, page: int, group: int, size: int, slot: int, element: int) -> None:
    padded = (size + 15) // 16 * 16
    at = page + (group * PAGE + slot) * padded * element
    whole = size - size % 16
    for d in range(0, whole, 16):
        if element == 4:
            store_f32(at + 4 * d, load_f32(x + 4 * d))
        else:
            store_f16(at + 2 * d, load_f32(x + 4 * d))
    for d in range(whole, size):
        if element == 4:
            st_f32(at + 4 * d, ld_f32(x + 4 * d))
        else:
            st_f16(at + 2 * d, ld_f32(x + 4 * d))


@njit(error_model="numpy")
def _scale_row(x: int, size: int, scale: float) -> None:
    whole, factor = size - size % 16, splat(f32(scale))
    for d in range(0, whole, 16):
        store_f32(x + 4 * d, mul(load_f32(x + 4 * d), factor))
    for d in range(whole, size):
        st_f32(x + 4 * d, f32(ld_f32(x + 4 * d) * scale))


@kernel
def append(ins: int, thread: int, threads: int) -> None:
    """Norm and rotate queries (scaled, in place) and keys; store keys and values in their pages."""
    n = ld_i64(ld_i64(ins + COUNT))
    qkv, stride = ld_i64(ins + APPEND.qkv), ld_i64(ins + APPEND.stride)
    heads, groups = ld_i64(ins + APPEND.heads), ld_i64(ins + APPEND.kv_heads)
    size = ld_i64(ins + APPEND.size)
    table, half = ld_i64(ins + APPEND.rope), ld_i64(ins + APPEND.half)
    q_norm, k_norm = ld_i64(ins + APPEND.q_norm), ld_i64(ins + APPEND.k_norm)
    eps, scale = ld_f32(ins + APPEND.eps), ld_f32(ins + APPEND.scale)
    last = ld_i64(ins + APPEND.norm_last) != 0
    slots, tables = ld_i64(ins + APPEND.slots), ld_i64(ins + APPEND.tables)
    k_pool, v_pool = ld_i64(ins + APPEND.keys), ld_i64(ins + APPEND.values)
    k_page, v_page = ld_i64(ins + APPEND.k_page), ld_i64(ins + APPEND.v_page)
    element, fresh = ld_i64(ins + APPEND.element_bytes), ld_i64(ins + APPEND.fresh)
    units = n * (heads + groups)
    for unit in range(units * thread // threads, units * (thread + 1) // threads):
        t, head = unit // (heads + groups), unit % (heads + groups)
        x = qkv + t * stride + head * size * 4
        norm = q_norm if head < heads else k_norm
        if q_norm != 0 and not last:
            norm_row(x, norm, x, size, eps)
        if table != 0:
            rotate(x, table + t * half * 8, half)
        if last:
            norm_row(x, norm, x, size, eps)
        if head < heads:
            _scale_row(x, size, scale)
            continue
        place = ld_i32(slots + 4 * t)
        page = ld_i32(ld_i64(tables + 8 * t) + 4 * (place // PAGE))
        if fresh != 0:
            page = ld_i32(fresh + 4 * page)
        g, slot = head - heads, place % PAGE
        k, v = k_pool + page * k_page, v_pool + page * v_page
        if v_pool == 0:  # the key is the values, too
            _store_value(x, k, g, size, slot, element)
            continue
        _store_key(x, k, g, size, slot, element)
        _store_value(x + groups * size * 4, v, g, size, slot, element)
