"""Predicted against measured: times and memory of every bundle at hand, from a probe alone.

    python -m benchmarks.prediction BUNDLE [BUNDLE ...] [--profile here.toml] [--threads 1 2]

Without a profile this machine is probed. For each bundle, number of threads and depth: the next
token, a prompt of 512; of bundles that draw a picture as they draw it, and one without cache;
loading, a cold start, and the peak memory of a fresh process. The goals: median error of times at
most 10 %, none above 25 %, memory within 5 %, pictures within 20 %. Loading and cold starts are
rows of their own, without a goal. In each of several turns, minutes apart, everything is timed once
and the probe looks once, and of both the quickest times count: what a neighbour of a virtual
machine does to its caches is to be no error of the model. All bundles stay open, in memory.

Another machine is made of this one by `--isa portable` (prompts take fifty times as long: give it
small bundles), and by `--busy`, which keeps one core busy all the while, in the probe too. On a
machine that others keep busy, `--clock cpu` times one thread by the processor time it takes, in the
probe and here, and says so in its results; the numbers of a quiet machine are `--clock wall`.
Results are appended to benchmarks/results/prediction.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from edgert.devices.load import load, to_toml
from edgert.devices.profile import Profile

from benchmarks import machine, prediction_runs
from benchmarks.prediction_runs import Expect
from edgert.bundle import Bundle
from edgert.forecast.memory import footprint, tokenizer_bytes
from edgert.image.expected import Drawing, Expected
from edgert.machine.probe import Looks, Options, probe

RESULTS = Path(__file__).resolve().parent / "results" / "prediction.jsonl"
TURNS = 6
GOALS = {"median": 0.10, "worst": 0.25, "memory": 0.05, "pictures": 0.20}
STARTING = ("load", "cold start")  # tests whose errors have no goal
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
MEMORY_TOKENS = 128
Found = tuple[Expect, float]  # and those that were measured


def memory(path: Path, profile: Profile, threads: int) -> float:
    """Bytes of a process, predicted."""
    base = {"base": profile.measured.base_bytes} if profile.measured else {}
    with Bundle.open(path) as bundle:
        if bundle.manifest.kind == "image":
            once = Drawing(steps=1, cache="none", threads=threads)
            return Expected(bundle).memory(once, **base)
        graph, head = bundle.graph(), bundle.head()
    return footprint(
        graph, tokens=MEMORY_TOKENS, threads=threads, head=head,
        tokenizer=tokenizer_bytes(path / "tokenizer.json"), **base,
    ).total  # fmt: skip


def measured(
    paths: list[Path], given: Profile | None, args: argparse.Namespace
) -> tuple[Profile, dict[tuple[Path, int, str], Found]]:
    """The profile, of a look at this machine in each turn where none is given, and what each test
    took."""
    found: dict[tuple[Path, int, str], Found] = {}
    clock = CLOCKS[args.clock]
    looks = None if given else Looks(Options(tuple(args.threads), clock=clock))
    if looks is not None:
        looks.look()
    first = given or probe(looks=looks)
    with contextlib.ExitStack() as stack:
        models = {}
        for path, count in itertools.product(paths, args.threads):
            models[path, count] = prediction_runs.opened(path, count, args.depths, first, clock)
            stack.callback(models[path, count].close)
        for turn in range(args.turns):
            print(f"  turn {turn + 1} of {args.turns}", flush=True)
            if looks is not None and turn:
                looks.look()
            for (path, count), model in models.items():
                for test, expect, real in model.turn():
                    before = found.get((path, count, test))
                    found[path, count, test] = expect, min(real, before[1]) if before else real
    return given or probe(looks=looks), found


def lines(
    paths: list[Path], profile: Profile, args: argparse.Namespace,
    found: dict[tuple[Path, int, str], Found],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One comparison a line."""
    for (path, count, test), (expect, real) in found.items():
        yield row(path, count, test, expect(profile), real)
    for path in paths:
        most = args.threads[-1]
        begun = prediction_runs.started(path, most, cpu=args.clock == "cpu")
        said = prediction_runs.expected_start(path, profile, most)
        said["memory"] = memory(path, profile, most)
        for test, real in begun.items():
            yield row(path, most, test, said[test], real)


def row(path: Path, threads: int, test: str, expected: float, real: float) -> dict[str, Any]:
    """A comparison; error: predicted over measured, less one."""
    return {
        "model": path.name.removesuffix(".edge"), "threads": threads, "test": test,
        "predicted": float(f"{expected:.5g}"), "measured": float(f"{real:.5g}"),
        "error": round(expected / real - 1, 4),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median and worst error of times, worst of memory and of pictures."""
    kinds: dict[str, list[float]] = {"times": [], "memory": [], "pictures": [], "starting": []}
    for found in rows:
        name = found["test"]
        kind = "pictures" if name.startswith("picture") else "starting" if name in STARTING else ""
        kinds[kind or ("memory" if name == "memory" else "times")].append(abs(found["error"]))
    errors = {"median": np.median(kinds["times"])} if kinds["times"] else {}
    worst = {"worst": "times", "memory": "memory", "pictures": "pictures", "starting": "starting"}
    errors |= {name: max(kinds[kind]) for name, kind in worst.items() if kinds[kind]}
    return {name: round(float(error), 4) for name, error in errors.items()}


def another_machine(isa: str) -> None:
    """This program again with other instructions: kernels are chosen when they are imported."""
    if os.environ.get("EDGERT_ISA", "") != isa:
        os.environ["EDGERT_ISA"] = isa
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.prediction", *sys.argv[1:]])


def all_rows(args: argparse.Namespace) -> tuple[Profile, list[dict[str, Any]]]:
    """The profile, probed where none is given, and all rows."""
    given = load(args.profile) if args.profile else None
    profile, found = measured(args.bundles, given, args)
    if args.keep:
        args.keep.write_text(to_toml(profile), encoding="utf-8")
    rows = []
    for one in lines(args.bundles, profile, args, found):
        rows.append(one)
        print("  {model:14} {threads} threads  {test:26} {predicted:10.4g} predicted "
              "{measured:10.4g} measured  {error:+7.1%}".format(**one), flush=True)  # fmt: skip
    return profile, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--profile", help="of this machine; default: probe it now")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--isa", help="instruction set of the kernels, such as portable")
    parser.add_argument("--busy", action="store_true", help="keep a core busy all the while")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--keep", type=Path, help="write the probed profile here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu counts one thread's time, expected --threads 1")
    if args.isa:
        another_machine(args.isa)
    watch = machine.Watch()
    with machine.busy_core() if args.busy else contextlib.nullcontext():
        profile, rows = all_rows(args)
    errors = summary(rows)
    for name, goal in GOALS.items():
        if name in errors:
            print(f"{name:8} {errors[name]:6.1%}  goal {goal:.0%}  "
                  f"{'met' if errors[name] <= goal else 'missed'}")  # fmt: skip
    run = watch.summary()
    print(f"others kept {run['other_cores']:.2f} cores busy, clock: {args.clock}")
    line = {
        "schema": 1, "kind": "prediction", "clock": args.clock, "busy": args.busy,
        "profile": profile.label,
        "spread": profile.spread, "machine": machine.describe(), "rows": rows, "errors": errors,
        "run": run,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
