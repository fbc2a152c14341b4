"""ONNX emission of linear."""

from __future__ import annotations

from . import sparse
from .cpu.layout import GROUP, blocks_of
from .encodings import ENCODINGS, tensors_of
from .onnx_tools import CODES, MICROSOFT, Body, Call, EmitContext, StoredWeight
from .quant import Quantized


def _n_bits(ctx: EmitContext, x: str, w: StoredWeight, out: str | None, *, late: bool) -> str:
    """MatMulNBits over the stored bytes; accuracy_level 4 asks for int8 activations by blocks,
    for groups of 32 the formula above (providers without such a kernel multiply in floats).

    late: as a function. onnxruntime's CPU provider packs weights in the order of its nodes, and
    inlined ones come last: so the head, the largest, is packed while nothing else is in memory.
    """
    row = ENCODINGS[w.encoding]
    inputs = [x, ctx.tensor(f"{w.name}.q"), ctx.floats(f"{w.name}.scales")]
    inputs += [ctx.tensor(f"{w.name}.zeros")] if row.zeros else []
    attrs = {"N": w.shape[0], "K": w.shape[1], "bits": row.onnx_bits, "block_size": row.group}
    attrs["accuracy_level"] = 4 if row.blocks is not None else 0
    if not late:
        return ctx.op("MatMulNBits", inputs, out, domain=MICROSOFT, **attrs)
    names = ["x", "q", "scales", "zeros"][: len(inputs)]

    def define(body: Body) -> None:
        body.op("MatMulNBits", names, "y", domain=MICROSOFT, **attrs)

    kind = f"{'Uint' if row.zeros else 'Int'}{attrs['bits']}"
    kind += f"G{row.group}" if row.group != GROUP else ""
    return ctx.call(f"Linear{kind}_{attrs['N']}x{attrs['K']}", inputs, out, define, (names, []))


def dequantized(ctx: EmitContext, w: StoredWeight) -> str:
    """DequantizeLinear over the same bytes, by blocks or by rows, cut to [N, K]."""
    (n, k), row = w.shape, ENCODINGS[w.encoding]
    blocks = ctx.placed(f"{w.name}.scales").dims[1]
    size, dtype = row.group or blocks_of(k) * GROUP, CODES[row.onnx_bits]
    codes = ctx.tensor(f"{w.name}.q", dims=(n, blocks * size), dtype=dtype)
    scales = ctx.floats(f"{w.name}.scales")
    if row.zeros:
        zero = ctx.tensor(f"{w.name}.zeros", dims=(n, blocks), dtype=dtype)
    else:
        zero = ctx.zero_points(n, blocks, row.onnx_bits)
    if row.channels:
        scales, zero = (ctx.op("Reshape", [part, ctx.ints(n)]) for part in (scales, zero))
        rows = ctx.op("DequantizeLinear", [codes, scales, zero], axis=0)
    else:
        rows = ctx.op("DequantizeLinear", [codes, scales, zero], axis=1, block_size=size)
    if k % size:
        rows = ctx.op("Slice", [rows, ctx.ints(0), ctx.ints(k), ctx.ints(1)])
    return rows


def inlined(ctx: EmitContext, w: StoredWeight) -> StoredWeight:
    """A sparse weight's dense form, whose bytes stand in the model."""
    name = f"{w.name}#dense"
    encoding = sparse.onnx_form(w.encoding, standard=ctx.standard)
    dense = StoredWeight(name, w.shape, encoding)
    first = f"{name}{ENCODINGS[encoding].tensors[0].suffix}"
    if first in ctx.inlined:
        return dense
    held = ctx.stored(w.name) if ctx.stored else None
    if not isinstance(held, Quantized):
        raise ValueError(f"weight {w.name!r} in {w.encoding}: its values are not at hand")
    tensors = tensors_of(sparse.for_onnx(held, standard=ctx.standard))
    ctx.inlined |= {f"{name}{f'.{key}' * bool(key)}": array for key, array in tensors.items()}
    return dense


def emit_linear(ctx: EmitContext, call: Call) -> None:
    """contrib: MatMulNBits, or FusedMatMul with transB for float weights. standard, and for one
    scale a row: DequantizeLinear where quantized, Transpose, MatMul. Both: Add for the bias, and
    sparse weights in their dense form."""
    w, x = call.weights["weight"], call.inputs[0]
    if ENCODINGS[w.encoding].dense:
        w = inlined(ctx, w)
    biased = "bias" in call.weights
    out = None if biased else call.output
    quantized, by_rows = not ENCODINGS[w.encoding].plain, ENCODINGS[w.encoding].channels
    if quantized and not ctx.standard and not by_rows:
        y = _n_bits(ctx, x, w, out, late=not ctx.half and call.shapes[0][0] == "T")
    elif not quantized and not ctx.standard:
        y = ctx.op("FusedMatMul", [x, ctx.floats(w.name)], out, domain=MICROSOFT, transB=1)
    else:
        values = dequantized(ctx, w) if quantized else ctx.floats(w.name)
        y = ctx.op("MatMul", [x, ctx.op("Transpose", [values], perm=[1, 0])], out)
    if biased:
        ctx.op("Add", [y, ctx.floats(call.weights["bias"].name)], call.output)


ONNX = {"linear": emit_linear}
