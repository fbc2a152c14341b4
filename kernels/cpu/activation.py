"""Norms, activation quantization and the small elementwise kernels on the CPU."""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd, simd_math
from ..elementwise import ADD, COPY, GLU, SELECT, SOFTCAP
from ..embed import EMBED
from ..norm import RMS_NORM
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, div, fma, mul, splat, sub, sum_f32, tanh
from .layout import (
    ATOMS,
    CHANNEL_BYTES,
    CHANNEL_HEAD,
    CODE_CHANNEL,
    CODE_F16,
    CODE_F32,
    CODE_INDEXED,
    CODE_INT8,
    CODE_KEPT,
    CODE_PLANES,
    GELU,
    GROUP,
    INT4_BYTES,
    INT4_OFFSET,
    INT8_BYTES,
    INT8_OFFSET,
    PLANE_BYTES,
    ROWS,
    SCALE_BYTES,
    SILU,
    ZERO_BYTES,
)
from .scalar_math import sqrt
from .vector_math import gelu
from .vm import kernel


@njit(error_model="numpy")
def gate(g: Any, up: Any, act: int) -> Any:
    """act(g) * up by lane."""
    if act == GELU:
        return mul(gelu(g), up)
    one = splat(f32(1.0))
    if act == SILU:
        return mul(div(g, add(one, simd_math.exp(sub(splat(f32(0.0)), g)))), up)
    cubic = mul(mul(mul(g, g), g), splat(f32(0.044715)))
    inner = mul(add(g, cubic), splat(f32(0.7978845608)))
    return mul(mul(mul(g, splat(f32(0.5))), add(one, tanh(inner))), up)


@njit(error_model="numpy")
def share(n: int, thread: int, threads: int) -> tuple[int, int]:
    """Rows [start, stop) of a thread."""
    return n * thread // threads, n * (thread + 1) // threads


@njit(error_model="numpy")
def _inverse_rms(x: int, width: int, eps: float) -> float:
    total = splat(f32(0.0))
    for i in range(0, width - 15, 16):
        v = load_f32(x + 4 * i)
        total = fma(v, v, total)
    rest = f32(0.0)
    for i in range(width - width % 16, width):
        rest += ld_f32(x + 4 * i) * ld_f32(x + 4 * i)
    mean = f32(f32(sum_f32(total) + rest) / f32(width))
    return f32(f32(1.0) / f32(sqrt(f32(mean + f32(eps)))))


@njit(error_model="numpy")
def norm_row(x: int, weight: int, y: int, width: int, eps: float) -> None:
    """y = x / rms(x) * weight for one row; y may be x."""
    scale = _inverse_rms(x, width, eps)
    factor = splat(f32(scale))
    for i in range(0, width - 15, 16):
        store_f32(y + 4 * i, mul(mul(load_f32(x + 4 * i), factor), load_f32(weight + 4 * i)))
    for i in range(width - width % 16, width):
        st_f32(y + 4 * i, f32(f32(ld_f32(x + 4 * i) * scale) * ld_f32(weight + 4 * i)))


@kernel
def rms_norm(ins: int, thread: int, threads: int) -> None:
    """Root-mean-square norm of float rows, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride = ld_i64(ins + RMS_NORM.x), ld_i64(ins + RMS_NORM.x_stride)
    width = ld_i64(ins + RMS_NORM.width)
    weight, eps = ld_i64(ins + RMS_NORM.weight), ld_f32(ins + RMS_NORM.eps)
    y, y_stride = ld_i64(ins + RMS_NORM.y), ld_i64(ins + RMS_NORM.y_stride)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        norm_row(x + row * stride, weight, y + row * y_stride, width, eps)


@kernel
def glu(ins: int, thread: int, threads: int) -> None:
    """act(gate) * up where the product did not apply it already."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride, width = ld_i64(ins + GLU.x), ld_i64(ins + GLU.x_stride), ld_i64(ins + GLU.width)
    act = ld_i64(ins + GLU.act)
    y, y_stride = ld_i64(ins + GLU.y), ld_i64(ins + GLU.y_stride)
    spare = ld_i64(ins + GLU.scratch) + thread * ld_i64(ins + GLU.scratch_bytes)
    whole = width - width % 16
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        a, out = x + row * stride, y + row * y_stride
        for i in range(0, whole, 16):
            up = load_f32(a + 4 * (width + i))
            store_f32(out + 4 * i, gate(load_f32(a + 4 * i), up, act))
        if whole == width:
            continue
        for j in range(16):
            m = whole + j
            st_f32(spare + 4 * j, ld_f32(a + 4 * m) if m < width else f32(0.0))
            st_f32(spare + 64 + 4 * j, ld_f32(a + 4 * (width + m)) if m < width else f32(0.0))
        store_f32(out + 4 * whole, gate(load_f32(spare), load_f32(spare + 64), act))


