"""Draws of tokens: an exponential race over a row of logits, decided where it is certain.

The score of id i is e ** x over E, with x = (logit - peak) * scale in float32, as the reference has
it (`edgert/text/sampling.py`), and E = -log(1 - v) of the uniform number v that SplitMix64 makes of
(seed, position, i). Since E >= v,

    log2(score) <= x log2(e) - log2(v)

which needs no logarithm: the bits of a float32 as a whole number, over 2 ** 23, are at most 0.09
below its log2. One pass over all ids finds the largest bound of each block; the score of the id
that has the largest of all leaves a few whose bounds reach it, and those are worked out in float64.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from ..race import BLOCK, BOUNDS, GOLDEN, LEAST, MARGIN, PLACES, RACE, ROUNDS, VALUES, WEIGHTS
from ..simd import f32, i32, ld_f32, ld_f64, ld_i64, load_f32, st_f32, st_f64, st_i64, store_f32
from ..simd_math import (
    add,
    exp,
    lanes,
    larger,
    largest,
    max_f32,
    mul,
    splat,
    splat_i32,
    sub,
    sum_f32,
    to_f32,
    vabs,
    vmax,
    where_below,
    where_less,
)
from ..simd_words import (
    add_i64,
    bits_of,
    highest31,
    lanes_i64,
    load_i64,
    mul_i64,
    shift_right,
    splat_i64,
    xor_shifted,
)
from .scalar_math import LOG2_E, exp64, exponential64, log64
from .vm import entry

UNSURE = -1
SLACK = 1e-3  # of a bound in log2: roundings of float32 there and of NumPy's weights are below 1e-4
LOWEST = -1e30
SMALLEST = -700.0  # exponents below give weights of 0
STEP = GOLDEN - (1 << 64)
(_FIRST, _C1), (_SECOND, _C2), (_LAST, _) = ROUNDS
_C1, _C2 = _C1 - (1 << 64), _C2 - (1 << 64)


@njit(error_model="numpy")
def _mixed(x: int) -> int:
    """SplitMix64's finaliser of one word."""
    x = (x ^ shift_right(x, _FIRST)) * _C1
    x = (x ^ shift_right(x, _SECOND)) * _C2
    return x ^ shift_right(x, _LAST)


@njit(error_model="numpy")
def _key(seed: int, position: int) -> int:
    """What ids are added to, times STEP."""
    return _mixed(_mixed(seed) ^ _mixed((position + 1) * STEP)) + STEP


@njit(error_model="numpy")
def _id(ids: int, i: int) -> int:
    return ld_i64(ids + 8 * i) if ids != 0 else i


@njit(error_model="numpy")
def _exponential(key: int, name: int) -> float:
    """The exponential number of an id."""
    word = shift_right(_mixed(key + name * STEP), 11)
    return exponential64((float(word) + 0.5) * 2.0**-53)


@njit(error_model="numpy")
def _exponent(z: float, peak: float, scale: float) -> float:
    """What a weight is e to the power of, rounded as the reference has it."""
    return float(f32(f32(z - peak) * scale))


@njit(error_model="numpy")
def _weight(x: float) -> float:
    return exp64(x) if x > SMALLEST else 0.0


@njit(error_model="numpy")
def peak_of(z: int, n: int) -> tuple[float, float]:
    """The largest of at least 16 values, and a number that is NaN where one of them is."""
    top = load_f32(z)
    magnitude = vabs(top)
    for at in range(16, n, 16):
        v = load_f32(z + 4 * min(at, n - 16))
        top = vmax(v, top)
        magnitude = larger(vabs(v), magnitude)
    return max_f32(top), largest(magnitude)


