"""What steps cost by their rows, measured as they run: for whoever decides how many to ask for.

Only steps of tokens that are being generated count; prompts are another matter.
"""

from __future__ import annotations

WEIGHT = 0.1  # of a new measurement
CLIP = 2.0  # a step that took longer than so many times the usual counts as that: others are busy
SLOPE = 0.15  # cost of a further row, as a share of one row's, until it is measured
REFRESH = 16  # steps after which ratios are worked out again
MOST_ROWS = 4096


class StepCosts:
    """Seconds of a step of so many rows. lanes: sequences in the last step."""

    def __init__(self) -> None:
        self.lanes = 1
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._ratios: dict[int, list[float]] = {}
        self._fresh = 0

    def note(self, rows: int, lanes: int, seconds: float) -> None:
        """A step of `rows` rows of `lanes` sequences took `seconds`."""
        self.lanes = lanes
        known = self._seconds.get(rows)
        if known is None and len(self._seconds) >= MOST_ROWS:
            return
        count = self._counts[rows] = self._counts.get(rows, 0) + 1
        if known is None:
            self._seconds[rows] = seconds
        elif count == 2:  # the first of its kind may have compiled, or touched new memory
            self._seconds[rows] = min(known, seconds)
        else:
            self._seconds[rows] += WEIGHT * (min(seconds, CLIP * known) - known)
        self._fresh += 1
        if count <= 2 or self._fresh >= REFRESH:
            self._ratios, self._fresh = {}, 0

    def count(self, rows: int) -> int:
        """How often steps of so many rows were timed."""
        return self._counts.get(rows, 0)

    def seconds(self, rows: int) -> float:
        """A step's cost: measured, else between or past the nearest measured ones; 0 before any
        was."""
        known = self._seconds
        if rows in known:
            return known[rows]
        below = max((n for n in known if n < rows), default=0)
        above = min((n for n in known if n > rows), default=0)
        if below and above:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        if below:
            return known[below] * (1 + SLOPE * (rows - 1)) / (1 + SLOPE * (below - 1))
        if above:
            return known[above] * (1 + SLOPE * (rows - 1)) / (1 + SLOPE * (above - 1))
        return 0.0

    def ratios(self, most: int) -> list[float]:
        """v(1) .. v(most): what a step of m rows a sequence costs, of as many sequences as the last
        one had, in steps of one row each."""
        lanes = self.lanes
        found = self._ratios.get(lanes, [])
        if len(found) < most:
            one = self.seconds(lanes)
            rows = range(lanes, lanes * (most + 1), lanes)
            found = [self.seconds(n) / one if one else 1 + SLOPE * (n / lanes - 1) for n in rows]
            self._ratios[lanes] = found
        return found
