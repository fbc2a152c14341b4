"""From one row of logits to one token: Hugging Face's order, without sorting the vocabulary.

    bias, mask -> repetition penalty -> presence and frequency penalties -> (greedy?) ->
    temperature -> top-k -> top-p -> min-p -> renormalise -> draw

`process` gives the distribution as a sparse pair (ids, probs); `draw` takes the token that wins an
exponential race keyed by (seed, position, token id). The race needs no stream of random numbers: a
token depends on its own row alone, never on batching, chunking or drafts, and a speculative run
draws the same tokens as a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from .params import Resolved

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

BLOCK = 64  # ids in a group, for the bound on the k-th largest
FIRST_CANDIDATES = 128  # tokens that top-p looks at first; doubled twice until they hold enough
RACE_DIRECT = 4096  # supports up to this size race without pruning
FRONT = 256  # likeliest tokens, whose score prunes the others
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def process(
    logits: F32, params: Resolved, history: Sequence[int] = (), *, allowed: int = 0,
    holes: Sequence[int] = (),
) -> tuple[Ids, F64]:  # fmt: skip
    """The law of the next token: (ids int64 [s], probs float64 [s]), descending by probability.

    logits: float32 [V], left as it is. history: every token so far, the prompt included (penalties
    count over all of it). allowed: ids at or past it do not exist (0: all of V do); holes: ids
    below it that do not exist. Greedy (temperature <= 1e-5 or top_k 1) gives one id, the lowest of
    equal ones. With neither top-k, top-p nor min-p the ids are all of them, in their own order.
    Raises DeviceError for a row with NaN or +inf, RequestError when everything is masked.
    """
    z = _adjusted(logits[: allowed or len(logits)], params, history, holes)
    best = int(np.argmax(z))
    peak = float(z[best])
    if not np.isfinite(peak):
        raise _no_peak(peak)
    if params.greedy:
        return np.array([best]), np.ones(1)
    return _truncated(z, peak, params)


def draw(ids: Ids, probs: F64, seed: int, position: int) -> int:
    """The token that wins the race: argmax of probs / E, E exponential of (seed, position, id).

    position: index of the drawn token in its sequence. Exact: P(id) is probs[id].
    """
    if len(ids) == 1:
        return int(ids[0])
    v = uniforms(seed, position, ids)
    if len(ids) > RACE_DIRECT:
        # -log1p(-v) >= v, so no token with probs / v <= score can beat a known score.
        front = reaching(probs, FRONT)
        score = float(np.max(probs[front] / -np.log1p(-v[front])))
        keep = np.flatnonzero(probs >= v * score)
        ids, probs, v = ids[keep], probs[keep], v[keep]
    return int(ids[np.argmax(probs / -np.log1p(-v))])


def uniforms(seed: int, position: int, ids: Ids) -> F64:
    """Numbers in (0, 1), float64 [s], a pure function of (seed, position, id): SplitMix64."""
    key = _mix(np.array([seed], np.uint64)) ^ _mix(np.array([position + 1], np.uint64) * GOLDEN)
    bits = ids.astype(np.uint64)
    bits += np.uint64(1)
    bits *= GOLDEN
    bits += _mix(key)
    bits = _mix(bits)
    bits >>= np.uint64(11)
    v = bits.view(np.int64).astype(np.float64)  # exact, below 2^53
    v += 0.5
    v *= 2.0**-53
    return v


class Sampler:
    """`process` and `draw` for one request: picks the token at each position."""

    def __init__(self, params: Resolved, *, allowed: int = 0, holes: Sequence[int] = ()) -> None:
        self.params, self.allowed, self.holes = params, allowed, tuple(holes)

    def pick(self, logits: F32, history: Sequence[int]) -> int:
        """The token that follows `history`, from its logits float32 [V]."""
        ids, probs = process(logits, self.params, history, allowed=self.allowed, holes=self.holes)
        return draw(ids, probs, self.params.seed, len(history))


def _adjusted(z: F32, params: Resolved, history: Sequence[int], holes: Sequence[int]) -> F32:
    """Bias, mask and penalties, on a copy where there is anything to do."""
    if not (params.logit_bias or len(holes) or params.penalised):
        return z
    z = np.array(z, np.float32)
    for token, bias in params.logit_bias.items():
        if token < len(z):
            z[token] += np.float32(bias)
    if len(holes):
        z[list(holes)] = -np.inf
    if params.penalised and len(history):
        seen, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
        seen, counts = seen[seen < len(z)], counts[seen < len(z)]
        row, r = z[seen], np.float32(params.repeat_penalty)
        row = np.where(row < 0, row * r, row / r)
        z[seen] = row - np.float32(params.presence_penalty)
        z[seen] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
    return z


def _no_peak(peak: float) -> DeviceError | RequestError:
    if peak == -np.inf:
        return RequestError(
            "every token is masked, so none can follow",
            code="all-masked",
            hint="loosen logit_bias",
        )
    return DeviceError(
        f"the model produced a logit of {peak}, expected finite numbers",
        code="logits",
        hint="run `edgert verify` on the bundle; its weights may be damaged",
    )


def _truncated(z: F32, peak: float, params: Resolved) -> tuple[Ids, F64]:
    """Temperature, top-k, top-p and min-p. Each keeps a prefix of the descending order."""
    size, scale = len(z), 1.0 / params.temperature
    top_k = params.top_k if 0 < params.top_k < size else 0
    if top_k:
        ids = largest(z, top_k)
        e = _weights(z[ids], peak, scale)
        total = float(e.sum())
    elif params.top_p < 1.0:
        ids, e, total = _nucleus(z, peak, scale, params.top_p)
    elif params.min_p > 0.0:
        ids = _near_peak(z, peak, params)
        e = _weights(z[ids], peak, scale)
        total = float(e.sum())
    else:
        e = _weights(z, peak, scale)
        e /= e.sum()
        return np.arange(size), e
    if params.top_p < 1.0:
        count = int(np.searchsorted(np.cumsum(e), params.top_p * total)) + 1
        ids, e = ids[:count], e[:count]
    if params.min_p > 0.0:
        keep = np.flatnonzero(e >= params.min_p)  # the largest weight is exp(0) = 1
        ids, e = ids[keep], e[keep]
    return ids, e / e.sum()


def _weights(z: F32, peak: float, scale: float) -> F64:
    """exp((z - peak) / temperature) as float64, the exponential itself in float32."""
    shifted = (z - np.float32(peak)) * np.float32(scale)
    weights: F64 = np.exp(shifted, dtype=np.float32).astype(np.float64)
    return weights


def _near_peak(z: F32, peak: float, params: Resolved) -> Ids:
    """Ids that min-p alone may keep, a hair more than it will."""
    floor = peak + params.temperature * np.log(params.min_p) - 1e-3 * max(1.0, params.temperature)
    return np.flatnonzero(z >= np.float32(floor))


def _nucleus(z: F32, peak: float, scale: float, top_p: float) -> tuple[Ids, F64, float]:
    """Enough of the largest tokens, in order, to hold top_p of the whole mass, and that mass."""
    everything = np.exp((z - np.float32(peak)) * np.float32(scale), dtype=np.float32)
    total = float(everything.sum(dtype=np.float64))
    count = FIRST_CANDIDATES
    while True:
        near = reaching(z, min(count, len(z)))
        if count >= len(z) or float(everything[near].sum(dtype=np.float64)) >= top_p * total:
            ids = near[descending(z[near])]
            return ids, everything[ids].astype(np.float64), total
        count *= 4


def largest(z: F32, count: int) -> Ids:
    """Indices int64 [count] of the largest values, descending, equal ones by lower index."""
    near = reaching(z, count)
    return near[descending(z[near])[:count]]


def reaching(z: F32 | F64, count: int) -> Ids:
    """Indices, ascending, of at least the `count` largest values: all that reach some bound.

    The vocabulary is cut into `groups` of BLOCK ids each, strided so that their maxima are one
    vector operation. The count-th largest of the maxima bounds the count-th largest value from
    below, so only the groups that reach it are looked at.
    """
    groups = len(z) // BLOCK
    if count * 2 > groups:
        return np.flatnonzero(z >= np.partition(z, len(z) - count)[len(z) - count])
    maxima = z[: groups * BLOCK].reshape(BLOCK, groups).max(axis=0)
    bound = np.partition(maxima, groups - count)[groups - count]
    hot = np.flatnonzero(maxima >= bound)
    near = (np.arange(0, groups * BLOCK, groups)[:, None] + hot).ravel()
    near = np.concatenate([near, np.arange(groups * BLOCK, len(z))])
    kept: Ids = near[z[near] >= bound]
    return kept


def descending(z: F32) -> Ids:
    """Order of float32 [n] by falling value, equal ones by lower index: one sort of whole numbers
    made of the value's bits (mapped so that they sort like it) and the index."""
    bits = (z + np.float32(0)).view(np.uint32)  # + 0 makes -0 and 0 equal
    rank = np.where(bits >> np.uint32(31), bits, ~bits & np.uint32(0x7FFFFFFF))
    keys = (rank.astype(np.uint64) << np.uint64(32)) | np.arange(len(z), dtype=np.uint64)
    return (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, element by element, in place: big temporaries are slow."""
    spare = np.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.right_shift(x, np.uint64(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor != 1:
            np.multiply(x, np.uint64(factor), out=x)
    return x
