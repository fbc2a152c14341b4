"""The middle of the chain: which tokens are left, and with what probabilities.

    top-k -> typical -> top-p -> min-p -> XTC, with the temperature behind or in front of them

Each works on what the one before left, renormalised. Definitions: top-p is nucleus sampling
(arXiv 1904.09751), min-p arXiv 2407.01082, typical arXiv 2202.00666, XTC ("exclude top choices")
oobabooga/text-generation-webui#6335; the dynamic temperature is koboldcpp's, with the exponent of
llama.cpp. Where a formula leaves something open (whether the token on the edge is kept), llama.cpp
decides.
"""

from __future__ import annotations

import math

import numpy as np

from .params import GREEDY_BELOW, Resolved
from .ranking import F32, F64, Ids, Ranked, descending

CHUNK = 8192  # logits whose exponentials are summed at a time: they stay in the nearest cache
FIRST_CANDIDATES = 128  # tokens that top-p and typical look at first; times four until they suffice


def truncated(z: F32, ranked: Ranked, params: Resolved, coin: float) -> tuple[Ids, F64]:
    """Ids and probabilities of the tokens that are left, of logits float32 [V] without NaN.

    ranked: the same logits. coin: a number in (0, 1) that decides about XTC. Without any truncation
    the ids are all of them in their own order; otherwise they fall by probability, but for what
    min-p or XTC leave of a whole vocabulary.
    """
    first = 1.0
    if params.whole or not params.temperature_last:
        temperature = temperature_of(z, params)
        if temperature <= GREEDY_BELOW:
            return np.array([z.argmax()]), np.ones(1)
        first = 1.0 / temperature
    if params.whole:
        e = weights(z, ranked.peak, first)
        return np.arange(len(z)), e / e.sum()
    ids, e = _kept(z, ranked, params, first)
    if params.excludes and coin < params.xtc_probability:
        keep = without_top_choices(e, params.xtc_threshold)
        ids, e = ids[keep], e[keep]
    if params.temperature_last:
        left = z[ids]
        temperature = temperature_of(left, params)
        if temperature <= GREEDY_BELOW:
            return ids[left.argmax()][None], np.ones(1)
        if temperature != 1.0 or len(ids) == 1:
            e = weights(left, float(left.max()), 1.0 / temperature)
    return ids, e / e.sum()


def _kept(z: F32, ranked: Ranked, params: Resolved, scale: float) -> tuple[Ids, F64]:
    """Top-k, typical, top-p and min-p: ids, and weights that are in proportion."""
    size, peak = len(z), ranked.peak
    total = 0.0  # of all weights that top-p chooses from
    if 0 < params.top_k < size:
        ids = ranked.largest(params.top_k)
        e = weights(z[ids], peak, scale)
    elif params.typical_p == 1.0 and params.top_p < 1.0:
        ids, e, total = _nucleus(z, ranked, scale, params.top_p)
    elif params.typical_p == 1.0 and params.min_p > 0.0:
        ids = _near_peak(ranked, scale, params.min_p)
        e = weights(z[ids], peak, scale)
    else:
        ids, e = np.arange(size), weights(z, peak, scale)
    if params.typical_p < 1.0:
        keep = typical(z[ids], e, params.typical_p)
        ids = ids[keep]
        ids, e = ids[order := descending(z[ids])], e[keep][order]
    if params.top_p < 1.0:
        count = nucleus(e, params.top_p, total or float(e.sum()))
        ids, e = ids[:count], e[:count]
    if params.min_p > 0.0:
        keep = (e >= params.min_p * e.max()).nonzero()[0]
        ids, e = ids[keep], e[keep]
    return ids, e


def weights(z: F32, peak: float, scale: float) -> F64:
    """exp((z - peak) * scale) as float64, the exponential itself in float32."""
    return _scaled_exp(z, peak, scale).astype(np.float64)


def nucleus(e: F64, top_p: float, total: float) -> int:
    """How many of falling weights, out of `total`, hold top_p of it: the fewest, at least one."""
    return int(e.cumsum().searchsorted(top_p * total)) + 1


def typical(z: F32, e: F64, typical_p: float) -> Ids:
    """Indices of the typical tokens of logits z [n] with weights e: by |surprise - entropy|, until
    they hold typical_p. That is by their logit's distance from the mean logit."""
    p = e / e.sum()
    finite = np.maximum(z, np.float32(-1e30)).astype(np.float64)
    ranked, count = Ranked(-np.abs(finite - float(p @ finite))), FIRST_CANDIDATES
    while True:
        near = ranked.reaching(min(count, len(p)))
        if count >= len(p) or float(p[near].sum()) > typical_p:
            near = near[descending(ranked.z[near])]
            return near[: int(p[near].cumsum().searchsorted(typical_p, side="right")) + 1]
        count *= 4


def without_top_choices(e: F64, threshold: float) -> Ids:
    """Indices that XTC keeps: of those with a share of at least `threshold` only the smallest."""
    over = ((e >= threshold * e.sum()) & (e > 0)).nonzero()[0]
    keep = np.ones(len(e), bool)
    keep[over] = False
    if len(over):
        keep[over[len(over) - 1 - int(e[over[::-1]].argmin())]] = True
    return keep.nonzero()[0]


def temperature_of(z: F32, params: Resolved) -> float:
    """The temperature for logits z [n]: as asked, or from their entropy as a share of log n."""
    spread = params.dynatemp_range
    if spread == 0.0 or len(z) < 2:
        return params.temperature
    share = max(0.0, entropy(z) / math.log(len(z)))
    low, high = max(0.0, params.temperature - spread), params.temperature + spread
    return low + (high - low) * math.pow(share, params.dynatemp_exponent)


def entropy(z: F32) -> float:
    """Of softmax(z), z [n]: log(sum of e) - mean of (z - peak), e being exp(z - peak)."""
    peak, total, moment = z.max(), 0.0, 0.0
    for at in range(0, len(z), CHUNK):
        below = np.maximum(z[at : at + CHUNK] - peak, np.float32(-100))  # there e is 0
        e = np.exp(below)
        total += float(e.sum())
        moment += float(e @ below)
    return math.log(total) - moment / total


def _scaled_exp(z: F32, peak: float, scale: float) -> F32:
    e: F32 = z - np.float32(peak)
    if scale != 1.0:
        e *= np.float32(scale)
    np.exp(e, out=e)
    return e


def _near_peak(ranked: Ranked, scale: float, min_p: float) -> Ids:
    """Ids that min-p alone may keep, a hair more than it will."""
    return ranked.at_least(ranked.peak + math.log(min_p) / scale - 1e-3 * max(1.0, 1.0 / scale))


def _nucleus(z: F32, ranked: Ranked, scale: float, top_p: float) -> tuple[Ids, F64, float]:
    """Enough of the largest tokens, in order, to hold top_p of the whole mass, and that mass."""
    parts = (z[at : at + CHUNK] for at in range(0, len(z), CHUNK))
    total = sum(float(_scaled_exp(part, ranked.peak, scale).sum()) for part in parts)
    count = FIRST_CANDIDATES
    while True:
        near = ranked.reaching(min(count, len(z)))
        e = weights(z[near], ranked.peak, scale)
        if count >= len(z) or float(e.sum()) >= top_p * total:
            order = descending(z[near])
            return near[order], e[order], total
        count *= 4
