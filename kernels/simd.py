"""SIMD values and instructions for Numba kernels: the one place that knows instruction sets.

Kernels are written against 16-lane vectors. A 16-lane value is one 512-bit register on AVX-512, two
on AVX2, four on NEON: LLVM splits plain arithmetic by itself, and only the integer dot products
name instructions of an ISA. Vector types:

    f32x16  i32x16  i16x32  i8x64

Addresses are plain int64; every load and store is unaligned. Nothing here checks bounds.

The `dot` family computes, for 16 rows at once, sums over groups of four bytes:
acc[r] + sum_{i<4} w[4r + i] * x[4r + i], see `dot_nibbles` and `dot_bytes`. `simd_pairs.py` has the
names for 8 rows by 2 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import isa

isa.prepare_numba()

from llvmlite import ir  # noqa: E402
from numba import njit, types  # noqa: E402
from numba.core import cgutils  # noqa: E402
from numba.extending import intrinsic, models, register_model  # noqa: E402

from . import simd_baseline  # noqa: E402

ISA = isa.chosen()
VNNI = ISA in ("avx512vnni", "avxvnni")
NEON = ISA in ("dotprod", "i8mm")
# x86-64 without extensions, which has neither float16 nor fused multiply-add.
BASELINE = ISA == "portable" and isa.machine() == "x86_64"

_LLVM = {
    "f32": ir.FloatType(),
    "i64": ir.IntType(64),
    "i32": ir.IntType(32),
    "i16": ir.IntType(16),
    "i8": ir.IntType(8),
}
_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_HALF = ir.HalfType()


class Vec(types.Type):  # type: ignore[misc]
    """A vector of `n` elements as a first-class Numba value."""

    def __init__(self, elem: str, n: int) -> None:
        self.elem, self.n = elem, n
        super().__init__(name=f"{elem}x{n}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_LLVM[self.elem], self.n)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vec.llvm)


f32x16, i32x16, i16x32, i8x64 = Vec("f32", 16), Vec("i32", 16), Vec("i16", 32), Vec("i8", 64)
i64, i32, f32 = types.int64, types.int32, types.float32


def emits(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """Turn `build(builder, *llvm values) -> llvm value` into an intrinsic of that signature."""

    def wrap(build: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            out = build(builder, *values)
            return context.get_dummy_value() if out is None else out

        def typed() -> Any:
            return result(*params), codegen

        # Numba reads the arity off the signature, so each needs one of its own.
        typing = (
            lambda ctx: typed(),
            lambda ctx, a: typed(),
            lambda ctx, a, b: typed(),
            lambda ctx, a, b, c: typed(),
            lambda ctx, a, b, c, d: typed(),
        )[len(params)]
        typing.__name__ = typing.__qualname__ = build.__name__
        typing.__doc__ = build.__doc__
        made = intrinsic(typing)
        made.build = build  # for another target's code, see tests/kernels/test_codegen.py
        return made

    return wrap


def _call(b: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _splat(b: Any, value: Any, n: int) -> Any:
    one = b.insert_element(ir.Constant(ir.VectorType(value.type, n), ir.Undefined), value, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, n), [0] * n)
    return b.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), mask)


def _load(b: Any, address: Any, kind: Any, align: int = 1) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _store(b: Any, address: Any, value: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def _slice(b: Any, value: Any, start: int, count: int) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, count), list(range(start, start + count)))
    return b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _join(b: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        n = parts[0].type.count
        mask = ir.Constant(ir.VectorType(_I32, 2 * n), list(range(2 * n)))
        parts = [b.shuffle_vector(p, q, mask) for p, q in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _widen(b: Any, v: Any) -> Any:
    """float16, a scalar or lanes, to float32."""
    if BASELINE:
        return simd_baseline.widen(b, v)
    lanes = isinstance(v.type, ir.VectorType)
    return b.fpext(v, ir.VectorType(_LLVM["f32"], v.type.count) if lanes else _LLVM["f32"])


def _narrow(b: Any, v: Any) -> Any:
    """float32, a scalar or lanes, to the nearest float16, ties to even."""
    if BASELINE:
        return simd_baseline.narrow(b, v)
    lanes = isinstance(v.type, ir.VectorType)
    return b.fptrunc(v, ir.VectorType(_HALF, v.type.count) if lanes else _HALF)


# --- memory -----------------------------------------------------------------------------------


@emits(f32x16, i64)
def load_f32(b: Any, p: Any) -> Any:
    """16 float32 at p."""
    return _load(b, p, f32x16.llvm)


@emits(f32x16, i64)
def load_f16(b: Any, p: Any) -> Any:
    """16 float16 at p, widened."""
    return _widen(b, _load(b, p, ir.VectorType(_HALF, 16)))


@emits(f32x16, i64)
def load_s8_f32(b: Any, p: Any) -> Any:
    """16 signed bytes at p, as float32."""
    extended = b.sext(_load(b, p, ir.VectorType(_LLVM["i8"], 16)), i32x16.llvm)
    return b.sitofp(extended, f32x16.llvm)


def _code_floats(b: Any, p: Any, change: Callable[[Any, Any], Any]) -> Any:
    """16 bytes at p, changed, as float32 numbers of 0 to 255."""
    codes = change(b, _load(b, p, ir.VectorType(_LLVM["i8"], 16)))
    return b.sitofp(b.zext(codes, i32x16.llvm), f32x16.llvm)


@emits(f32x16, i64)
def load_u8_f32(b: Any, p: Any) -> Any:
    """16 unsigned bytes at p, as float32."""
    return _code_floats(b, p, lambda b, v: v)


@emits(f32x16, i64)
def load_low4_f32(b: Any, p: Any) -> Any:
    """The low halves of 16 bytes at p, as float32."""
    return _code_floats(b, p, lambda b, v: b.and_(v, ir.Constant(v.type, [15] * 16)))


@emits(f32x16, i64)
def load_high4_f32(b: Any, p: Any) -> Any:
    """The high halves of 16 bytes at p, as float32."""
    return _code_floats(b, p, lambda b, v: b.lshr(v, ir.Constant(v.type, [4] * 16)))


def _prefetch(b: Any, p: Any, locality: int) -> None:
    q = b.inttoptr(p, _LLVM["i8"].as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [q.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [q, _I32(0), _I32(locality), _I32(1)])


@emits(types.void, i64)
def prefetch(b: Any, p: Any) -> None:
    """Ask for the cache line at p, into L2 (into L1 it gained nothing); any address will do."""
    _prefetch(b, p, 2)


@emits(types.void, i64)
def prefetch_once(b: Any, p: Any) -> None:
    """Ask for the cache line at p, which will be read once: past the outer caches, so that nothing
    is driven out of them and written elsewhere; any address will do."""
    _prefetch(b, p, 0)


@emits(i8x64, i64)
def load_i8(b: Any, p: Any) -> Any:
    """64 bytes at p."""
    return _load(b, p, i8x64.llvm)


@emits(i32x16, i64)
def load_i32(b: Any, p: Any) -> Any:
    """16 int32 at p."""
    return _load(b, p, i32x16.llvm)


@emits(types.void, i64, i32x16)
def store_i32(b: Any, p: Any, v: Any) -> None:
    """16 int32 to p."""
    _store(b, p, v)


@emits(types.void, i64, f32x16)
def store_f32(b: Any, p: Any, v: Any) -> None:
    """16 float32 to p."""
    _store(b, p, v)


@emits(types.void, i64, f32x16)
def store_f16(b: Any, p: Any, v: Any) -> None:
    """16 float32, rounded to float16, to p."""
    _store(b, p, _narrow(b, v))


@emits(types.void, i64, i32x16)
def store_i8(b: Any, p: Any, v: Any) -> None:
    """The low bytes of 16 int32 to p."""
    _store(b, p, b.trunc(v, ir.VectorType(_LLVM["i8"], 16)))


@emits(f32x16, i64)
def bcast_f32(b: Any, p: Any) -> Any:
    """The float32 at p in every lane."""
    return _splat(b, _load(b, p, _LLVM["f32"]), 16)


@emits(i32x16, i64)
def bcast_i32(b: Any, p: Any) -> Any:
    """The int32 at p in every lane."""
    return _splat(b, _load(b, p, _I32), 16)


@emits(i8x64, i64)
def bcast_i8x4(b: Any, p: Any) -> Any:
    """The four bytes at p, sixteen times."""
    return b.bitcast(_splat(b, _load(b, p, _I32), 16), i8x64.llvm)


def _scalar(kind: Any, llvm: Any) -> tuple[Any, Any]:
    @emits(kind, i64)
    def load(b: Any, p: Any) -> Any:
        return _load(b, p, llvm)

    @emits(types.void, i64, kind)
    def store(b: Any, p: Any, v: Any) -> None:
        _store(b, p, v)

    return load, store


ld_f32, st_f32 = _scalar(f32, _LLVM["f32"])
ld_i32, st_i32 = _scalar(i32, _I32)
ld_i64, st_i64 = _scalar(i64, _I64)
ld_f64, st_f64 = _scalar(types.float64, ir.DoubleType())
ld_i8, st_i8 = _scalar(types.int8, _LLVM["i8"])


@emits(f32, i64)
def ld_f16(b: Any, p: Any) -> Any:
    """The float16 at p, widened."""
    return _widen(b, _load(b, p, _HALF))


@emits(types.void, i64, f32)
def st_f16(b: Any, p: Any, v: Any) -> None:
    """One float32, rounded to float16, to p."""
    _store(b, p, _narrow(b, v))


# --- arithmetic -------------------------------------------------------------------------------


@emits(f32x16, f32)
def splat(b: Any, x: Any) -> Any:
    """x in every lane."""
    return _splat(b, x, 16)


@emits(i32x16, i32)
def splat_i32(b: Any, x: Any) -> Any:
    """x in every lane."""
    return _splat(b, x, 16)


@emits(i32x16)
def lanes(b: Any) -> Any:
    """0, 1, ... 15."""
    return ir.Constant(i32x16.llvm, list(range(16)))


@emits(f32x16, f32x16, f32x16, f32x16)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    if BASELINE:
        return simd_baseline.fma(b, x, y, z)
    return _call(b, "llvm.fma.v16f32", x.type, x, y, z)


def _binary(kind: Any, method: str) -> Any:
    @emits(kind, kind, kind)
    def op(b: Any, x: Any, y: Any) -> Any:
        return getattr(b, method)(x, y)

    return op


add, sub, mul, div = (_binary(f32x16, m) for m in ("fadd", "fsub", "fmul", "fdiv"))
add_i32, sub_i32 = _binary(i32x16, "add"), _binary(i32x16, "sub")
add_i16 = _binary(i16x32, "add")


@emits(f32x16, f32x16, f32x16)
def vmax(b: Any, x: Any, y: Any) -> Any:
    """Lane-wise maximum (NaN in x gives y)."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@emits(f32x16, f32x16)
