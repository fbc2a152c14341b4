"""The ONNX face of linear attention: a step of up to 64 rows is one chunk, by standard ops.

The rows' own tokens are computed as all pairs; what came before is one product with the state

    matrix  float32 [B, G, D, P + 1]     sum of phi(k) [v | 1], faded to behind the last token

whose last column is the normaliser (absent in mode mamba2s). Factors of features stand on the side
of the queries, so that keys need none: phi(k) = [k_i k_j for i <= j | k | 1]. Everything is
float32, in half precision, too.

Shapes: B sequences, G key/value heads of R query heads each, S rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .attention_onnx import heads_apart, rope_inputs, turning_ports
from .onnx_ports import Dialect, NodePorts
from .onnx_tools import Call, EmitContext
from .ops_linear import EXP, feature_width
from .recurrence_onnx import chunk_decays, left, rows_together
from .recurrence_onnx import heads_apart as groups_apart
from .slot_rows import as_float, slot_ports


def chunk_ports(call: Call, dialect: Dialect) -> NodePorts:
    """The matrix in and out, valid rows, and what turns queries and keys."""
    attrs = call.attrs
    wide = feature_width(attrs["features"], attrs["mode"])
    shape = (attrs["kv_heads"], wide, attrs["head_dim"] + normalised(call))
    own = slot_ports(call, dialect, "matrix", shape)
    turning = turning_ports(call, dialect, apart=True)
    return NodePorts((*own.inputs, *turning), own.memory, trees=False)


def normalised(call: Call) -> int:
    """Whether the state has a normaliser, a column of ones behind the values."""
    return int(call.attrs["mode"] not in ("mamba2s", EXP))


def real(ctx: EmitContext, value: float) -> str:
    return ctx.const(np.array(value, np.float32))


def _valid(ctx: EmitContext) -> str:
    """1 for valid rows, 0 for padding: [B, 1, 1, S, 1]."""
    if ("valid-heads",) not in ctx.made:
        ctx.made["valid-heads",] = ctx.op("Unsqueeze", [left(ctx), ctx.ints(1, 2)])
    return ctx.made["valid-heads",]


def _by_group(ctx: EmitContext, call: Call, slot: str) -> str:
    """softplus of a vector [G] as [G, 1, 1, 1]."""
    shape = (call.attrs["kv_heads"], 1, 1, 1)
    return ctx.op("Softplus", [ctx.tensor(call.weights[slot].name, dims=shape)])


def _shift(ctx: EmitContext, call: Call, x: str, by: str) -> str:
    """x c, with c = 0.001 + softplus(gamma); by: softplus(gamma)."""
    return ctx.op("Add", [ctx.op("Mul", [x, by]), ctx.op("Mul", [x, real(ctx, 1e-3)])])


def _apart(ctx: EmitContext, call: Call, x: str, share: int, slot: str) -> str:
    """Heads [B, S, n, D] as [B, G, R, S, D] in float32, keys without their mean."""
    groups, size = call.attrs["kv_heads"], call.attrs["head_dim"]
    x = groups_apart(ctx, as_float(ctx, x), groups, share, size)
    if slot == "k_map" and "key_mean" in call.weights:
        mean = ctx.tensor(call.weights["key_mean"].name, dims=(groups, 1, 1, size))
        x = ctx.op("Sub", [x, mean])
    return x


def _mapped(ctx: EmitContext, call: Call, x: str, slot: str) -> str:
    """Heads [B, G, R, S, D] to their features [B, G, R, S, r]."""
    attrs = call.attrs
    if slot in call.weights:
        shape = (attrs["kv_heads"], 1, attrs["head_dim"], attrs["features"])
        x = ctx.op("MatMul", [x, ctx.tensor(call.weights[slot].name, dims=shape)])
    x = _rooted(ctx, call, x)
    return ctx.op("Relu", [x]) if attrs["mode"] == "relu" else x


def _rooted(ctx: EmitContext, call: Call, x: str) -> str:
    return ctx.op("Mul", [x, real(ctx, call.attrs["scale"] ** 0.5)])


def phi_of(ctx: EmitContext, call: Call, u: str, *, query: bool) -> str:
    """phi of u [B, G, R, S, r]."""
    attrs = call.attrs
    if attrs["mode"] in ("mamba2s", "relu"):
        return u
    i, j = np.triu_indices(attrs["features"])
    picked = [ctx.op("Gather", [u, ctx.table(k.astype(np.int32))], axis=-1) for k in (i, j)]
    squares = ctx.op("Mul", picked)
    if query:
        factor = np.where(i == j, 1, 2).astype(np.float32)
        squares = ctx.op("Mul", [squares, ctx.table(factor)])
    if attrs["mode"] == "square":
        return squares
    one = ctx.op("Mul", [ctx.op("ReduceSum", [u, ctx.ints(-1)], keepdims=1), real(ctx, 0.0)])
    one = ctx.op("Add", [one, real(ctx, 1.0)])  # [B, G, R, S, 1]
    if query:
        beta, gamma = _by_group(ctx, call, "beta"), _by_group(ctx, call, "gamma")
        u = ctx.op("Mul", [ctx.op("Mul", [u, beta]), real(ctx, 2.0)])
        square = ctx.op("Mul", [ctx.op("Mul", [one, beta]), beta])
        one = ctx.op("Add", [square, _shift(ctx, call, one, gamma)])
    return ctx.op("Concat", [squares, u, one], axis=-1)


def weights_of(ctx: EmitContext, call: Call, x: str) -> str:
    """f(x)."""
    if call.attrs["mode"] == "square":
        return ctx.op("Mul", [x, x])
    if call.attrs["mode"] == "shifted":
        x = ctx.op("Add", [x, _by_group(ctx, call, "beta")])
        x = ctx.op("Add", [ctx.op("Mul", [x, x]), _by_group(ctx, call, "gamma")])
        return ctx.op("Add", [x, real(ctx, 1e-3)])
    return x


def _gates(ctx: EmitContext, call: Call) -> tuple[str, str]:
    """Logarithms of decays and steps, [B, S, G] each; "" where there are none."""
    attrs, rate, step = call.attrs, "", ""
    gates, groups = as_float(ctx, call.inputs[1]), attrs["kv_heads"]
    parts = [gates]
    if attrs["decay"] and attrs["mode"] == "mamba2s":
        parts = ctx.ops("Split", [gates, ctx.ints(groups, groups)], [None, None], axis=-1)
    if attrs["decay"]:
        rate = ctx.op("Neg", [ctx.op("Softplus", [parts[0]])])
        rate = ctx.op("Mul", [ctx.op("Clip", [rate, real(ctx, -30.0)]), left(ctx)])
    if attrs["mode"] == "mamba2s":
        step = ctx.op("Softplus", [parts[-1]])
    return rate, step


class Prepared(NamedTuple):
    """A step's rows: queries [B, G, R, S, r], keys [B, G, 1, S, r], values with a 1 behind them
    where they have a normaliser [B, G, 1, S, P + 1], 0 for padding; logarithms of decays [B, S, G],
    "" for none; with a window the queries and keys that it reads, [.., D] and else ""."""

    q: str
    k: str
    v: str
    rate: str
    near_q: str
    near_k: str


def prepared(ctx: EmitContext, call: Call) -> Prepared:
    """What weights are computed from."""
    attrs = call.attrs
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    share, tables = heads // groups, rope_inputs(ctx, call)
    widths = ctx.ints(heads * size, groups * size, groups * size)
    q, k, v = ctx.ops("Split", [call.inputs[0], widths], [None, None, None], axis=-1)
    q = _apart(ctx, call, heads_apart(ctx, call, q, heads, "q_norm", tables), share, "q_map")
    k = _apart(ctx, call, heads_apart(ctx, call, k, groups, "k_norm", tables), 1, "k_map")
    near = [_rooted(ctx, call, x) if attrs["window"] else "" for x in (q, k)]
    q, k = _mapped(ctx, call, q, "q_map"), _mapped(ctx, call, k, "k_map")
    rate, step = _gates(ctx, call)
    v = groups_apart(ctx, as_float(ctx, v), groups, 1, size)  # [B, G, 1, S, P]
    if step:
        v = ctx.op("Mul", [v, groups_apart(ctx, step, groups, 1, 1)])
    v = ctx.op("Mul", [v, _valid(ctx)])
    if normalised(call):
        first = ctx.op("Slice", [v, ctx.ints(0), ctx.ints(1), ctx.ints(-1)])
        zeros = ctx.op("Mul", [first, real(ctx, 0.0)])
        v = ctx.op("Concat", [v, ctx.op("Add", [zeros, _valid(ctx)])], axis=-1)
    if not rate:
        nothing = ctx.op("Mul", [left(ctx), real(ctx, 0.0)])
        rate = ctx.op("Mul", [nothing, ctx.table(np.ones(groups, np.float32))])
    return Prepared(q, k, v, rate, *near)


def divided(ctx: EmitContext, call: Call, total: str) -> None:
    """Weighted sums [B, G, R, S, P + 1] to the rows that the node gives."""
    attrs = call.attrs
    size = attrs["head_dim"]
    if normalised(call):
        total, norm = ctx.ops("Split", [total, ctx.ints(size, 1)], [None, None], axis=-1)
        total = ctx.op("Div", [total, ctx.op("Add", [norm, real(ctx, attrs["eps"])])])
    rows_together(ctx, total, attrs["heads"] * size, call.output)


def emit_chunk(ctx: EmitContext, call: Call) -> None:
    """All pairs of the step's rows, and what the state before them adds."""
    groups, size = call.attrs["kv_heads"], call.attrs["head_dim"]
    q, k, v, rate, _, _ = prepared(ctx, call)
    pairs, so_far, rest, whole = chunk_decays(ctx, rate, groups, 1)
    scores = ctx.op("MatMul", [q, ctx.op("Transpose", [k], perm=[0, 1, 2, 4, 3])])
    within = ctx.op("MatMul", [ctx.op("Mul", [weights_of(ctx, call, scores), pairs]), v])
    past = ctx.op("Unsqueeze", [f"past_matrix.{call.state}", ctx.ints(2)])  # [B, G, 1, D, P + 1]
    before = ctx.op("MatMul", [phi_of(ctx, call, q, query=True), past])
    total = ctx.op("Add", [within, ctx.op("Mul", [before, so_far])])
    divided(ctx, call, total)
    fed = ctx.op("Mul", [phi_of(ctx, call, k, query=False), rest])
    added = ctx.op("MatMul", [ctx.op("Transpose", [fed], perm=[0, 1, 2, 4, 3]), v])
    new = ctx.op("Add", [ctx.op("Mul", [past, whole]), added])
    shape = ctx.ints(0, groups, -1, size + normalised(call))
    ctx.op("Reshape", [new, shape], f"new_matrix.{call.state}")
