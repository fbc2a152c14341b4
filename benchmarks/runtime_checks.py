"""What a process costs: peak memory, warm start, and two threads with one core taken away.

    python -m benchmarks.runtime_checks BUNDLE [BUNDLE ...] [--checks rss start busy] [--quick]

rss     peak resident memory of a fresh process that reads a prompt of 512 and writes 32 tokens,
        less its packed weights and its KV pages: at most 160 MB
start   from starting Python to the first token after a prompt of 32 tokens, everything cached: at
        most 1.2 s for the 135M shape
busy    tokens a second of two threads while another process keeps one core busy, against one
        thread on the quiet machine: at least 0.70

Bundles of the shapes of `benchmarks.text_peers` are made there (`--prepare --shape ...`). Results
are appended to benchmarks/results/runtime_checks.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, targets, timing
from benchmarks.runners import SessionRunner
from benchmarks.text_models import shape_of
from edgert.bundle import Bundle
from edgert.roles import vocab_size

RESULTS = Path(__file__).resolve().parent / "results" / "runtime_checks.jsonl"
CHECKS = ("rss", "start", "busy")
MEMORY_CHILD = """
import json, sys
import numpy as np
import edgert
from edgert.system_memory import peak_resident
from edgert.session import Feed
with edgert.load(sys.argv[1], threads=int(sys.argv[2])) as model:
    session = model.session
    tokens = np.random.default_rng(0).integers(0, session.vocab_size, 545, dtype=np.int32)
    count = min(512, session.context - 33)
    state = session.new_state(session.context)
    for at in range(0, count, session.max_rows):
        piece = tokens[at : min(at + session.max_rows, count)]
        session.step([Feed(state, piece)])
        state.commit(len(piece))
    for at in range(32):
        session.step([Feed(state, tokens[at : at + 1])])
        state.commit(1)
    packed = session.packed_weights.nbytes
    print(json.dumps({"peak": peak_resident(), "packed": packed, "kv": state.nbytes}))
"""
START_CHILD = """
import sys
import edgert
with edgert.load(sys.argv[1]) as model:
    stream = model.stream(list(range(100, 132)), max_tokens=2, temperature=0)
    next(iter(stream))
    print("first", flush=True)
"""
BUSY_CHILD = """
import os, sys
if sys.argv[1] != "anywhere":
    os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
while True:
    pass
