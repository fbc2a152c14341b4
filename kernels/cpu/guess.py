"""Guesses of a draft head inside a program: see `kernels/guess.py`."""

from __future__ import annotations

import math

from numba import njit

from ..guess import ASK, DONE, GUESS, POOR, UNSURE
from ..simd import (
    atomic_store,
    f32,
    i32,
    ld_f32,
    ld_f64,
    ld_i64,
    load_f32,
    st_f32,
    st_f64,
    st_i32,
    st_i64,
    store_f32,
)
from ..simd_math import add, exp, lanes, splat, splat_i32, sub, sum_f32, where_less
from .layout import CTRL_CANCEL, PAGE, SEGMENT
from .race import drawn, drawn_of_largest, peak_of
from .vm import kernel

AXES = 5  # of `standing`


@njit(error_model="numpy")
def _likeliest_share(z: int, n: int) -> float:
    """The largest probability of softmax(z)."""
    peak, _ = peak_of(z, n)
    high, zero = splat(peak), splat(f32(0.0))
    total = zero
    for at in range(0, n, 16):
        first = min(at, n - 16)
        w = exp(sub(load_f32(z + 4 * first), high))
        total = add(total, where_less(lanes(), splat_i32(i32(at - first)), zero, w))
    return 1.0 / float(sum_f32(total))


@njit(error_model="numpy")
def _largest(z: int, n: int) -> int:
    """Index of the first of the largest logits, -1 where one is no number or it is not finite."""
    peak, sound = peak_of(z, n)
    if not abs(peak) < math.inf or sound != sound:
        return -1
    for i in range(n):
        if ld_f32(z + 4 * i) == peak:
            return i
    return -1


@njit(error_model="numpy")
def _picked(ask: int, z: int, n: int, position: int) -> int:
    """Index of the logit that is picked, -1 where the reference must tell."""
    race = ld_i64(ask + ASK.race)
    if race == 0:
        return _largest(z, n)
    if ld_i64(ask + ASK.largest) != 0:
        return drawn_of_largest(race, z, n, position)
    return drawn(race, z, n, position)


@njit(error_model="numpy")
def _picked_biased(ask: int, z: int, n: int, position: int) -> int:
    """The same of logits with what is added to some of them, which then are as they were."""
    count, places = ld_i64(ask + ASK.biased), ld_i64(ask + ASK.places)
    by, spare = ld_i64(ask + ASK.by), ld_i64(ask + ASK.spare)
    for i in range(count):
        at = z + 4 * ld_i64(places + 8 * i)
        st_f32(spare + 4 * i, ld_f32(at))
        st_f32(at, f32(ld_f32(at) + ld_f32(by + 4 * i)))
    found = _picked(ask, z, n, position)
    for i in range(count):
        st_f32(z + 4 * ld_i64(places + 8 * i), ld_f32(spare + 4 * i))
    return found


@njit(error_model="numpy")
def _ends(ask: int, token: int) -> bool:
    ends = ld_i64(ask + ASK.ends)
    for i in range(ld_i64(ask + ASK.end_count)):
        if ld_i64(ends + 8 * i) == token:
            return True
    return False


@njit(error_model="numpy")
def _make_ready(ins: int, ask: int, token: int) -> None:
    """The row of the next step."""
    rows = ld_i64(ld_i64(ins + GUESS.rows))
    source = ld_i64(ins + GUESS.next) + (rows - 1) * ld_i64(ins + GUESS.next_stride)
    hidden, width = ld_i64(ins + GUESS.hidden), ld_i64(ask + ASK.width)
    for i in range(0, width, 16):
        store_f32(hidden + 4 * i, load_f32(source + 4 * i))
    st_i32(ld_i64(ins + GUESS.token), i32(token))
    length = ld_i64(ask + ASK.length)
    standing, stride = ld_i64(ins + GUESS.standing), ld_i64(ins + GUESS.axis_stride)
    for axis in range(AXES):
        st_i32(standing + axis * stride, i32(length))
    st_i64(ld_i64(ins + GUESS.visible) + 8, length)
    st_i64(ld_i64(ins + GUESS.tiles) + 8, length // (PAGE * SEGMENT) + 1)
    st_i64(ask + ASK.length, length + 1)


@njit(error_model="numpy")
def _guess(ins: int, ask: int) -> int:
    """One guess; why there are to be no more, or 0."""
    z, n, made = ld_i64(ins + GUESS.z), ld_i64(ask + ASK.n), ld_i64(ask + ASK.made)
    reach = ld_f64(ask + ASK.reach) * _likeliest_share(z, n)
    st_f64(ask + ASK.reach, reach)
    if reach < ld_f64(ld_i64(ask + ASK.needed) + 8 * made):
        return POOR
    found = _picked_biased(ask, z, n, ld_i64(ask + ASK.position) + made)
    if found < 0:
        return UNSURE
    token = ld_i64(ld_i64(ask + ASK.ids) + 8 * found)
    st_i64(ld_i64(ask + ASK.tokens) + 8 * made, token)
    st_i64(ask + ASK.made, made + 1)
    if made + 1 == ld_i64(ask + ASK.limit) or _ends(ask, token):
        return DONE
    _make_ready(ins, ask, token)
    return 0


@kernel
def guess(ins: int, thread: int, threads: int) -> None:
    """Pick a guess and make the next step's row ready, or leave the program."""
    if thread != 0:
        return
    ask = ld_i64(ins + GUESS.ask)
    end = _guess(ins, ask)
    st_i64(ask + ASK.end, end)
    if end != 0:
        atomic_store(ld_i64(ins + GUESS.ctrl) + CTRL_CANCEL, 1)
