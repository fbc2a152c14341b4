"""Experts that a file has stacked in one tensor, as tensors of their own.

    <module>.experts.gate_up_proj             [E, 2F, C]   gates, then ups of each (transformers)
    <module>.experts.down_proj                [E, C, F]
    <module>.input_linear.weight              [E, 2F, C]   the same of Granite
    <module>.output_linear.weight             [E, C, F]
    <module>.experts.gate_up_proj             [E, C, 2F]   where gate_up_proj_bias [E, 2F] stands
    <module>.experts.down_proj                [E, F, C]    beside it: gate and up in turn (gpt-oss)
    blk.<layer>.ffn_gate_exps and so on       [E, F, C]    GGUF, see `gguf_config.py`

become <module>.experts.<number>.gate_proj.weight, up_proj and down_proj: the same bytes, nothing is
read before somebody asks for rows. Tensors of other shapes stay as they are, for the comparison of
all names to complain of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from ...kernels.ops_experts import EXPERTS
from ..families import FamilyModel
from .base import SourceTensor
from .checkpoint import F32, Tensor

BOTH, DOWN = ("gate_proj", "up_proj"), ("down_proj",)
STACKS: Mapping[str, tuple[str, ...]] = {
    "experts.gate_up_proj": BOTH, "experts.down_proj": DOWN,
    "input_linear.weight": BOTH, "output_linear.weight": DOWN,
}  # fmt: skip
_STACKED = re.compile(rf"(.*\.)((?:{'|'.join(map(re.escape, STACKS))})(?:_bias)?)")
_APART = re.compile(r".*\.experts\.0\.gate_proj\.weight")
Info = TypeVar("Info", bound=Any)


def piece(info: Info, expert: int, first: int, count: int) -> Info:
    """Rows [first, first + count) of an expert of a stack [E, N, K], as a tensor [count, K]."""
    experts, rows, width = info.shape
    row = (info.end - info.begin) // (experts * rows)
    begin = info.begin + (expert * rows + first) * row
    piece: Info = info._replace(shape=(count, width), begin=begin, end=begin + count * row)
    return piece


def unstacked(model: FamilyModel, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors with stacks taken apart, where the model wants experts one by one."""
    parts = (part for recipe in model.tensors.values() for part in recipe.parts)
    if not any(_APART.fullmatch(part.name) for part in parts):
        return dict(tensors)
    found: dict[str, SourceTensor] = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        pieces: Iterator[tuple[str, SourceTensor]] = iter(())
        if match is not None and isinstance(tensor, Tensor):
            turned = f"{match[1]}experts.gate_up_proj_bias" in tensors
            pieces = (_turned if turned else _plain)(match[1], match[2], tensor)
        apart = dict(pieces)
        found |= apart or {name: tensor}
    return found


def _plain(module: str, kind: str, tensor: Tensor) -> Iterator[tuple[str, SourceTensor]]:
    """Pieces of [E, N, K]."""
    keys = STACKS.get(kind, ())
    if not keys or len(tensor.shape) != 3 or not 0 < tensor.shape[0] <= EXPERTS:
        return
    if tensor.shape[1] % len(keys):
        return
    count = tensor.shape[1] // len(keys)
    for expert in range(tensor.shape[0]):
        for index, key in enumerate(keys):
            info = piece(tensor.info, expert, index * count, count)
            yield f"{module}experts.{expert}.{key}.weight", Tensor(tensor.shard, info)


def _turned(module: str, kind: str, tensor: Tensor) -> Iterator[tuple[str, SourceTensor]]:
    """Pieces of [E, K, N], or of biases [E, N], whose columns are those of the projections in
    turn."""
    stem = kind.removesuffix("_bias")
    keys, end = STACKS.get(stem, ()), "weight" if stem == kind else "bias"
    fits = len(tensor.shape) == (3 if end == "weight" else 2)
    if not keys or not fits or not 0 < tensor.shape[0] <= EXPERTS or tensor.shape[-1] % len(keys):
        return
    stack = _Stack(tensor)
    for expert in range(tensor.shape[0]):
        for index, key in enumerate(keys):
            yield f"{module}experts.{expert}.{key}.{end}", _Columns(stack, expert, index, len(keys))


class _Stack:
    """A stack by experts, of which the last that was read is held: its columns are wanted in many
    pieces."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._held: tuple[int, F32] | None = None

    def expert(self, number: int) -> F32:
        held = self._held
        if held is None or held[0] != number:
            held = self._held = number, self.tensor.rows(number, number + 1)[0]
        return held[1]


class _Columns:
    """Columns first, first + step ... of an expert [K, N] as rows of a tensor; of a vector [N] its
    elements."""

    def __init__(self, stack: _Stack, number: int, first: int, step: int) -> None:
        self.stack, self.number, self.first, self.step = stack, number, first, step
        self.dtype = stack.tensor.dtype
        self.shape = (stack.tensor.shape[-1] // step, *stack.tensor.shape[1:-1])

    def rows(self, start: int, stop: int) -> F32:
        columns = slice(self.first + start * self.step, self.first + stop * self.step, self.step)
        found = self.stack.expert(self.number)[..., columns]
        return np.ascontiguousarray(found.T)
