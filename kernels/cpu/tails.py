"""How kernels find recurrent states with a tail (`edgert/session/tailed.py`), and what they do."""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .. import simd_math
from ..simd import f32, ld_f32, ld_i32, ld_i64
from ..simd_math import max_f32, splat
from .layout import BLOCK_QUERIES
from .tile_product import TILE_ROWS, TILE_VECTORS, tile_product

f64 = types.float64

if BLOCK_QUERIES % TILE_ROWS:
    raise ValueError(f"blocks of {BLOCK_QUERIES} queries, expected a multiple of {TILE_ROWS}")


@njit(error_model="numpy")
def sequence(sequences: int, index: int) -> tuple[int, int, int]:
    """First row, number of rows and slot of a step's sequence."""
    at = sequences + 8 + 24 * index
    return ld_i64(at), ld_i64(at + 8), ld_i64(at + 16)


@njit(error_model="numpy")
def standing(state: int, slot: int) -> tuple[int, int]:
    """How many tokens of a slot are folded, and how many rows stand in its tail."""
    base = ld_i64(state) + slot * ld_i64(state + 8)
    return ld_i32(base), ld_i32(base + 4)


@njit(error_model="numpy")
def tail_row(state: int, slot: int, row: int) -> int:
    """Address of a row of the tail."""
    base = ld_i64(state) + slot * ld_i64(state + 8)
    return base + ld_i64(state + 48) + row * ld_i64(state + 56)


@njit(error_model="numpy")
def held(state: int, slot: int, word: int) -> tuple[int, int]:
    """Addresses of a slot's matrix (word 2) or spare (word 3) and of its normaliser; 0 for none."""
    index = ld_i32(ld_i64(state) + slot * ld_i64(state + 8) + 4 * word)
    if index < 0:
        return 0, 0
    norm = ld_i64(state + 32)
    if norm != 0:
        norm += index * ld_i64(state + 40)
    return ld_i64(state + 16) + index * ld_i64(state + 24), norm


@njit(error_model="numpy")
def spare_fold(state: int, slot: int) -> int:
    """How many tokens the spare shall hold; 0 where there is none."""
    base = ld_i64(state) + slot * ld_i64(state + 8)
    return ld_i32(base + 16) if ld_i32(base + 12) >= 0 else 0


@njit(error_model="numpy")
def fold_point(place: int, chunk: int) -> int:
    """How many of the tokens before a row at `place` are folded when it is computed."""
    return chunk * max(0, place // chunk - 1)


@njit(error_model="numpy")
def exp1(x: Any) -> Any:
    """The exponential as the vectors have it, for one value."""
    return max_f32(simd_math.exp(splat(f32(x))))


def _products(*, fresh: bool) -> Any:
    six, six1 = tile_product(6, TILE_VECTORS, fresh=fresh), tile_product(6, 1, fresh=fresh)
    three, three1 = tile_product(3, TILE_VECTORS, fresh=fresh), tile_product(3, 1, fresh=fresh)
    one, one1 = tile_product(1, TILE_VECTORS, fresh=fresh), tile_product(1, 1, fresh=fresh)

    @njit(error_model="numpy")
    def product(
        a: int, a_row: int, rows: int, b: int, step: int, apart: int, vectors: int, count: int,
        out: int, out_row: int,
    ) -> None:  # fmt: skip
        """Rows of a times `count` rows of b, of which `vectors` vectors of 16 columns, `apart`
        bytes from one to the next."""
        whole = vectors - vectors % TILE_VECTORS
        r = 0
        while r < rows:
            at, to = a + r * a_row, out + r * out_row
            if rows - r >= 6:
                for c in range(0, whole, TILE_VECTORS):
                    six(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                for c in range(whole, vectors):
                    six1(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                r += 6
            elif rows - r >= 3:
                for c in range(0, whole, TILE_VECTORS):
                    three(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                for c in range(whole, vectors):
                    three1(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                r += 3
            else:
                for c in range(0, whole, TILE_VECTORS):
                    one(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                for c in range(whole, vectors):
                    one1(at, a_row, b + c * apart, step, apart, count, to + 64 * c, out_row)
                r += 1

    return product


fresh_product, added_product = _products(fresh=True), _products(fresh=False)


@njit(error_model="numpy")
def sum_of_rates(rate: int, apart: int, count: int) -> float:
    """Sum of `count` float32, `apart` bytes from one to the next, in double precision."""
    total = 0.0
    for t in range(count):
        total += f64(ld_f32(rate + t * apart))
    return total
