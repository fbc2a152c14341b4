"""What the faces of recurrent ops share: the reference's memory, and ports of emitted models.

A recurrent state has one content a sequence. A step reads what is committed and makes what it will
be behind all of its rows; the session commits that whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lowering import NodeLike
from .onnx_ports import Dialect, Memory, NodePorts, Port
from .onnx_tools import FLOAT, Call, EmitContext
from .quant import F32

CHUNK = 64  # rows that an emitted model takes at once: its products within a step are this square


@dataclass
class SlotRows:
    """The rows of one step and the state's content of each of its sequences (the reference's
    state). starts: first row of each sequence, and the end. content: what was committed; `made`
    takes what is so behind the step. sequence: int [T], which sequence a row is of. position: int
    [3, T], rotary axes. long_rope: bool a sequence."""

    starts: list[int]
    content: list[F32]
    made: list[F32]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    long_rope: list[bool]

    def __iter__(self) -> Iterator[tuple[slice, F32]]:
        """Each sequence's rows and content."""
        spans = zip(self.starts, self.starts[1:], strict=False)
        return zip((slice(*span) for span in spans), self.content, strict=True)


def state_name(node: NodeLike) -> str:
    """The operand by which kernels find a node's state."""
    return f"@state:{node.state}"


def slot_ports(call: Call, dialect: Dialect, name: str, shape: tuple[int, ...]) -> NodePorts:
    """One buffer of a state that takes whole steps: `past_<name>` [B, *shape] in, `new_<name>` out,
    and which rows of the step are valid."""
    kind = dialect.real if name == "conv" else "float32"
    past, made = (
        Port(f"{age}_{name}.{call.state}", kind, ("B", *shape)) for age in ("past", "new")
    )
    memory = Memory(call.state, past, made, in_place=False, whole=True)
    return NodePorts((Port("valid", "float32", ("B", "S")),), (memory,), trees=False)


def as_float(ctx: EmitContext, value: str) -> str:
    """An activation in float32."""
    return ctx.cast(value, ctx.float_type, FLOAT)


def square(ctx: EmitContext, table: F32, like: str) -> str:
    """A table [64, 64] cut to the rows of a step [S, S]; like: a value [..., S, S]."""
    ends = _square_ends(ctx, like)
    key = ("square", table.tobytes(), ends)
    if key not in ctx.made:
        cut = [ctx.table(table), ctx.ints(0, 0), ends, ctx.ints(0, 1)]
        ctx.made[key] = ctx.op("Slice", cut)
    return ctx.made[key]


def _square_ends(ctx: EmitContext, like: str) -> str:
    """int64 [S, S]. One for the whole model: all rows of a step are in every node's."""
    key = ("square-ends",)
    if key not in ctx.made:
        ctx.made[key] = ctx.op("Shape", [like], start=-2)
    return ctx.made[key]


def hidden() -> F32:
    """Added to exponents: 0 for rows up to a row, very negative for those behind it, [64, 64]."""
    return np.where(np.tri(CHUNK, dtype=bool), 0, -1e30).astype(np.float32)
