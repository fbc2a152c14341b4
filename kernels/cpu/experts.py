"""Products of stacked experts on the CPU: only those that a plan names are read (`routing.py`).

A unit of work is an expert with picks and SPREAD of its groups of outputs. Rows of its picks are
brought together in tiles, so that weights are unpacked once for up to 32 of them. A row's bits are
those of the row kernels of `linear.py` and `linear_float.py`, whatever tile it stands in.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..experts import EXPERTS
from ..operands import COUNT
from ..simd import (
    add,
    f32,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f32,
    mul,
    splat,
    st_i32,
    st_i64,
    store_f32,
    sub,
    where_below,
)
from ..simd_code_tiles import WIDE
from ..simd_tiles import TALL
from .layout import INT4_BYTES, INT8_BYTES, ROWS, SPAN, TILE
from .linear import (
    GRAIN,
    finish,
    row_int4,
    row_int8,
    tile_int4,
    tile_int8,
    wide_int4,
    wide_int8,
)
from .linear_float import SUMS, lone_of, span_of
from .rows import activated
from .vm import claim, kernel

SPREAD = 8  # groups of outputs of a unit of work
SUMMED = 64 * WIDE * TILE  # scratch: sums of a tile stand before its rows


@njit(error_model="numpy")
def _gather(x: int, stride: int, each: int, picks: int, m: int, blocks: int, tile: int) -> None:
    """The rows of m picks, tiles of one row, as one tile of m."""
    scales = tile + blocks * m * 32
    corrections = scales + blocks * m * 4
    for t in range(m):
        row = x + ld_i64(picks + 8 * t) // each * stride
        factors = row + blocks * 32
        for b in range(blocks):
            k = b * m + t
            for i in range(0, 32, 8):
                st_i64(tile + 32 * k + i, ld_i64(row + 32 * b + i))
            st_i32(scales + 4 * k, ld_i32(factors + 4 * b))
            st_i32(corrections + 4 * k, ld_i32(factors + 4 * (blocks + b)))


@njit(error_model="numpy")
def _hidden(ins: int, gate: Any, up: Any, bias: int, y: int) -> None:
    """act(gate) * (up + shift) of 16 outputs, both clamped where there is a limit; bias: of the
    gates, those of ups stand E * F behind, 0 for none."""
    if bias != 0:
        past = 64 * ld_i64(ins + EXPERTS.groups) * ld_i64(ins + EXPERTS.experts)
        gate, up = add(gate, load_f32(bias)), add(up, load_f32(bias + past))
    limit = ld_f32(ins + EXPERTS.limit)
    if limit > f32(0.0):
        high = splat(limit)
        low = sub(splat(f32(0.0)), high)
        gate = where_below(high, gate, high, gate)
        up = where_below(high, up, high, where_below(up, low, low, up))
    shifted = add(up, splat(ld_f32(ins + EXPERTS.shift)))
    store_f32(y, mul(activated(gate, ld_i64(ins + EXPERTS.act)), shifted))


def _over_experts(work: Any, per: int, depth_bytes: int) -> Any:
    """A kernel of what is done for up to TILE picks of an expert: work(ins, w, bias, g0, g1, picks,
    m, scratch) for its outputs' groups g0 to g1. per: groups of weights of such a group."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        if ld_i64(ld_i64(ins + COUNT)) == 0:
            return
        w, groups = ld_i64(ins + EXPERTS.weights), ld_i64(ins + EXPERTS.groups)
        size = per * groups * ld_i64(ins + EXPERTS.depth) * depth_bytes
        bias, plan = ld_i64(ins + EXPERTS.bias), ld_i64(ins + EXPERTS.plan)
        scratch = ld_i64(ins + EXPERTS.scratch) + thread * ld_i64(ins + EXPERTS.scratch_bytes)
        experts, numbers = ld_i64(ins + EXPERTS.experts), plan + 8
        starts = numbers + 8 * experts
        order = starts + 8 * (experts + 1)
        spans = (groups + SPREAD - 1) // SPREAD
        units = ld_i64(plan) * spans
        while True:
            start, stop = claim(ld_i64(ins + EXPERTS.ctrl), units, threads, GRAIN)
            if start >= units:
                return
            for unit in range(start, stop):
                u, g0 = unit // spans, unit % spans * SPREAD
                e, first = ld_i64(numbers + 8 * u), ld_i64(starts + 8 * u)
                last = ld_i64(starts + 8 * u + 8)
                own = bias + 64 * groups * e if bias != 0 else 0
                for at in range(first, last, TILE):
                    work(
                        ins, w + e * size, own, g0, min(g0 + SPREAD, groups), order + 8 * at,
                        min(TILE, last - at), scratch,
                    )  # fmt: skip

    return run


