"""Measuring a bundle against limits, burst by burst, until every interval decides.

Bursts of all that is measured take turns, so that what disturbs the machine for a while does not
fall on one limit alone. A burst is 16 tokens, a prompt, a process from its start to its first
token, or a picture. Tokens are random; tokenizing and sampling are not measured, but for cold
starts, which are processes that answer.

An interval tells of the seconds that were measured, and a machine drifts from one half minute to
the next. So a time near its limit is looked at twice, `APART` seconds apart, and what is measured
from then on has to decide the same by itself.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ..errors import EdgertError
from ..machine.bench import feed, go_back, is_recurrent, random_tokens
from ..session.base import Session
from ..session.options import SessionOptions
from . import statistics
from .children import ASKED, Child
from .limits import BURST, Limit
from .report import SAMPLES, Verdict, missing, verdict
from .source import Source
from .statistics import F64, Band

TURN = 0.5  # seconds of bursts of one kind, until the others have theirs
APART = 20.0  # seconds between the looks at what is near its limit, at most a quarter of all
NEAR = 1.3  # times the limit, or part of it, within which the interval is near
Progress = Callable[[str], None]


class Steps(Source):
    """Tokens one by one after `depth` tokens, or whole prompts of `prompt` tokens; always from the
    same place."""

    def __init__(self, session: Session, *, depth: int = 0, prompt: int = 0) -> None:
        self.session, self.count = session, prompt or BURST
        self.prompt = prompt
        self.name = f"prompt of {prompt}" if prompt else f"tokens after {depth}"
        total = depth + self.count + 1
        generator = np.random.default_rng(0)
        self.tokens = random_tokens(generator, self.count, session.vocab_size)
        self.state = session.new_state(total)
        feed(session, self.state, random_tokens(generator, depth, session.vocab_size))
        self.depth = depth
        self.kept = self.state.snapshot() if is_recurrent(session) else None

    def burst(self) -> Mapping[str, F64]:
        feed(self.session, self.state, self.tokens[:1])  # wakes the threads
        go_back(self.state, self.depth, self.kept)
        piece = self.count if self.prompt else 1
        times = []
        for at in range(0, self.count, piece):
            start = time.perf_counter()
            feed(self.session, self.state, self.tokens[at : at + piece])
            times.append(time.perf_counter() - start)
        go_back(self.state, self.depth, self.kept)
        found = np.array(times)
        if self.prompt:
            return {"prompt": found}
        return {"token": found, "speed": np.array([self.count / found.sum()]), **_watts()}

    def close(self) -> None:
        self.state.close()


def _watts() -> Mapping[str, F64]:
    from ..devices.jetson import watts

    now = watts()
    return {} if now is None else {"power": np.array([now])}


class Pictures(Source):
    """Whole pictures, as the bundle's own defaults draw them."""

    name = "pictures"

    def __init__(self, bundle: Path, options: SessionOptions) -> None:
        from ..api import open_model

        self.model = open_model(bundle, options, kind="image")
        self.asked = ASKED.get(self.model.spec.conditioning, "")

    def burst(self) -> Mapping[str, F64]:
        start = time.perf_counter()
        self.model(self.asked, seed=0)
        return {"picture": np.array([time.perf_counter() - start])}

    def close(self) -> None:
        self.model.close()


NAMES = {"tokens_per_s": "speed", "load_s": "load", "cold_start_s": "start", "peak_mb": "peak"}


def sampled(limit: Limit) -> str:
    """What a limit's samples are called in a burst."""
    return NAMES.get(limit.name, limit.metric.kind)


class First(NamedTuple):
    """A first look that decided: when, and how. again: bursts before the second one."""

    at: float
    outcome: str
    again: int = -1


def near(limit: Limit, found: Verdict) -> bool:
    """Whether a verdict could become another one by what a machine drifts. Memory does not."""
    if limit.metric.unit == "MB":
        return False
    ends = [end for end in (found.low, found.high) if end]
    return any(limit.value / NEAR < end < limit.value * NEAR for end in ends)


