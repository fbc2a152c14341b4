"""Experts that a file has stacked in one tensor, as tensors of their own.

    <module>.experts.gate_up_proj             [E, 2F, C]   gates, then ups of each (transformers)
    <module>.experts.down_proj                [E, C, F]
    <module>.input_linear.weight              [E, 2F, C]   the same of Granite
    <module>.output_linear.weight             [E, C, F]
    blk.<layer>.ffn_gate_exps and so on       [E, F, C]    GGUF, see `gguf_config.py`

become <module>.experts.<number>.gate_proj.weight, up_proj and down_proj: the same bytes, nothing is
read before somebody asks for rows. Tensors of other shapes stay as they are, for the comparison of
all names to complain of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ...kernels.ops_experts import EXPERTS
from ..families import FamilyModel
from .base import SourceTensor
from .checkpoint import Tensor

BOTH, DOWN = ("gate_proj", "up_proj"), ("down_proj",)
STACKS: Mapping[str, tuple[str, ...]] = {
    "experts.gate_up_proj": BOTH, "experts.down_proj": DOWN,
    "input_linear.weight": BOTH, "output_linear.weight": DOWN,
}  # fmt: skip
_STACKED = re.compile(rf"(.*\.)({'|'.join(map(re.escape, STACKS))})")
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
        if match is None or not isinstance(tensor, Tensor) or not _fits(tensor, match[2]):
            found[name] = tensor
            continue
        projections = STACKS[match[2]]
        count = tensor.shape[1] // len(projections)
        for expert in range(tensor.shape[0]):
            for index, key in enumerate(projections):
                info = piece(tensor.info, expert, index * count, count)
                apart = f"{match[1]}experts.{expert}.{key}.weight"
                found[apart] = Tensor(tensor.shard, info)
    return found


def _fits(tensor: Tensor, kind: str) -> bool:
    shape = tensor.shape
    return len(shape) == 3 and 0 < shape[0] <= EXPERTS and shape[1] % len(STACKS[kind]) == 0
