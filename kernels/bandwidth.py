"""How fast this machine streams memory: the yardstick of decode speed.

`read_gbps` walks a buffer far larger than the caches with 64-byte vector loads, one sequential
stream a thread, with and without asking for lines ahead of time as the decode kernels do, and
reports the best of several passes.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numba import njit

from .cpu.interrupts import held_back
from .simd import add_i32, bitcast_i32, i64, load_i8, prefetch_once, splat_i32, sum_i32

AHEADS = (0, 8192)  # bytes between a load and what is asked for meanwhile; 0: nothing is


with held_back():

    @njit(i64(i64, i64, i64), nogil=True, error_model="numpy", cache=False)
    def _stream(start: int, stop: int, ahead: int) -> int:
        a = b = c = d = splat_i32(0)
        for p in range(start, stop - 255, 256):
            if ahead:
                for line in range(0, 256, 64):
                    prefetch_once(p + ahead + line)
            a = add_i32(a, bitcast_i32(load_i8(p)))
            b = add_i32(b, bitcast_i32(load_i8(p + 64)))
            c = add_i32(c, bitcast_i32(load_i8(p + 128)))
            d = add_i32(d, bitcast_i32(load_i8(p + 192)))
        return sum_i32(add_i32(add_i32(a, b), add_i32(c, d)))


def read_gbps(threads: int = 1, *, megabytes: int = 256, passes: int = 9) -> float:
    """Best streaming read rate in GB/s (10^9 bytes) with `threads` threads."""
    data = np.ones(megabytes << 20, np.uint8)
    base, share = data.ctypes.data, data.nbytes // threads
    best = 0.0
    for index in range(passes):
        ahead = AHEADS[index % len(AHEADS)]
        parts = [(base + i * share, base + (i + 1) * share, ahead) for i in range(threads)]
        team = [threading.Thread(target=_stream, args=part) for part in parts[1:]]
        began = time.perf_counter()
        for member in team:
            member.start()
        _stream(*parts[0])
        for member in team:
            member.join()
        best = max(best, data.nbytes / (time.perf_counter() - began) / 1e9)
    return best
