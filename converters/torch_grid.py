"""Grid ops on torch: rows [B, H * W, C], differentiable in the weights (`torch_graph.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]


def _picture(x: Tensor, attrs: Attrs) -> Tensor:
    """Rows [B, H * W, C] as [B, C, H, W]."""
    batch, _, channels = x.shape
    return x.reshape(batch, attrs["height"], attrs["width"], channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """The inverse."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _conv2d(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    side, x = attrs["kernel"], _picture(inputs[0], attrs)
    edge = (attrs["pad_before"], attrs["pad_after"])
    kernel = w["weight"].reshape(-1, side, side, x.shape[1]).permute(0, 3, 1, 2)
    return _rows(F.conv2d(F.pad(x, edge + edge), kernel, w.get("bias"), attrs["stride"]))


def _upsample(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    factor, x = attrs["factor"], _picture(inputs[0], attrs)
    return _rows(x.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


def _group_norm(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    x = inputs[0].transpose(1, 2)
    made: Tensor = torch.group_norm(
        x.to(torch.float32), attrs["groups"], w["weight"].float(), w["bias"].float(), attrs["eps"]
    )
    return made.transpose(1, 2).to(inputs[0].dtype)


GRIDS: dict[str, Callable[[tuple[Tensor, ...], Slots, Attrs], Tensor]] = {
    "conv2d": _conv2d,
    "upsample": _upsample,
    "group_norm": _group_norm,
}
