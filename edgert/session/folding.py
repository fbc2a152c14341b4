"""Folding a tail outside of a step: what `tailed.TailedSlots` calls where no step has done it.

Kernels fold as they walk over a step's rows. A commit of some of a long step's rows may end where
none of them stopped; then the compiled function that a kernel folds with is called from here, on
the matrices of that state, so that the bits are those that a step would have made.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..graph import Graph
from ..kernels.cpu import code as machine_code
from ..kernels.operands import ROW_BYTES
from ..kernels.states import RecurrentState
from .program import Program
from .recurrent import F32

FOLDERS = {"linear_state": "fold_tail"}  # instructions that know a state's sizes, and the function


class TailFold:
    """`tailed.Fold` of one state: the function and the instruction that it reads sizes from."""

    def __init__(self) -> None:
        self.function, self.instruction = "", 0
        self.room = np.zeros(0, np.uint8)

    def __call__(self, matrix: F32, normaliser: F32 | None, rows: F32) -> None:
        norm = 0 if normaliser is None else normaliser.ctypes.data
        machine_code.entry_point(self.function)(
            self.instruction, rows.ctypes.data, rows.strides[0], len(rows), matrix.ctypes.data,
            norm, self.room.ctypes.data,
        )  # fmt: skip


def folds_of(graph: Graph) -> Mapping[str, TailFold]:
    """One for each state with a tail."""
    states = graph.states.items()
    return {name: TailFold() for name, s in states if isinstance(s, RecurrentState) and s.tail}


def bind(folds: Mapping[str, TailFold], program: Program) -> None:
    """Find the instructions in a program that lives as long as the states."""
    room = np.zeros(program.lowering.scratch_bytes + 64, np.uint8)
    for index, step in enumerate(program.lowering.steps):
        name = str(step.words.get("state", "")).removeprefix("@state:")
        if name in folds and step.kernel in FOLDERS:
            fold = folds[name]
            fold.function, fold.room = FOLDERS[step.kernel], room
            fold.instruction = program.address + index * ROW_BYTES
