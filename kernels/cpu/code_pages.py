"""Pages of keys and values turned into codes, once a step has filled them (`kv_codes.py`).

`append` has put the step's keys and values into pages of float16. Whoever appends the last token of
a page has it coded: what stands there is then the same whatever steps the tokens came in.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from ..attention_lower import CODE_PAGE
from ..operands import COUNT
from ..simd import f32, ld_f16, ld_i32, ld_i64, st_f16, st_i8
from .layout import CODE_CHANNELS, CODE_TOKENS, PAGE
from .vm import kernel

WHOLE = 12582912.0  # 1.5 * 2**23: float32 numbers of that size have no digits behind the point


@njit(error_model="numpy")
def _scaled(low: float, high: float, levels: float, scale_at: int, low_at: int) -> float:
    """Store scale and minimum; returns what a difference from the minimum is multiplied by."""
    st_f16(scale_at, f32(f32(high - low) * f32(f32(1.0) / f32(levels))))
    st_f16(low_at, f32(low))
    scale = ld_f16(scale_at)
    return f32(f32(1.0) / scale) if scale > f32(0.0) else f32(0.0)


@njit(error_model="numpy")
def _code(x: float, low: float, inverse: float, levels: float) -> int:
    code = min(max(f32(f32(x - low) * inverse), f32(0.0)), f32(levels))
    return types.int32(f32(f32(code + f32(WHOLE)) - f32(WHOLE)))


@njit(error_model="numpy")
def _code_keys(raw: int, codes: int, parameters: int, size: int, padded: int) -> None:
    """Keys float16 [4][D][16] of a head, by channel over 32 tokens each."""
    for half in range(PAGE // CODE_TOKENS):
        scales = parameters + half * 4 * padded
        for d in range(size):
            first = 2 * half * size + d  # two vectors of 16 tokens, D apart
            low = high = ld_f16(raw + first * 32)
            for t in range(1, CODE_TOKENS):
                x = ld_f16(raw + (first + t // 16 * size) * 32 + t % 16 * 2)
                low, high = min(low, x), max(high, x)
            inverse = _scaled(low, high, 255.0, scales + 2 * d, scales + 2 * (padded + d))
            for t in range(CODE_TOKENS):
                at = first + t // 16 * size
                x = ld_f16(raw + at * 32 + t % 16 * 2)
                st_i8(codes + at * 16 + t % 16, types.int8(_code(x, low, inverse, 255.0)))


def _value_coder(bits: int) -> Any:
    levels = float((1 << bits) - 1)

    @njit(error_model="numpy")
    def code_values(raw: int, codes: int, parameters: int, size: int, padded: int) -> None:
        """Values float16 [64][DP] of a head, by token over 32 channels each."""
        groups = (size + CODE_CHANNELS - 1) // CODE_CHANNELS
        for t in range(PAGE):
            for g in range(groups):
                at = raw + (t * padded + g * CODE_CHANNELS) * 2
                count = min(CODE_CHANNELS, size - g * CODE_CHANNELS)
                low = high = ld_f16(at)
                for d in range(1, count):
                    x = ld_f16(at + 2 * d)
                    low, high = min(low, x), max(high, x)
                scales = parameters + g * 4 * PAGE + 2 * t
                inverse = _scaled(low, high, levels, scales, scales + 2 * PAGE)
                if bits == 8:
                    out = codes + t * padded + g * CODE_CHANNELS
                    for d in range(count):
                        code = _code(ld_f16(at + 2 * d), low, inverse, levels)
                        st_i8(out + d, types.int8(code))
                    continue
                out = codes + (t * groups + g) * 16
                for d in range(16):
                    pair = 0
                    if d < count:
                        pair = _code(ld_f16(at + 2 * d), low, inverse, levels)
                    if d + 16 < count:
                        pair += 16 * _code(ld_f16(at + 2 * d + 32), low, inverse, levels)
                    st_i8(out + d, types.int8(pair))

    return code_values


def _coder(bits: int) -> Any:
    code_values = _value_coder(bits)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        groups, size = ld_i64(ins + CODE_PAGE.kv_heads), ld_i64(ins + CODE_PAGE.size)
        slots, tables = ld_i64(ins + CODE_PAGE.slots), ld_i64(ins + CODE_PAGE.tables)
        fresh = ld_i64(ins + CODE_PAGE.fresh)
        padded = (size + 15) // 16 * 16
        row = padded
        if bits == 4:
            row = (size + CODE_CHANNELS - 1) // CODE_CHANNELS * 16
        k_bytes, v_bytes = ld_i64(ins + CODE_PAGE.k_page), ld_i64(ins + CODE_PAGE.v_page)
        units = n * groups
        for unit in range(units * thread // threads, units * (thread + 1) // threads):
            t, g = unit // groups, unit % groups
            slot = ld_i32(slots + 4 * t)
            if slot % PAGE != PAGE - 1:
                continue
            page = ld_i32(ld_i64(tables + 8 * t) + 4 * (slot // PAGE))
            raw = ld_i32(fresh + 4 * page)
            k = ld_i64(ins + CODE_PAGE.keys) + page * k_bytes
            v = ld_i64(ins + CODE_PAGE.values) + page * v_bytes
            raw_k = ld_i64(ins + CODE_PAGE.fresh_keys) + (raw * groups + g) * PAGE * size * 2
            raw_v = ld_i64(ins + CODE_PAGE.fresh_values) + (raw * groups + g) * PAGE * padded * 2
            parameters = k + groups * PAGE * size + g * (PAGE // CODE_TOKENS) * 4 * padded
            _code_keys(raw_k, k + g * PAGE * size, parameters, size, padded)
            groups_of = (size + CODE_CHANNELS - 1) // CODE_CHANNELS
            parameters = v + groups * PAGE * row + g * groups_of * 4 * PAGE
            code_values(raw_v, v + g * PAGE * row, parameters, size, padded)

    return run


_int8, _int4 = _coder(8), _coder(4)


@kernel
def code_page_int8(ins: int, thread: int, threads: int) -> None:
    """Keys and values of full pages in codes of 8 bits."""
    _int8(ins, thread, threads)


@kernel
def code_page_int4(ins: int, thread: int, threads: int) -> None:
    """Keys of full pages in codes of 8 bits, values of 4."""
    _int4(ins, thread, threads)
