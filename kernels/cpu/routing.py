"""Routers of experts on the CPU: which experts a row goes to, which rows an expert gets, and the
sum of their answers.

A pick is number t * active + rank, for row t's expert of that rank. A plan is int64 words:

    used        how many experts have picks
    numbers     [E], the first `used` of them: those experts, rising
    starts      [E + 1], the first `used` + 1 of them: where their picks begin in `order`
    order       picks by expert, rising for each
"""

from __future__ import annotations

from numba import njit

from ..experts import EACH, MIX, PLAN, ROUTE
from ..operands import COUNT
from ..simd import bcast_f32, f32, ld_f32, ld_i64, load_f32, st_f32, st_i64, store_f32
from ..simd_math import add, fma, splat
from .activation import share
from .quantize import quantize_row
from .scalar_math import exp64
from .vm import kernel

LOWEST = -700.0  # exponents below it are taken for it: their e ** x counts as nothing


@njit(error_model="numpy")
def _share_of(x: float, top: float) -> float:
    """e ** (x - top) for x <= top; NaN stays NaN."""
    return exp64(max(float(x) - float(top), LOWEST)) if x == x else float(x)


@njit(error_model="numpy")
def _pick(row: int, taken: int, experts: int) -> int:
    """The expert of largest logit that is not taken, the first of equals; one even among NaN."""
    best = -1
    for e in range(experts):
        if ld_i64(taken + 8 * e) == 0 and (
            best < 0 or ld_f32(row + 4 * e) > ld_f32(row + 4 * best)
        ):
            best = e
    st_i64(taken + 8 * best, 1)
    return best


@kernel
def route(ins: int, thread: int, threads: int) -> None:
    """Picked experts of each row and what their answers are multiplied by; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    logits, stride = ld_i64(ins + ROUTE.logits), ld_i64(ins + ROUTE.stride)
    experts, active = ld_i64(ins + ROUTE.experts), ld_i64(ins + ROUTE.active)
    normalised, scale = ld_i64(ins + ROUTE.normalised), ld_f32(ins + ROUTE.scale)
    choices, apart = ld_i64(ins + ROUTE.choices), ld_i64(ins + ROUTE.choice_stride)
    taken = ld_i64(ins + ROUTE.scratch) + thread * ld_i64(ins + ROUTE.scratch_bytes)
    start, stop = share(n, thread, threads)
    for t in range(start, stop):
        row, to = logits + t * stride, choices + t * apart
        for e in range(experts):
            st_i64(taken + 8 * e, 0)
        total, top = 0.0, 0.0
        for j in range(active):
            e = _pick(row, taken, experts)
            st_i64(to + 8 * j, e)
            top = float(ld_f32(row + 4 * e)) if j == 0 else top
            total += _share_of(ld_f32(row + 4 * e), top)
        if normalised == 0:
            total = 0.0
            for e in range(experts):
                total += _share_of(ld_f32(row + 4 * e), top)
        for j in range(active):
            x = ld_f32(row + 4 * ld_i64(to + 8 * j))
            st_f32(to + 8 * active + 4 * j, f32(float(scale) * _share_of(x, top) / total))


@kernel
def plan_experts(ins: int, thread: int, threads: int) -> None:
    """Picks by expert, counted and laid out by the first thread."""
    n = ld_i64(ld_i64(ins + COUNT))
    if thread != 0 or n == 0:
        return
    choices, apart = ld_i64(ins + PLAN.choices), ld_i64(ins + PLAN.choice_stride)
    experts, active = ld_i64(ins + PLAN.experts), ld_i64(ins + PLAN.active)
    plan = ld_i64(ins + PLAN.plan)
    numbers = plan + 8
    starts = numbers + 8 * experts
    order = starts + 8 * (experts + 1)
    for e in range(experts + 1):
        st_i64(starts + 8 * e, 0)
    for t in range(n):
        for j in range(active):
            at = starts + 8 * ld_i64(choices + t * apart + 8 * j)
            st_i64(at, ld_i64(at) + 1)
    total = 0
    for e in range(experts):  # counts become places
        count = ld_i64(starts + 8 * e)
        st_i64(starts + 8 * e, total)
        total += count
    for t in range(n):
        for j in range(active):
            at = starts + 8 * ld_i64(choices + t * apart + 8 * j)
            st_i64(order + 8 * ld_i64(at), t * active + j)
            st_i64(at, ld_i64(at) + 1)
    used, first = 0, 0
    for e in range(experts):  # each place has moved on to the next one's
        last = ld_i64(starts + 8 * e)
        if last > first:
            st_i64(numbers + 8 * used, e)
            st_i64(starts + 8 * used, first)
            used, first = used + 1, last
    st_i64(starts + 8 * used, first)
    st_i64(plan, used)


@kernel
def quantize_each(ins: int, thread: int, threads: int) -> None:
    """Rows to int8 tiles of one row each (layout in `linear.py`), shared out."""
    n = ld_i64(ld_i64(ins + COUNT)) * ld_i64(ins + EACH.each)
    x, stride, width = ld_i64(ins + EACH.x), ld_i64(ins + EACH.x_stride), ld_i64(ins + EACH.width)
    blocks, offset = ld_i64(ins + EACH.blocks), ld_i64(ins + EACH.offset)
    y, apart = ld_i64(ins + EACH.y), ld_i64(ins + EACH.y_stride)
    spare = ld_i64(ins + EACH.scratch) + thread * ld_i64(ins + EACH.scratch_bytes)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        quantize_row(x + row * stride, width, y + row * apart, 0, 1, blocks, offset, spare)


@kernel
def mix_experts(ins: int, thread: int, threads: int) -> None:
    """The answers of each row's picks by their weights, in their order; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    parts, stride, y = ld_i64(ins + MIX.parts), ld_i64(ins + MIX.stride), ld_i64(ins + MIX.y)
    active, residual = ld_i64(ins + MIX.active), ld_i64(ins + MIX.residual)
    choices, apart = ld_i64(ins + MIX.choices), ld_i64(ins + MIX.choice_stride)
    start, stop = share(n, thread, threads)
    for t in range(start, stop):
        by = choices + t * apart + 8 * active
        for at in range(0, stride, 64):
            total = splat(f32(0.0))
            for j in range(active):
                part = load_f32(parts + (t * active + j) * stride + at)
                total = fma(part, bcast_f32(by + 4 * j), total)
            if residual != 0:
                total = add(total, load_f32(residual + t * stride + at))
            store_f32(y + t * stride + at, total)
