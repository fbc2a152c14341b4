"""ONNX emission of experts: all of them for every row, weighted with 0 where they were not picked.

No subgraphs are emitted, and without them nothing can skip an expert: providers read all weights.
The sum over experts is the one product with [E * F, C].
"""

from __future__ import annotations

import numpy as np

from .elementwise import active
from .encodings import ENCODINGS
from .linear_onnx import dequantized, emit_linear, inlined
from .onnx_tools import FLOAT, Call, EmitContext


def _shares(ctx: EmitContext, logits: str, call: Call) -> str:
    """Logits [B, S, E] to every expert's weight, 0 for those not picked, float32 [B, S, E]."""
    attrs = call.attrs
    rows = ctx.cast(logits, ctx.float_type, FLOAT)
    if not attrs["normalised"]:
        rows = ctx.op("Softmax", [rows], axis=-1)
    top, order = ctx.ops("TopK", [rows, ctx.ints(attrs["active"])], [None, None], axis=-1)
    by_rank = ctx.op("Softmax", [top], axis=-1) if attrs["normalised"] else top
    if attrs["scale"] != 1.0:
        by_rank = ctx.op("Mul", [by_rank, ctx.const(np.array(attrs["scale"], np.float32))])
    numbers = ctx.table(np.arange(attrs["experts"], dtype=np.int64))
    hit = ctx.op("Equal", [ctx.op("Unsqueeze", [order, ctx.ints(-1)]), numbers])
    spread = ctx.op(
        "Mul", [ctx.op("Cast", [hit], to=FLOAT), ctx.op("Unsqueeze", [by_rank, ctx.ints(-1)])]
    )
    return ctx.op("ReduceSum", [spread, ctx.ints(-2)], keepdims=0)


def values_of(ctx: EmitContext, call: Call, slot: str) -> str:
    """A stacked matrix in the activations' dtype."""
    w = call.weights[slot]
    if ENCODINGS[w.encoding].dense:
        w = inlined(ctx, w)
    return ctx.floats(w.name) if ENCODINGS[w.encoding].plain else dequantized(ctx, w)


def _hidden(ctx: EmitContext, call: Call, width: int) -> str:
    """What all experts make of the rows [B, S, C], [B, S, E, F]."""
    attrs, stacked = call.attrs, call.weights["gate_up"]
    weights = {"weight": stacked}
    if "gate_up_bias" in call.weights:
        weights["bias"] = call.weights["gate_up_bias"]
    both = f"{call.output}#both"
    emit_linear(ctx, Call(call.inputs[:1], both, weights, {}, call.shapes[:1]))
    shape = ctx.ints(0, 0, 2, attrs["experts"], width)
    gate, up = ctx.ops(
        "Split", [ctx.op("Reshape", [both, shape])], [None, None], axis=2, num_outputs=2
    )
    if limit := attrs["limit"]:
        gate = ctx.op("Clip", [gate, "", ctx.scalar(limit)])
        up = ctx.op("Clip", [up, ctx.scalar(-limit), ctx.scalar(limit)])
    if attrs["shift"]:
        up = ctx.op("Add", [up, ctx.scalar(attrs["shift"])])
    slope = ctx.scalar(1.702) if attrs["act"] == "quick_gelu" else ""
    hidden = ctx.op("Mul", [active(ctx, gate, attrs["act"], slope), up])
    return ctx.op("Reshape", [hidden, ctx.ints(0, 0, attrs["experts"], width)])


def emit_experts(ctx: EmitContext, call: Call) -> None:
    """TopK and Equal for the weights, the product of `linear`, and DequantizeLinear and MatMul."""
    count, width = call.attrs["experts"], call.weights["down"].shape[1]
    columns = int(call.shapes[0][-1])
    shares = ctx.cast(_shares(ctx, call.inputs[1], call), FLOAT, ctx.float_type)
    hidden = _hidden(ctx, call, width)
    weighted = ctx.op("Mul", [hidden, ctx.op("Unsqueeze", [shares, ctx.ints(-1)])])
    rows = ctx.op("Reshape", [weighted, ctx.ints(0, 0, count * width)])
    stacked = ctx.op("Reshape", [values_of(ctx, call, "down"), ctx.ints(count, columns, width)])
    turned = ctx.op("Transpose", [stacked], perm=[0, 2, 1])
    matrix = ctx.op("Reshape", [turned, ctx.ints(count * width, columns)])
    biased = "down_bias" in call.weights
    y = ctx.op("MatMul", [rows, matrix], None if biased else call.output)
    if biased:
        name = call.weights["down_bias"].name
        bias = ctx.tensor(name, dims=(count, columns))
        bias = ctx.cast(bias, ctx.placed(name).dtype, ctx.float_type)
        ctx.op("Add", [y, ctx.op("MatMul", [shares, bias])], call.output)


ONNX = {"experts": emit_experts}
