"""How many guesses are worth their time, from what was accepted and what steps cost.

With a(k) the share of accepted guesses at place k, A(i) = a(1) .. a(i), v(m) the cost of a step
of m rows with all that is done about it and c that of a guess, both in plain steps, g guesses give

    S(g) = n / (v(g + 1) + g c),    n = 1 + A(1) + .. + A(g)

tokens in the time of one, S(0) = 1 (arXiv 2211.17192, with steps that cost more by their rows). The
largest S is taken; where none is worth it guessing rests, and is tried again after a while. What
requests before found out (`Past`) is believed at first.
"""

from __future__ import annotations

from itertools import pairwise

from ...session.costs import SAMPLES, Cost, StepCosts

LONGEST = 16  # guesses of one cycle
FIRST = 3  # guesses to begin with
PRIOR, PRIOR_COUNT = 0.6, 2.0  # what is believed of a place before anything was seen, and how much
PAST_WEIGHT = 0.02  # of a cycle in what later requests believe
PRIORS = {  # by tokens that agreed; 0 and 1: back at a source that was left, see `ngram`
    "ngram-0": 0.4,
    "ngram-1": 0.5,
    "ngram-2": 0.3,
    "ngram-3": 0.45,
    "ngram-4": 0.7,
    "ngram-8": 0.9,
}
HEAD = "head"
HEAD_COUNT = 8.0  # heads are made for their model: one wrong draft, as answers begin, says little
COLD = (
    0.25  # plain steps that a guess costs at most by its first SAMPLES times, which are cold ones
)
WEIGHT, PROBE_WEIGHT = 0.05, 0.25  # of a new observation; while resting ends
GAIN = 1.03  # what S must promise, and what another length must promise more
REST = 128  # tokens until guesses that were not worth it are tried again; twice as many each time
LONGEST_REST = 1024
FAR = 0.15  # below GAIN where a rest is a whole one: what nearly pays costs little to try again
SHORTEST = 0.125  # of a rest
PROBE_LENGTH, PROBES = 2, 4
PLAIN_STEPS = SAMPLES  # that are timed before anything is guessed


class Past:
    """What requests found out about a model's guesses, for the next ones of their kind: greedy ones
    and others are kept apart, for drawing costs more and agrees less.

    head: cost of a head's guess. accepted: what is believed of a head's places.
    """

    def __init__(self, accepted: float = PRIOR) -> None:
        self.head = Cost()
        self.accepted = [accepted] * LONGEST

    def see(self, proposed: int, accepted: int) -> None:
        """Of a head's `proposed` guesses the first `accepted` were right."""
        for place in range(min(proposed, accepted + 1, LONGEST)):
            self.accepted[place] += PAST_WEIGHT * ((place < accepted) - self.accepted[place])


class Estimate:
    """What is known of the guesses of one key.

    accepted: share at each place. cost: of a guess. length: guesses of the present.
    """

    def __init__(self, key: str, limit: int, past: Past) -> None:
        head = key == HEAD  # others depend on the text more than on the model
        self.accepted = list(past.accepted) if head else [PRIORS.get(key, PRIOR)] * LONGEST
        self.first = HEAD_COUNT if head else PRIOR_COUNT
        self.counts = [self.first] * LONGEST
        self.cost = past.head if head else Cost()
        self.length = min(FIRST, limit)
        self.resting_until = 0
        self.rest, self.probes = REST, PROBES if head else 0  # the past is another text's
        self.speeds: list[float] = []  # S of lengths from 1 on; none where it is not worked out
        self.needed: dict[int, list[float]] = {}  # by the length of the present, see `worth`
        self.lanes = 0  # sequences of the steps that `speeds` and a rest are for

    def see(self, proposed: int, accepted: int) -> None:
        """Of `proposed` guesses the first `accepted` were right."""
        self.speeds = []
        least = PROBE_WEIGHT if self.probes else WEIGHT
        for place in range(min(proposed, accepted + 1, LONGEST)):
            self.counts[place] += 1
            weight = max(least, 1 / self.counts[place])
            self.accepted[place] += weight * ((place < accepted) - self.accepted[place])
        if self.counts[0] > self.counts[-1] + 8:  # places that were hardly seen follow the others
            self._extend()

    def _extend(self) -> None:
        known = 0.0
        for place in range(LONGEST):
            if self.counts[place] > self.first + 2:
                known = self.accepted[place]
            elif known:
                self.accepted[place] = known