@kernel
def add_rows(ins: int, thread: int, threads: int) -> None:
    """y = a + b, all with one stride."""
    n = ld_i64(ld_i64(ins + COUNT))
    a, b, y = ld_i64(ins + ADD.a), ld_i64(ins + ADD.b), ld_i64(ins + ADD.y)
    stride, width = ld_i64(ins + ADD.stride), ld_i64(ins + ADD.width)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        for i in range(0, width, 16):
            at = row * stride + 4 * i
            store_f32(y + at, add(load_f32(a + at), load_f32(b + at)))


@kernel
def copy_rows(ins: int, thread: int, threads: int) -> None:
    """y = x."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + COPY.x), ld_i64(ins + COPY.x_stride)
    y, y_stride, width = ld_i64(ins + COPY.y), ld_i64(ins + COPY.y_stride), ld_i64(ins + COPY.width)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        for i in range(0, width, 16):
            store_f32(y + row * y_stride + 4 * i, load_f32(x + row * x_stride + 4 * i))


@kernel
def softcap(ins: int, thread: int, threads: int) -> None:
    """y = cap * tanh(x / cap); columns shared out, so that one row uses every thread."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride = ld_i64(ins + SOFTCAP.x), ld_i64(ins + SOFTCAP.x_stride)
    y, y_stride = ld_i64(ins + SOFTCAP.y), ld_i64(ins + SOFTCAP.y_stride)
    width, cap = ld_i64(ins + SOFTCAP.width), ld_f32(ins + SOFTCAP.cap)
    factor, inverse = splat(cap), splat(f32(1.0) / cap)
    start, stop = share((width + 15) // 16, thread, threads)
    for row in range(n):
        for g in range(start, stop):
            v = mul(load_f32(x + row * stride + 64 * g), inverse)
            store_f32(y + row * y_stride + 64 * g, mul(factor, tanh(v)))


@kernel
def select(ins: int, thread: int, threads: int) -> None:
    """y[r] = x[rows[r]]."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride, rows = ld_i64(ins + SELECT.x), ld_i64(ins + SELECT.stride), ld_i64(ins + SELECT.rows)
    y, size = ld_i64(ins + SELECT.y), ld_i64(ins + SELECT.row_bytes)
    start, stop = share(n, thread, threads)
    for r in range(start, stop):
        source = x + simd.ld_i32(rows + 4 * r) * stride
        for i in range(0, size, 64):
            store_f32(y + r * stride + i, load_f32(source + i))


@njit(error_model="numpy")
def _plane_code(at: int, chunk: int, bits: int) -> int:
    """A code of a block in planes; at: its byte in the first vector of the first plane."""
    code, below = 0, 0
    while below < bits:
        rest = bits - below
        plane = 4 if rest >= 4 else 2 if rest >= 2 else 1
        byte = simd.ld_i8(at + 64 * (chunk * plane >> 3)) & 255
        code |= (byte >> (chunk * plane & 7) & (1 << plane) - 1) << below
        at, below = at + 64 * plane, below + plane
    return code


@njit(error_model="numpy")
def _plane_entry(table: int, row: int, k: int, blocks: int, encoding: int) -> float:
    """As `_entry`, of codes in planes (`linear_planes.py`)."""
    bits, every, zeroed = encoding & 255, (encoding >> 16) & 255, encoding >> 24
    lane, head = row % ROWS, SCALE_BYTES + zeroed * ZERO_BYTES
    held = (blocks + every - 1) // every
    at = table + row // ROWS * (held * head + blocks * PLANE_BYTES * bits)
    b, chunk = k // GROUP, k % GROUP >> 2
    at += b // every * (head + every * PLANE_BYTES * bits)
    scale, zero = simd.ld_f16(at + 2 * lane), 1 << (bits - 1)
    if zeroed != 0:
        zero = simd.ld_i8(at + SCALE_BYTES + lane) & 255
    at += head + b % every * PLANE_BYTES * bits + 4 * lane + (k & 3)
    return f32(f32(_plane_code(at, chunk, bits) - zero) * scale)


@njit(error_model="numpy")
def _kept_entry(table: int, row: int, k: int, blocks: int, encoding: int) -> float:
    """As `_entry`, of a kept format (`linear_kept.py`)."""
    bits, every, middle = encoding & 255, (encoding >> 8) & 255, (encoding >> 24) & 255
    halves, minima = (encoding >> 16) & 1, (encoding >> 17) & 1
    lane, b, inside = row % ROWS, k // GROUP, k % GROUP
    parts, head = 1 + halves, SCALE_BYTES * (1 + minima)
    steps = ROWS * parts * (1 + minima) if every > 1 else 0
    size = steps + PLANE_BYTES * bits
    at = table + row // ROWS * (blocks // every * (head + every * size))
    at += b // every * (head + every * size)
    d, m = simd.ld_f16(at + 2 * lane), f32(0.0)
    if minima != 0:
        m = simd.ld_f16(at + SCALE_BYTES + 2 * lane)
    at += head + b % every * size
    if every > 1:
        part = at + ROWS * (inside >> 4 if halves != 0 else 0) + lane
        s = simd.ld_i8(part)
        d = f32(d * f32(s))
        m = f32(m * f32(simd.ld_i8(part + ROWS * parts))) if minima != 0 else m
    at += steps + 4 * lane + (inside & 3)
    chunk = inside >> 2
    if bits == 8:
        code = (simd.ld_i8(at + 64 * chunk) & 255) - 128
    else:
        code = _plane_code(at, chunk, bits) - middle
    return f32(f32(d * f32(code)) - m)


@njit(error_model="numpy")
def _entry(table: int, row: int, k: int, width: int, encoding: int) -> float:
    """Element k of a packed table row (layouts in `linear.py`)."""
    group, lane = row // ROWS, row % ROWS
    if encoding == CODE_F32:
        return ld_f32(table + ((group * width + k) * ROWS + lane) * 4)
    if encoding == CODE_F16:
        return simd.ld_f16(table + ((group * width + k) * ROWS + lane) * 2)
    blocks = (width + GROUP - 1) // GROUP
    if encoding >= CODE_KEPT:
        return _kept_entry(table, row, k, blocks, encoding - CODE_KEPT)
    if encoding >= CODE_PLANES:
        return _plane_entry(table, row, k, blocks, encoding - CODE_PLANES)
    b, i = k // GROUP, k % GROUP
    if encoding == CODE_CHANNEL:
        at = table + group * (CHANNEL_HEAD + blocks * CHANNEL_BYTES)
        code_at = at + CHANNEL_HEAD + b * CHANNEL_BYTES + (i // 4) * 64 + 4 * lane + i % 4
        return f32(f32((simd.ld_i8(code_at) & 255) - INT8_OFFSET) * ld_f32(at + 4 * lane))
    if encoding == CODE_INT8:
        at = table + (group * blocks + b) * INT8_BYTES
        byte = simd.ld_i8(at + SCALE_BYTES + (i // 4) * 64 + 4 * lane + i % 4) & 255
        code = byte - INT8_OFFSET
    else:
        at = table + (group * blocks + b) * INT4_BYTES
        byte = simd.ld_i8(at + SCALE_BYTES + (i // 8) * 64 + 4 * lane + i % 4) & 255
        code = (byte >> 4 if i % 8 >= 4 else byte & 15) - INT4_OFFSET
    return f32(f32(code) * simd.ld_f16(at + 2 * lane))


@njit(error_model="numpy")
def _indexed_row(table: int, row: int, width: int, encoding: int, y: int, scale: float) -> None:
    """A row of values that come with indices (`linear_indexed.py`), scaled, to y."""
    half, kept = encoding & 1, (encoding - CODE_INDEXED) >> 1
    held = 0 if half != 0 else (width + ATOMS - 1) // ATOMS
    group, lane = row // ROWS, row % ROWS
    scales = table + group * ROWS * (2 * held + (4 - (1 - half)) * kept)
    at = scales + ROWS * 2 * held
    values = at + ROWS * 2 * kept
    for k in range(width):
        st_f32(y + 4 * k, f32(0.0))
    for j in range(lane * kept, (lane + 1) * kept):
        k = simd.ld_i32(at + 2 * j) & 65535
        if half != 0:
            value = simd.ld_f16(values + 2 * j)
        else:
            code = f32(simd.ld_i8(values + j))
            value = f32(code * simd.ld_f16(scales + 2 * (lane * held + k // ATOMS)))
        st_f32(y + 4 * k, f32(value * scale))


@kernel
def embed(ins: int, thread: int, threads: int) -> None:
    """Rows of the embedding table, scaled."""
    n = ld_i64(ld_i64(ins + COUNT))
    table, width = ld_i64(ins + EMBED.table), ld_i64(ins + EMBED.width)
    encoding = ld_i64(ins + EMBED.encoding)
    tokens, y = ld_i64(ins + EMBED.tokens), ld_i64(ins + EMBED.y)
    stride, scale = ld_i64(ins + EMBED.y_stride), ld_f32(ins + EMBED.scale)
    given, given_stride = ld_i64(ins + EMBED.given), ld_i64(ins + EMBED.given_stride)
    start, stop = share(n, thread, threads)
    for t in range(start, stop):
        row = simd.ld_i32(tokens + 4 * t)
        if row < 0:
            for k in range(width):
                st_f32(y + t * stride + 4 * k, ld_f32(given + t * given_stride + 4 * k))
            continue
        if CODE_INDEXED <= encoding < CODE_KEPT:
            _indexed_row(table, row, width, encoding, y + t * stride, scale)
            continue
        for k in range(width):
            st_f32(y + t * stride + 4 * k, f32(_entry(table, row, k, width, encoding) * scale))