def vabs(b: Any, x: Any) -> Any:
    """Lane-wise magnitude."""
    return _call(b, "llvm.fabs.v16f32", x.type, x)


def _larger(b: Any, x: Any, y: Any) -> Any:
    """Of magnitudes, whose bits are in the order of their values; NaN is larger than all."""
    kind = ir.VectorType(_I32, x.type.count)
    return b.select(b.icmp_signed(">", b.bitcast(x, kind), b.bitcast(y, kind)), x, y)


@emits(f32x16, f32x16, f32x16)
def larger(b: Any, x: Any, y: Any) -> Any:
    """Lane-wise maximum of magnitudes (`vabs`); NaN where one is NaN."""
    return _larger(b, x, y)


@emits(f32x16, i32x16)
def to_f32(b: Any, x: Any) -> Any:
    """int32 to float32."""
    return b.sitofp(x, f32x16.llvm)


@emits(i32x16, i8x64)
def bitcast_i32(b: Any, x: Any) -> Any:
    """64 bytes as 16 int32."""
    return b.bitcast(x, i32x16.llvm)


@emits(f32x16, f32x16)
def rint(b: Any, x: Any) -> Any:
    """Round half to even."""
    if BASELINE:
        return simd_baseline.rint(b, x)
    return _call(b, "llvm.nearbyint.v16f32", x.type, x)


