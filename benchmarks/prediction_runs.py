"""What `benchmarks.prediction` times: tokens and prompts, pictures, loading, cold starts, memory.

Models stay open from one turn to the next, so that a turn is short and there are many.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from edgert.devices.profile import Profile

from benchmarks import timing
from edgert.api import open_model
from edgert.budget.children import ASKED
from edgert.budget.limits import budget_of
from edgert.budget.predict import predict
from edgert.bundle import Bundle
from edgert.forecast.latency import paced_seconds, prompt_seconds
from edgert.forecast.pictures import picture_seconds
from edgert.forecast.rates import alone_of, rates_of
from edgert.forecast.work import lowered, works
from edgert.image.expected import Drawing, Expected
from edgert.machine.bench import feed, go_back, is_recurrent, random_tokens
from edgert.session import SessionOptions, open_session
from edgert.session.base import State

LONGEST = 12.0  # predicted seconds of a picture that is drawn; longer ones get fewer steps
STARTS = 5
PROMPT, TOKENS, ROUNDS = 512, 24, 2  # tokens of a prompt and of a round, rounds of a turn
Clock = Callable[[], float]
Expect = Callable[[Profile], float]  # seconds that a profile predicts
CHILD = """
import json, sys, time
path, threads, asked, begun = json.loads(sys.argv[1])
cpu = begun is None
clock = time.process_time if cpu else time.time
import edgert
from edgert.system_memory import peak_resident
start = clock()
with edgert.load(path, threads=threads) as model:
    load = clock() - start
    if hasattr(model, "spec"):
        model(asked.get(model.spec.conditioning, ""), steps=1, cache="none", seed=0)
    else:
        next(iter(model.stream([1] * min(32, model.context - 2), max_tokens=2, temperature=0)))
    cold = clock() - (0.0 if cpu else begun)
    if not hasattr(model, "spec"):
        model.generate(list(range(5, 101)), max_tokens=32, temperature=0)
    print(json.dumps([load, cold, peak_resident()]))
