"""embed: x[t] = scale * weight[token[t]], one table row a token, in any weight encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import GROUP
from .encodings import ENCODINGS, Encoding, dequantize, rows_of
from .lowering import Builder, Lower, weight
from .onnx_tools import FLOAT, FLOAT16, Body, Call, EmitContext, Signature, StoredWeight
from .operands import operands
from .quant import F32

# given: rows that the caller brings instead of a token below 0, or 0 where there are none
EMBED = operands(
    "table", "width", "encoding", "tokens", "y", "y_stride", "scale", "given", "given_stride"
)


def embed(
    inputs: Sequence[NDArray[np.int32]], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """tokens int32 [T], weight [V, C] in any encoding -> float32 [T, C]."""
    rows = dequantize(rows_of(weights["weight"], inputs[0]))
    return rows * np.float32(attrs["scale"])


def lower_embed(b: Builder, node: Any) -> None:
    """embed, from a packed table; rows of a token below 0 are taken from @embeddings."""
    table, y = node.weights["weight"], b.floats(node.output)
    words = {
        "table": weight(node, "weight"), "width": b.width(y),
        "encoding": b.encoding(table).code,
        "tokens": node.inputs[0], "y": y, "y_stride": b.stride(y),
        "scale": b.attrs(node)["scale"], "given": "@embeddings", "given_stride": b.stride(y),
    }  # fmt: skip
    b.step("embed", EMBED, y, [], words)


LOWER: dict[str, Lower] = {"embed": lower_embed}
REFERENCE = {"embed": embed}


def _rows_body(encoding: Encoding, lead: int) -> Callable[[Body], None]:
    """Codes uint8 [.., KB, group or group / 2] and scales [.., KB, 1] -> float values
    [.., KB, group], `lead` dimensions before KB. Codes up to 255, their halves and their
    differences are exact in float16, too."""

    bits, group = encoding.onnx_bits, encoding.group or GROUP

    def define(body: Body) -> None:
        codes = body.op("Cast", ["q"], to=FLOAT16 if body.half else FLOAT)
        if bits == 4:
            up, down = (body.activation(body.const(v)) for v in (16.0, 0.0625))
            high = body.op("Floor", [body.op("Mul", [codes, down])])  # NPUs divide inexactly
            low = body.op("Sub", [codes, body.op("Mul", [high, up])])
            last = body.const([-1])
            pair = [body.op("Unsqueeze", [half, last]) for half in (low, high)]  # [.., 16, 1]
            codes = body.op("Concat", pair, axis=-1)  # [.., KB, 16, 2]
            codes = body.op("Reshape", [codes, body.const([0] * lead + [-1, group])])
        zero = body.activation(body.const(float(1 << (bits - 1))))
        body.op("Mul", [body.op("Sub", [codes, zero]), "scales"], "y")

    return define


def _gathered(ctx: EmitContext, table: StoredWeight, tokens: str, lead: int) -> str:
    """Rows of a quantized table as [.., KB, 32], after the `lead` dimensions of the tokens, without
    a dequantized copy of the table.

    Not com.microsoft's GatherBlockQuantized, though it reads the same bytes: how its CUDA kernel
    takes packed widths and the default zero point differs between versions of onnxruntime.
    """
    encoding = ENCODINGS[table.encoding]
    # With float32 (CPU) mapped apart from a tied head: the session then packs and drops the head's
    # mapping, and of the table only the pages of rows in use stay resident. A GPU keeps one copy.
    role = "" if ctx.half else "rows"
    codes = ctx.op("Gather", [ctx.tensor(f"{table.name}.q", role=role), tokens])
    rows = ctx.op("Gather", [ctx.tensor(f"{table.name}.scales", role=role), tokens])
    have = ctx.place(f"{table.name}.scales").dtype
    rows = ctx.op("Unsqueeze", [ctx.cast(rows, have, ctx.float_type), ctx.ints(-1)])
    signature: Signature = (["q", "scales"], [])
    size = "" if encoding.group in (0, GROUP) else f"G{encoding.group}"
    name = f"DequantizeInt{encoding.onnx_bits}{size}{'' if lead == 2 else 'Rows'}"
    return ctx.call(name, [codes, rows], None, _rows_body(encoding, lead), signature)


def emit_embed(ctx: EmitContext, call: Call) -> None:
    """Gather for float tables; for quantized ones Gather of codes and scales, and the function
    DequantizeInt4 or DequantizeInt8."""
    table, tokens = call.weights["weight"], call.inputs[0]
    lead = 2 if ctx.leads(call.shapes[0]) else 1
    steps: list[tuple[str, list[str]]] = []
    if ENCODINGS[table.encoding].plain:
        rows = ctx.op("Gather", [ctx.tensor(table.name), tokens])
        rows = ctx.cast(rows, ctx.place(table.name).dtype, ctx.float_type)
    else:
        rows = _gathered(ctx, table, tokens, lead)
        steps.append(("Reshape", [ctx.ints(*[0] * lead, -1)]))
        if table.shape[1] % (ENCODINGS[table.encoding].group or GROUP):
            ends = [ctx.ints(0), ctx.ints(table.shape[1]), ctx.ints(-1)]
            steps.append(("Slice", ends))
    if call.attrs["scale"] != 1.0:
        steps.append(("Mul", [ctx.scalar(call.attrs["scale"])]))
    steps = steps or [("Identity", [])]
    for index, (kind, more) in enumerate(steps):
        rows = ctx.op(kind, [rows, *more], call.output if index == len(steps) - 1 else None)


ONNX = {"embed": emit_embed}
