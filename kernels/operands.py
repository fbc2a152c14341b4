"""Operand words of kernels, by name.

An instruction is a row of `ROW` int64 words: the kernel's address, whether a barrier follows, the
address of its row count, and the kernel's operands. An op family names the operands of its kernels
once; the kernel reads them by name, and lowering fills them by name:

    SOFTCAP = operands("x", "x_stride", "y", "y_stride", "width", "cap")

    ld_i64(ins + SOFTCAP.width)                       # in the kernel
    b.step("softcap", SOFTCAP, writes=y, reads=[x], x=x, x_stride=64, ..., cap=3.0)
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

ROW = 32  # words of an instruction
WORD = 8  # bytes
ROW_BYTES = ROW * WORD
COUNT = 2 * WORD  # where the address of the row count stands
FIRST = 3  # the first operand's word


def operands(*names: str) -> Any:
    """A named tuple of byte offsets inside an instruction, one a name, in order. Numba reads its
    fields as constants."""
    if len(names) > ROW - FIRST:
        raise ValueError(f"{len(names)} operands, an instruction holds {ROW - FIRST}")
    make: Any = namedtuple
    return make("Operands", names)(*(WORD * (FIRST + index) for index in range(len(names))))
