"""The ONNX face of linear attention with a window: the newest tokens stand beside the matrix.

    matrix  float32 [B, G, D, P + 1]     the first C max(0, n // C - 1) of n tokens, as without one
    tail    float32 [B, 2 C, W]          those behind them: keys, keys of the window, values with a
                                         1, logarithms of decays, each [G, ..]; then zeros
    place   float32 [B, 1]               n

A step's rows are computed over the tail and themselves, N = 2 C + S tokens, each by its place: what
lies in a row's window has softmax's weights; what lies before that but in the tail, as it does
once a step's rows reach a new chunk, has those of linear attention. Then whole chunks that no later
row's window holds go into the matrix, and the tail moves on. S is at most 64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .linear_attention_onnx import (
    Prepared,
    chunk_ports,
    divided,
    normalised,
    phi_of,
    prepared,
    real,
    weights_of,
)
from .onnx_ports import Dialect, NodePorts
from .onnx_tools import FLOAT, INT64, Call, EmitContext
from .recurrence_onnx import heads_apart as groups_apart
from .slot_rows import CHUNK, slot_ports

FAR = 1e30


def window_ports(call: Call, dialect: Dialect) -> NodePorts:
    """As without a window, with the tail and the place beside the matrix."""
    own = chunk_ports(call, dialect)
    shapes = {"tail": (2 * call.attrs["chunk"], sum(_widths(call))), "place": (1,)}
    more = [slot_ports(call, dialect, n, shape).memory[0] for n, shape in shapes.items()]
    return NodePorts(own.inputs, (*own.memory, *more), trees=False)


def _widths(call: Call) -> list[int]:
    """Columns of the tail's parts."""
    attrs = call.attrs
    sizes = attrs["features"], attrs["head_dim"], attrs["head_dim"] + normalised(call), 1
    return [attrs["kv_heads"] * size for size in sizes]


class _Tokens(NamedTuple):
    """The tail and the step's rows, as rows [B, N, W]; keys [B, G, 1, N, r], keys of the window,
    values, logarithms of decays [B, G, 1, N, 1] and their sums from the first on."""

    rows: str
    k: str
    near: str
    v: str
    rate: str
    total: str


