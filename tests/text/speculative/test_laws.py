"""Section 10.2 of the specification: what is written has the model's own law, and each check of it
fails where verification is wrong in one of the ways that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgert.text.params import Resolved, SamplingParams
from edgert.text.sampling import Sampler, draw, process, uniforms
from edgert.text.speculative.proposer import Draft, Law
from edgert.text.speculative.verify import (
    ACCEPT,
    DRAFT,
    RESIDUAL,
    accept_coupled,
    accept_drawn,
    residual,
    seed_for,
    share,
    stands,
)

F64 = NDArray[np.float64]
Step = Callable[[F64, F64, int], list[int]]  # p, q, number of the cycle -> tokens written

TRUNCATING: dict[str, Any] = {
    "temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1,
}  # fmt: skip


def resolved(**options: Any) -> Resolved:
    return SamplingParams.of(**{"temperature": 1.0, "seed": 0} | options).resolved({})


def law(probs: F64) -> Law:
    return np.arange(len(probs)), probs


def dense(found: Law, size: int) -> F64:
    out = np.zeros(size)
    out[found[0]] = found[1]
    return out


def distance(a: F64, b: F64) -> float:
    """Total variation."""
    return 0.5 * float(np.abs(a - b).sum())


# --- exact ------------------------------------------------------------


def accepted(p: float, q: float) -> float:
    """The share of u in [0, 1) for which a guess stands, by bisection of `stands` itself."""
    low, high = 0.0, 1.0
    if stands(np.nextafter(1.0, 0.0), q, p):
        return 1.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if stands(middle, q, p) else (low, middle)
    return low


def one_step(p: F64, q: F64, accept: Callable[[float, float], float] = accepted) -> F64:
    """The law of a step's first token, worked out over all guesses."""
    found, rest = np.zeros(len(p)), dense(residual(law(p), law(q)), len(p))
    for token, chance in enumerate(q):
        if chance:
            stays = accept(p[token], chance)
            found[token] += chance * stays
            found += chance * (1 - stays) * rest
    return found


def pairs(count: int, size: int, alpha: float, seed: int = 0) -> list[tuple[F64, F64]]:
    rng = np.random.default_rng(seed)
    draws = rng.dirichlet(np.full(size, alpha), (count, 2))
    return [(p, q) for p, q in draws]


def test_10_2_rejection_has_the_law_of_the_model_exactly() -> None:
    for p, q in pairs(200, 5, 0.6):
        assert np.abs(one_step(p, q) - p).max() < 1e-12
        one_hot = np.eye(5)[int(q.argmax())]
        assert np.abs(one_step(p, one_hot) - p).max() < 1e-12
        cut = np.where(q < 0.1, 0.0, q)
        assert np.abs(one_step(p, cut / cut.sum()) - p).max() < 1e-12
    p = np.array([0.25, 0.25, 0.5, 0.0, 0.0])
    assert np.abs(one_step(p, p) - p).max() < 1e-12


def test_10_2_control_raw_probabilities_in_the_ratio_are_seen() -> None:
    """Guesses drawn at top-k 2 and tested by the law before it: the library bug of 1.2."""
    found = []
    for p, q in pairs(200, 5, 0.6):
        kept = np.where(q >= np.sort(q)[-2], q, 0.0)
        drawn = kept / kept.sum()
        rest = np.maximum(p - q, 0.0)
        wrong = np.zeros(5)
        for token, chance in enumerate(drawn):
            if chance:
                stays = min(1.0, p[token] / q[token])
                wrong[token] += chance * stays
                wrong += chance * (1 - stays) * rest / rest.sum()
        found.append(distance(wrong, p))
    assert np.mean(found) > 0.03
    assert np.max(found) > 0.1


def test_10_2_control_guesses_dropped_after_they_were_drawn_are_seen() -> None:
    """Unlikely guesses are not verified, their position is then drawn from p: trap 1.7.1."""
    found = []
    for p, q in pairs(200, 5, 0.6):
        rest, wrong = dense(residual(law(p), law(q)), 5), np.zeros(5)
        for token, chance in enumerate(q):
            if chance < 0.3:
                wrong += chance * p
                continue
            stays = min(1.0, p[token] / chance)
            wrong[token] += chance * stays
            wrong += chance * (1 - stays) * rest
        found.append(distance(wrong, p))
    assert 0.05 < np.mean(found) < 0.2


def test_10_2_control_a_greedy_guess_that_passes_for_a_drawn_one_is_seen() -> None:
    found = []
    for p, q in pairs(200, 5, 0.6):
        token = int(q.argmax())
        stays = min(1.0, p[token] / q[token])
        wrong = (1 - stays) * dense(residual(law(p), law(q)), 5)
        wrong[token] += stays
        found.append(distance(wrong, p))
    assert np.mean(found) > 0.05


