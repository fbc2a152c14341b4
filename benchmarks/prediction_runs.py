"""What `benchmarks.prediction` compares besides tokens: pictures, loading, cold starts, memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgert.devices.profile import Profile

from edgert.api import open_model
from edgert.budget.children import ASKED
from edgert.budget.limits import budget_of
from edgert.budget.predict import predict
from edgert.bundle import Bundle
from edgert.forecast.pictures import picture_seconds
from edgert.forecast.rates import rates_of
from edgert.image.expected import Drawing, Expected
from edgert.session import SessionOptions

LONGEST = 12.0  # predicted seconds of a picture that is drawn; longer ones get fewer steps
STARTS, DRAWN = 5, 3
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


def drawn(
    path: Path, profile: Profile, threads: int, clock: Callable[[], float]
) -> dict[str, tuple[Drawing, float]]:
    """Pictures by name, and the seconds that they take."""
    with Bundle.open(path) as bundle:
        expected = Expected(bundle)
    out = {}
    with open_model(path, SessionOptions(threads=threads), kind="image") as model:
        text = ASKED.get(model.spec.conditioning, "")
        for name, asked in drawings(expected, profile, threads).items():
            if model.captions is not None:
                asked = asked._replace(caption_tokens=len(model.captions.tokens(text)))
            options: dict[str, Any] = {"steps": asked.steps, "cache": asked.cache, "seed": 0}
            spent, steps = [], expected.denoising(asked).steps
            for _ in range(DRAWN + 1):
                if model.captions is not None:
                    model.captions._rows.clear()  # the caption is encoded each time
                start = clock()
                model(text, **options)
                spent.append(clock() - start)
            out[f"{name}, {steps} steps"] = asked, float(np.median(spent[1:]))
    return out


def expected_picture(path: Path, asked: Drawing, profile: Profile) -> float:
    """Predicted seconds of a picture."""
    with Bundle.open(path) as bundle:
        return picture_seconds(Expected(bundle).pieces(asked), rates_of(profile, asked.threads))