"""


def started(path: Path, threads: int, *, cpu: bool) -> dict[str, float]:
    """Medians of fresh processes: load, cold start (seconds), memory (bytes). The first one, which
    packs, does not count. cpu: by the processor time that they take."""
    found = []
    for _ in range(STARTS + 1):
        fields = [str(path), threads, ASKED, None if cpu else time.time()]
        command = [sys.executable, "-c", CHILD, json.dumps(fields)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    load, cold, peak = np.median(np.array(found[1:]), axis=0)
    return {"load": float(load), "cold start": float(cold), "memory": float(peak)}


def expected_start(path: Path, profile: Profile, threads: int) -> dict[str, float]:
    """The same as `edgert test --predict` says it."""
    limits = budget_of({"load_s": 1.0, "cold_start_s": 1.0})
    load, cold = (v.value or 0.0 for v in predict(path, limits, profile, threads=threads))
    return {"load": load, "cold start": cold}


def drawings(expected: Expected, profile: Profile, threads: int) -> dict[str, Drawing]:
    """Pictures to draw by name: as the bundle says where its cache's share is known, and with
    every step computed; fewer steps where that takes too long."""
    rates = rates_of(profile, threads)
    plain = Drawing(threads=threads, cache="none")
    found = {"picture": Drawing(threads=threads), "picture, no cache": plain}
    for name, asked in list(found.items()):
        loop = expected.denoising(asked)
        seconds = picture_seconds(expected.pieces(asked), rates)
        if not loop.surely:
            del found[name]
        elif seconds > LONGEST:
            steps = max(1, int(loop.steps * LONGEST / seconds))
            found[name] = plain._replace(steps=steps)
    return found


class Writer:
    """A bundle that writes text, open, with a state behind each depth."""

    def __init__(self, path: Path, threads: int, depths: list[int], clock: Clock) -> None:
        with Bundle.open(path) as bundle:
            graph = bundle.graph()
            self._session = open_session(bundle, SessionOptions(threads=threads))
        self._works = works(lowered(graph, threads=threads))
        self._threads, self._clock = threads, clock
        self._depths = [d for d in depths if d + PROMPT <= graph.context]
        generator = np.random.default_rng(0)
        most = max(*self._depths, PROMPT)
        self._tokens = random_tokens(generator, most, self._session.vocab_size)
        self._states = [self._behind(depth) for depth in self._depths]
        self._empty = self._behind(0)

    def _behind(self, depth: int) -> tuple[State, Any]:
        """A state behind so many tokens, and what recurrent ones go back to."""
        state = self._session.new_state(depth + PROMPT)
        feed(self._session, state, self._tokens[:depth])
        return state, state.snapshot() if is_recurrent(self._session) else None

    def turn(self) -> Iterator[tuple[str, Expect, float]]:
        """(test, what predicts it, median seconds) of tokens at each depth, and of prompts."""
        for depth, (state, kept) in zip(self._depths, self._states, strict=True):
            spent: list[float] = []
            with timing.no_collection():
                for _ in range(ROUNDS):
                    self._timed(state, self._tokens[:1])
                    spent += [self._timed(state, self._tokens[i : i + 1]) for i in range(TOKENS)]
                    go_back(state, depth, kept)
            yield f"token at {depth}", partial(self._token, depth), float(np.median(spent))
        state, kept = self._empty
        spent = []
        for _ in range(ROUNDS):
            spent.append(self._timed(state, self._tokens[:PROMPT]))
            go_back(state, 0, kept)
        yield f"prompt of {PROMPT}", self._prompt, float(np.median(spent))

    def _timed(self, state: State, tokens: Any) -> float:
        start = self._clock()
        feed(self._session, state, tokens)
        return self._clock() - start

    def _token(self, depth: int, profile: Profile) -> float:
        rates, alone = rates_of(profile, self._threads), alone_of(profile)
        return paced_seconds(self._works, rates, alone, depth=depth + TOKENS // 2)

    def _prompt(self, profile: Profile) -> float:
        return prompt_seconds(self._works, rates_of(profile, self._threads), PROMPT)

    def close(self) -> None:
        self._session.close()


class Painter:
    """A bundle that draws pictures, open. profile: says which ones take too long."""

    def __init__(self, path: Path, threads: int, profile: Profile, clock: Clock) -> None:
        with Bundle.open(path) as bundle:
            self._expected = Expected(bundle)
        self._path, self._clock = path, clock
        self._drawings = drawings(self._expected, profile, threads)
        self._model = open_model(path, SessionOptions(threads=threads), kind="image")

    def turn(self) -> Iterator[tuple[str, Expect, float]]:
        """(test, what predicts it, median seconds) of each picture."""
        model = self._model
        text = ASKED.get(model.spec.conditioning, "")
        for name, drawing in self._drawings.items():
            asked = drawing
            if model.captions is not None:
                asked = asked._replace(caption_tokens=len(model.captions.tokens(text)))
            options: dict[str, Any] = {"steps": asked.steps, "cache": asked.cache, "seed": 0}
            spent, steps = [], self._expected.denoising(asked).steps
            for _ in range(ROUNDS + 1):
                if model.captions is not None:
                    model.captions._rows.clear()  # the caption is encoded each time
                start = self._clock()
                model(text, **options)
                spent.append(self._clock() - start)
            seconds = float(np.median(spent[1:]))
            yield f"{name}, {steps} steps", partial(expected_picture, self._path, asked), seconds

    def close(self) -> None:
        self._model.close()


def opened(
    path: Path, threads: int, depths: list[int], profile: Profile, clock: Clock
) -> Writer | Painter:
    """A bundle of either kind, ready to be timed."""
    with Bundle.open(path) as bundle:
        draws = bundle.manifest.kind == "image"
    if draws:
        return Painter(path, threads, profile, clock)
    return Writer(path, threads, depths, clock)


def expected_picture(path: Path, asked: Drawing, profile: Profile) -> float:
    """Predicted seconds of a picture."""
    with Bundle.open(path) as bundle:
        return picture_seconds(Expected(bundle).pieces(asked), rates_of(profile, asked.threads))
