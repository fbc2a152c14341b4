"""ssd: a state space with one decay a head and step, as Mamba-2 has it (arXiv 2405.21060).

Rows of x are [x | B | C] of widths H*P, G*N, G*N. For a head h of group g, with the head's matrix S
float32 [N, P]:

    step  = clip(softplus(dt + dt_bias), dt_min, dt_max)
    S_t   = exp(-exp(a_log) step) S_{t-1} + B_t (step x_t)^T
    y_t   = C_t^T S_t + d x_t

The state goes one way: it is kept behind whole steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .lowering import Builder, Lower, weight
from .onnx_ports import Dialect, NodePorts
from .onnx_tools import Call, EmitContext
from .operands import operands
from .quant import F32
from .recurrence_onnx import chunk_decays, heads_apart, left, rows_together
from .slot_rows import SlotRows, as_float, slot_ports, state_name

# sequences, state: as of `causal_conv.CAUSAL_CONV`.
SSD = operands(
    "x", "x_stride", "dt", "dt_stride", "a_log", "dt_bias", "d", "heads", "size", "groups", "keys",
    "dt_min", "dt_max", "sequences", "state", "y", "y_stride", "scratch", "scratch_bytes", "ctrl",
)  # fmt: skip


def softplus(x: F32) -> F32:
    """log(1 + e^x), float32."""
    out: F32 = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return out


def ssd(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], slots: SlotRows
) -> F32:
    """x float32 [T, H*P + 2*G*N], dt float32 [T, H] -> float32 [T, H*P]."""
    heads, size, groups, keys = (attrs[k] for k in ("heads", "head_dim", "groups", "state"))
    x, b, c = np.split(inputs[0], [heads * size, heads * size + groups * keys], axis=1)
    x = x.reshape(-1, heads, size)
    b, c = (p.reshape(-1, groups, keys).repeat(heads // groups, axis=1) for p in (b, c))
    step = softplus(inputs[1] + weights["dt_bias"]).clip(attrs["dt_min"], attrs["dt_max"])  # [T, H]
    decay = np.exp(-np.exp(weights["a_log"]) * step)
    y = np.empty_like(x)
    for rows, matrix in slots:
        for t in range(rows.start, rows.stop):
            new = b[t, :, :, None] * (step[t, :, None] * x[t])[:, None, :]
            matrix = decay[t, :, None, None] * matrix + new
            y[t] = np.einsum("hn,hnp->hp", c[t], matrix) + weights["d"][:, None] * x[t]
        slots.made.append(matrix)
    return y.reshape(len(y), -1)


def lower_ssd(b: Builder, node: Any) -> None:
    """One kernel over heads and columns of their matrices."""
    (x, dt), y, attrs = node.inputs, b.floats(node.output), b.attrs(node)
    b.scratch(64 * (attrs["state"] + 1))
    words = {
        "x": x, "x_stride": b.stride(x), "dt": dt, "dt_stride": b.stride(dt),
        "a_log": weight(node, "a_log"), "dt_bias": weight(node, "dt_bias"), "d": weight(node, "d"),
        "heads": attrs["heads"], "size": attrs["head_dim"], "groups": attrs["groups"],
        "keys": attrs["state"], "dt_min": attrs["dt_min"], "dt_max": attrs["dt_max"],
        "sequences": "@sequences", "state": state_name(node), "y": y, "y_stride": b.stride(y),
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
    }  # fmt: skip
    b.step("ssd", SSD, y, [x, dt], words)


LOWER: dict[str, Lower] = {"ssd": lower_ssd}
REFERENCE = {"ssd": ssd}


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """The matrices in and out."""
    shape = tuple(call.attrs[key] for key in ("heads", "state", "head_dim"))
    return slot_ports(call, dialect, "matrix", shape)


def emit_ssd(ctx: EmitContext, call: Call) -> None:
    """All pairs of the step's rows at once, and what the state before them adds, in float32."""
    attrs = call.attrs
    heads, size, groups, keys = (attrs[k] for k in ("heads", "head_dim", "groups", "state"))
    share = heads // groups
    widths = ctx.ints(heads * size, groups * keys, groups * keys)
    parts = ctx.ops("Split", [as_float(ctx, call.inputs[0]), widths], [None] * 3, axis=-1)
    x = heads_apart(ctx, parts[0], groups, share, size)  # [B, G, R, S, P]
    b, c = (heads_apart(ctx, part, groups, 1, keys) for part in parts[1:])
    a_log, bias, d = (ctx.tensor(call.weights[k].name) for k in ("a_log", "dt_bias", "d"))
    step = ctx.op("Softplus", [ctx.op("Add", [as_float(ctx, call.inputs[1]), bias])])
    low, high = (ctx.const(np.array(attrs[k], np.float32)) for k in ("dt_min", "dt_max"))
    step = ctx.op("Mul", [ctx.op("Clip", [step, low, high]), left(ctx)])  # [B, S, H]
    rate = ctx.op("Neg", [ctx.op("Mul", [step, ctx.op("Exp", [a_log])])])
    pairs, so_far, rest, whole = chunk_decays(ctx, rate, groups, share)
    step = heads_apart(ctx, step, groups, share, 1)  # [B, G, R, S, 1]
    stepped = ctx.op("Mul", [x, step])
    scores = ctx.op("MatMul", [c, ctx.op("Transpose", [b], perm=[0, 1, 2, 4, 3])])
    within = ctx.op("MatMul", [ctx.op("Mul", [scores, pairs]), stepped])
    shape = ctx.ints(0, groups, share, keys, size)
    past = ctx.op("Reshape", [f"past_matrix.{call.state}", shape])
    before = ctx.op("Mul", [ctx.op("MatMul", [c, past]), so_far])
    skipped = ctx.op("Mul", [x, ctx.op("Reshape", [d, ctx.ints(groups, share, 1, 1)])])
    y = ctx.op("Add", [ctx.op("Add", [within, before]), skipped])
    rows_together(ctx, y, heads * size, call.output)
    added = ctx.op("Transpose", [ctx.op("Mul", [b, rest])], perm=[0, 1, 2, 4, 3])
    added = ctx.op("MatMul", [added, stepped])
    new = ctx.op("Add", [ctx.op("Mul", [past, whole]), added])
    ctx.op("Reshape", [new, ctx.ints(0, heads, keys, size)], f"new_matrix.{call.state}")


ONNX = {"ssd": emit_ssd}
PORTS = {"ssd": ports}
