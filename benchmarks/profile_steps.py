"""Where a step's time goes: every instruction of a lowered program timed by itself, on one thread.

    python -m benchmarks.profile_steps BUNDLE [--rows 1 256] [--depth 0] [--repeats 20]

Prints the time of each kernel, its share, and for the products GB/s of weights and GOP/s. The sum
is a little more than a real step takes: each instruction is called from Python.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from edgert.kernels.cpu import vm
from edgert.kernels.cpu.pack import group_bytes

from edgert.bundle import Bundle
from edgert.session import Feed, SessionOptions, open_session
from edgert.session.cpu import CpuSession

ENCODING = {"int4": "int4-g32", "int8": "int8-g32", "f16": "f16", "f32": "f32"}


def profile(session: CpuSession, rows: int, depth: int, repeats: int) -> dict[str, list[float]]:
    """Kernel and shape -> best seconds, calls, bytes of weights, operations, of one step."""
    state = session.new_state(session.context)
    tokens = np.random.default_rng(0).integers(0, session.graph.vocab_size, 8192, dtype=np.int32)
    for at in range(0, depth, session.max_rows):
        piece = tokens[at : min(depth, at + session.max_rows)]
        session.step([Feed(state, piece)])
        state.commit(len(piece))
    session.step([Feed(state, tokens[:rows])])
    table, steps = session._table, session._lowering.steps
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    words = session._team._words
    best = np.full(len(table), np.inf)
    for _ in range(repeats):
        for index, row in enumerate(table):
            words[vm.CTRL_WORK // 8] = 0
            call, at = kind(int(row[0])), int(row.ctypes.data)
            start = time.perf_counter()
            call(at, 0, 1)
            best[index] = min(best[index], time.perf_counter() - start)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for step, row, seconds in zip(steps, table, best, strict=True):
        name, encoding = step.kernel, ENCODING.get(step.kernel.split("_")[-1])
        count = rows if step.rows == "T" else 1
        size = work = 0.0
        if encoding and step.kernel.split("_")[0] in ("linear", "gated"):
            groups = int(row[4]) * (2 if step.kernel.startswith("gated") else 1)
            k = int(row[5]) * (32 if encoding.endswith("g32") else 1)
            size, work = groups * group_bytes(encoding, k), 2.0 * groups * 16 * k * count
            name += f" {groups * 16} x {k}"
        for slot, value in enumerate((seconds, 1.0, size, work)):
            found[name][slot] += value
    state.close()
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 256])
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    with Bundle.open(args.bundle) as bundle:
        session = open_session(bundle, SessionOptions(threads=1))
        if not isinstance(session, CpuSession):
            raise SystemExit("numba is missing: there is no program to profile")
        for rows in args.rows:
            found = profile(session, rows, args.depth, args.repeats)
            total = sum(seconds for seconds, *_ in found.values())
            print(f"\n{rows} rows after {args.depth} tokens: {total * 1e3:.3f} ms")
            for name, (seconds, calls, size, work) in sorted(
                found.items(), key=lambda item: -item[1][0]
            ):
                rates = f"{size / seconds / 1e9:6.1f} GB/s {work / seconds / 1e9:7.1f} GOP/s"
                print(
                    f"  {seconds * 1e6:10.1f} us {seconds / total:6.1%} {calls:4.0f} x {name:28s} "
                    + (rates if work else "")
                )
        session.close()


if __name__ == "__main__":
    main()
