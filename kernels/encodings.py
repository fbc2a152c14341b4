"""Encodings: every way in which a weight may be stored, one row of a table each.

    row = ENCODINGS["int4-g32"]
    row.specs("l0.qkv", (128, 64))   # {"l0.qkv.q": ("U8", (128, 2, 16)), "l0.qkv.scales": ...}
    w = quantize(dense, "int4-g32")  # or row.load(...) of a weights file's tensors
    dequantize(w)                    # float32 [128, 64]

This is the only place that knows what a format looks like. Graphs are checked against it, bundles
are read and written by it, `inspect` counts with it, converters and executors ask it.

To add an encoding, add a row: the tensors that store a weight (as many as it takes: masks,
dictionaries, zero points, or one opaque block of bytes), and how they become float32 values. With
that it can be written, checked, loaded, inspected, and computed by the reference session, by torch
and by every tool that dequantizes. Each further field adds one thing:

    quantize     `edgert convert --quant NAME`, by rounding to nearest
    blocks       products with activations of 8 bits in the reference session, by the formula of
                 `linear.py`; else activations stay float
    cpu          the CPU session: its kernels (`linear_<kernel>`, `gated_<kernel>` in `cpu/`, a case
                 in `embed`'s `_entry`), and their packer in `cpu/pack.py`
    onnx_bits    the ONNX emission, where MatMulNBits and DequantizeLinear read the stored bytes:
                 tensors q and scales, zero point 2^(bits - 1) or in a tensor zeros
    grid         quantizers that choose codes themselves (`converters/quantize/`)
    dense        computing with another row's kernels and ONNX, to which `densify` brings weights

`sparse{b}-s{count}` has a row for every count, made when somebody asks for it (`sparse.py`), and so
have the formats that GGUF files bring along (`gguf_blocks.py`), which nothing here makes.

Not promised: names and fields in other versions. Stored names and bytes are: a bundle keeps loading
as long as its format is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import gguf_blocks, quant, sparse
from .cpu import layout
from .encoding import Cpu as Cpu
from .encoding import Encoding as Encoding
from .encoding import Shape
from .encoding import Tensor as Tensor
from .grid import BITS, GROUPS, Grid
from .quant import F32, Blocks, Matrix, Quantized, Tensors

DEFAULT = "int4-g32"  # what a conversion stores, by default
EXACT = "f32"  # how everything is stored that is no matrix: norms, biases, rotary tables


def _same(shape: Shape) -> Shape:
    return shape


def _codes(size: int) -> Callable[[Shape], Shape]:
    """[N, K] -> [N, KB, size]."""
    return lambda shape: (shape[0], layout.blocks_of(shape[1]), size)


def _scales(shape: Shape) -> Shape:
    return shape[0], layout.blocks_of(shape[1])


# Of the many, those that a conversion may be asked for, by their short names.
OFFERED = {"uint2-g64": "int2", "uint3-g64": "int3", "int5-g64": "int5", "int6-g64": "int6"}


def _in_groups(grid: Grid) -> Encoding:
    """The row of a grid. 3, 5 and 6 bits have no ONNX; asymmetric 8 bits stay float in products."""

    def kb(shape: Shape) -> int:
        return grid.groups_of(shape[1])

    tensors = (
        Tensor("q", "U8", lambda s: (s[0], kb(s), grid.group * grid.bits // 8)),
        Tensor("scales", "F16", lambda s: (s[0], kb(s))),
        Tensor("zeros", "U8", lambda s: (s[0], -(-kb(s) * grid.bits // 8))),
    )
    return Encoding(
        grid.name, grid.bits, tensors[: 2 if grid.symmetric else 3], grid.dequantize,
        quantize=grid.quantize,
        blocks=grid.blocks if grid.symmetric or grid.bits < 8 else None,
        cpu=_planes(grid) if grid.bits < 8 else None,
        onnx_bits=grid.bits if grid.bits in (2, 4, 8) else 0,
        grid=grid, offered=grid.name in OFFERED, alias=OFFERED.get(grid.name, ""),
        ends="int8-g32", group=grid.group,
    )  # fmt: skip


def _planes(grid: Grid) -> Cpu:
    """Kernels of 2 to 6 bits: with symmetric groups the activations' correction takes the middle
    off, otherwise each group's zero code multiplies it."""
    every, head = grid.group // layout.GROUP, layout.SCALE_BYTES
    head += 0 if grid.symmetric else layout.ZERO_BYTES

    def group_bytes(k: int) -> int:
        return grid.groups_of(k) * head + layout.blocks_of(k) * layout.PLANE_BYTES * grid.bits

    return Cpu(
        f"{'planes' if grid.symmetric else 'zeroed'}{grid.bits}",
        layout.CODE_PLANES + grid.bits + (every << 16) + (0 if grid.symmetric else 1 << 24),
        group_bytes, grid.middle if grid.symmetric else 1, every,
    )  # fmt: skip


