"""How kernels find the slots of recurrent states (`edgert/session/recurrent.py`)."""

from __future__ import annotations

from numba import njit

from ..simd import ld_i32, ld_i64

WORDS = 8  # bytes from a slot's start to its word `side`


@njit(error_model="numpy")
def sequence(sequences: int, index: int) -> tuple[int, int, int]:
    """First row, number of rows and slot of a step's sequence."""
    at = sequences + 8 + 24 * index
    return ld_i64(at), ld_i64(at + 8), ld_i64(at + 16)


@njit(error_model="numpy")
def conv_rows(state: int, slot: int) -> tuple[int, int]:
    """Address of the row that the first pending token goes to, and bytes of a row."""
    base, row = ld_i64(state) + slot * ld_i64(state + 8), ld_i64(state + 24)
    return base + ld_i64(state + 16) + ld_i32(base) * row, row


@njit(error_model="numpy")
def matrices(state: int, slot: int) -> tuple[int, int]:
    """Addresses of the committed matrix and of the one that the step makes."""
    base, size = ld_i64(state) + slot * ld_i64(state + 8), ld_i64(state + 24)
    side = ld_i32(base + WORDS)
    first = base + ld_i64(state + 16)
    return first + side * size, first + (1 - side) * size
