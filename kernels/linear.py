"""linear: y[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n]).

With f32 or f16 weights the product is a plain float one. With int8-g32 or int4-g32 weights the
activations are quantized too, per token and block of 32 inputs (`quant.quantize_rows`), and

    y[t, n] = sum_b  xs[t, b] * ws[n, b] * sum_i xq[t, b, i] * wq[n, b, i]

with the inner sum exact in integers and the outer one in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .onnx_tools import MICROSOFT, UINT4, Body, Call, EmitContext, StoredWeight
from .ops import GROUP
from .quant import F32, Matrix, Quantized, codes_of, quantize_rows


def product(x: F32, w: Matrix) -> F32:
    """float32 [T, K] times a stored matrix [N, K] -> float32 [T, N], by the formula above."""
    if not isinstance(w, Quantized):
        return x.astype(np.float32) @ w.astype(np.float32).T
    xq, xs = quantize_rows(x)  # [T, KB, 32], [T, KB]
    wq, ws = codes_of(w), w.scales.astype(np.float32)  # [N, KB, 32], [N, KB]
    y = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for b in range(xs.shape[1]):
        dots = xq[:, b].astype(np.float32) @ wq[:, b].astype(np.float32).T  # exact: < 2^24
        y += dots * (xs[:, b, None] * ws[None, :, b])
    return y


def linear(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, K], weight [N, K] in any encoding, bias float32 [N] or absent -> [T, N]."""
    y = product(inputs[0], weights["weight"])
    return y + weights["bias"] if "bias" in weights else y


REFERENCE = {"linear": linear}


def _n_bits(ctx: EmitContext, x: str, w: StoredWeight, out: str | None, *, late: bool) -> str:
    """MatMulNBits over the stored bytes; accuracy_level 4 asks for int8 activations by blocks of
    32, which is the formula above (providers without such a kernel multiply in floats).

    late: as a function. onnxruntime's CPU provider packs weights in the order of its nodes, and
    inlined ones come last: so the head, the largest, is packed while nothing else is in memory.
    """
    inputs = [x, ctx.tensor(f"{w.name}.q"), ctx.floats(f"{w.name}.scales")]
    attrs = {"N": w.shape[0], "K": w.shape[1], "bits": _bits(w), "block_size": GROUP}
    attrs["accuracy_level"] = 4
    if not late:
        return ctx.op("MatMulNBits", inputs, out, domain=MICROSOFT, **attrs)

    def define(body: Body) -> None:
        body.op("MatMulNBits", ["x", "q", "scales"], "y", domain=MICROSOFT, **attrs)

    name = f"LinearInt{attrs['bits']}_{attrs['N']}x{attrs['K']}"
    return ctx.call(name, inputs, out, define, (["x", "q", "scales"], []))


def _bits(w: StoredWeight) -> int:
    return 4 if w.encoding == "int4-g32" else 8


def _dequantized(ctx: EmitContext, w: StoredWeight) -> str:
    """DequantizeLinear by blocks over the same bytes, cut to [N, K]."""
    n, k = w.shape
    blocks = ctx.place(f"{w.name}.scales").dims[1]
    dtype = UINT4 if _bits(w) == 4 else None
    codes = ctx.tensor(f"{w.name}.q", dims=(n, blocks * GROUP), dtype=dtype)
    scales = ctx.floats(f"{w.name}.scales")
    zero = ctx.zero_points(n, blocks, _bits(w))
    dequantized = ctx.op("DequantizeLinear", [codes, scales, zero], axis=1, block_size=GROUP)
    if k % GROUP:
        dequantized = ctx.op("Slice", [dequantized, ctx.ints(0), ctx.ints(k), ctx.ints(1)])
    return dequantized


def emit_linear(ctx: EmitContext, call: Call) -> None:
    """contrib: MatMulNBits, or FusedMatMul with transB for float weights. standard:
    DequantizeLinear where quantized, Transpose, MatMul. Both: Add for the bias."""
    w, x = call.weights["weight"], call.inputs[0]
    biased = "bias" in call.weights
    out = None if biased else call.output
    quantized = w.encoding not in ("f32", "f16")
    if quantized and not ctx.standard:
        y = _n_bits(ctx, x, w, out, late=not ctx.half and call.shapes[0][0] == "T")
    elif not ctx.standard:
        y = ctx.op("FusedMatMul", [x, ctx.floats(w.name)], out, domain=MICROSOFT, transB=1)
    else:
        dequantized = _dequantized(ctx, w) if quantized else ctx.floats(w.name)
        y = ctx.op("MatMul", [x, ctx.op("Transpose", [dequantized], perm=[1, 0])], out)
    if biased:
        ctx.op("Add", [y, ctx.floats(call.weights["bias"].name)], call.output)


ONNX = {"linear": emit_linear}
