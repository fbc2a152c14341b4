"""Rows of latent attention on the CPU: parts copied to where attention reads them."""

from __future__ import annotations

from numba import njit

from ..latent import FIRST_COLUMNS, LATENT_HEADS, LATENT_ROWS
from ..operands import COUNT
from ..simd import f32, ld_i64, st_f32
from .activation import share
from .patches import copy_row
from .vm import kernel


@njit(error_model="numpy")
def _copied(x: int, y: int, width: int) -> int:
    """Copy `width` values; where the next ones go."""
    copy_row(x, y, width)
    return y + 4 * width


@kernel
def latent_heads(ins: int, thread: int, threads: int) -> None:
    """Queries, keys of a shared and an own part, and padded values; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    q, q_stride = ld_i64(ins + LATENT_HEADS.q), ld_i64(ins + LATENT_HEADS.q_stride)
    kv, kv_stride = ld_i64(ins + LATENT_HEADS.kv), ld_i64(ins + LATENT_HEADS.kv_stride)
    part, apart = ld_i64(ins + LATENT_HEADS.shared), ld_i64(ins + LATENT_HEADS.shared_stride)
    y, stride = ld_i64(ins + LATENT_HEADS.y), ld_i64(ins + LATENT_HEADS.y_stride)
    heads, shared = ld_i64(ins + LATENT_HEADS.heads), ld_i64(ins + LATENT_HEADS.shared_width)
    own, value = ld_i64(ins + LATENT_HEADS.own), ld_i64(ins + LATENT_HEADS.value)
    size = shared + own
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        to = _copied(q + row * q_stride, y + row * stride, heads * size)
        each = kv + row * kv_stride
        for h in range(heads):
            to = _copied(part + row * apart, to, shared)
            to = _copied(each + 4 * h * (own + value), to, own)
        for h in range(heads):
            to = _copied(each + 4 * (h * (own + value) + own), to, value)
            for i in range(size - value):
                st_f32(to + 4 * i, f32(0.0))
            to += 4 * (size - value)


@kernel
def first_columns(ins: int, thread: int, threads: int) -> None:
    """The first columns of each part of a row; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + FIRST_COLUMNS.x), ld_i64(ins + FIRST_COLUMNS.x_stride)
    y, stride = ld_i64(ins + FIRST_COLUMNS.y), ld_i64(ins + FIRST_COLUMNS.y_stride)
    parts, size = ld_i64(ins + FIRST_COLUMNS.parts), ld_i64(ins + FIRST_COLUMNS.size)
    keep = ld_i64(ins + FIRST_COLUMNS.keep)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        to = y + row * stride
        for part in range(parts):
            to = _copied(x + row * x_stride + 4 * part * size, to, keep)


@kernel
def latent_rows(ins: int, thread: int, threads: int) -> None:
    """Queries of two parts, and the row that is cached; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    turning, still = ld_i64(ins + LATENT_ROWS.turning), ld_i64(ins + LATENT_ROWS.still)
    turning_apart = ld_i64(ins + LATENT_ROWS.turning_stride)
    still_apart = ld_i64(ins + LATENT_ROWS.still_stride)
    key, key_apart = ld_i64(ins + LATENT_ROWS.key), ld_i64(ins + LATENT_ROWS.key_stride)
    latent, latent_apart = ld_i64(ins + LATENT_ROWS.latent), ld_i64(ins + LATENT_ROWS.latent_stride)
    y, stride = ld_i64(ins + LATENT_ROWS.y), ld_i64(ins + LATENT_ROWS.y_stride)
    heads, shared = ld_i64(ins + LATENT_ROWS.heads), ld_i64(ins + LATENT_ROWS.shared)
    rank = ld_i64(ins + LATENT_ROWS.rank)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        to = y + row * stride
        for h in range(heads):
            to = _copied(turning + row * turning_apart + 4 * h * shared, to, shared)
            to = _copied(still + row * still_apart + 4 * h * rank, to, rank)
        to = _copied(key + row * key_apart, to, shared)
        _copied(latent + row * latent_apart, to, rank)