@njit(error_model="numpy")
def _bounds(z: int, ids: int, key: int, at: int, floor: Any, peak: Any, scale: Any) -> Any:
    """Upper bounds of the scores of 16 ids, in log2; LOWEST for logits up to `floor`."""
    v = load_f32(z + 4 * at)
    x = mul(sub(v, peak), scale)
    if ids != 0:
        words = add_i64(mul_i64(load_i64(ids + 8 * at), splat_i64(STEP)), splat_i64(key))
    else:
        words = add_i64(mul_i64(lanes_i64(), splat_i64(STEP)), splat_i64(key + at * STEP))
    words = mul_i64(xor_shifted(words, _FIRST), splat_i64(_C1))
    words = mul_i64(xor_shifted(words, _SECOND), splat_i64(_C2))
    number = to_f32(highest31(words))  # v * 2 ** 31: the last round changes lower bits only
    log = sub(splat(f32(127.0 + 31.0)), mul(to_f32(bits_of(number)), splat(f32(2.0**-23))))
    return where_below(floor, v, add(mul(x, splat(f32(LOG2_E))), log), splat(f32(LOWEST)))


@njit(error_model="numpy")
def _bound_blocks(
    z: int, n: int, ids: int, key: int, floor: Any, peak: Any, scale: Any, bounds: int
) -> int:
    """The largest bound of each block to `bounds`; the number of the block with the largest."""
    best, found, least = f32(LOWEST), 0, max_f32(floor)
    for block in range((n + BLOCK - 1) // BLOCK):
        top, high = splat(f32(LOWEST)), floor
        for at in range(block * BLOCK, min((block + 1) * BLOCK, n), 16):
            high = vmax(load_f32(z + 4 * min(at, n - 16)), high)
        if max_f32(high) > least:
            for at in range(block * BLOCK, min((block + 1) * BLOCK, n), 16):
                top = vmax(_bounds(z, ids, key, min(at, n - 16), floor, peak, scale), top)
        bound = max_f32(top)
        st_f32(bounds + 4 * block, bound)
        if bound > best:
            best, found = bound, block
    return found


@njit(error_model="numpy")
def _best_bound(
    z: int, n: int, ids: int, key: int, floor: Any, peak: Any, scale: Any, block: int, room: int
) -> int:
    """The id of a block whose bound is largest."""
    best, found = f32(LOWEST), 0
    for at in range(block * BLOCK, min((block + 1) * BLOCK, n), 16):
        first = min(at, n - 16)
        store_f32(room, _bounds(z, ids, key, first, floor, peak, scale))
        for lane in range(16):
            bound = ld_f32(room + 4 * lane)
            if bound > best:
                best, found = bound, first + lane
    return found


@njit(error_model="numpy")
def _score(z: int, ids: int, key: int, i: int, peak: float, scale: float) -> float:
    weight = _weight(_exponent(ld_f32(z + 4 * i), peak, scale))
    return weight / _exponential(key, _id(ids, i))


@njit(error_model="numpy")
def _decided(best: float, second: float, found: int) -> int:
    """The winner, where no rounding could make the second one of it."""
    return found if second < best * (1.0 - MARGIN) else UNSURE


@njit(error_model="numpy")
def _winner(ask: int, z: int, n: int, key: int, peak: float, floor: float) -> int:
    """Who wins of the ids whose logits are above `floor`, or UNSURE where nobody is."""
    scale, ids, room = ld_f32(ask + RACE.scale), ld_i64(ask + RACE.ids), ld_i64(ask + RACE.room)
    low, high, by = splat(floor), splat(peak), splat(scale)
    block = _bound_blocks(z, n, ids, key, low, high, by, room + BOUNDS)
    first = _best_bound(z, n, ids, key, low, high, by, block, room)
    best, second, found = _score(z, ids, key, first, peak, scale), 0.0, first
    if not best > 0.0:
        return UNSURE
    least = f32(log64(best) * LOG2_E - SLACK)
    for block in range((n + BLOCK - 1) // BLOCK):
        if ld_f32(room + BOUNDS + 4 * block) < least:
            continue
        for at in range(block * BLOCK, min((block + 1) * BLOCK, n), 16):
            start = min(at, n - 16)
            bounds = _bounds(z, ids, key, start, low, high, by)
            if max_f32(bounds) < least:
                continue
            store_f32(room, bounds)
            for i in range(at, min(at + 16, n)):
                if i == first or ld_f32(room + 4 * (i - start)) < least:
                    continue
                score = _score(z, ids, key, i, peak, scale)
                if score > best:
                    best, second, found = score, best, i
                else:
                    second = max(second, score)
    return _decided(best, second, found)


@njit(error_model="numpy")
def _masses(z: int, n: int, value: float, peak: float, scale: float) -> tuple[float, float, float]:
    """Sums of weights: of all, of logits from `value` on, and of those above it."""
    zero, mark, high, by = splat(f32(0.0)), splat(value), splat(peak), splat(scale)
    total = reached = above = 0.0
    for block in range(0, n, BLOCK):
        part = part_reached = part_above = zero
        for at in range(block, min(block + BLOCK, n), 16):
            first = min(at, n - 16)
            v = load_f32(z + 4 * first)
            w = exp(mul(sub(v, high), by))
            w = where_less(lanes(), splat_i32(i32(at - first)), zero, w)  # counted before
            part = add(part, w)
            part_reached = add(part_reached, where_below(v, mark, zero, w))
            part_above = add(part_above, where_below(mark, v, w, zero))
        total += sum_f32(part)
        reached += sum_f32(part_reached)
        above += sum_f32(part_above)
    return total, reached, above


@njit(error_model="numpy")
def _stays(ask: int, z: int, n: int, peak: float, value: float) -> int:
    """Whether an id with this logit is left by top-p and min-p: 1, 0, or UNSURE. With top-p it is
    where those in front of it hold less than that share; equal ones stand by their number."""
    top_p, min_p = float(ld_f32(ask + RACE.top_p)), float(ld_f32(ask + RACE.min_p))
    cut = ld_f32(ask + RACE.cut)
    weight = _weight(_exponent(value, peak, cut))
    if abs(weight - min_p) < MARGIN * min_p:
        return UNSURE
    if weight < min_p:
        return 0
    if top_p == 1.0:
        return 1
    total, reached, above = _masses(z, n, value, peak, cut)
    edge, near = top_p * total, MARGIN * total
    if reached - weight < edge - near:
        return 1
    return 0 if above > edge + near else UNSURE


@njit(error_model="numpy")
def _lowest_left(ask: int, peak: float) -> float:
    """A logit that min-p leaves nothing up to, with room for roundings."""
    min_p, cut = float(ld_f32(ask + RACE.min_p)), float(ld_f32(ask + RACE.cut))
    if min_p == 0.0:
        return f32(-math.inf)
    room = 1e-3 * max(1.0, 1.0 / cut) + 1e-6 * abs(peak)
    return f32(float(peak) + log64(min_p) / cut - room)


@njit(error_model="numpy")
def drawn(ask: int, z: int, n: int, position: int) -> int:
    """Index of the logit that is drawn from softmax(z * scale), or from what top-p and min-p leave
    of it, or UNSURE. Who wins of all and is left wins; otherwise nothing below it is left either,
    and the others race again."""
    if n < LEAST:
        return UNSURE
    peak, sound = peak_of(z, n)
    if not abs(peak) < math.inf or sound != sound:
        return UNSURE
    key, floor = _key(ld_i64(ask + RACE.seed), position), _lowest_left(ask, peak)
    while True:
        found = _winner(ask, z, n, key, peak, floor)
        if found == UNSURE:
            return UNSURE
        floor = ld_f32(z + 4 * found)
        stays = _stays(ask, z, n, peak, floor)
        if stays != 0:
            return found if stays == 1 else UNSURE


@entry
def race(ask: int, z: int, n: int, position: int) -> int:
    """`drawn`, for Python."""
    return drawn(ask, z, n, position)


@njit(error_model="numpy")
def _insert(values: int, places: int, held: int, v: float, i: int) -> None:
    """Among `held` values that fall, behind those that are equal; the next place is overwritten."""
    j = held
    while j > 0 and ld_f32(values + 4 * (j - 1)) < v:
        st_f32(values + 4 * j, ld_f32(values + 4 * (j - 1)))
        st_i64(places + 8 * j, ld_i64(places + 8 * (j - 1)))
        j -= 1
    st_f32(values + 4 * j, f32(v))
    st_i64(places + 8 * j, i)


@njit(error_model="numpy")
def _keep_largest(z: int, n: int, k: int, values: int, places: int) -> float:
    """The k largest, falling, equal ones by their places; NaN where a value is."""
    held = 0
    magnitude = splat(f32(0.0))
    for at in range(0, n, 64):
        p = z + 4 * min(at, n - 64)
        a, b, c, d = load_f32(p), load_f32(p + 64), load_f32(p + 128), load_f32(p + 192)
        magnitude = larger(larger(vabs(a), vabs(b)), magnitude)
        magnitude = larger(larger(vabs(c), vabs(d)), magnitude)
        if held == k and not max_f32(vmax(vmax(a, b), vmax(c, d))) > ld_f32(values + 4 * (k - 1)):
            continue
        for i in range(at, min(at + 64, n)):
            v = ld_f32(z + 4 * i)
            if held < k:
                _insert(values, places, held, v, i)
                held += 1
            elif v > ld_f32(values + 4 * (k - 1)):
                _insert(values, places, k - 1, v, i)
    return largest(magnitude)


@njit(error_model="numpy")
def _weigh(values: int, k: int, peak: float, scale: float, weights: int) -> float:
    """Weights of falling values, and their sum."""
    total = 0.0
    for j in range(k):
        weight = _weight(_exponent(ld_f32(values + 4 * j), peak, scale))
        st_f64(weights + 8 * j, weight)
        total += weight
    return total


@njit(error_model="numpy")
def _cut(weights: int, k: int, total: float, top_p: float, min_p: float) -> int:
    """How many of falling weights top-p and min-p leave; UNSURE where one is on an edge."""
    reached = 0.0
    for j in range(k):
        weight = ld_f64(weights + 8 * j)
        if abs(weight - min_p) < MARGIN * min_p:
            return UNSURE
        if weight < min_p:
            return j
        reached += weight
        if top_p < 1.0:
            if abs(reached - top_p * total) < MARGIN * total:
                return UNSURE
            if reached > top_p * total:
                return j + 1
    return k


@njit(error_model="numpy")
def drawn_of_largest(ask: int, z: int, n: int, position: int) -> int:
    """Index of the logit that is drawn from what top-k, top-p and min-p leave, or UNSURE."""
    k, room = ld_i64(ask + RACE.top_k), ld_i64(ask + RACE.room)
    if n < LEAST or n <= k:
        return UNSURE
    values, places, weights = room + VALUES, room + PLACES, room + WEIGHTS
    sound, peak = _keep_largest(z, n, k, values, places), ld_f32(values)
    if not abs(peak) < math.inf or sound != sound:
        return UNSURE
    scale, cut = ld_f32(ask + RACE.scale), ld_f32(ask + RACE.cut)
    total = _weigh(values, k, peak, cut, weights)
    top_p, min_p = float(ld_f32(ask + RACE.top_p)), float(ld_f32(ask + RACE.min_p))
    count = _cut(weights, k, total, top_p, min_p)
    if count < 2:
        return ld_i64(places) if count == 1 else UNSURE
    if scale != cut:
        _weigh(values, count, peak, scale, weights)
    key, ids = _key(ld_i64(ask + RACE.seed), position), ld_i64(ask + RACE.ids)
    best, second, found = 0.0, 0.0, UNSURE
    for j in range(count):
        i = ld_i64(places + 8 * j)
        score = ld_f64(weights + 8 * j) / _exponential(key, _id(ids, i))
        if score > best:
            best, second, found = score, best, i
        else:
            second = max(second, score)
    return _decided(best, second, found)


@entry
def race_largest(ask: int, z: int, n: int, position: int) -> int:
    """`drawn_of_largest`, for Python."""
    return drawn_of_largest(ask, z, n, position)
