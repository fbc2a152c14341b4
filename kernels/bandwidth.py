"""How fast this machine streams memory: the yardstick of decode speed.

`read_gbps` walks a buffer far larger than the caches with 64-byte vector loads, one sequential
stream a thread, with and without asking for lines ahead of time as the decode kernels do, and
reports the best of several passes.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from .cpu.code import entry_point

AHEADS = (0, 8192)  # bytes between a load and what is asked for meanwhile; 0: nothing is


def read_gbps(threads: int = 1, *, megabytes: int = 256, passes: int = 9) -> float:
    """Best streaming read rate in GB/s (10^9 bytes) with `threads` threads."""
    stream = entry_point("stream")
    data = np.ones(megabytes << 20, np.uint8)
    base, share = data.ctypes.data, data.nbytes // threads
    best = 0.0
    for index in range(passes):
        ahead = AHEADS[index % len(AHEADS)]
        parts = [(base + i * share, base + (i + 1) * share, ahead) for i in range(threads)]
        team = [threading.Thread(target=stream, args=part) for part in parts[1:]]
        began = time.perf_counter()
        for member in team:
            member.start()
        stream(*parts[0])
        for member in team:
            member.join()
        best = max(best, data.nbytes / (time.perf_counter() - began) / 1e9)
    return best