def test_10_2_control_an_impossible_guess_never_stands() -> None:
    assert not stands(0.0, 0.5, 0.0)
    assert stands(0.0, 0.5, 1e-300)
    assert stands(0.0, 1.0, 1.0)
    assert (lambda u, q, p: u * q <= p)(0.0, 0.5, 0.0), "what the check is for"


def test_a_rest_that_is_rounding_gives_the_model_s_law() -> None:
    p = np.array([0.3, 0.7])
    q = p * (1 + 1e-15)
    assert np.array_equal(dense(residual(law(p), law(q)), 2), p)


def test_guesses_outside_the_support_and_beyond_it() -> None:
    p = np.array([2, 5]), np.array([0.5, 0.5])
    q = np.array([9]), np.array([1.0])
    ids, probs = residual(p, q)
    assert ids.tolist() == [2, 5]
    assert probs.tolist() == [0.5, 0.5]
    assert (share(q, 9), share(p, 9), share(p, 5)) == (1.0, 0.0, 0.5)


def test_random_numbers_of_purposes_and_cycles_are_others() -> None:
    seeds = {seed_for(s, c, w) for s in (0, 1, 5) for c in range(50) for w in (1, 2, 3)}
    assert len(seeds) == 450
    a, b = (uniforms(seed_for(3, 0, w), 7, np.arange(4000)) for w in (DRAFT, ACCEPT))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


# --- drawn ------------------------------------------------------------


def rows_of(chain: F64, before: int, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits of a Markov chain after `before` and after each of `tokens`."""
    with np.errstate(divide="ignore"):
        return np.log(chain[[before, *tokens]]).astype(np.float32)


def guess(
    chain: F64, before: int, gamma: int, params: Resolved, cycle: int, *, drawn: bool
) -> Draft:
    """A draft of a Markov chain's: drawn, or coupled with the model's own numbers."""
    sampler, history, tokens, laws = Sampler(params), [before], list[int](), list[Law]()
    for _ in range(gamma):
        (row,) = rows_of(chain, history[-1], [])
        if drawn:
            laws.append(sampler.law(row, history))
            token = draw(*laws[-1], seed_for(params.seed, cycle, DRAFT), len(history))
        else:
            token = sampler.pick(row, history)
        tokens.append(token)
        history.append(token)
    return Draft(tokens, laws if drawn else None)


def cycles(
    count: int, model: F64, drafter: F64, gamma: int, *, mode: str, **options: Any
) -> tuple[list[list[int]], list[tuple[int, int]], list[float]]:
    """Tokens of many cycles from token 0 on, (accepted, proposed) of each, and 1 - TV of the laws
    at each place that was checked."""
    base, made, fates, alphas = resolved(**options), [], [], []
    for number in range(count):
        params = msgspec.structs.replace(base, seed=number)
        draft = guess(drafter, 0, gamma, params, number, drawn=mode == "rejection")
        rows, sampler = rows_of(model, 0, draft.tokens), Sampler(params)
        if mode == "rejection":
            picked = accept_drawn(rows, draft, sampler, [0], number)
        else:
            picked = accept_coupled(rows, draft.tokens, sampler.pick, [0])
        made.append(picked)
        fates.append((len(picked) - 1, gamma))
        for place in range(min(len(picked), gamma) if mode == "rejection" else 0):
            history = [0, *picked[:place]]
            p = dense(process(rows[place], params, history), model.shape[1])
            q = dense((draft.laws or ())[place], model.shape[1])
            alphas.append(float(np.minimum(p, q).sum()))
    return made, fates, alphas


def chains(size: int, seed: int, noise: float = 1.0) -> tuple[F64, F64]:
    """The model's and the drafter's transition laws."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((size, size))
    others = logits + noise * rng.standard_normal((size, size))
    both = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, others)]
    return both[0], both[1]


