"""What steps cost by their rows, measured as they run: for whoever decides how many to ask for.

A step's cost is that of a turn of the engine with it: what is fed is gathered before it, tokens are
picked and made text behind it, and of many sequences that is no small part. Only steps of tokens
that are being generated count; prompts are another matter. Other work on the machine makes steps
slower and never quicker, so a cost falls at once and rises slowly. Widths that nobody asked for in
a while are forgotten: what was measured on a bad day must not stay true.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FALL, RISE = 0.3, 0.03  # weight of a measurement below and above what is known
CLIP = 2.0  # a step that took longer than so many times the usual counts as that
SAMPLES = 3  # steps until a width is known, by the quickest of them
AGE = 512  # steps until a width that was not seen again is forgotten
SLOPE = 0.15  # cost of a further row, as a share of one row's, until it is measured
REFRESH = 16  # steps after which ratios are worked out again


def clock_for(device: str) -> Callable[[], float]:
    """Seconds by which steps on a device are compared: the processor's own on the CPU, where a busy
    machine interrupts long steps more often than short ones; elsewhere the wall's."""
    exact = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if device == "cpu" and exact else time.perf_counter


class Cost:
    """Seconds of something that is done again and again. count: how often; at: when last."""

    def __init__(self) -> None:
        self.seconds, self.count, self.at = float("inf"), 0, 0

    def note(self, seconds: float) -> None:
        self.count += 1
        if self.count <= SAMPLES:
            self.seconds = min(self.seconds, seconds)
        else:
            weight = FALL if seconds < self.seconds else RISE
            self.seconds += weight * (min(seconds, CLIP * self.seconds) - self.seconds)


class StepCosts:
    """Seconds of a step of so many rows of so many sequences, which are apart: what is done for
    each sequence is no small part. lanes: sequences in the last step."""

    def __init__(self) -> None:
        self.lanes = 1
        self._widths: dict[int, dict[int, Cost]] = {}  # by sequences, by rows
        self._ratios: dict[int, list[float]] = {}
        self._steps = 0

    def note(self, rows: int, lanes: int, seconds: float) -> None:
        """A step of `rows` rows of `lanes` sequences took `seconds`."""
        self.lanes = lanes
        self._steps += 1
        widths = self._widths.get(lanes)
        if widths is None:
            widths = self._widths[lanes] = {}
        width = widths.get(rows)
        if width is None:
            width = widths[rows] = Cost()
        width.note(seconds)
        width.at = self._steps
        if width.count == SAMPLES or self._steps % REFRESH == 0:
            self._refresh()

    def _refresh(self) -> None:
        self._ratios = {}
        for lanes, widths in self._widths.items():
            old = [n for n, width in widths.items() if width.at < self._steps - AGE]
            for rows in old:
                if rows != lanes:
                    del widths[rows]

    def count(self, rows: int) -> int:
        """How often steps of so many rows were timed, of as many sequences as the last one had."""
        width = self._widths.get(self.lanes, {}).get(rows)
        return 0 if width is None else width.count

    def seconds(self, rows: int) -> float:
        """A step's cost, of as many sequences: measured, else between or past the nearest measured
        ones; 0 before any was."""
        widths = self._widths.get(self.lanes, {})
        width = widths.get(rows)
        if width is not None and width.count >= SAMPLES:
            return width.seconds
        known = {n: w.seconds for n, w in widths.items() if w.count >= SAMPLES}
        below = max((n for n in known if n < rows), default=0)
        above = min((n for n in known if n > rows), default=0)
        if below and above:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        nearest = below or above
        if not nearest:
            return 0.0
        return known[nearest] * (1 + SLOPE * (rows - 1)) / (1 + SLOPE * (nearest - 1))

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
