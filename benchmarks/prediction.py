"""Predicted against measured: times and memory of every bundle at hand, from a probe alone.

    python -m benchmarks.prediction BUNDLE [BUNDLE ...] [--profile here.toml] [--threads 1 2]

Without a profile this machine is probed first. For each bundle, number of threads and depth: the
next token, a prompt of 512, and the peak memory of a fresh process, which is predicted and then
measured. The goals: median error of times at most 10 %, none above 25 %, memory within 5 %.

On a machine that others keep busy, `--clock cpu` times one thread by the processor time it takes,
in the probe and here, and says so in its results; the numbers of a quiet machine are `--clock
wall`. `EDGERT_ISA=portable`, or a busy core, make another machine of this one: probe it anew.
Results are appended to benchmarks/results/prediction.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from edgert.devices.load import load, to_toml
from edgert.devices.profile import Profile

from benchmarks import machine, timing
from edgert.bundle import Bundle
from edgert.forecast.latency import prompt_seconds, step_seconds
from edgert.forecast.memory import footprint
from edgert.forecast.rates import rates_of
from edgert.forecast.work import lowered, works
from edgert.machine.bench import feed, go_back, is_recurrent, random_tokens
from edgert.machine.probe import Options, probe
from edgert.session import Session, SessionOptions, open_session

RESULTS = Path(__file__).resolve().parent / "results" / "prediction.jsonl"
PROMPT, TOKENS, ROUNDS = 512, 24, 5
GOALS = {"median": 0.10, "worst": 0.25, "memory": 0.05}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
MEMORY_TOKENS = 128
MEMORY_CHILD = """
import sys
import edgert
from edgert.system_memory import peak_resident
with edgert.load(sys.argv[1], threads=int(sys.argv[2])) as model:
    model.generate(list(range(5, 101)), max_tokens=32, temperature=0)
    print(peak_resident())
"""


def measured_times(
    session: Session, depths: list[int], clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a token at each depth and of a prompt."""
    generator = np.random.default_rng(0)
    tokens = random_tokens(generator, max(*depths, PROMPT), session.vocab_size)
    state = session.new_state(max(depths) + PROMPT)
    kept, found = None, {}
    for depth in sorted(depths):
        feed(session, state, tokens[state.length : depth])
        kept = state.snapshot() if is_recurrent(session) else None
        spent: list[float] = []
        with timing.no_collection():
            for _ in range(ROUNDS):
                feed(session, state, tokens[:1])
                for at in range(TOKENS):
                    start = clock()
                    feed(session, state, tokens[at : at + 1])
                    spent.append(clock() - start)
                go_back(state, depth, kept)
        found[f"token at {depth}"] = float(np.median(spent))
    state.rewind(0)
    spent = []
    for _ in range(ROUNDS):
        start = clock()
        feed(session, state, tokens[:PROMPT])
        spent.append(clock() - start)
        state.rewind(0)
    found[f"prompt of {PROMPT}"] = float(np.median(spent))
    state.close()
    return found


def predicted_times(
    path: Path, profile: Profile, threads: int, depths: list[int]
) -> dict[str, float]:
    """The same from the graph and the profile, without running anything."""
    with Bundle.open(path) as bundle:
        found = works(lowered(bundle.graph(), threads=threads))
    rates = rates_of(profile, threads)
    out = {f"token at {d}": step_seconds(found, rates, depth=d + TOKENS // 2) for d in depths}
    return out | {f"prompt of {PROMPT}": prompt_seconds(found, rates, PROMPT)}


def memory(path: Path, profile: Profile, threads: int) -> tuple[float, float]:
    """Bytes of a process, predicted and measured; the first start, which packs, does not count."""
    with Bundle.open(path) as bundle:
        graph = bundle.graph()
    base = {"base": profile.measured.base_bytes} if profile.measured else {}
    expected = footprint(
        graph, tokens=MEMORY_TOKENS, threads=threads,
        tokenizer=(path / "tokenizer.json").stat().st_size, **base,
    ).total  # fmt: skip
    command = [sys.executable, "-c", MEMORY_CHILD, str(path), str(threads)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return expected, float(done.stdout.split()[-1])


def lines(
    paths: list[Path], profile: Profile, threads: list[int], depths: list[int], clock: str
) -> Iterator[dict[str, Any]]:
    """One comparison a line."""
    for path in paths:
        for count in threads:
            with Bundle.open(path) as bundle:
                fitting = [d for d in depths if d + PROMPT <= bundle.graph().context]
                session = open_session(bundle, SessionOptions(threads=count))
                try:
                    real = measured_times(session, fitting, CLOCKS[clock])
                finally:
                    session.close()
            expected = predicted_times(path, profile, count, fitting)
            for test, seconds in real.items():
                yield row(path, count, test, expected[test], seconds)
        yield row(path, threads[-1], "memory", *memory(path, profile, threads[-1]))


def row(path: Path, threads: int, test: str, expected: float, real: float) -> dict[str, Any]:
    """A comparison; error: predicted over measured, less one."""
    return {
        "model": path.name.removesuffix(".edge"), "threads": threads, "test": test,
        "predicted": float(f"{expected:.5g}"), "measured": float(f"{real:.5g}"),
        "error": round(expected / real - 1, 4),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median and worst error of times, worst of memory."""
    times = [abs(r["error"]) for r in rows if r["test"] != "memory"]
    sizes = [abs(r["error"]) for r in rows if r["test"] == "memory"]
    return {
        "median": round(float(np.median(times)), 4), "worst": round(max(times), 4),
        "memory": round(max(sizes, default=0.0), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--profile", help="of this machine; default: probe it now")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--keep", type=Path, help="write the probed profile here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu counts one thread's time, expected --threads 1")
    watch = machine.Watch()
    if args.profile:
        profile = load(args.profile)
    else:
        options = Options(tuple(args.threads), clock=CLOCKS[args.clock])
        profile = probe(options, progress=lambda what, share: print(f"  {share:4.0%} {what}"))
    if args.keep:
        args.keep.write_text(to_toml(profile), encoding="utf-8")
    rows = []
    for found in lines(args.bundles, profile, args.threads, args.depths, args.clock):
        rows.append(found)
        print("  {model:14} {threads} threads  {test:14} {predicted:10.4g} predicted "
              "{measured:10.4g} measured  {error:+7.1%}".format(**found), flush=True)  # fmt: skip
    errors = summary(rows)
    for name, goal in GOALS.items():
        print(f"{name:7} {errors[name]:6.1%}  goal {goal:.0%}  "
              f"{'met' if errors[name] <= goal else 'missed'}")  # fmt: skip
    run = watch.summary()
    print(f"others kept {run['other_cores']:.2f} cores busy, clock: {args.clock}")
    line = {
        "schema": 1, "kind": "prediction", "clock": args.clock, "profile": profile.label,
        "spread": profile.spread, "machine": machine.describe(), "rows": rows, "errors": errors,
        "run": run,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
