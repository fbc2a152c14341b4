"""Draws by compiled code are those of the reference, or are left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgert.errors import DeviceError, RequestError
from edgert.text import race
from edgert.text.params import Resolved, SamplingParams
from edgert.text.race import race_for
from edgert.text.sampling import Sampler, draw, process

F32 = NDArray[np.float32]
SIZES = (64, 65, 79, 255, 256, 257, 1000, 4096, 12_291)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not something else has made kernels ready in this process."""
    monkeypatch.setattr(race, "ready", lambda: True)


def params(**given: Any) -> Resolved:
    return SamplingParams.of(**({"seed": 0} | given)).checked(1 << 30).resolved({})


def apart(logits: F32) -> F32:
    """The same row with what is no number on either side: whoever reads past an end finds it."""
    held = np.full(len(logits) + 200, np.nan, np.float32)
    row = held[99 : 99 + len(logits)]
    row[:] = logits
    return row


def checked(one: Resolved, row: F32, names: NDArray[np.int64] | None = None) -> list[bool]:
    """Whether each of some draws was decided; those that were are the reference's."""
    made, known = race_for(one, names), list[bool]()
    assert made is not None
    for position in (0, 1, 7, 1000, 123_456):
        found = made.winner(row, position)
        known.append(found >= 0)
        if found >= 0:
            ids, probs = process(row, one, [0] * position)
            wanted = draw(ids if names is None else names[ids], probs, one.seed, position)
            assert (found if names is None else names[found]) == wanted
    return known


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 1.7},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8}, {"top_k": 40, "top_p": 0.95},
        {"temperature": 0.9, "top_k": 60, "min_p": 0.05},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature_last": True},
        {"temperature": 3.0, "top_k": 2}, {"temperature": 0.7, "top_p": 0.9}, {"min_p": 0.1},
        {"temperature": 0.5, "top_p": 0.99, "min_p": 0.01},
    ],
)  # fmt: skip
def test_draws_are_the_references(asked: dict[str, Any]) -> None:
    """Of flat rows and steep ones, with masked ids, by all numbers that seeds may be."""
    rng = np.random.default_rng(1)
    known: list[bool] = []
    for size in SIZES:
        for width, seed in ((0.0, 3), (1.0, 2**63 + 1), (4.0, 2**64 - 1), (30.0, 0)):
            z = (width * rng.standard_normal(size)).astype(np.float32)
            z[rng.random(size) < 0.2] = -np.inf
            one = params(**asked, seed=seed)
            names = np.sort(rng.permutation(size * 3)[:size])
            known += checked(one, apart(z))
            known += checked(one, apart(z), names)
    # what top-p and min-p leave of flat rows is too much, or stands on their edge
    apart_from_flat = [n for at, n in enumerate(known) if at % 40 >= 20]
    plain = "top_k" in asked or ("top_p" not in asked and "min_p" not in asked)
    assert sum(apart_from_flat) == len(apart_from_flat) if plain else sum(known) > len(known) // 2


def test_many_draws_of_one_law() -> None:
    """All of them: the second best is nearer than a rounding once in 100 000 draws."""
    z = np.random.default_rng(3).standard_normal(5000).astype(np.float32) * 2
    for one in (params(temperature=0.7, seed=5), params(temperature=0.7, top_k=40, top_p=0.95)):
        made, reference = Sampler(one), Sampler(one)
        reference._race = None
        assert made._race is not None
        history = list(range(400))
        picked = [made.pick(z, history[:n]) for n in range(400)]
        assert picked == [reference.pick(z, history[:n]) for n in range(400)]
        assert len(set(picked)) > 10


def test_what_is_not_certain_is_left_to_the_reference() -> None:
    z = np.full(100, -5.0, np.float32)
    z[[10, 20, 30, 40]] = 1.0
    for asked in ({"top_p": 0.5}, {"top_p": 0.75}, {"min_p": 1.0}):
        made = race_for(params(top_k=4, **asked), None)
        assert made is not None
        assert made.winner(z, 3) == -1
        one = params(top_k=4, **asked)
        assert Sampler(one).pick(z, [1, 2]) == draw(*process(z, one, [1, 2]), 0, 2)


def test_rows_that_are_no_law() -> None:
    for top_k in (0, 5):
        one = params(temperature=0.7, top_k=top_k)
        made = race_for(one, None)
        assert made is not None
        for value, place in ((np.nan, 0), (np.nan, 99), (np.inf, 50)):
            z = np.zeros(100, np.float32)
            z[place] = value
            assert made.winner(z, 1) == -1
            with pytest.raises(DeviceError, match="logit of"):
                Sampler(one).pick(z, [1])
        masked = np.full(100, -np.inf, np.float32)
        assert made.winner(masked, 1) == -1
        with pytest.raises(RequestError, match="every token is masked"):
            Sampler(one).pick(masked, [1])


def test_rows_of_other_kinds_are_left_alone() -> None:
    z = np.random.default_rng(2).standard_normal(500)
    made = race_for(params(temperature=0.7), None)
    named = race_for(params(temperature=0.7), np.arange(100))
    assert made is not None
    assert named is not None
    assert made.winner(z.astype(np.float32), 4) >= 0
    assert made.winner(z, 4) == -1  # type: ignore[arg-type]
    assert made.winner(z.astype(np.float32)[::2], 4) == -1
    assert made.winner(z.astype(np.float32)[:63], 4) == -1
    assert named.winner(z.astype(np.float32), 4) == -1  # it has ids of 100 only


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0}, {"typical_p": 0.5}, {"dynatemp_range": 0.5}, {"top_k": 65},
        {"xtc_probability": 0.5},
    ],
)  # fmt: skip
def test_other_laws_are_the_references_alone(asked: dict[str, Any]) -> None:
    assert race_for(params(**asked), None) is None


def test_nothing_is_compiled_where_nothing_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "ready", lambda: False)
    z = np.random.default_rng(4).standard_normal(9000).astype(np.float32)
    one = params(temperature=0.7)
    assert Sampler(one)._race is None
    assert Sampler(one).pick(z, [1]) == draw(*process(z, one, [1]), 0, 1)
