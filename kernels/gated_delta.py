"""gated_delta: a state that forgets, and corrects what it holds under a key (arXiv 2412.06464).

Rows of x are [q | k | v] of widths K*D, K*D, H*P with K key heads, rows of gates [b | a] of H each.
For a head h, with its matrix S float32 [D, P]:

    q, k   <- q / sqrt(sum q^2 + eps) / sqrt(D),  k / sqrt(sum k^2 + eps)      of key head h K / H
    beta   = sigmoid(b),  decay = exp(-exp(a_log) softplus(a + dt_bias))
    S'     = decay S_{t-1}
    S_t    = S' + k (beta (v - k^T S'))^T
    y_t    = q^T S_t

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
from .recurrence_onnx import chunk_decays, heads_apart, inverse_of_lower, left, rows_together
from .slot_rows import SlotRows, as_float, slot_ports, state_name
from .ssd import softplus

# sequences, state: as of `causal_conv.CAUSAL_CONV`.
GATED_DELTA = operands(
    "x", "x_stride", "gates", "gates_stride", "a_log", "dt_bias", "heads", "size", "key_heads",
    "keys", "eps", "sequences", "state", "y", "y_stride", "scratch", "scratch_bytes", "ctrl",
)  # fmt: skip


def _unit(x: F32, eps: float) -> F32:
    out: F32 = x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + np.float32(eps))
    return out


def gated_delta(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], slots: SlotRows
) -> F32:
    """x float32 [T, 2*K*D + H*P], gates float32 [T, 2*H] -> float32 [T, H*P]."""
    heads, size, count, keys = (attrs[k] for k in ("heads", "head_dim", "key_heads", "key_dim"))
    q, k, v = np.split(inputs[0], [count * keys, 2 * count * keys], axis=1)
    q, k = (_unit(p.reshape(-1, count, keys), attrs["eps"]) for p in (q, k))
    q, k = (p.repeat(heads // count, axis=1) for p in (q / np.float32(keys**0.5), k))
    v = v.reshape(-1, heads, size)
    b, a = np.split(inputs[1], 2, axis=1)
    beta = 1 / (1 + np.exp(-b))
    decay = np.exp(-np.exp(weights["a_log"]) * softplus(a + weights["dt_bias"]))  # [T, H]
    y = np.empty_like(v)
    for rows, matrix in slots:
        for t in range(rows.start, rows.stop):
            matrix = decay[t, :, None, None] * matrix
            held = np.einsum("hn,hnp->hp", k[t], matrix)
            change = beta[t, :, None] * (v[t] - held)
            matrix = matrix + k[t, :, :, None] * change[:, None, :]
            y[t] = np.einsum("hn,hnp->hp", q[t], matrix)
        slots.made.append(matrix)
    return y.reshape(len(y), -1)


def lower_gated_delta(b: Builder, node: Any) -> None:
    """One kernel over heads and columns of their matrices."""
    (x, gates), y, attrs = node.inputs, b.floats(node.output), b.attrs(node)
    b.scratch(64 * (attrs["key_dim"] + 1))
    words = {
        "x": x, "x_stride": b.stride(x), "gates": gates, "gates_stride": b.stride(gates),
        "a_log": weight(node, "a_log"), "dt_bias": weight(node, "dt_bias"),
        "heads": attrs["heads"], "size": attrs["head_dim"], "key_heads": attrs["key_heads"],
        "keys": attrs["key_dim"], "eps": attrs["eps"], "sequences": "@sequences",
        "state": state_name(node), "y": y, "y_stride": b.stride(y), "scratch": "@scratch",
        "scratch_bytes": "@scratch_bytes", "ctrl": "@ctrl",
    }  # fmt: skip
    b.step("gated_delta", GATED_DELTA, y, [x, gates], words)


LOWER: dict[str, Lower] = {"gated_delta": lower_gated_delta}
REFERENCE = {"gated_delta": gated_delta}


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """The matrices in and out."""
    shape = tuple(call.attrs[key] for key in ("heads", "key_dim", "head_dim"))
    return slot_ports(call, dialect, "matrix", shape)


def _emit_unit(ctx: EmitContext, x: str, eps: float) -> str:
    squares = ctx.op("ReduceSum", [ctx.op("Mul", [x, x]), ctx.ints(-1)], keepdims=1)
    total = ctx.op("Add", [squares, ctx.const(np.array(eps, np.float32))])
    return ctx.op("Div", [x, ctx.op("Sqrt", [total])])


def _emit_gates(ctx: EmitContext, call: Call) -> tuple[str, str]:
    """beta and the decays' logarithms, float32 [B, S, H], both 0 for padding."""
    heads = call.attrs["heads"]
    gates, widths = as_float(ctx, call.inputs[1]), ctx.ints(heads, heads)
    b, a = ctx.ops("Split", [gates, widths], [None, None], axis=-1)
    beta = ctx.op("Mul", [ctx.op("Sigmoid", [b]), left(ctx)])
    a_log, bias = (ctx.tensor(call.weights[k].name) for k in ("a_log", "dt_bias"))
    step = ctx.op("Mul", [ctx.op("Softplus", [ctx.op("Add", [a, bias])]), left(ctx)])
    return beta, ctx.op("Neg", [ctx.op("Mul", [step, ctx.op("Exp", [a_log])])])


