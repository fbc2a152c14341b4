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
from edgert.kernels.cpu.layout import CTRL_WORK, ROWS
from edgert.kernels.encodings import ENCODINGS
from edgert.kernels.linear import LINEAR
from edgert.kernels.operands import WORD

from edgert.bundle import Bundle
from edgert.session import Feed, SessionOptions, open_session
from edgert.session.cpu import CpuSession

FACES = {row.cpu.kernel: (row.cpu, row.group or 1) for row in ENCODINGS.values() if row.cpu}


def profile(session: CpuSession, rows: int, depth: int, repeats: int) -> dict[str, list[float]]:
    """Kernel and shape -> best seconds, calls, bytes of weights, operations, of one step."""
    state = session.new_state(session.context)
    tokens = np.random.default_rng(0).integers(0, session.vocab_size, 8192, dtype=np.int32)
    for at in range(0, depth, session.max_rows):
        piece = tokens[at : min(depth, at + session.max_rows)]
        session.step([Feed(state, piece)])
        state.commit(len(piece))
    session.step([Feed(state, tokens[:rows])])
    program = session.program()
    table, steps = program.table, program.lowering.steps
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    work_word = (ctypes.c_int64).from_address(program.control + CTRL_WORK)
    best = np.full(len(table), np.inf)
    for _ in range(repeats):
        for index, row in enumerate(table):
            work_word.value = 0
            call, at = kind(int(row[0])), int(row.ctypes.data)
            start = time.perf_counter()
            call(at, 0, 1)
            best[index] = min(best[index], time.perf_counter() - start)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for step, row, seconds in zip(steps, table, best, strict=True):
        name, face = step.kernel, FACES.get(step.kernel.split("_")[-1])
        count = rows if step.rows == "T" else 1
        size = work = 0.0
        if face and step.kernel.split("_")[0] in ("linear", "gated"):
            groups = int(row[LINEAR.groups // WORD]) * (2 if step.kernel.startswith("gated") else 1)
            k = int(row[LINEAR.depth // WORD]) * face[1]
            size, work = groups * face[0].group_bytes(k), 2.0 * groups * ROWS * k * count
            name += f" {groups * ROWS} x {k}"
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
