"""The ONNX face of linear attention in mode 2mamba-e: softmax over all tokens, with decays.

    past_key [B, G, P, r], past_value [B, G, P, D], past_rate [B, G, P, 1]     float32
    mask.0 [B, 1, S, P + S]     0 where seen, very negative elsewhere, made by the session

and new_key, new_value, new_rate of the step's S rows. Rows behind the committed ones hold anything:
their rates are left out of the sums by what the step's first row sees.
"""

from __future__ import annotations

import numpy as np

from .attention_onnx import turning_ports
from .linear_attention_onnx import prepared, real
from .onnx_ports import Dialect, Memory, NodePorts, Port
from .onnx_tools import FLOAT, Call, EmitContext
from .recurrence_onnx import rows_together
from .slot_rows import as_float

MASK = "mask.0"
END = 1 << 40


def exp_ports(call: Call, dialect: Dialect) -> NodePorts:
    """Keys, values and rates, the mask, and what turns queries and keys."""
    attrs = call.attrs
    widths = {"key": attrs["features"], "value": attrs["head_dim"], "rate": 1}
    memory = []
    for name, width in widths.items():
        past, made = (
            Port(f"{age}_{name}.{call.state}", "float32", ("B", attrs["kv_heads"], rows, width))
            for age, rows in (("past", "P"), ("new", "S"))
        )
        memory.append(Memory(call.state, past, made, in_place=False))
    inputs = (
        Port("valid", "float32", ("B", "S")), Port(MASK, dialect.real, ("B", 1, "S", "K")),
        *turning_ports(call, dialect, apart=True),
    )  # fmt: skip
    return NodePorts(inputs, tuple(memory), trees=False)


def _together(ctx: EmitContext, call: Call, name: str, new: str) -> str:
    """What the state holds and the step's rows [B, G, S, width]: [B, G, P + S, width]."""
    return ctx.op("Concat", [f"past_{name}.{call.state}", new], axis=2)


def _sums(ctx: EmitContext, call: Call, rate: str) -> str:
    """Sums of rates from each token to each row, at most 0: [B, G, 1, S, P + S]. rate: of the
    step's rows [B, S, G]."""
    past = f"past_rate.{call.state}"
    turned = ctx.op("Transpose", [rate], perm=[0, 2, 1])
    new = ctx.op("Unsqueeze", [turned, ctx.ints(3)], f"new_rate.{call.state}")
    room = ctx.op("Shape", [past], start=2, end=3)
    ends = ctx.op("Concat", [ctx.ints(1), room], axis=0)
    first = ctx.op("Slice", [as_float(ctx, MASK), ctx.ints(0, 0), ends, ctx.ints(2, 3)])
    there = ctx.op("Cast", [ctx.op("Greater", [first, real(ctx, -1.0)])], to=FLOAT)
    there = ctx.op("Transpose", [there], perm=[0, 1, 3, 2])  # [B, 1, P, 1]
    rates = ctx.op("Concat", [ctx.op("Mul", [past, there]), new], axis=2)
    total = ctx.op("CumSum", [rates, ctx.const(np.array(2, np.int64))])
    rows = ctx.op("Slice", [total, room, ctx.ints(END), ctx.ints(2)])
    between = ctx.op("Sub", [rows, ctx.op("Transpose", [total], perm=[0, 1, 3, 2])])
    return ctx.op("Unsqueeze", [ctx.op("Min", [between, real(ctx, 0.0)]), ctx.ints(2)])


def emit_exp(ctx: EmitContext, call: Call) -> None:
    """Softmax of scores and decays over all tokens."""
    attrs, new, cache = call.attrs, prepared(ctx, call), list[str]()
    for name, part in (("key", new.k), ("value", new.v)):
        width = attrs["features"] if name == "key" else attrs["head_dim"]
        shape, made = ctx.ints(0, 0, -1, width), f"new_{name}.{call.state}"
        both = _together(ctx, call, name, ctx.op("Reshape", [part, shape], made))
        cache.append(ctx.op("Unsqueeze", [both, ctx.ints(2)]))  # [B, G, 1, P + S, width]
    keys = ctx.op("Transpose", [cache[0]], perm=[0, 1, 2, 4, 3])
    mask = ctx.op("Unsqueeze", [as_float(ctx, MASK), ctx.ints(2)])
    bias = ctx.op("Add", [_sums(ctx, call, new.rate), mask])
    x = ctx.op("Add", [ctx.op("MatMul", [new.q, keys]), bias])
    y = ctx.op("MatMul", [ctx.op("Softmax", [x], axis=-1), cache[1]])
    rows_together(ctx, y, attrs["heads"] * attrs["head_dim"], call.output)
