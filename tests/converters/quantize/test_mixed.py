"""Mixed precision under a byte budget: never over it, near the best, always the same."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from edgert.converters.quantize import mixed
from edgert.converters.quantize.mixed import Candidate, choose, hull

from edgert.errors import ConvertError

Table = dict[str, list[Candidate]]


def table(tensors: int, candidates: int, seed: int) -> Table:
    """Losses that fall with bytes, not always convexly, and some that are worth nothing."""
    rng = np.random.default_rng(seed)
    out: Table = {}
    for i in range(tensors):
        size = int(rng.integers(1, 9)) * 100
        rows = []
        for bits in range(2, 2 + candidates):
            loss = size * 4.0**-bits * float(rng.uniform(0.5, 2))
            rows.append(Candidate(f"int{bits}", size * bits + int(rng.integers(20)), loss))
        out[f"t{i}"] = rows
    return out


def totals(rows: object) -> tuple[int, float]:
    found = list(rows)  # type: ignore[call-overload]
    return sum(row.nbytes for row in found), sum(row.loss for row in found)


@pytest.mark.parametrize(("states", "worst"), [(mixed.STATES, 1e-9), (0, 0.65)])
def test_the_best_of_all_choices(
    states: int, worst: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without the proof, near it most of the time."""
    monkeypatch.setattr(mixed, "STATES", states)
    gaps = []
    for seed in range(40):
        given = table(5, 4, seed)
        least, most = (
            sum(f(r.nbytes for r in rows) for rows in given.values()) for f in (min, max)
        )
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            budget = int(least + share * (most - least))
            nbytes, loss = totals(choose(given, budget).values())
            assert nbytes <= budget
            best = min(
                lost
                for size, lost in map(totals, itertools.product(*given.values()))
                if size <= budget
            )
            gaps.append(loss / best - 1)
    print(f"worst {max(gaps):.3f}, optimal in {np.mean(np.array(gaps) < 1e-9):.0%}")
    assert max(gaps) < worst
    assert np.mean(np.array(gaps) < 1e-9) > 0.9


def test_more_bytes_never_lose_more_than_the_hull_says() -> None:
    """With many tensors the choice is next to the lower bound that Lagrange multipliers give."""
    given = table(60, 6, 3)
    budget = sum(rows[2].nbytes for rows in given.values())
    nbytes, loss = totals(choose(given, budget).values())
    assert 0.999 * budget <= nbytes <= budget
    bound = max(
        sum(min(r.loss + price * r.nbytes for r in rows) for rows in given.values())
        - price * budget
        for price in 10.0 ** np.linspace(-8, 0, 400)
    )
    assert bound <= loss <= 1.01 * bound


def test_the_same_whatever_the_order_of_candidates() -> None:
    given = table(12, 5, 0)
    budget = sum(rows[2].nbytes for rows in given.values())
    turned = {name: rows[::-1] for name, rows in given.items()}
    assert choose(given, budget) == choose(turned, budget) == choose(given, budget)
    alike = {f"t{i}": given["t0"] for i in range(5)}
    first = choose(alike, 3 * given["t0"][1].nbytes + 2 * given["t0"][0].nbytes)
    assert first == choose(alike, 3 * given["t0"][1].nbytes + 2 * given["t0"][0].nbytes)


def test_a_hull_holds_no_candidate_above_its_edges() -> None:
    rows = [Candidate("a", 1, 10), Candidate("b", 2, 9), Candidate("c", 3, 2), Candidate("d", 9, 1)]
    assert hull(rows) == [0, 2, 3]
    # ... but what is left of the budget may take one.
    assert choose({"t": rows}, 2)["t"].encoding == "b"


def test_two_tensors_are_exchanged_where_that_is_better() -> None:
    """By loss saved a byte `a` comes first, and leaves too little for `b`, which saves more."""
    given = {
        "a": [Candidate("low", 0, 6.0), Candidate("high", 4, 0.0)],
        "b": [Candidate("low", 0, 10.0), Candidate("high", 10, 0.0)],
    }
    assert {n: c.encoding for n, c in choose(given, 10).items()} == {"a": "low", "b": "high"}


def test_hundreds_of_tensors_take_seconds() -> None:
    given = table(210, 30, 1)
    budget = sum(rows[9].nbytes for rows in given.values())
    start = time.process_time()
    assert totals(choose(given, budget).values())[0] <= budget
    assert time.process_time() - start < 20


def test_what_is_refused() -> None:
    rows = [Candidate("int4-g32", 100, 0.5)]
    assert choose({}, 0) == {}
    with pytest.raises(
        ConvertError, match="of 2 tensors take 200 bytes together, expected at most 199"
    ):
        choose({"a": rows, "b": rows}, 199)
    with pytest.raises(ConvertError, match="'a' has no candidates"):
        choose({"a": []}, 10)
    for bad in (np.nan, np.inf):
        with pytest.raises(ConvertError, match="'int4-g32' of 'a' has 1 bytes and the loss"):
            choose({"a": [Candidate("int4-g32", 1, bad)]}, 10)
