"""What emitted models take and give besides the inputs and outputs of their graphs.

An op that needs more than values and weights has one more face, `ports(call, dialect)`, listed
in the PORTS of its module: inputs that the session makes of the positions of a step, and the
buffers of its state. Nothing else knows which op wants what.

Shapes are written with letters: B sequences of S new tokens each, P rows of capacity, K = P + S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from .onnx_tools import Call
from .ops import CATALOGUE, Dim


@dataclass(frozen=True)
class Port:
    """One input or output: dtype is "int32", "int64", "float32" or "float16"."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Memory:
    """One buffer of a state, named by its input port `past` [B, heads, P, width].

    made: the output port. in_place: one buffer is `past` and `made` at once, and the node writes
    into it; otherwise `made` holds the new rows [B, heads, S, width], which the session copies in.
    whole: both are all that the state holds, whatever the length, before and behind the step.
    """

    state: str
    past: Port
    made: Port
    in_place: bool
    whole: bool = False


@dataclass(frozen=True)
class NodePorts:
    """What one node adds to the interface.

    inputs: what the session makes; nodes that name the same port share it. positions, trees:
    whether the node takes positions other than 0, 1, 2, ..., and rows that continue another row
    than the one before.
    """

    inputs: tuple[Port, ...] = ()
    memory: tuple[Memory, ...] = ()
    positions: bool = True
    trees: bool = True


@dataclass(frozen=True)
class Dialect:
    """half: float16 activations, buffers and tables. standard: ai.onnx ops only. batch: values of
    graphs without states have an axis in front, [B, N, C]."""

    half: bool = False
    standard: bool = False
    batch: bool = False

    @property
    def real(self) -> str:
        """Name of the activations' dtype."""
        return "float16" if self.half else "float32"


def ports_of(op: str, call: Call, dialect: Dialect) -> NodePorts:
    """The ports of a node of the catalogue's `op`; none where the op declares none."""
    faces: dict[str, Callable[[Call, Dialect], NodePorts]]
    faces = getattr(import_module(f"{__package__}.{CATALOGUE[op].module}"), "PORTS", {})
    return faces[op](call, dialect) if op in faces else NodePorts()