def _coded_gated(row_kernel: Any, wide_kernel: Any, group_bytes: int) -> Any:
    @njit(error_model="numpy")
    def work(
        ins: int, w: int, bias: int, g0: int, g1: int, picks: int, m: int, scratch: int
    ) -> None:
        x, stride = ld_i64(ins + EXPERTS.x), ld_i64(ins + EXPERTS.x_stride)
        y, apart = ld_i64(ins + EXPERTS.y), ld_i64(ins + EXPERTS.y_stride)
        blocks, each = ld_i64(ins + EXPERTS.depth), ld_i64(ins + EXPERTS.each)
        past = ld_i64(ins + EXPERTS.past)
        tile = x + ld_i64(picks) // each * stride
        if m > 1:
            tile = scratch + SUMMED
            _gather(x, stride, each, picks, m, blocks, tile)
        for g in range(g0, g1):
            wg = w + 2 * g * blocks * group_bytes
            bg, to = bias + 64 * g if bias != 0 else 0, y + 64 * g
            if m == 1:
                of_gate = row_kernel(wg, blocks, tile, past)
                of_up = row_kernel(wg + blocks * group_bytes, blocks, tile, past)
                _hidden(ins, of_gate, of_up, bg, to + ld_i64(picks) * apart)
                continue
            wide_kernel(wg, blocks, tile, m, scratch, past)
            for t in range(m):
                of_gate, of_up = load_f32(scratch + 64 * t), load_f32(scratch + 64 * (TILE + t))
                _hidden(ins, of_gate, of_up, bg, to + ld_i64(picks + 8 * t) * apart)

    return _over_experts(work, 2, group_bytes)


def _coded_down(row_kernel: Any, tile_kernel: Any, wide_kernel: Any, group_bytes: int) -> Any:
    @njit(error_model="numpy")
    def work(
        ins: int, w: int, bias: int, g0: int, g1: int, picks: int, m: int, scratch: int
    ) -> None:
        x, stride = ld_i64(ins + EXPERTS.x), ld_i64(ins + EXPERTS.x_stride)
        y, apart = ld_i64(ins + EXPERTS.y), ld_i64(ins + EXPERTS.y_stride)
        blocks, past = ld_i64(ins + EXPERTS.depth), ld_i64(ins + EXPERTS.past)
        if m == 1:
            tile, to = x + ld_i64(picks) * stride, y + ld_i64(picks) * apart
            for g in range(g0, g1):
                total = row_kernel(w + g * blocks * group_bytes, blocks, tile, past)
                finish(total, to + 64 * g, bias + 64 * g if bias != 0 else 0, 0)
            return
        tile = scratch + SUMMED
        _gather(x, stride, 1, picks, m, blocks, tile)
        for g in range(g0, g1, WIDE):
            wg, several = w + g * blocks * group_bytes, min(WIDE, g1 - g)
            if several == WIDE:
                wide_kernel(wg, blocks, tile, m, scratch, past)
            else:
                tile_kernel(wg, blocks, tile, m, scratch, past)
            for t in range(m):
                to = y + ld_i64(picks + 8 * t) * apart
                for i in range(g, g + several):
                    total = load_f32(scratch + 64 * (TILE * (i - g) + t))
                    finish(total, to + 64 * i, bias + 64 * i if bias != 0 else 0, 0)

    return _over_experts(work, 1, group_bytes)