def _tokens(ctx: EmitContext, call: Call, new: Prepared) -> _Tokens:
    groups, flat = call.attrs["kv_heads"], list[str]()
    for part, width in zip((new.k, new.near_k, new.v), _widths(call), strict=False):
        turned = ctx.op("Transpose", [part], perm=[0, 3, 1, 2, 4])
        flat.append(ctx.op("Reshape", [turned, ctx.ints(0, 0, width)]))
    step = ctx.op("Concat", [*flat, new.rate], axis=-1)
    rows = ctx.op("Concat", [f"past_tail.{call.state}", step], axis=1)
    parts = ctx.ops("Split", [rows, ctx.ints(*_widths(call))], [None] * 4, axis=-1)
    sizes = [width // groups for width in _widths(call)]
    apart = (groups_apart(ctx, p, groups, 1, n) for p, n in zip(parts, sizes, strict=True))
    k, near, v, rate = apart
    total = ctx.op("CumSum", [rate, ctx.const(np.array(3, np.int64))])
    return _Tokens(rows, k, near, v, rate, total)


class _Places(NamedTuple):
    """Tokens before the step [B, 1] and behind it; how many of them are folded; places of the
    step's rows [B, S] and of all tokens [B, N], and 1 for those that are tokens, 0 for room."""

    before: str
    behind: str
    folded: str
    folds: str
    rows: str
    tokens: str
    there: str


def _fold_point(ctx: EmitContext, place: str, chunk: int) -> str:
    """C max(0, place // C - 1)."""
    whole = ctx.op("Floor", [ctx.op("Div", [place, real(ctx, chunk)])])
    whole = ctx.op("Relu", [ctx.op("Sub", [whole, real(ctx, 1.0)])])
    return ctx.op("Mul", [whole, real(ctx, chunk)])


def _less(ctx: EmitContext, x: str, y: str) -> str:
    """1 where x < y, else 0."""
    return ctx.op("Cast", [ctx.op("Less", [x, y])], to=FLOAT)


def _places(ctx: EmitContext, call: Call) -> _Places:
    chunk, before = call.attrs["chunk"], f"past_place.{call.state}"
    count = ctx.op("ReduceSum", ["valid", ctx.ints(1)], keepdims=1)
    behind = ctx.op("Add", [before, count], f"new_place.{call.state}")
    folded, folds = (_fold_point(ctx, n, chunk) for n in (before, behind))
    old = ctx.op("Add", [folded, ctx.table(np.arange(2 * chunk, dtype=np.float32))])
    order = ctx.op("CumSum", ["valid", ctx.const(np.array(1, np.int64))])
    rows = ctx.op("Add", [ctx.op("Sub", [order, real(ctx, 1.0)]), before])
    tokens = ctx.op("Concat", [old, rows], axis=1)
    there = ctx.op("Concat", [_less(ctx, old, before), "valid"], axis=1)
    return _Places(before, behind, folded, folds, rows, tokens, there)


def _masks(ctx: EmitContext, call: Call, at: _Places) -> tuple[str, str]:
    """1 for the tokens before a row's window, and for those inside of it: [B, 1, 1, S, N]."""
    row = ctx.op("Unsqueeze", [at.rows, ctx.ints(2)])
    token, there = (ctx.op("Unsqueeze", [x, ctx.ints(1)]) for x in (at.tokens, at.there))
    early = _less(ctx, token, _fold_point(ctx, row, call.attrs["chunk"]))
    late = ctx.op("Sub", [real(ctx, 1.0), _less(ctx, row, token)])
    inside = ctx.op("Mul", [ctx.op("Sub", [real(ctx, 1.0), early]), late])
    found = [ctx.op("Mul", [mask, there]) for mask in (early, inside)]
    one, other = (ctx.op("Unsqueeze", [mask, ctx.ints(1, 2)]) for mask in found)
    return one, other


def _across(ctx: EmitContext, x: str) -> str:
    return ctx.op("Transpose", [x], perm=[0, 1, 2, 4, 3])


def _no_more_than_0(ctx: EmitContext, x: str) -> str:
    return ctx.op("Exp", [ctx.op("Min", [x, real(ctx, 0.0)])])


def _window(ctx: EmitContext, call: Call, q: str, k: str, inside: str) -> str:
    """Weights [B, G, R, S, N] of the window."""
    groups, heads = call.attrs["kv_heads"], call.attrs["heads"]
    hidden = ctx.op("Mul", [ctx.op("Sub", [inside, real(ctx, 1.0)]), real(ctx, FAR)])
    x = ctx.op("Add", [ctx.op("MatMul", [q, _across(ctx, k)]), hidden])
    peak = ctx.op("ReduceMax", [x, ctx.ints(-1)], keepdims=1)
    shape = (groups, heads // groups, 1, 1)
    factor = ctx.op("Exp", [ctx.tensor(call.weights["log_window"].name, dims=shape)])
    return ctx.op("Mul", [ctx.op("Exp", [ctx.op("Sub", [x, peak])]), factor])


def emit_windowed(ctx: EmitContext, call: Call) -> None:
    """Rows over the window, the tail before it, and the matrix."""
    new = prepared(ctx, call)
    tokens, at = _tokens(ctx, call, new), _places(ctx, call)
    early, inside = _masks(ctx, call, at)
    rows = ctx.op("Slice", [
        tokens.total, ctx.ints(2 * call.attrs["chunk"]), ctx.ints(1 << 40), ctx.ints(3),
    ])  # fmt: skip
    fade = _no_more_than_0(ctx, ctx.op("Sub", [rows, _across(ctx, tokens.total)]))
    scores = ctx.op("MatMul", [new.q, _across(ctx, tokens.k)])
    far = ctx.op("Mul", [weights_of(ctx, call, scores), ctx.op("Mul", [fade, early])])
    near = _window(ctx, call, new.near_q, tokens.near, inside)
    total = ctx.op("MatMul", [ctx.op("Add", [far, near]), tokens.v])
    past = ctx.op("Unsqueeze", [f"past_matrix.{call.state}", ctx.ints(2)])  # [B, G, 1, D, P + 1]
    before = ctx.op("MatMul", [phi_of(ctx, call, new.q, query=True), past])
    before = ctx.op("Mul", [before, ctx.op("Exp", [rows])])
    divided(ctx, call, ctx.op("Add", [total, before]))
    _fold(ctx, call, tokens, at, past)
    _move(ctx, call, tokens, at)


def _fold(ctx: EmitContext, call: Call, tokens: _Tokens, at: _Places, past: str) -> None:
    """The matrix takes whole chunks in: of chunks that no step fills, the tail's first one."""
    groups, size, chunk = (call.attrs[key] for key in ("kv_heads", "head_dim", "chunk"))
    known = chunk if chunk >= CHUNK else 1 << 40

    def first(x: str, axis: int) -> str:
        return ctx.op("Slice", [x, ctx.ints(0), ctx.ints(known), ctx.ints(axis)])

    gone = ctx.op("Mul", [_less(ctx, first(at.tokens, 1), at.folds), first(at.there, 1)])
    gone = ctx.op("Unsqueeze", [gone, ctx.ints(1, 2, 4)])  # [B, 1, 1, n, 1]
    rates = ctx.op("Mul", [first(tokens.rate, 3), gone])
    whole = ctx.op("ReduceSum", [rates, ctx.ints(3)], keepdims=1)
    rest = _no_more_than_0(ctx, ctx.op("Sub", [whole, first(tokens.total, 3)]))
    fed = phi_of(ctx, call, first(tokens.k, 3), query=False)
    fed = ctx.op("Mul", [fed, ctx.op("Mul", [rest, gone])])
    added = ctx.op("MatMul", [_across(ctx, fed), first(tokens.v, 3)])
    new = ctx.op("Add", [ctx.op("Mul", [past, ctx.op("Exp", [whole])]), added])
    shape = ctx.ints(0, groups, -1, size + normalised(call))
    ctx.op("Reshape", [new, shape], f"new_matrix.{call.state}")


def _move(ctx: EmitContext, call: Call, tokens: _Tokens, at: _Places) -> None:
    """The tail of what is not folded."""
    room = 2 * call.attrs["chunk"]
    place = ctx.op("Add", [at.folds, ctx.table(np.arange(room, dtype=np.float32))])  # [B, 2 C]
    old = ctx.op("Sub", [place, at.folded])
    new = ctx.op("Add", [ctx.op("Sub", [place, at.before]), real(ctx, room)])
    index = ctx.op("Where", [ctx.op("Less", [place, at.before]), old, new])
    there = _less(ctx, place, at.behind)
    index = ctx.op("Cast", [ctx.op("Mul", [index, there])], to=INT64)
    picked = ctx.op(
        "GatherND", [tokens.rows, ctx.op("Unsqueeze", [index, ctx.ints(2)])], batch_dims=1
    )
    kept = ctx.op("Unsqueeze", [there, ctx.ints(2)])
    ctx.op("Mul", [picked, kept], f"new_tail.{call.state}")