@emits(i32x16, f32x16)
def to_i32(b: Any, x: Any) -> Any:
    """Truncate to int32; the value must fit."""
    return b.fptosi(x, i32x16.llvm)


@emits(f32x16, i32x16)
def power_of_two(b: Any, n: Any) -> Any:
    """2.0 ** n for -126 <= n <= 127."""
    biased = b.add(n, ir.Constant(i32x16.llvm, [127] * 16))
    return b.bitcast(b.shl(biased, ir.Constant(i32x16.llvm, [23] * 16)), f32x16.llvm)


@emits(f32x16, i32x16, i32x16, f32x16, f32x16)
def where_less(b: Any, x: Any, y: Any, yes: Any, no: Any) -> Any:
    """yes where x < y (signed), else no."""
    return b.select(b.icmp_signed("<", x, y), yes, no)


@emits(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_below(b: Any, x: Any, y: Any, yes: Any, no: Any) -> Any:
    """yes where x < y (float), else no."""
    return b.select(b.fcmp_ordered("<", x, y), yes, no)


def _fold(b: Any, v: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    n = v.type.count
    while n > 1:
        n //= 2
        v = combine(b, _slice(b, v, 0, n), _slice(b, v, n, n))
    return b.extract_element(v, _I32(0))


@emits(f32, f32x16)
def sum_f32(b: Any, v: Any) -> Any:
    """Sum of the lanes as a fixed tree: the same bits on every machine."""
    return _fold(b, v, lambda b, x, y: b.fadd(x, y))


@emits(i32, i32x16)
def sum_i32(b: Any, v: Any) -> Any:
    """Sum of the lanes."""
    return _fold(b, v, lambda b, x, y: b.add(x, y))


@emits(f32, f32x16)
def max_f32(b: Any, v: Any) -> Any:
    """Largest lane."""
    return _fold(b, v, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@emits(f32, f32x16)
def largest(b: Any, v: Any) -> Any:
    """Largest of the lanes, which are magnitudes (`vabs`); NaN where one is NaN."""
    return _fold(b, v, _larger)


# --- integer dot products ---------------------------------------------------------------------


@emits(i8x64, i8x64)
def low_nibbles(b: Any, v: Any) -> Any:
    """byte & 15."""
    return b.and_(v, ir.Constant(i8x64.llvm, [15] * 64))


@emits(i8x64, i8x64)
def high_nibbles(b: Any, v: Any) -> Any:
    """byte >> 4."""
    return b.lshr(v, ir.Constant(i8x64.llvm, [4] * 64))


@emits(i8x64, i8x64)
def flip_sign(b: Any, v: Any) -> Any:
    """byte ^ 0x80: unsigned with offset 128 to signed, and back."""
    return b.xor(v, ir.Constant(i8x64.llvm, [-128] * 64))


def _vpdpbusd(b: Any, acc: Any, w: Any, x: Any) -> Any:
    if ISA == "avx512vnni":
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, w, x)
    parts = [
        _call(
            b,
            "llvm.x86.avx512.vpdpbusd.256",
            ir.VectorType(_I32, 8),
            _slice(b, acc, 8 * h, 8),
            _slice(b, w, 32 * h, 32),
            _slice(b, x, 32 * h, 32),
        )
        for h in range(2)
    ]
    return _join(b, parts)


def _sdot(b: Any, acc: Any, w: Any, x: Any) -> Any:
    quarter = ir.VectorType(_I32, 4)
    parts = [
        _call(
            b,
            "llvm.aarch64.neon.sdot.v4i32.v16i8",
            quarter,
            _slice(b, acc, 4 * h, 4),
            _slice(b, w, 16 * h, 16),
            _slice(b, x, 16 * h, 16),
        )
        for h in range(4)
    ]
    return _join(b, parts)


def _plain_dot(b: Any, acc: Any, w: Any, x: Any, *, signed: bool) -> Any:
    i32x64 = ir.VectorType(_I32, 64)
    products = b.mul((b.sext if signed else b.zext)(w, i32x64), b.sext(x, i32x64))
    for i in range(4):
        mask = ir.Constant(i32x16.llvm, list(range(i, 64, 4)))
        part = b.shuffle_vector(products, ir.Constant(i32x64, ir.Undefined), mask)
        acc = b.add(acc, part)
    return acc


@emits(i32x16, i32x16, i8x64, i8x64)
def dot_nibbles(b: Any, acc: Any, w: Any, x: Any) -> Any:
    """acc + four-byte dot products of w in 0..15 and signed x."""
    if VNNI:
        return _vpdpbusd(b, acc, w, x)
    if NEON:
        return _sdot(b, acc, w, x)
    return _plain_dot(b, acc, w, x, signed=False)


@emits(i32x16, i32x16, i8x64, i8x64)
def dot_bytes(b: Any, acc: Any, w: Any, x: Any) -> Any:
    """acc + four-byte dot products of signed x and w stored with offset 128.

    With VNNI w counts as unsigned (the caller's correction takes 128 * sum(x) off); elsewhere the
    sign is restored first and no correction applies (`CORRECTED_BYTES` says which).
    """
    if VNNI:
        return _vpdpbusd(b, acc, w, x)
    w = b.xor(w, ir.Constant(i8x64.llvm, [-128] * 64))
    if NEON:
        return _sdot(b, acc, w, x)
    return _plain_dot(b, acc, w, x, signed=True)


CORRECTED_BYTES = VNNI


def _pmadd(b: Any, name: str, result: ir.VectorType, x: Any, y: Any, bytes_each: int) -> Any:
    parts = []
    for h in range(2):
        a, c = (_slice(b, v, bytes_each * h, bytes_each) for v in (x, y))
        parts.append(_call(b, name, result, a, c))
    return _join(b, parts)


@emits(i16x32, i8x64, i8x64)
def maddubs(b: Any, w: Any, x: Any) -> Any:
    """AVX2: w0*x0 + w1*x1 of unsigned w and signed x, saturating to 16 bits."""
    return _pmadd(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_LLVM["i16"], 16), w, x, 32)


@emits(i32x16, i16x32)
def pair_sums(b: Any, v: Any) -> Any:
    """AVX2: sums of neighbouring int16 as int32."""
    ones = ir.Constant(i16x32.llvm, [1] * 32)
    return _pmadd(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, 8), v, ones, 16)


