"""The shipped machine code against the same kernels compiled just in time, each by itself.

    python -m benchmarks.kernel_library BUNDLE [...] [--rows 1 8 256] [--repeats 40]

One program, whose instructions call first the one and then the other, in turns: so both read the
same memory on the same thread in the same moment. Prints each kernel's time in both and the ratio
of the best times (above 1: the library is faster). Exits with 1 where a kernel that takes at least
a hundredth of a step is more than 2 % slower.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from edgert.kernels import simd
from edgert.kernels.cpu import code, jit
from edgert.kernels.cpu.layout import CTRL_WORK

from edgert.bundle import Bundle
from edgert.session import Feed, SessionOptions, kernel_cache, open_session
from edgert.session.cpu import CpuSession
from edgert.storage.cachedir import cache_root

SLOWER, SHARE = 0.98, 0.01


def compare(session: CpuSession, rows: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Kernel -> best seconds of a step from the library and from the compiler."""
    state = session.new_state(session.context)
    tokens = np.random.default_rng(0).integers(0, session.vocab_size, rows, dtype=np.int32)
    session.step([Feed(state, tokens)])
    program = session.program()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    folder = cache_root() / f"kernels-{simd.ISA}-{jit.sources_hash()}"
    names = sorted({step.kernel for step in program.lowering.steps})
    calls = {n: (kind(code.address(n)), kind(jit.address(n, folder))) for n in names}
    work = ctypes.c_int64.from_address(program.control + CTRL_WORK)
    best = np.full((len(program.table), 2), np.inf)
    for repeat in range(repeats):
        for index, (row, step) in enumerate(
            zip(program.table, program.lowering.steps, strict=True)
        ):
            at = int(row.ctypes.data)
            for which in (0, 1) if repeat % 2 else (1, 0):
                work.value = 0
                start = time.perf_counter()
                calls[step.kernel][which](at, 0, 1)
                best[index, which] = min(best[index, which], time.perf_counter() - start)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for step, pair in zip(program.lowering.steps, best, strict=True):
        for which in (0, 1):
            found[step.kernel][which] += pair[which]
    state.close()
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8, 256])
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    if code.shipped() is None:
        raise SystemExit(f"no library serves here: {code.refused() or 'build one'}")
    assert kernel_cache() is None
    slow = []
    for path in args.bundles:
        with Bundle.open(path) as bundle:
            session = open_session(bundle, SessionOptions(threads=1))
            assert isinstance(session, CpuSession)
            for rows in args.rows:
                found = compare(session, rows, args.repeats)
                total = sum(library for library, _ in found.values())
                print(f"\n{path.name}, {simd.ISA}, {rows} rows: {total * 1e3:.3f} ms")
                for name, (library, compiled) in sorted(found.items(), key=lambda f: -f[1][0]):
                    ratio = compiled / library
                    print(
                        f"  {name:14} {library * 1e6:10.1f} us, just in time "
                        f"{compiled * 1e6:10.1f} us: {ratio:.3f}"
                    )
                    if ratio < SLOWER and library > SHARE * total:
                        slow.append(f"{name} ({rows} rows, {ratio:.3f})")
            session.close()
    print(f"\nmore than 2 % slower: {', '.join(slow) or 'none'}")
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
