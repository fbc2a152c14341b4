"""From one row of logits to one token, without sorting the vocabulary.

    bias, mask -> repetition, presence and frequency penalties -> DRY -> (greedy?) ->
    top-k -> typical -> top-p -> min-p -> XTC -> temperature, fixed or dynamic -> draw

The order is llama.cpp's default. With `temperature_last=False` the temperature acts before top-k,
which is transformers' order.

`process` gives the distribution as a sparse pair (ids, probs); `draw` takes the token that wins an
exponential race keyed by (seed, position, token id). XTC's coin is keyed by (seed, position). No
stream of random numbers is needed: a token depends on its own row and history alone, never on
batching, chunking or drafts, and a speculative run draws the same tokens as a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from .breakers import breakers_of
from .params import Resolved
from .penalties import Breakers, History, adjusted
from .ranking import F32, F64, Ids, Ranked, reaching
from .tokenizer import Tokenizer
from .truncation import truncated

RACE_DIRECT = 4096  # supports up to this size race without pruning
FRONT = 256  # likeliest tokens, whose score prunes the others
CHUNK = 8192  # numbers that are mixed at a time: they stay in the nearest cache
COIN = -1  # an id that no token has: its number decides about XTC
WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_GOLDEN, _ONE, _ELEVEN = np.uint64(GOLDEN), np.uint64(1), np.uint64(11)
_ROUNDS = tuple((np.uint64(shift), np.uint64(factor)) for shift, factor in ROUNDS)


def process(
    logits: F32, params: Resolved, history: Sequence[int] | History = (), *, allowed: int = 0,
    holes: Sequence[int] | Ids = (), breakers: Breakers | None = None,
) -> tuple[Ids, F64]:  # fmt: skip
    """The law of the next token: (ids int64 [s], probs float64 [s]).

    logits: float32 [V], left as it is. history: every token so far, the prompt included (penalties
    count over all of it). allowed: ids at or past it do not exist (0: all of V do); holes: ids
    below it that do not exist. breakers: DRY's, of `edgert.text.breakers.breakers_of`. Greedy (see
    `Resolved.greedy`) gives one id, the lowest of equal ones; otherwise the order of ids is that of
    `edgert.text.truncation.truncated`. Raises DeviceError for a row with NaN or +inf, RequestError
    when everything is masked.
    """
    z = adjusted(logits[: allowed or len(logits)], params, history, holes, breakers)
    if params.greedy:
        best = int(z.argmax())
        _check_peak(float(z[best]))
        return np.array([best]), np.ones(1)
    ranked = Ranked(z)
    _check_peak(ranked.peak)
    coin = 0.0
    if params.excludes:
        coin = float(uniforms(params.seed, len(history), np.array([COIN]))[0])
    return truncated(z, ranked, params, coin)


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
        keep = (probs >= v * score).nonzero()[0]
        ids, probs, v = ids[keep], probs[keep], v[keep]
    return int(ids[np.argmax(probs / -np.log1p(-v))])


def uniforms(seed: int, position: int, ids: Ids) -> F64:
    """Numbers in (0, 1), float64 [s], a pure function of (seed, position, id): SplitMix64."""
    key = np.uint64(_mixed(_mixed(seed) ^ _mixed((position + 1) * GOLDEN & WORD)))
    out = np.empty(len(ids))
    for at in range(0, len(ids), CHUNK):
        bits = ids[at : at + CHUNK].astype(np.uint64)
        bits += _ONE
        bits *= _GOLDEN
        bits += key
        _mix(bits)
        bits >>= _ELEVEN
        v = out[at : at + CHUNK]
        v[:] = bits.view(np.int64)  # exact, below 2^53
        v += 0.5
        v *= 2.0**-53
    return out


class Sampler:
    """`process` and `draw` for one request: picks the token at each position."""

    def __init__(
        self,
        params: Resolved,
        *,
        allowed: int = 0,
        holes: Sequence[int] = (),
        breakers: Breakers | None = None,
    ) -> None:
        self.params, self.allowed, self.breakers = params, allowed, breakers
        self.holes: Ids = np.array(holes, np.int64)
        self._history = History() if params.penalised or params.dry else None

    @classmethod
    def of(cls, params: Resolved, tokenizer: Tokenizer) -> Sampler:
        """The sampler of a request to a model with this tokenizer."""
        texts = params.dry_sequence_breakers if params.dry else ()
        return cls(
            params,
            allowed=tokenizer.size,
            holes=tokenizer.holes,
            breakers=breakers_of(tokenizer, texts) if texts else None,
        )

    def pick(self, logits: F32, history: Sequence[int]) -> int:
        """The token that follows `history`, from its logits float32 [V]. Quickest for a history
        that begins with the one before."""
        past = history if self._history is None else self._history.follow(history)
        ids, probs = process(
            logits, self.params, past, allowed=self.allowed, holes=self.holes,
            breakers=self.breakers,
        )  # fmt: skip
        return draw(ids, probs, self.params.seed, len(history))


def _check_peak(peak: float) -> None:
    """Raise unless the largest logit is a finite number."""
    if np.isfinite(peak):
        return
    if peak == -np.inf:
        raise RequestError(
            "every token is masked, so none can follow",
            code="all-masked",
            hint="loosen logit_bias",
        )
    raise DeviceError(
        f"the model produced a logit of {peak}, expected finite numbers",
        code="logits",
        hint="run `edgert verify` on the bundle; its weights may be damaged",
    )


def _mix(x: NDArray[np.uint64]) -> None:
    """SplitMix64's finaliser, element by element, in place: big temporaries are slow."""
    spare = np.empty_like(x)
    for shift, factor in _ROUNDS:
        np.right_shift(x, shift, out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor != 1:
            np.multiply(x, factor, out=x)


def _mixed(x: int) -> int:
    """The same of one whole number below 2^64."""
    for shift, factor in ROUNDS:
        x = (x ^ x >> shift) * factor & WORD
    return x