class Controller:
    """Lengths of one request's guesses. costs: of the model's steps, of all requests. limit: most
    guesses of a cycle. redo: whether the kept part of a step is fed again with the next
    one, as of recurrent states without a tail. past: of requests of the same kind."""

    def __init__(
        self, costs: StepCosts, limit: int, *, redo: bool = False, past: Past | None = None
    ) -> None:
        self.costs, self.limit, self.redo = costs, min(limit, LONGEST), redo
        self.past = past or Past()
        self.known: dict[str, Estimate] = {}

    def of(self, key: str) -> Estimate:
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = Estimate(key, self.limit, self.past)
        return found

    def length(self, key: str, written: int) -> int:
        """How many guesses of a key to make after `written` tokens; 0: none."""
        costs = self.costs
        if costs.count(costs.lanes) < PLAIN_STEPS:
            return 0
        guess = self.of(key)
        if guess.resting_until and guess.lanes != costs.lanes:  # what pays may be another matter
            guess.resting_until, guess.rest = 0, max(REST, guess.rest // 2)
        if guess.resting_until:
            if written < guess.resting_until:
                return 0
            guess.resting_until, guess.probes, guess.speeds = 0, PROBES, []
        best, speed = self.best(guess)
        # of several sequences a trial costs all of them: what the past says is enough
        least = GAIN if costs.lanes > 1 else GAIN - FAR
        fresh = guess.counts[0] == guess.first
        if guess.probes and not (fresh and speed < least):
            return min(PROBE_LENGTH, self.limit)
        if speed < GAIN:
            share = max(SHORTEST, min(1.0, (GAIN - speed) / FAR))
            guess.resting_until = written + round(share * guess.rest)
            guess.rest = min(2 * guess.rest, LONGEST_REST)
            guess.probes = 0
            return 0
        if guess.length == 0 or speed > GAIN * self.speed(guess, guess.length):
            guess.length = best
        return guess.length

    def resting(self, key: str) -> int:
        """Tokens until which guesses of a key are not tried, 0 where they are."""
        guess = self.known.get(key)
        return guess.resting_until if guess is not None else 0

    def best(self, guess: Estimate) -> tuple[int, float]:
        """The length from 1 on with the largest S, and that."""
        speeds = self.speeds(guess)
        best = max(speeds)
        return 1 + speeds.index(best), best

    def speed(self, guess: Estimate, length: int) -> float:
        """S of a length: tokens in the time of a plain step's one."""
        return self.speeds(guess)[length - 1] if length else 1.0

    def speeds(self, guess: Estimate) -> list[float]:
        """S of lengths from 1 on."""
        if not guess.speeds or guess.lanes != self.costs.lanes:
            guess.speeds, guess.lanes, guess.needed = [], self.costs.lanes, {}
            ratios, share = self.costs.ratios(self.limit + 1), self._share(guess)
            tokens = reach = 1.0
            for length in range(1, self.limit + 1):
                reach *= guess.accepted[length - 1]
                tokens += reach
                time = ratios[length] + length * share
                if self.redo:  # the kept tokens stand in front of the next step's rows
                    time += (1 - reach) * (ratios[length] - ratios[0])
                guess.speeds.append(tokens / time)
        return guess.speeds

    def worth(self, key: str, made: int, reach: float) -> bool:
        """Whether a guess more pays, after `made` guesses of this cycle, when it is reached and
        right with probability `reach` by its own account."""
        return reach >= self.needed(key)[made]

    def needed(self, key: str) -> list[float]:
        """What the next guess must be reached and right with, after so many."""
        guess = self.of(key)
        self.speeds(guess)
        needed = guess.needed.get(guess.length)
        if needed is None:
            ratios, share = self.costs.ratios(self.limit + 1), self._share(guess)
            now = max(1.0, self.speed(guess, guess.length))
            needed = [now * (share + after - ratio) for ratio, after in pairwise(ratios)]
            guess.needed[guess.length] = needed
        return needed

    def observe(self, key: str, proposed: int, accepted: int) -> None:
        """What became of guesses."""
        guess = self.of(key)
        guess.see(proposed, accepted)
        if key == HEAD:
            self.past.see(proposed, accepted)
        if guess.probes:
            guess.probes -= 1
            if self.best(guess)[1] >= GAIN:
                guess.probes, guess.rest = 0, REST

    def spent(self, key: str, each: float) -> None:
        """Seconds that a guess took."""
        self.of(key).cost.note(each)

    def _share(self, guess: Estimate) -> float:
        cost, lanes = guess.cost, self.costs.lanes
        plain = self.costs.seconds(lanes)
        share = lanes * cost.seconds / plain if plain and cost.count else 0.0
        return share if cost.count >= SAMPLES else min(share, COLD)