@emits(i16x32, i8x64, i8x64)
def maddss(b: Any, w: Any, x: Any) -> Any:
    """AVX2: w0*x0 + w1*x1 of signed w and signed x in -127..127, as |w| times x with w's sign."""
    eight = ir.VectorType(_LLVM["i8"], 32)
    parts = []
    for h in range(2):
        a, c = _slice(b, w, 32 * h, 32), _slice(b, x, 32 * h, 32)
        magnitude = _call(b, "llvm.abs.v32i8", eight, a, _I1(0))
        with_sign = _call(b, "llvm.x86.avx2.psign.b", eight, c, a)
        i16x16 = ir.VectorType(_LLVM["i16"], 16)
        parts.append(_call(b, "llvm.x86.avx2.pmadd.ub.sw", i16x16, magnitude, with_sign))
    return _join(b, parts)


# --- threads ----------------------------------------------------------------------------------


@emits(i64, i64, i64)
def atomic_add(b: Any, p: Any, v: Any) -> Any:
    """Add v to the int64 at p, return what was there."""
    return b.atomic_rmw("add", b.inttoptr(p, _I64.as_pointer()), v, "acq_rel")


@emits(i64, i64)
def atomic_load(b: Any, p: Any) -> Any:
    """The int64 at p, acquire."""
    return b.load_atomic(b.inttoptr(p, _I64.as_pointer()), "acquire", 8)


