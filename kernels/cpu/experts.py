"""Products of stacked experts on the CPU: only those that a plan names are read (`routing.py`).

A unit of work is an expert with picks and SPREAD of its groups of outputs. What multiplies is the
kernel of `linear` for the weights' encoding, which gets an instruction of the unit's own: the rows
of up to TILE picks, brought together as it reads them, times these groups where they lie. So every
encoding that has products has experts, and a row's bits are those of `linear`, whatever tile it
stands in.

A thread's scratch:

    counter of claims | rows of the call | the instruction | sums float32 [TILE][groups][16] |
    TILE rows, as `x` has them | scratch of the product
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..experts import EXPERTS
from ..linear import LINEAR
from ..operands import COUNT
from ..simd import call_kernel, f32, ld_f32, ld_i32, ld_i64, load_f32, st_i32, st_i64, store_f32
from ..simd_math import add, mul, splat, sub, where_below
from .layout import CTRL_WORK, EXPERT_HEAD, EXPERT_SUMS, SPREAD, TILE
from .linear import GRAIN, finish
from .rows import activated
from .vm import claim, kernel

ROWS_AT, STEP_AT = 64, 128  # in scratch: how many rows a call has, its instruction


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
def _gather_floats(x: int, stride: int, each: int, picks: int, m: int, rows: int) -> None:
    """Float rows of m picks, one behind the other."""
    for t in range(m):
        row = x + ld_i64(picks + 8 * t) // each * stride
        for at in range(0, stride, 64):
            store_f32(rows + t * stride + at, load_f32(row + at))


@njit(error_model="numpy")
def _prepare(ins: int, scratch: int) -> None:
    """What all calls of a thread have in common."""
    step, stride = scratch + STEP_AT, ld_i64(ins + EXPERTS.x_stride)
    st_i64(step + COUNT, scratch + ROWS_AT)
    st_i64(step + LINEAR.depth, ld_i64(ins + EXPERTS.depth))
    st_i64(step + LINEAR.x_stride, stride)
    st_i64(step + LINEAR.y, scratch + EXPERT_HEAD)
    st_i64(step + LINEAR.bias, 0)
    st_i64(step + LINEAR.residual, 0)
    st_i64(step + LINEAR.act, 0)
    st_i64(step + LINEAR.scratch, scratch + EXPERT_HEAD + EXPERT_SUMS + TILE * stride)
    st_i64(step + LINEAR.scratch_bytes, 0)
    st_i64(step + LINEAR.ctrl, scratch)
    st_i64(step + LINEAR.past, ld_i64(ins + EXPERTS.past))
    st_i64(step + LINEAR.every, ld_i64(ins + EXPERTS.every))
    st_i64(step + LINEAR.kept, ld_i64(ins + EXPERTS.kept))


@njit(error_model="numpy")
def _rows(ins: int, scratch: int, picks: int, m: int, held: int) -> int:
    """The rows of m picks, as products read them; a single one where it lies. held: the picks whose
    rows are in scratch."""
    x, stride = ld_i64(ins + EXPERTS.x), ld_i64(ins + EXPERTS.x_stride)
    each, rows = ld_i64(ins + EXPERTS.each), scratch + EXPERT_HEAD + EXPERT_SUMS
    if m == 1:
        return x + ld_i64(picks) // each * stride
    if picks == held:
        return rows
    if ld_i64(ins + EXPERTS.coded) != 0:
        _gather(x, stride, each, picks, m, ld_i64(ins + EXPERTS.depth), rows)
    else:
        _gather_floats(x, stride, each, picks, m, rows)
    return rows


@njit(error_model="numpy")
def _multiply(ins: int, scratch: int, w: int, groups: int, x: int, m: int) -> int:
    """m rows times `groups` groups of 16 rows of weights: where the sums are."""
    step = scratch + STEP_AT
    st_i64(scratch + CTRL_WORK, 0)
    st_i64(scratch + ROWS_AT, m)
    st_i64(step + LINEAR.weights, w)
    st_i64(step + LINEAR.groups, groups)
    st_i64(step + LINEAR.x, x)
    st_i64(step + LINEAR.y_stride, 64 * groups)
    call_kernel(ld_i64(ins + EXPERTS.product), step, 0, 1)
    return scratch + EXPERT_HEAD


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


@njit(error_model="numpy")
def _answers(ins: int, sums: int, count: int, bias: int, y: int) -> None:
    """A row's `count` groups of 16 outputs."""
    for g in range(count):
        finish(load_f32(sums + 64 * g), y + 64 * g, bias + 64 * g if bias != 0 else 0, 0)


@njit(error_model="numpy")
def _gated(ins: int, sums: int, count: int, bias: int, y: int) -> None:
    """The same of groups of gates and of ups in turn."""
    for g in range(count):
        gate, up = load_f32(sums + 128 * g), load_f32(sums + 128 * g + 64)
        _hidden(ins, gate, up, bias + 64 * g if bias != 0 else 0, y + 64 * g)


def _over_experts(outputs: Any, per: int) -> Any:
    """A kernel of the products of all picks. outputs: makes a row's outputs of its sums. per:
    groups of weights of a group of outputs."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        if ld_i64(ld_i64(ins + COUNT)) == 0:
            return
        w, groups = ld_i64(ins + EXPERTS.weights), ld_i64(ins + EXPERTS.groups)
        y, apart = ld_i64(ins + EXPERTS.y), ld_i64(ins + EXPERTS.y_stride)
        bias, plan = ld_i64(ins + EXPERTS.bias), ld_i64(ins + EXPERTS.plan)
        scratch = ld_i64(ins + EXPERTS.scratch) + thread * ld_i64(ins + EXPERTS.scratch_bytes)
        experts, numbers = ld_i64(ins + EXPERTS.experts), plan + 8
        starts = numbers + 8 * experts
        order = starts + 8 * (experts + 1)
        spans, size = (groups + SPREAD - 1) // SPREAD, per * ld_i64(ins + EXPERTS.group_bytes)
        units, held = ld_i64(plan) * spans, 0
        _prepare(ins, scratch)
        while True:
            start, stop = claim(ld_i64(ins + EXPERTS.ctrl), units, threads, GRAIN)
            if start >= units:
                return
            for unit in range(start, stop):
                u, g = unit // spans, unit % spans * SPREAD
                first, last = ld_i64(starts + 8 * u), ld_i64(starts + 8 * u + 8)
                at, count = ld_i64(numbers + 8 * u) * groups + g, min(SPREAD, groups - g)
                own = bias + 64 * at if bias != 0 else 0
                for start_at in range(first, last, TILE):
                    picks, m = order + 8 * start_at, min(TILE, last - start_at)
                    x = _rows(ins, scratch, picks, m, held)
                    held = picks if m > 1 else held
                    sums = _multiply(ins, scratch, w + at * size, per * count, x, m)
                    for t in range(m):
                        to = y + ld_i64(picks + 8 * t) * apart + 64 * g
                        outputs(ins, sums + 64 * per * count * t, count, own, to)

    return run


_run_gated, _run_down = _over_experts(_gated, 2), _over_experts(_answers, 1)


@kernel
def experts_gated(ins: int, thread: int, threads: int) -> None:
    """Gates and ups of picked experts, activation applied."""
    _run_gated(ins, thread, threads)


@kernel
def experts_down(ins: int, thread: int, threads: int) -> None:
    """Answers of picked experts."""
    _run_down(ins, thread, threads)
