"""Memory that is given back is memory that is read again, not memory that is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgert.process import give_back_code, give_back_heap
from edgert.session.memory import reserve

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux reads /proc")


def resident_of(library: str) -> int:
    """Kilobytes of a mapped library that are in memory."""
    total, mine = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            mine = len(words) > 5 and library in words[5]
        elif mine and words[0] == "Rss:":
            total += int(words[1])
    return total


@linux
def test_a_compiler_that_was_given_back_compiles_again() -> None:
    import numba

    assert numba.njit(lambda x: x + 1)(1) == 2
    before = resident_of("libllvmlite")
    give_back_code("libllvmlite")
    assert resident_of("libllvmlite") < before / 2
    assert numba.njit(lambda x: x * x + 3)(5) == 28


@linux
def test_a_library_that_is_not_mapped_is_no_fault() -> None:
    give_back_code("no-such-library")
    give_back_heap()


@linux
def test_reserved_memory_costs_what_is_touched() -> None:
    def held() -> int:
        words = Path("/proc/self/statm").read_text(encoding="utf-8").split()
        return int(words[1]) * 4096

    block = reserve(256 << 20)
    before = held()
    block[:: 16 << 20] = 1  # 16 bytes, far apart
    assert held() - before < 1 << 20
    assert block.ctypes.data % 4096 == 0


def test_reserved_memory_is_zero_and_may_be_empty() -> None:
    assert not reserve(100_000).any()
    assert reserve(0).shape == (0,)
    assert reserve(10).dtype == np.uint8
