"""Whether a small step is quicker with the whole team or with one thread, found by measuring.

On a quiet machine the team wins. When another process holds a core, a thread that loses its core
in the middle of a step keeps the others waiting at the next barrier, and a decode step of a few
hundred microseconds can last milliseconds. Results do not depend on the thread count, so the
choice can be made again at every step: the mode not in use is tried for a few steps now and then,
more rarely each time it loses, and sooner when steps become slow.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

TRIAL = 4  # steps of a trial; the first one, which wakes parked threads, does not count
FIRST_WAIT, LONGEST_WAIT = 64, 1024  # steps until the first trial, most steps between two
BACK_WAIT = 16  # steps in a mode that has just won
GROWTH = 4  # of the wait, each time a trial loses
GAIN = 0.9  # a trial wins when it takes less than this share of the present mode's time
SLOW = 1.5  # a step is slow when it takes so many times as long as the quickest
SLOW_COUNT = 16  # steps of the wait for which a slow step counts
FORGET = 1.01  # a step: the quickest is of the recent past, for steps grow with the context


class Pace:
    """Chooses between the team (False) and one thread (True) for steps of one kind."""

    def __init__(self) -> None:
        self.alone = False
        self._recent: deque[float] = deque(maxlen=16)
        self._quickest = float("inf")
        self._trial: list[float] = []
        self._trying = False
        self._wait = self._left = FIRST_WAIT

    def choose(self) -> bool:
        """Whether the next step should run on one thread."""
        return self.alone != self._trying

    def observe(self, seconds: float) -> None:
        """How long the step took that `choose` decided about."""
        if not self._trying:
            self._recent.append(seconds)
            self._quickest = min(seconds, self._quickest * FORGET)
            self._left -= SLOW_COUNT if seconds > SLOW * self._quickest else 1
            self._trying = self._left <= 0
            return
        self._trial.append(seconds)
        if len(self._trial) == TRIAL:
            self._decide(fmean(self._trial[1:]) < GAIN * fmean(self._recent))

    def _decide(self, won: bool) -> None:
        """End a trial: change the mode, or keep it for longer."""
        if won:
            self.alone = not self.alone
            self._recent.clear()
            self._quickest, self._wait = float("inf"), BACK_WAIT
        else:
            self._wait = min(GROWTH * self._wait, LONGEST_WAIT)
        self._trial, self._trying, self._left = [], False, self._wait