"""


def child(code: str, *words: str) -> list[str]:
    """The command of a fresh interpreter."""
    return [sys.executable, "-c", code, *words]


def peak_memory(path: Path) -> dict[str, Any]:
    """Megabytes (10^6 bytes) of a process beyond weights and cache. The first run fills caches."""
    for _ in range(2):
        done = subprocess.run(
            child(MEMORY_CHILD, str(path), "2"), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the memory check failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    over = (found["peak"] - found["packed"] - found["kv"]) / 1e6
    return {
        "check": "rss", "value": round(over, 1), "unit": "MB over weights and KV",
        "limit": targets.RSS_OVERHEAD_MB, "verdict": most(over, targets.RSS_OVERHEAD_MB),
        **{f"{key}_mb": round(value / 1e6, 1) for key, value in found.items()},
    }  # fmt: skip


def most(value: float, limit: float | None) -> str:
    """PASS at or under the limit."""
    return "" if limit is None else targets.verdict(limit, value)


def warm_start(path: Path, shape: str, repeats: int) -> dict[str, Any]:
    """Seconds from starting a process to its first token."""
    times = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        with subprocess.Popen(child(START_CHILD, str(path)), stdout=subprocess.PIPE) as process:
            line = process.stdout.readline() if process.stdout else b""
            spent = time.perf_counter() - start
        if line.strip() != b"first" or process.returncode:
            raise SystemExit(f"the start check failed with {process.returncode}, see above")
        if turn:  # the first one may have had to compile and pack
            times.append(spent)
    limit = targets.WARM_START_S if shape == "135m" else None
    median = float(np.median(times))
    return {
        "check": "start", "value": round(median, 3), "unit": "s to the first token",
        "best": round(min(times), 3), "p90": round(float(np.percentile(times, 90)), 3),
        "count": len(times), "limit": limit, "verdict": most(median, limit),
    }  # fmt: skip


@contextlib.contextmanager
def busy_process(core: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes for ever on `core` ("anywhere": where the scheduler likes), stopped
    at first."""
    with subprocess.Popen(child(BUSY_CHILD, core), stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline().strip() != b"ready":
                raise SystemExit("the busy process did not start")
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def busy_core(path: Path, rounds: int, core: str) -> dict[str, Any]:
    """Decoding speed of two threads beside a busy process over that of one thread alone, bursts
    alternating."""
    spent: dict[int, list[float]] = {1: [], 2: []}
    with Bundle.open(path) as bundle, busy_process(core) as other:
        context = min(bundle.graph().context, 256)
        runner = SessionRunner(bundle, (1, 2), context=context)
        vocabulary = vocab_size(bundle.graph())
        tokens = np.random.default_rng(0).integers(0, vocabulary, 24, dtype=np.int32)
        burst = timing.writing(tokens, 0)
        try:
            for _ in range(rounds):
                for threads in (1, 2):
                    runner.use(threads)
                    if threads == 2:
                        other.send_signal(signal.SIGCONT)
                    time.sleep(timing.PAUSE)
                    with timing.no_collection():
                        spent[threads] += burst(runner)
                    other.send_signal(signal.SIGSTOP)
        finally:
            runner.close()
    # means, not medians: what a stolen time slice costs falls on few tokens
    quiet, contended = float(np.mean(spent[1])), float(np.mean(spent[2]))
    share = quiet / contended
    return {
        "check": "busy", "value": round(share, 3),
        "unit": f"x one quiet thread, busy {'core' if core == 'anywhere' else 'pinned core'}",
        "quiet_tps": round(1 / quiet, 1), "contended_tps": round(1 / contended, 1),
        "median_share": round(float(np.median(spent[1]) / np.median(spent[2])), 3),
        "limit": targets.BUSY_CORE_SHARE,
        "verdict": targets.verdict(share, targets.BUSY_CORE_SHARE),
    }  # fmt: skip


def busy_checks(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """With the busy process where the scheduler puts it, and on the core of our second thread."""
    yield busy_core(path, rounds, "anywhere")
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 2:
        yield busy_core(path, rounds, str(max(os.sched_getaffinity(0))))


def run_checks(path: Path, checks: list[str], *, quick: bool) -> dict[str, Any]:
    """Every check of one bundle; the line for the results file."""
    watch = machine.Watch()
    with Bundle.open(path) as bundle:
        shape = shape_of(bundle.graph())
    name = path.name.removesuffix(".edge")
    found: list[dict[str, Any]] = []
    if "rss" in checks:
        found.append(peak_memory(path))
    if "start" in checks:
        found.append(warm_start(path, shape, 3 if quick else 9))
    if "busy" in checks:
        found += busy_checks(path, 4 if quick else 12)
    for check in found:
        print(f"  {name}: {described(check)}", flush=True)
    return {
        "schema": 1, "kind": "runtime_checks", "model": name, "shape": shape,
        "machine": machine.describe(), "checks": found, "run": watch.summary(),
    }  # fmt: skip


def described(check: dict[str, Any]) -> str:
    """A check in one line."""
    limit = f"  (limit {check['limit']}) {check['verdict']}" if check["limit"] else ""
    return f"{check['check']:6s} {check['value']:8.3f} {check['unit']}{limit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), choices=CHECKS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for path in args.bundles:
        line = run_checks(path, args.checks, quick=args.quick)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        run = line["run"]
        print(
            f"  {run['seconds']:.0f} s, other processes used {run['other_cores']:.2f} cores"
            f"{' - NOISY' if run['noisy'] else ''}"
        )


if __name__ == "__main__":
    main()