def _float(element: int, *, gated: bool) -> Any:
    span, lone = span_of(half=element == 2), lone_of(half=element == 2)
    per = 2 if gated else 1

    @njit(error_model="numpy")
    def work(
        ins: int, w: int, bias: int, g0: int, g1: int, picks: int, m: int, scratch: int
    ) -> None:
        x, stride = ld_i64(ins + EXPERTS.x), ld_i64(ins + EXPERTS.x_stride)
        y, apart = ld_i64(ins + EXPERTS.y), ld_i64(ins + EXPERTS.y_stride)
        k, each = ld_i64(ins + EXPERTS.depth), ld_i64(ins + EXPERTS.each)
        size, sums = k * ROWS * element, scratch + SUMS
        for g in range(g0, g1, SPAN // per):
            count = min(SPAN // per, g1 - g)
            wg = w + per * g * size
            for t in range(0, m, TALL):
                for i in range(TALL):
                    pick = ld_i64(picks + 8 * min(t + i, m - 1))
                    st_i64(scratch + 8 * i, x + pick // each * stride)
                if m == 1:
                    lone(wg, size, per * count, k, scratch, sums)
                else:
                    span(wg, size, per * count, k, 1, scratch, sums, 0)
                next_group = 64 if m == 1 else 64 * TALL
                for i in range(min(TALL, m - t)):
                    to = y + ld_i64(picks + 8 * (t + i)) * apart
                    for j in range(count):
                        at, bg = sums + per * j * next_group + 64 * i, 64 * (g + j)
                        own = bias + bg if bias != 0 else 0
                        if gated:
                            _hidden(ins, load_f32(at), load_f32(at + next_group), own, to + bg)
                        else:
                            finish(load_f32(at), to + bg, own, 0)

    return _over_experts(work, per, ROWS * element)


_int4_gated = _coded_gated(row_int4, wide_int4, INT4_BYTES)
_int8_gated = _coded_gated(row_int8, wide_int8, INT8_BYTES)
_int4_down = _coded_down(row_int4, tile_int4, wide_int4, INT4_BYTES)
_int8_down = _coded_down(row_int8, tile_int8, wide_int8, INT8_BYTES)
_f32_gated, _f16_gated = _float(4, gated=True), _float(2, gated=True)
_f32_down, _f16_down = _float(4, gated=False), _float(2, gated=False)


@kernel
def experts_gated_int4(ins: int, thread: int, threads: int) -> None:
    """Gates and ups of picked experts, activation applied: int4-g32 weights."""
    _int4_gated(ins, thread, threads)


@kernel
def experts_gated_int8(ins: int, thread: int, threads: int) -> None:
    """The same of int8-g32 weights."""
    _int8_gated(ins, thread, threads)


@kernel
def experts_gated_f32(ins: int, thread: int, threads: int) -> None:
    """The same of float32 weights."""
    _f32_gated(ins, thread, threads)


@kernel
def experts_gated_f16(ins: int, thread: int, threads: int) -> None:
    """The same of float16 weights."""
    _f16_gated(ins, thread, threads)


@kernel
def experts_down_int4(ins: int, thread: int, threads: int) -> None:
    """Answers of picked experts: int4-g32 weights."""
    _int4_down(ins, thread, threads)


@kernel
def experts_down_int8(ins: int, thread: int, threads: int) -> None:
    """The same of int8-g32 weights."""
    _int8_down(ins, thread, threads)


@kernel
def experts_down_f32(ins: int, thread: int, threads: int) -> None:
    """The same of float32 weights."""
    _f32_down(ins, thread, threads)


@kernel
def experts_down_f16(ins: int, thread: int, threads: int) -> None:
    """The same of float16 weights."""
    _f16_down(ins, thread, threads)
