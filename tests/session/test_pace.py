"""The choice between the team and one thread, on made-up times of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

from edgert.session.pace import FIRST_WAIT, TRIAL, Pace

TEAM, ALONE = 1.0, 1.6  # milliseconds on a quiet machine


def run(pace: Pace, steps: int, team: Callable[[], float], alone: float) -> list[bool]:
    """The choices of so many steps."""
    chosen = []
    for _ in range(steps):
        choice = pace.choose()
        pace.observe(alone if choice else team())
        chosen.append(choice)
    return chosen


def stolen(every: int) -> Iterator[float]:
    """Team steps of which one in `every` waits for a thread that lost its core."""
    return cycle([TEAM] * (every - 1) + [8 * TEAM])


def test_a_quiet_machine_is_hardly_disturbed_by_trials() -> None:
    pace = Pace()
    assert sum(run(pace, FIRST_WAIT, lambda: TEAM, ALONE)) == 0
    assert sum(run(pace, 4000, lambda: TEAM, ALONE)) <= 6 * TRIAL
    assert not pace.alone


def test_a_single_hiccup_changes_nothing() -> None:
    pace = Pace()
    run(pace, 20, lambda: TEAM, ALONE)
    run(pace, 1, lambda: 8 * TEAM, ALONE)
    assert sum(run(pace, 25, lambda: TEAM, ALONE)) == 0


def test_a_stolen_core_is_noticed_within_a_few_slow_steps_and_its_return_too() -> None:
    pace, times = Pace(), stolen(3)
    run(pace, 20, lambda: TEAM, ALONE)
    run(pace, 30, lambda: next(times), ALONE)
    assert pace.alone
    assert sum(run(pace, 200, lambda: next(times), ALONE)) > 170
    run(pace, 1100, lambda: TEAM, ALONE)
    assert not pace.alone


def test_a_machine_that_was_busy_from_the_start() -> None:
    """Every team step is slow by the same, so only the scheduled trial can tell."""
    pace = Pace()
    run(pace, FIRST_WAIT + TRIAL, lambda: 2.5 * TEAM, ALONE)
    assert pace.alone
