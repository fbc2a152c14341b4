"""From one row of logits to one token, without sorting the vocabulary.

    bias, mask -> repetition, presence and frequency penalties -> DRY -> (greedy?) ->
    temperature, fixed or dynamic -> top-k -> typical -> top-p -> min-p -> XTC -> draw

The order is transformers', for which the advice of checkpoints is given. With
`temperature_last=True` the temperature acts after XTC, which is llama.cpp's default.

`process` gives the distribution as a sparse pair (ids, probs); `draw` takes the token that wins an
exponential race keyed by (seed, position, token id). XTC's coin is keyed by (seed, position). No
stream of random numbers is needed: a token depends on its own row and history alone, never on
batching, chunking or drafts, and a speculative run draws the same tokens as a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from ..kernels.race import GOLDEN as GOLDEN
from ..kernels.race import ROUNDS
from .breakers import breakers_of
from .params import GREEDY_BELOW, Resolved
from .penalties import Breakers, History, adjusted
from .race import race_for
from .ranking import F32, F64, Ids, Ranked, reaching
from .ranking import largest as largest
from .tokenizer import Tokenizer
from .truncation import temperature_of, truncated, weights

if TYPE_CHECKING:
    from ..session.chain import Draw

RACE_DIRECT = 4096  # supports up to this size race without pruning
FRONT = 256  # likeliest tokens, whose score prunes the others
CHUNK = 8192  # numbers that are mixed at a time: they stay in the nearest cache
COIN = -1  # an id that no token has: its number decides about XTC
WORD = (1 << 64) - 1
_NONE, _NOTHING = np.zeros(0, np.int64), np.zeros(0, np.float32)
_GOLDEN, _DROPPED = np.uint64(GOLDEN), np.uint64(11)  # 53 of 64 bits make a float64
_STEPS = np.arange(CHUNK, dtype=np.uint64) * _GOLDEN
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
        return np.array([_best(z)]), np.ones(1)
    return _law(z, _ranked(z), params, len(history))


def _best(z: F32) -> int:
    best = int(z.argmax())
    _check_peak(float(z[best]))
    return best


def _ranked(z: F32) -> Ranked:
    ranked = Ranked(z)
    _check_peak(ranked.peak)
    return ranked


def _law(z: F32, ranked: Ranked, params: Resolved, position: int) -> tuple[Ids, F64]:
    coin = 0.0
    if params.excludes:
        coin = float(uniforms(params.seed, position, np.array([COIN]))[0])
    return truncated(z, ranked, params, coin)


def draw(ids: Ids, probs: F64, seed: int, position: int) -> int:
    """The token that wins the race: argmax of probs / E, E exponential of (seed, position, id).

    position: index of the drawn token in its sequence. Exact: P(id) is probs[id].
    """
    if len(ids) == 1:
        return int(ids[0])
    if len(ids) > RACE_DIRECT:
        # The likeliest run first. -log1p(-v) >= v, so one behind them, whose probability is at most
        # their smallest, beats their best score only where v <= smallest / score.
        front = reaching(probs, FRONT)
        score = _scores(ids[front], probs[front], seed, position).max()
        rest = below(seed, position, ids, float(probs[front].min() / score))
        keep = np.concatenate([front, rest])
        ids, probs = ids[keep], probs[keep]
    return int(ids[_scores(ids, probs, seed, position).argmax()])


def draw_from_all(
    z: F32, ranked: Ranked, temperature: float, seed: int, position: int, names: Ids | None = None
) -> int:
    """`draw` from softmax(z / temperature), which is worked out for those that may win only.

    z: float32 [n]; ranked: the same. names: int64 [n], ids of the values, None for 0 to n - 1.
    Returns an index of z.
    """
    if temperature <= GREEDY_BELOW:
        return _best(z)
    scale, front = 1.0 / temperature, ranked.reaching(min(FRONT, len(z)))
    e = weights(z[front], ranked.peak, scale)
    score = _scores(front if names is None else names[front], e, seed, position).max()
    every = range(len(z)) if names is None else names
    rest = below(seed, position, every, float(e.min() / score))
    found = np.concatenate([front, rest])
    e = weights(z[found], ranked.peak, scale)
    ids = found if names is None else names[found]
    return int(found[_scores(ids, e, seed, position).argmax()])


def _scores(ids: Ids, probs: F64, seed: int, position: int) -> F64:
    scores: F64 = probs / -np.log1p(-uniforms(seed, position, ids))
    return scores


def uniforms(seed: int, position: int, ids: Ids) -> F64:
    """Numbers in (0, 1), float64 [s], a pure function of (seed, position, id): SplitMix64."""
    bits = _mix(_begin(_key(seed, position), ids), _ROUNDS)
    bits >>= _DROPPED
    v = bits.view(np.int64).astype(np.float64)  # exact, below 2^53
    v += 0.5
    v *= 2.0**-53
    return v


def below(seed: int, position: int, ids: Ids | range, limit: float) -> Ids:
    """Indices of the ids whose number in `uniforms` is at most `limit`, or a hair above it."""
    # The last round leaves the upper 31 bits as they are: they decide.
    highest = np.uint64(min(int(limit * 2.0**64), WORD) | (1 << 33) - 1)
    key, found = _key(seed, position), []
    for at in range(0, len(ids), CHUNK):
        bits = _mix(_begin(key, ids[at : at + CHUNK]), _ROUNDS[:-1])
        found.append((bits <= highest).nonzero()[0] + at)
    return np.concatenate(found)


class Sampler:
    """`process` and `draw` for one request: picks the token at each position.

    names: int64 [n], rising: the ids that logits float32 [n] are of, and the only ones that are
    drawn; None for rows of the whole vocabulary. What is drawn is what a whole row of `allowed`
    values would give that has -inf everywhere else.
    """

    def __init__(
        self,
        params: Resolved,
        *,
        allowed: int = 0,
        holes: Sequence[int] = (),
        breakers: Breakers | None = None,
        names: Ids | None = None,
    ) -> None:
        self.params, self.allowed, self.breakers = params, allowed, breakers
        self.holes: Ids = np.array(holes, np.int64)
        self.names = names
        self._history = History() if params.penalised or params.dry else None
        self._row: F32 | None = None
        # where nothing asks for other ids, a row of few is looked at as it is
        self._whole: F32 | None = None
        self._bias = self._bias_of(names) if names is not None and params.logit_bias else None
        if names is not None and (self._asks_for_all or not self._all_exist(names)):
            self.names = names = names[: names.searchsorted(allowed or names[-1] + 1)]
            self._whole = np.full(max(allowed, int(names[-1]) + 1), -np.inf, np.float32)
        self._race = race_for(params, names)

    @property
    def _asks_for_all(self) -> bool:
        return self._history is not None or self.params.dynatemp_range > 0.0

    def _bias_of(self, names: Ids) -> tuple[Ids, F32] | None:
        """Where `names` has tokens that are biased, and by how much."""
        bias = self.params.logit_bias
        places = np.isin(names, list(bias)).nonzero()[0]
        by = np.array([bias[int(token)] for token in names[places]], np.float32)
        return (places, by) if len(places) else None

    def _all_exist(self, names: Ids) -> bool:
        past = bool(self.allowed) and int(names[-1]) >= self.allowed
        return not past and not np.isin(self.holes, names).any()

    @classmethod
    def of(cls, params: Resolved, tokenizer: Tokenizer, names: Ids | None = None) -> Sampler:
        """The sampler of a request to a model with this tokenizer."""
        texts = params.dry_sequence_breakers if params.dry else ()
        return cls(
            params,
            allowed=tokenizer.size,
            holes=tokenizer.holes,
            breakers=breakers_of(tokenizer, texts) if texts else None,
            names=names,
        )

    def pick(self, logits: F32, history: Sequence[int]) -> int:
        """The token that follows `history`, from its logits float32 [V], or [n] of `names`.
        Quickest for a history that begins with the one before."""
        z, names = self._adjusted(logits, history)
        params, position = self.params, len(history)
        if params.greedy:
            return _named(_best(z), names)
        if self._race is not None and (found := self._race.winner(z, position)) >= 0:
            return _named(found, names)
        ranked = _ranked(z)
        if params.whole and len(z) > RACE_DIRECT:
            temperature = temperature_of(z, params)
            found = draw_from_all(z, ranked, temperature, params.seed, position, names)
            return _named(found, names)
        ids, probs = _law(z, ranked, params, position)
        return draw(ids if names is None else names[ids], probs, params.seed, position)

    def compiled(self) -> Draw | None:
        """How compiled code picks from logits of `names` (`edgert.session.chain`), None where it
        needs more than the row."""
        if self.names is None or self._whole is not None:
            return None
        from ..session.chain import Draw

        race, places, by = 0, _NONE, _NOTHING
        if not self.params.greedy:
            if self._race is None:
                return None
            race = self._race.asked(len(self.names))
        if self._bias is not None:
            places, by = self._bias
        largest = self.params.top_k > 0
        return Draw(race, largest=largest, places=places, by=by, kept=self._race)

    def law(self, logits: F32, history: Sequence[int]) -> tuple[Ids, F64]:
        """What `pick` draws from: `process` of the same."""
        z, names = self._adjusted(logits, history)
        if self.params.greedy:
            return np.array([_named(_best(z), names)]), np.ones(1)
        ids, probs = _law(z, _ranked(z), self.params, len(history))
        return ids if names is None else names[ids], probs

    def _adjusted(self, logits: F32, history: Sequence[int]) -> tuple[F32, Ids | None]:
        """Logits after bias and penalties, and what ids they are of."""
        names, whole = self.names, self._whole
        if names is not None and whole is None:
            return logits if self._bias is None else self._biased(logits, *self._bias), names
        if names is not None and whole is not None:
            whole[names] = logits[: len(names)]
            logits = whole
        past = history if self._history is None else self._history.follow(history)
        given = logits[: self.allowed or len(logits)]
        z = adjusted(given, self.params, past, self.holes, self.breakers, out=self._row)
        if z is not given:
            self._row = z
        if names is None or self.params.dynatemp_range > 0.0:  # whose entropy is a share of all
            return z, None
        return z[names], names

    def _biased(self, logits: F32, places: Ids, by: F32) -> F32:
        z = self._row
        if z is None or z.shape != logits.shape:
            z = self._row = np.empty(logits.shape, np.float32)
        np.copyto(z, logits)
        z[places] += by
        return z


def _named(index: int, names: Ids | None) -> int:
    return index if names is None else int(names[index])


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


def _key(seed: int, position: int) -> int:
    return mixed(mixed(seed) ^ mixed((position + 1) * GOLDEN & WORD)) + GOLDEN


def _begin(key: int, ids: Ids | range) -> NDArray[np.uint64]:
    """key + id * GOLDEN; a range holds CHUNK ids at most."""
    if isinstance(ids, range):
        return _STEPS[: len(ids)] + np.uint64(key + ids.start * GOLDEN & WORD)
    x = ids.astype(np.uint64)
    x *= _GOLDEN
    x += np.uint64(key & WORD)
    return x


def _mix(
    x: NDArray[np.uint64], rounds: Sequence[tuple[np.uint64, np.uint64]]
) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, element by element, in place: big temporaries are slow."""
    spare = np.empty_like(x)
    for shift, factor in rounds:
        np.right_shift(x, shift, out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor != 1:
            np.multiply(x, factor, out=x)
    return x


def mixed(x: int) -> int:
    """The same of one whole number below 2^64."""
    for shift, factor in ROUNDS:
        x = (x ^ x >> shift) * factor & WORD
    return x
