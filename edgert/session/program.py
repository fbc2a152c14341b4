"""What a lowered program is made of: steps, the memory it is bound to, and arena placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Operands = Callable[[Mapping[str, int]], list[int]]  # addresses by name -> words of a row


@dataclass
class Step:
    """One instruction to be: its kernel, what it reads and writes, and how to fill its row."""

    kernel: str
    rows: str  # "T" or "R": which count it works on
    reads: list[str]
    writes: str
    operands: Operands
    barrier: int = 1
    in_place: str = ""  # a read value whose memory the written one takes over


@dataclass
class Layout:
    """Sizes that lowering fixed. Bytes."""

    strides: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Addresses and sizes a program is bound to; the session owns them all."""

    tokens: int
    rows: int
    positions: int
    tables: int
    long_flags: int
    tiles: int
    count_t: int
    count_r: int
    counters: int
    scratch: int
    partials: int
    ctrl: int

    def named(self) -> dict[str, int]:
        """The addresses as operands name them: @tokens, @rows, ..."""
        return {f"@{name}": value for name, value in vars(self).items()}


def float_bits(value: float) -> int:
    """A float32's bits as the low half of an operand word."""
    return int(np.float32(value).view(np.uint32))


def stride_of(width: int) -> int:
    """Row stride of a float32 buffer: 64-byte rows, padded to 16 columns."""
    return -(-width // 16) * 64


def place(
    steps: Sequence[Step], sizes: Mapping[str, int], output: str
) -> tuple[dict[str, int], int]:
    """Offset of every value but `output` in one arena, and the arena's bytes (64-byte aligned).

    A value lives from the step that writes it to the last that reads it; values whose lives do not
    meet share memory, and an in-place step's result takes over what it read.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    home: dict[str, str] = {}
    for index, step in enumerate(steps):
        if step.in_place:
            home[step.writes] = home.get(step.in_place, step.in_place)
        for name in [*step.reads, step.writes]:
            name = home.get(name, name)
            first.setdefault(name, index)
            last[name] = index
    offsets: dict[str, int] = {}
    ends: dict[str, int] = {}
    for name in sorted(first, key=lambda n: first[n]):
        if name == output or name not in sizes:
            continue
        size = -(-sizes[name] // 64) * 64
        live = sorted(
            (offsets[other], ends[other])
            for other in offsets
            if last[other] >= first[name] and first[other] <= last[name]
        )
        offsets[name] = _gap(live, size)
        ends[name] = offsets[name] + size
    total = max(ends.values(), default=0)
    offsets.update({name: offsets[other] for name, other in home.items() if other in offsets})
    return offsets, total


def _gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The lowest start where `size` bytes fit between sorted ranges."""
    start = 0
    for low, high in taken:
        if start + size <= low:
            break
        start = max(start, high)
    return start