@emits(types.void, i64, i64)
def atomic_store(b: Any, p: Any, v: Any) -> None:
    """v to the int64 at p, release."""
    b.store_atomic(v, b.inttoptr(p, _I64.as_pointer()), "release", 8)


@emits(types.void)
def pause(b: Any) -> None:
    """Tell the core that this is a spin loop."""
    if ISA in ("avx512vnni", "avxvnni", "avx2"):
        _call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif NEON:
        _call(b, "llvm.aarch64.hint", ir.VoidType(), _I32(1))


@emits(types.void, i64, i64, i64, i64)
def call_kernel(b: Any, address: Any, row: Any, thread: Any, threads: Any) -> None:
    """Call the kernel at `address`: void(row, thread, threads)."""
    kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
    b.call(b.inttoptr(address, kind.as_pointer()), [row, thread, threads])


@emits(types.void, i64)
def call_system(b: Any, address: Any) -> None:
    """Call a function without arguments, whose result does not matter."""
    b.call(b.inttoptr(address, ir.FunctionType(_I32, []).as_pointer()), [])


# --- functions --------------------------------------------------------------------------------


@njit(error_model="numpy")
def exp(x: Any) -> Any:
    """e ** x by lane, relative error below 2e-7; exactly 1 at 0 and exactly 0 below -87."""
    low = splat(f32(-87.0))
    clamped = where_below(x, splat(f32(88.0)), vmax(x, low), splat(f32(88.0)))
    n = rint(mul(clamped, splat(f32(1.44269504))))
    r = fma(n, splat(f32(-0.693359375)), clamped)
    r = fma(n, splat(f32(2.12194440e-4)), r)
    p = splat(f32(1.9875691500e-4))
    p = fma(p, r, splat(f32(1.3981999507e-3)))
    p = fma(p, r, splat(f32(8.3334519073e-3)))
    p = fma(p, r, splat(f32(4.1665795894e-2)))
    p = fma(p, r, splat(f32(1.6666665459e-1)))
    p = fma(p, r, splat(f32(5.0000001201e-1)))
    p = fma(mul(r, r), p, add(r, splat(f32(1.0))))
    return where_below(x, low, splat(f32(0.0)), mul(p, power_of_two(to_i32(n))))


@njit(error_model="numpy")
def tanh(x: Any) -> Any:
    """tanh by lane, absolute error below 2e-7."""
    one, top = splat(f32(1.0)), splat(f32(20.0))
    e = exp(mul(where_below(x, top, x, top), splat(f32(2.0))))
    return div(sub(e, one), add(e, one))