_ROWS = (
    Encoding(
        "f32", 32, (Tensor("", "F32", _same),), lambda t, _: t[""].astype(np.float32),
        quantize=lambda w: {"": w},
        cpu=Cpu("f32", layout.CODE_F32, lambda k: layout.ROWS * k * 4),
        ranks=(1, 2, 3, 4), plain="float32",
    ),
    Encoding(
        "f16", 16, (Tensor("", "F16", _same),), lambda t, _: t[""].astype(np.float32),
        quantize=quant.quantize_f16,
        cpu=Cpu("f16", layout.CODE_F16, lambda k: layout.ROWS * k * 2),
        ranks=(2, 3, 4), plain="float16",
    ),
    Encoding(
        "int8-g32", 8,
        (Tensor("q", "U8", _codes(layout.GROUP)), Tensor("scales", "F16", _scales)),
        lambda t, shape: quant.values_of(quant.blocks_int8(t), shape),
        quantize=quant.quantize_int8, blocks=quant.blocks_int8,
        cpu=Cpu(
            "int8", layout.CODE_INT8, lambda k: layout.blocks_of(k) * layout.INT8_BYTES,
            layout.INT8_OFFSET,
        ),
        onnx_bits=8, grid=Grid(8, layout.GROUP, symmetric=True), group=layout.GROUP, alias="int8",
    ),
    Encoding(
        "int8-channel", 8,
        (Tensor("q", "U8", _codes(layout.GROUP)), Tensor("scales", "F32", lambda s: (s[0], 1))),
        lambda t, shape: quant.values_of(quant.blocks_channels(t), shape),
        quantize=quant.quantize_channels, blocks=quant.blocks_channels, channels=True,
        cpu=Cpu(
            "channel", layout.CODE_CHANNEL,
            lambda k: layout.CHANNEL_HEAD + layout.blocks_of(k) * layout.CHANNEL_BYTES,
            layout.WHOLE,
        ),
        onnx_bits=8, check=quant.channel_damage, unfit=quant.channel_fault, ends="int8-g32",
    ),
    Encoding(
        "int4-g32", 4,
        (Tensor("q", "U8", _codes(layout.GROUP // 2)), Tensor("scales", "F16", _scales)),
        lambda t, shape: quant.values_of(quant.blocks_int4(t), shape),
        quantize=quant.quantize_int4, blocks=quant.blocks_int4,
        cpu=Cpu(
            "int4", layout.CODE_INT4, lambda k: layout.blocks_of(k) * layout.INT4_BYTES,
            layout.INT4_OFFSET,
        ),
        onnx_bits=4, grid=Grid(4, layout.GROUP, symmetric=True), group=layout.GROUP, alias="int4",
        ends="int8-g32",
    ),
)  # fmt: skip
_GRIDS = [Grid(b, g, symmetric) for b in BITS for symmetric in (True, False) for g in GROUPS]


class _Table(dict[str, Encoding]):
    """The fixed rows, which are all that iteration gives, and one for every name of sparse codes
    or of a kept format that is asked for."""

    def __missing__(self, name: str) -> Encoding:
        found = _KEPT.get(name) or _named_sparse(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, str) and (name in _KEPT or sparse.parse(name) is not None)
        )

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


def _kept(form: gguf_blocks.Form) -> Encoding:
    """The row of a format whose bytes are kept as another program wrote them."""
    return Encoding(
        form.name, form.bits,
        (Tensor(gguf_blocks.KEY, "U8", lambda s: (s[0], form.row_bytes(s[1]))),),
        form.dequantize, blocks=form.blocks, lows=form.lows if form.minima else None,
        cpu=next((r.cpu for r in _ROWS if r.name == form.packed), None) or _superblocks(form),
        offered=False, group=form.sub, whole=form.values, check=form.damage,
    )  # fmt: skip


def _superblocks(form: gguf_blocks.Form) -> Cpu:
    """Kernels of kept formats (`cpu/linear_kept.py`); their activations' corrections are sums of
    halves of a block where its halves have scales of their own."""
    size, head, every = layout.kept_bytes(form.bits, form.sub, form.minima, form.scaled)
    halves = form.sub < layout.GROUP
    code = form.bits | every << 8 | halves << 16 | form.minima << 17 | form.middle << 24
    offset = layout.HALVES if halves else 1 if form.minima else layout.INT8_OFFSET
    return Cpu(
        form.name, layout.CODE_KEPT + code,
        lambda k: layout.blocks_of(k) // every * (head + every * size), offset, every,
    )  # fmt: skip


_KEPT = {form.name: _kept(form) for form in gguf_blocks.FORMS.values()}
ENCODINGS = _Table({row.name: row for row in _ROWS})
ENCODINGS.update({g.name: _in_groups(g) for g in _GRIDS if g.name not in ENCODINGS})


@lru_cache(maxsize=1024)
def _named_sparse(name: str) -> Encoding | None:
    """The row of sparse codes of that name."""
    form = sparse.parse(name)
    if form is None:
        return None
    base = ENCODINGS[form.dense]
    words = Tensor("mask", "U8", lambda s: (s[0], 8 * -(-s[1] // sparse.WORD)))
    tensors: tuple[Tensor, ...] = (
        words,
        Tensor("q", "U8", lambda s: (s[0], -(-form.count * form.bits // 8))),
        Tensor("scales", "F16", lambda s: (s[0], -(-s[1] // sparse.WORD))),
    )
    if form.bits == 16:
        tensors = words, Tensor("values", "F16", lambda s: (s[0], form.count))

    def blocks(of_dense: Callable[[Tensors], Blocks], stored: Tensors) -> Blocks:
        """Of whole words of the mask; codes past the inputs are zero."""
        n, octets = stored["mask"].shape
        return of_dense(tensors_of(form.densify(stored, (n, 8 * octets))))

    return Encoding(
        form.name, form.bits, tensors,
        lambda stored, shape: dequantize(form.densify(stored, shape)),
        blocks=partial(blocks, base.blocks) if base.blocks else None, cpu=base.cpu,
        offered=False, group=base.group, dense=form.dense, densify=form.densify,
        indexed=_indexed(form, base), check=form.damage, unfit=form.fault,
    )  # fmt: skip


def _indexed(form: sparse.Sparse, base: Encoding) -> Cpu:
    """Kernels of values that come with indices of 16 bits."""
    half, count = form.bits == 16, form.count
    each = count * (2 + 2 if half else 2 + 1)

    def group_bytes(k: int) -> int:
        return layout.ROWS * (each + (0 if half else 2 * -(-k // sparse.WORD)))

    code = layout.CODE_INDEXED + (count << 1) + half
    return Cpu(
        "indexed16" if half else "indexed8", code, group_bytes,
        base.cpu.offset if base.cpu else None, gated=False, kept=count,
        input_scratch=layout.ROWS * 4 + 4,
    )  # fmt: skip


def fault(name: str, shape: Shape) -> str:
    """Why a weight of this shape cannot be stored in the encoding called `name`, or ""."""
    if name not in ENCODINGS:
        return f"has encoding {name[:80]!r}, expected one of {[*ENCODINGS, *_KEPT, *sparse.FORMS]}"
    found = ENCODINGS[name].fault(shape)
    return found and f"has encoding {name!r} and {found}"


def asked() -> dict[str, str]:
    """What may be asked of a quantizer, short names included, and the encoding that it means."""
    rows = [row for row in ENCODINGS.values() if row.quantize is not None and row.offered]
    return {name: row.name for row in rows for name in (row.alias, row.name) if name}


def encoding_of(w: Matrix) -> Encoding:
    """The row of a weight in memory. Raises ValueError for arrays that no encoding loads."""
    if isinstance(w, Quantized):
        return ENCODINGS[w.encoding]
    for row in ENCODINGS.values():
        if row.plain == w.dtype.name:
            return row
    raise ValueError(f"a weight of {w.dtype}, expected float32, float16 or a Quantized")


def tensors_of(w: Matrix) -> Tensors:
    """The tensors that store a weight, by key."""
    return w.tensors if isinstance(w, Quantized) else {"": w}


def quantize(w: F32, name: str) -> Matrix:
    """A float32 array in an encoding, rounded to nearest where it must be.

    Raises ValueError for values that the encoding cannot hold, and where it has no quantizer.
    """
    row = ENCODINGS[name]
    if row.quantize is None:
        raise ValueError(
            f"{name} has no quantizer, expected one of {sorted(set(asked().values()))}"
        )
    return row.load(row.quantize(w), w.shape)


def dequantize(w: Matrix) -> F32:
    """Any stored weight as float32 of its logical shape, a copy."""
    if not isinstance(w, Quantized):
        return w.astype(np.float32)
    return ENCODINGS[w.encoding].dequantize(w.tensors, w.shape)


def damage(w: Matrix) -> str:
    """What is wrong with a stored weight's values, or "": scales that are not finite, padding that
    is not zero. Loading does not look at them."""
    if not isinstance(w, Quantized):
        return ""
    row = ENCODINGS[w.encoding]
    if row.check is not None:
        return row.check(w.tensors, w.shape)
    return row.grid.damage(w.tensors, w.shape) if row.grid else ""


def rows_of(w: Matrix, index: slice | NDArray[Any]) -> Matrix:
    """Rows of a stored weight (a slice: views; int array: copies, in that order)."""
    if not isinstance(w, Quantized):
        return w[index]
    by_row = {t.key: t.by_row for t in ENCODINGS[w.encoding].tensors}
    tensors = {key: array[index] if by_row[key] else array for key, array in w.tensors.items()}
    chosen = range(w.shape[0])[index] if isinstance(index, slice) else index
    return Quantized(w.encoding, (len(chosen), *w.shape[1:]), tensors)


def on_cpu(name: str, k: int) -> Cpu:
    """What the CPU session needs of an encoding, for rows of k inputs; ValueError where it has no
    kernels for it."""
    row = ENCODINGS[name]
    if row.cpu is None:
        raise ValueError(f"the CPU session has no kernels for {name} weights")
    named = row.indexed if k <= sparse.INDEXED else None
    if named and 2 * named.group_bytes(k) < row.cpu.group_bytes(k):
        return named  # they cost several times the time of as many dense bytes in a cache
    return row.cpu


def packed_bytes(name: str, n: int, k: int, *, paired: bool = False) -> int:
    """Bytes of a packed [n, k] matrix; paired: gate and up halves padded apart."""
    groups = 2 * layout.groups_of(n // 2) if paired else layout.groups_of(n)
    return groups * on_cpu(name, k).group_bytes(k)