def p_value(counts: F64, expected: F64) -> float:
    """Of a chi-square test by Wilson and Hilferty's approximation; cells that expect under 5 are
    put together."""
    assert not counts[expected == 0].any()
    rare = expected < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    degrees = len(wanted) - 1
    if degrees < 1:
        return 1.0
    square = float(((seen - wanted) ** 2 / wanted).sum())
    spread = 2 / (9 * degrees)
    z = ((square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_p_values_are_those_of_tables() -> None:
    """Critical values of chi-square at 5 % and 0.1 %."""
    for degrees, at_5, at_01 in ((4, 9.488, 18.467), (15, 24.996, 37.697)):
        expected = np.full(degrees + 1, 100.0)
        for square, wanted in ((at_5, 0.05), (at_01, 0.001)):
            counts = expected.copy()
            counts[0] += math.sqrt(square * 50)
            counts[1] -= math.sqrt(square * 50)
            assert p_value(counts, expected) == pytest.approx(wanted, rel=0.15)


def assert_law(made: Sequence[Sequence[int]], model: F64, params: Resolved) -> None:
    """The first tokens, and the second ones where there are, have the model's law."""
    size, total = len(model), len(made)
    first = dense(process(rows_of(model, 0, [])[0], params, [0]), size)
    counts = np.bincount([tokens[0] for tokens in made], minlength=size).astype(float)
    assert p_value(counts, first * total) > 1e-3
    assert distance(counts / total, first) < 1.5 * np.sqrt(size / total)
    pairs = [(t[0], t[1]) for t in made if len(t) > 1]
    for a in range(size):
        after = [b for x, b in pairs if x == a]
        if len(after) < 400:
            continue
        wanted = dense(process(rows_of(model, a, [])[0], params, [0, a]), size)
        seen = np.bincount(after, minlength=size).astype(float)
        assert p_value(seen, wanted * len(after)) > 1e-3 / size


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
@pytest.mark.parametrize(
    "count", [6_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_10_2_drawn_tokens_have_the_law_of_the_model(mode: str, count: int) -> None:
    model, drafter = chains(16, 3)
    made, fates, alphas = cycles(count, model, drafter, 2, mode=mode)
    assert_law(made, model, resolved())
    assert 0 < sum(accepted for accepted, _ in fates) < 2 * count
    if mode == "rejection":
        assert_alpha(fates, alphas)


@pytest.mark.parametrize("mode", ["rejection", "coupled"])
def test_10_2_the_same_truncated_penalised_and_with_a_cut_draft_vocabulary(mode: str) -> None:
    model, drafter = chains(16, 5)
    drafter[:, 12:] = 0.0
    drafter /= drafter.sum(1, keepdims=True)
    made, fates, alphas = cycles(3_000, model, drafter, 2, mode=mode, **TRUNCATING)
    assert_law(made, model, resolved(**TRUNCATING))
    if mode == "rejection":
        assert_alpha(fates, alphas)


def assert_alpha(fates: Sequence[tuple[int, int]], alphas: Sequence[float]) -> None:
    """The measured share of accepted guesses is the one that the laws have."""
    checked = sum(min(accepted + 1, proposed) for accepted, proposed in fates)
    assert checked == len(alphas)
    measured, alpha = sum(accepted for accepted, _ in fates) / checked, float(np.mean(alphas))
    assert abs(measured - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / checked)


def test_10_2_control_the_drawn_test_sees_one_number_for_two_purposes() -> None:
    """Trap 1.7.5: the number that drew a guess also decides about it."""
    model, drafter = chains(16, 3)
    made = []
    (p_row,), (q_row,) = rows_of(model, 0, []), rows_of(drafter, 0, [])
    for number in range(6_000):
        params = resolved(seed=number)
        p, q = process(p_row, params, [0]), process(q_row, params, [0])
        u = float(uniforms(number, 1, np.zeros(1, np.int64))[0])
        token = int(q[0][min(int(q[1].cumsum().searchsorted(u)), 15)])
        if not stands(u, share(q, token), share(p, token)):
            token = draw(*residual(p, q), seed_for(number, 0, RESIDUAL), 1)
        made.append([token])
    with pytest.raises(AssertionError):
        assert_law(made, model, resolved())


def test_10_2_tokens_a_cycle_are_what_acceptance_says() -> None:
    """An i.i.d. toy: tau is 1 + sum of alpha^i within three deviations."""
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.full(8, 1.0), 2)
    model, drafter = np.tile(p, (8, 1)), np.tile(q, (8, 1))
    gamma, count = 4, 10_000
    made, _, _ = cycles(count, model, drafter, gamma, mode="rejection")
    lengths = np.array([len(tokens) for tokens in made])
    alpha = float(np.minimum(p, q).sum())
    tau = 1 + sum(alpha**i for i in range(1, gamma + 1))
    assert abs(lengths.mean() - tau) < 3 * lengths.std() / np.sqrt(count)


def test_coupled_guesses_stand_more_often_than_chance_has_it() -> None:
    """At least (1 - TV) / (1 + TV) of them, 1.3."""
    model, drafter = chains(16, 7)
    _, fates, _ = cycles(4_000, model, drafter, 1, mode="coupled")
    measured = float(np.mean([accepted for accepted, _ in fates]))
    tv = distance(model[0], drafter[0])
    assert measured > (1 - tv) / (1 + tv) - 4 * np.sqrt(0.25 / 4_000)
    assert measured > float((model[0] * drafter[0]).sum()) + 0.05, "not better than independent"
