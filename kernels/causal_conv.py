"""causal_conv: every channel convolved along the text by weights of its own.

    y_t = act(sum_j w_j x_{t - width + 1 + j} + bias)         j = 0 .. width - 1, x = 0 before t = 0

The state holds the last width - 1 rows. `tail` is how many tokens more it keeps on the CPU, so that
as many can be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .cpu.layout import GATES
from .elementwise import activate
from .lowering import Builder, Lower, weight
from .onnx_ports import Dialect, NodePorts
from .onnx_tools import INT64, Call, EmitContext
from .operands import operands
from .quant import F32
from .slot_rows import SlotRows, slot_ports, state_name

# weight: float32 [width][channels], a column of the stored one in every row. sequences: int64, how
# many there are, then first row, rows and slot of each. state: what `session/recurrent.py` calls
# described.
CAUSAL_CONV = operands(
    "x", "stride", "weight", "weight_stride", "bias", "channels", "width", "act", "sequences",
    "state", "y",
)  # fmt: skip


def causal_conv(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], slots: SlotRows
) -> F32:
    """x float32 [T, C] -> float32 [T, C]; the state is float32 [width - 1, C]."""
    (x,), w, width = inputs, weights["weight"], attrs["width"]
    out = np.zeros_like(x)
    for rows, before in slots:
        seen = np.concatenate([before, x[rows]])
        for j in range(width):
            out[rows] += w[:, j] * seen[j : len(seen) - width + 1 + j]
        slots.made.append(seen[len(seen) - width + 1 :])
    out = out + weights["bias"] if "bias" in weights else out
    return activate(out, "silu") if attrs["act"] == "silu" else out


def lower_causal_conv(b: Builder, node: Any) -> None:
    """One kernel, which also writes the rows into the slots."""
    x, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words = {
        "x": x, "stride": b.stride(y), "weight": f"@columns:{node.weights['weight']}",
        "weight_stride": b.stride(y), "bias": weight(node, "bias"), "channels": attrs["channels"],
        "width": attrs["width"], "act": GATES[attrs["act"]], "sequences": "@sequences",
        "state": state_name(node), "y": y,
    }  # fmt: skip
    b.step("causal_conv", CAUSAL_CONV, y, [x], words)


LOWER: dict[str, Lower] = {"causal_conv": lower_causal_conv}
REFERENCE = {"causal_conv": causal_conv}


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """The last width - 1 rows in and out."""
    return slot_ports(call, dialect, "conv", (call.attrs["width"] - 1, call.attrs["channels"]))


def emit_causal_conv(ctx: EmitContext, call: Call) -> None:
    """A product and a sum for each weight of a channel."""
    attrs, stored = call.attrs, call.weights["weight"]
    width = attrs["width"]
    seen = ctx.op("Concat", [f"past_conv.{call.state}", call.inputs[0]], axis=1)
    columns = ctx.op("Transpose", [ctx.floats(stored.name)], perm=[1, 0])  # [width, C]
    total = ""
    for j in range(width):
        w = ctx.op("Slice", [columns, ctx.ints(j), ctx.ints(j + 1), ctx.ints(0)])
        end = ctx.ints(j - width + 1 if j < width - 1 else (1 << 62))
        term = ctx.op("Mul", [ctx.op("Slice", [seen, ctx.ints(j), end, ctx.ints(1)]), w])
        total = ctx.op("Add", [total, term]) if total else term
    if "bias" in call.weights:
        total = ctx.op("Add", [total, ctx.floats(call.weights["bias"].name)])
    if attrs["act"] == "silu":
        ctx.op("Mul", [total, ctx.op("Sigmoid", [total])], call.output)
    else:
        ctx.op("Identity", [total], call.output)
    # not Slice, whose bounds would have to come to the host
    last = ctx.op("Add", [_count(ctx), ctx.table(np.arange(width - 1, dtype=np.int64))])
    ctx.op("Gather", [seen, last], f"new_conv.{call.state}", axis=1)


def _count(ctx: EmitContext) -> str:
    """Valid rows of the step, int64 [1]."""
    if ("count",) not in ctx.made:
        total = ctx.op("ReduceSum", ["valid", ctx.ints(1)], keepdims=0)
        ctx.made["count",] = ctx.op("Cast", [total], to=INT64)
    return ctx.made["count",]


ONNX = {"causal_conv": emit_causal_conv}
PORTS = {"causal_conv": ports}
