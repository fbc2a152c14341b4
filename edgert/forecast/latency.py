"""Seconds of a step, of a token and of a prompt: the work of each instruction over the rates of a
device.

    t = step + sum_i ( launch_i + max(bytes_i / bandwidth, operations_i / compute) + looking back )

Bandwidth is that of the product's kernel, or of attention, at the size of all weights, keys and
values that a step reads, for what fits a cache is read from there. Of many rows each output costs
its operations, and a constant for being summed up and stored. One row looks back at keys and values
by their bytes and its operations on them, many rows by operations alone, for they share what they
read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from ..devices.profile import Rates
from ..session.pace import GAIN
from .rates import at_size, product_of
from .work import MAX_ROWS, Work, weight_bytes


def step_seconds(
    found: Sequence[Work], rates: Rates, *, rows: int = 1, depth: int = 0, logits: int = 1
) -> float:
    """Seconds of a step of `rows` tokens of one sequence that has `depth` before them, with logits
    for the last `logits` of them."""
    return sum(parts_of(found, rates, rows=rows, depth=depth, logits=logits).values())


def paced_seconds(
    found: Sequence[Work], rates: Rates, alone: Rates | None, *, rows: int = 1, depth: int = 0,
    logits: int = 1,
) -> float:  # fmt: skip
    """The same of a step of few rows in a session, which takes those with one thread where that
    is quicker by so much that it notices (`edgert.session.pace`), as on a machine that other
    programs use. alone: rates of one thread, None for no choice."""
    team = step_seconds(found, rates, rows=rows, depth=depth, logits=logits)
    if alone is None or alone.threads == rates.threads:
        return team
    single = step_seconds(found, alone, rows=rows, depth=depth, logits=logits)
    return single if single < GAIN * team else team


def parts_of(
    found: Sequence[Work], rates: Rates, *, rows: int = 1, depth: int = 0, logits: int = 1
) -> dict[str, float]:
    """The same by what the time goes to: launches, products, attention and everything else."""
    return _parts(found, rates, {"T": rows, "R": min(logits, rows)}, depth)


def run_parts(found: Sequence[Work], rates: Rates, counts: Mapping[str, int]) -> dict[str, float]:
    """The same of a graph without states that is run once (`Session.run`). counts: rows by the
    symbols of the graph."""
    return _parts(found, rates, counts, 0)


def _parts(
    found: Sequence[Work], rates: Rates, counts: Mapping[str, int], depth: int
) -> dict[str, float]:
    size = weight_bytes(list(found))
    if counts.get("T") == 1:  # of many rows keys and values are read once for all
        size += sum(_visible(work, depth) * work.cache for work in found)
    parts = {"launches": rates.step_s, "products": 0.0, "attention": 0.0, "rest": 0.0}
    for work in found:
        count = rows_of(work.rows, counts)
        if count == 0:
            continue
        one = count == 1
        if work.waits[0 if one else 1] or work.rows == "R":
            parts["launches"] += work.launches * rates.launch_s
        parts["rest"] += count * work.values / (rates.values_s if one else rates.rows_s)
        parts["rest"] += count * work.launches * rates.row_s if not one and by_row(work) else 0.0
        parts["rest"] += count * work.state / at_size(rates.read, size)
        if work.nbytes:
            parts["products"] += _product(work, rates, count, size)
        if work.against:
            pairs = count * rows_of(work.against, counts)
            parts["attention"] += pairs * work.look_ops / product_of(rates, work.kernel).ops_s
        elif work.look_ops:
            parts["attention"] += _looking_back(work, rates, count, depth, size)
    return parts


def by_row(work: Work) -> bool:
    """Whether a kernel has something to do for each row besides its values: products, but of
    convolutions, and attention."""
    return bool(work.nbytes or work.look_ops) and not work.kernel.startswith("conv_")


def rows_of(symbol: str, counts: Mapping[str, int]) -> int:
    """How many rows a symbol, or a number, stands for; as many as get logits for one that nobody
    knows."""
    return int(symbol) if symbol.isdecimal() else counts.get(symbol, counts.get("R", 1))


def _product(work: Work, rates: Rates, count: int, size: float) -> float:
    product = product_of(rates, work.kernel)
    reading = work.nbytes / at_size(product.decode, size)
    each = work.ops / product.ops_s + (0.0 if count == 1 else work.outs * product.out_s)
    return max(reading, count * each)


def _looking_back(work: Work, rates: Rates, count: int, depth: int, size: float) -> float:
    """Rows look back at `depth` tokens and at those before them in the step."""
    if count == 1:
        reading = at_size(rates.attend_read, size) if rates.attend_read else rates.attend_bytes_s
        return _visible(work, depth) * (
            work.cache / reading + work.look_ops / rates.attend_row_ops_s
        )
    seen = sum_seen(count, depth, work.window)
    return seen * work.look_ops / rates.attend_ops_s


def _visible(work: Work, depth: int) -> int:
    """Tokens that one row sees, itself among them."""
    return min(depth + 1, work.window or depth + 1)


def sum_seen(count: int, depth: int, window: int = 0) -> float:
    """Pairs of a row and a token that it sees, for `count` rows after `depth` tokens."""
    total = count * depth + count * (count + 1) / 2
    if not window or depth + count <= window:
        return total
    growing = max(0, min(count, window - depth))  # rows that do not see a whole window yet
    return growing * depth + growing * (growing + 1) / 2 + (count - growing) * window


def prompt_seconds(
    found: Sequence[Work], rates: Rates, tokens: int, *, depth: int = 0, chunk: int = MAX_ROWS
) -> float:
    """Seconds to read a prompt of `tokens` in steps of `chunk`, logits of its last token only."""
    total = 0.0
    for start in range(0, tokens, chunk):
        count = min(chunk, tokens - start)
        last = start + count == tokens
        total += step_seconds(
            found, rates, rows=count, depth=depth + start, logits=1 if last else 0
        )
    return total


class Interval(NamedTuple):
    """A predicted time and the band that holds it with 90 % probability, seconds."""

    seconds: float
    low: float
    high: float


def interval(seconds: float, spread: float, share: float = 0.9) -> Interval:
    """The band around a prediction whose error is lognormal with deviation `spread`."""
    z = NormalDist().inv_cdf((1 + share) / 2)
    return Interval(seconds, seconds * math.exp(-z * spread), seconds * math.exp(z * spread))


def within(seconds: float, budget: float, spread: float, percentile: float = 0.95) -> float:
    """How much of a budget a time takes, with the margin that its uncertainty asks for; at most 1
    where it is kept with this probability."""
    margin = NormalDist().inv_cdf(percentile) * spread
    return seconds * math.exp(margin) / budget
