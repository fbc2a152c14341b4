"""SIMD values for Numba kernels: vector types, intrinsics, memory and threads.

Kernels are written against 16-lane vectors. A 16-lane value is one 512-bit register on AVX-512, two
on AVX2, four on NEON: LLVM splits plain arithmetic (`simd_math.py`) by itself, and only the integer
dot products (`simd_dots.py`) name instructions of an ISA. Vector types:

    f32x16  i32x16  i16x32  i8x64

Addresses are plain int64; every load and store is unaligned. Nothing here checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import isa

isa.prepare_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
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