class Run:
    """Limits that share a source, and what has been found for them. apart: seconds between the
    looks at what is near its limit."""

    def __init__(
        self, source: Source, wanted: Sequence[Limit], *, apart: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.source, self.wanted = source, list(dict.fromkeys(wanted))
        self.apart, self.clock = apart, clock
        self.bursts: dict[str, list[F64]] = {}
        self.count = 0
        self.first: dict[Limit, First] = {}
        self.decided: dict[Limit, Verdict] = {}

    @property
    def done(self) -> bool:
        return len(self.decided) == len(self.wanted)

    def step(self) -> None:
        """One more burst, and verdicts where a look is due."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name, values in self.source.burst().items():
                self.bursts.setdefault(name, []).append(values)
        finally:
            if collecting:
                gc.enable()
        self.count += 1
        if self.source.fault:
            self.decided = {limit: self.verdict(limit, statistics.ALPHA) for limit in self.wanted}
        elif look := statistics.is_look(self.count):
            self._look(statistics.alpha_at(look))

    def _look(self, alpha: float) -> None:
        for limit in self.wanted:
            if limit not in self.decided:
                found = self.verdict(limit, alpha)
                settled = found.outcome != "undecided" and self._twice(limit, found, alpha)
                if settled or found.why:
                    self.decided[limit] = found

    def _twice(self, limit: Limit, found: Verdict, alpha: float) -> bool:
        """Whether what was found is clear, or was found before and is found again by itself."""
        if not self.apart or not near(limit, found):
            return True
        first = self.first.get(limit)
        if first is None or first.outcome != found.outcome:
            self.first[limit] = First(self.clock(), found.outcome)
        elif first.again < 0 and self.clock() - first.at >= self.apart:
            self.first[limit] = first._replace(again=len(self.bursts[sampled(limit)]))
        elif first.again >= 0:
            second = self.verdict(limit, alpha, since=first.again).outcome
            if second not in ("undecided", first.outcome):
                del self.first[limit]  # it drifts: two looks more
            return second == first.outcome
        return False

    def verdict(self, limit: Limit, alpha: float, since: int = 0) -> Verdict:
        """What can be said of a limit now. since: bursts before those that count."""
        if self.source.fault:
            return missing(limit, "measured", self.source.fault, "fail")
        bursts = self.bursts.get(sampled(limit), [])[since:]
        if not bursts:
            why = f"this machine does not show {limit.metric.unit}" if self.count else "no time"
            return missing(limit, "measured", why)
        scale, quantile = limit.metric.scale, limit.metric.quantile
        raw = statistics.quantile_band(bursts, quantile, alpha)
        band = Band(*(value * scale for value in raw))
        typical = [float(np.quantile(burst, quantile)) * scale for burst in bursts]
        found = verdict(
            limit, band, "measured", count=sum(map(len, bursts)), samples=typical[:SAMPLES]
        )
        if found.outcome == "pass" and self.source.doubt:
            return msgspec.structs.replace(found, outcome="undecided", why=self.source.doubt)
        return found


def measure(
    bundle: Path,
    wanted: Sequence[Limit],
    options: SessionOptions,
    *,
    seconds: float = 120.0,
    limit_memory: int | None = None,
    least_bursts: int = 0,
    progress: Progress = lambda what: None,
) -> list[Verdict]:
    """Verdicts on all limits, in their order, after at most about `seconds`. What the bundle cannot
    be measured for stays undecided.

    least_bursts: to take even where all is decided, for comparing with another run. limit_memory:
    bytes that processes may take, see `children`. Raises what loading raises.
    """
    deadline = time.perf_counter() + seconds
    found = _unfit(bundle, wanted)
    fit = [limit for limit in wanted if limit not in found]
    runs, session = _runs(bundle, fit, options, limit_memory, min(APART, seconds / 4))
    try:
        while time.perf_counter() < deadline:
            left = [run for run in runs if not run.done or run.count < least_bursts]
            if not left:
                break
            for run in left:
                progress(f"{run.source.name}: burst {run.count + 1}")
                _turn(run, least_bursts, min(deadline, time.perf_counter() + TURN))
    finally:
        for run in runs:
            run.source.close()
        if session is not None:
            session.close()
    for run in runs:
        for limit in run.wanted:
            last = run.decided.get(limit) or run.verdict(limit, statistics.ALPHA / 100)
            now = run.verdict(limit, statistics.ALPHA / 100)  # all samples, for a baseline
            found[limit] = _with_samples(last, now)
    context = session.context if session is not None else None
    for limit in fit:
        if limit not in found:
            found[limit] = missing(limit, "measured", limit.unfit("text", context))
    return [found[limit] for limit in wanted]


def _unfit(path: Path, wanted: Sequence[Limit]) -> dict[Limit, Verdict]:
    """Limits that are of models of another kind, undecided."""
    from ..bundle.reader import Bundle

    with Bundle.open(path) as bundle:
        kind = bundle.manifest.kind
    if kind not in ("text", "image"):
        return {}  # loading it says what is wrong
    reasons = {limit: limit.unfit(kind) for limit in wanted}
    return {limit: missing(limit, "measured", why) for limit, why in reasons.items() if why}


def _turn(run: Run, least_bursts: int, until: float) -> None:
    """Bursts of one run, at least one: short ones get as much time as long ones."""
    while True:
        run.step()
        if time.perf_counter() > until or (run.done and run.count >= least_bursts):
            return


def _with_samples(last: Verdict, now: Verdict) -> Verdict:
    return msgspec.structs.replace(last, samples=now.samples)


def _runs(
    bundle: Path, wanted: Sequence[Limit], options: SessionOptions, limit_memory: int | None,
    apart: float,
) -> tuple[list[Run], Session | None]:  # fmt: skip
    """What measures limits, but for those that need more than the context holds."""
    groups: dict[tuple[str, int], list[Limit]] = {}
    for limit in wanted:
        kind = "token" if limit.metric.kind == "power" else str(limit.metric.kind)
        groups.setdefault((kind, limit.tokens or 0), []).append(limit)
    session, runs = None, list[Run]()
    try:
        for (kind, tokens), members in groups.items():
            source: Source
            if kind == "process":
                source = Child(bundle, options, limit_memory)
            elif kind == "picture":
                source = Pictures(bundle, options)
            else:
                session = session or _open(bundle, options)
                if members[0].unfit("text", session.context):
                    continue
                where = {"depth": tokens} if kind == "token" else {"prompt": tokens}
                source = Steps(session, **where)
            runs.append(Run(source, members, apart=apart))
    except EdgertError:
        for run in runs:
            run.source.close()
        if session is not None:
            session.close()
        raise
    return runs, session


def _open(path: Path, options: SessionOptions) -> Session:
    from ..bundle.reader import Bundle
    from ..session import open_session

    with Bundle.open(path) as bundle:
        return open_session(bundle, options)