def emit_gated_delta(ctx: EmitContext, call: Call) -> None:
    """The chunk's corrections by one triangular system (WY form), in float32."""
    attrs = call.attrs
    heads, size, count, keys = (attrs[k] for k in ("heads", "head_dim", "key_heads", "key_dim"))
    share, turn = heads // count, [0, 1, 2, 4, 3]
    widths = ctx.ints(count * keys, count * keys, heads * size)
    parts = ctx.ops("Split", [as_float(ctx, call.inputs[0]), widths], [None] * 3, axis=-1)
    q, k = (
        _emit_unit(ctx, heads_apart(ctx, part, count, 1, keys), attrs["eps"]) for part in parts[:2]
    )
    q = ctx.op("Mul", [q, ctx.const(np.array(keys**-0.5, np.float32))])
    v = heads_apart(ctx, parts[2], count, share, size)  # [B, K, R, S, P]
    beta, rate = _emit_gates(ctx, call)
    pairs, so_far, rest, whole = chunk_decays(ctx, rate, count, share)
    beta = heads_apart(ctx, beta, count, share, 1)  # [B, K, R, S, 1]
    turned = ctx.op("Transpose", [k], perm=turn)
    past = ctx.op("Reshape", [f"past_matrix.{call.state}", ctx.ints(0, count, share, keys, size)])
    # change_i = beta_i (v_i - so_far_i k_i^T S - sum_{j < i} pairs_ij (k_i . k_j) change_j)
    below = ctx.op("Mul", [ctx.op("Mul", [ctx.op("MatMul", [k, turned]), pairs]), beta])
    known = ctx.op("Mul", [ctx.op("MatMul", [k, past]), so_far])
    wanted = ctx.op("Mul", [ctx.op("Sub", [v, known]), beta])
    change = ctx.op("MatMul", [inverse_of_lower(ctx, below), wanted])
    before = ctx.op("Mul", [ctx.op("MatMul", [q, past]), so_far])
    scores = ctx.op("Mul", [ctx.op("MatMul", [q, turned]), pairs])
    y = ctx.op("Add", [before, ctx.op("MatMul", [scores, change])])
    rows_together(ctx, y, heads * size, call.output)
    added = ctx.op("Transpose", [ctx.op("Mul", [k, rest])], perm=turn)
    new = ctx.op("Add", [ctx.op("Mul", [past, whole]), ctx.op("MatMul", [added, change])])
    ctx.op("Reshape", [new, ctx.ints(0, heads, keys, size)], f"new_matrix.{call.state}")


ONNX = {"gated_delta": emit_gated_delta}
PORTS = {"gated_delta": ports}
