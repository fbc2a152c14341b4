"""Torch twins of the ops of diffusion transformers that work on rows.

Inputs have a batch axis in front, [B, N, C]; a modulation row is [B, 1, k C], a grid's rows
[B, H * W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.dot_attention import buckets_of
from ..kernels.modulation import frequencies
from ..kernels.spatial import position_table

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]
Rows = tuple[Tensor, ...]


def _layer_norm(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    (x,) = inputs
    return F.layer_norm(x, x.shape[-1:], w.get("weight"), w.get("bias"), attrs["eps"])


def _row_rms(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    (x,) = inputs
    if attrs["centred"]:
        x = x - x.mean(-1, keepdim=True)
    mean = x.square().mean(-1, keepdim=True).clamp(min=attrs["floor"])
    return mean.rsqrt() if attrs["inverse"] else mean.sqrt()


def _activation(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    x, act = inputs[0], attrs["act"]
    if act == "relu":
        return F.relu(x)
    if act == "relu2":
        return F.relu(x).square()
    if act == "silu":
        return F.silu(x)
    if act == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")


def _xielu(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    x, (first, second, beta, eps) = inputs[0], w["weight"]
    rise, fall = F.softplus(first), beta + F.softplus(second)
    below = fall * (torch.expm1(torch.minimum(x, eps)) - x)
    out: Tensor = torch.where(x > 0, rise * F.relu(x).square(), below) + beta * x
    return out


def _chunk(m: Tensor, w: Slots, index: int, width: int) -> Tensor:
    """[B, 1, C] of a modulation row."""
    row = m if m.shape[-1] == width else m[..., index * width : (index + 1) * width]
    return row + w["table"][index] if "table" in w else row


def _modulate(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    x, m = inputs
    scale, shift = (_chunk(m, w, attrs[name], x.shape[-1]) for name in ("scale", "shift"))
    return x * (1 + scale) + shift


def _gated_add(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    residual, x, m = inputs
    return residual + _chunk(m, w, attrs["gate"], x.shape[-1]) * x


def _add_row(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    return inputs[0] + inputs[1]


def _timestep(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    t = inputs[0]
    row = torch.from_numpy(frequencies(attrs["dim"], attrs["freq_shift"])).to(t.device)
    angle = t.to(torch.float32) * row
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(t.dtype)


def _mask(q: Tensor, k: Tensor, w: Slots, attrs: Attrs) -> Tensor | None:
    """What is added to the scores, [H, N, M] or [N, M], None for nothing."""
    n, m, mask = q.shape[1], k.shape[1], None
    if "relative_bias" in w:
        table = w["relative_bias"]
        found = buckets_of(n, m, len(table), attrs["max_distance"], causal=attrs["causal"])
        mask = table[torch.from_numpy(found).to(table.device)].permute(2, 0, 1)
    if attrs["causal"]:
        later = torch.full((n, m), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        mask = later if mask is None else mask + later
    return mask


def _dot_attention(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    heads = attrs["heads"]
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in inputs)
    mask = _mask(inputs[0], inputs[1], w, attrs)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attrs["scale"])
    out: Tensor = y.transpose(1, 2).flatten(2)
    return out


def _patchify(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    (x,), p = inputs, attrs["patch"]
    sides = attrs["height"] // p, p, attrs["width"] // p, p
    cells = x.reshape(len(x), *sides, x.shape[-1])
    return cells.transpose(2, 3).reshape(len(x), -1, p * p * x.shape[-1])


def _unpatchify(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    (x,), p = inputs, attrs["patch"]
    channels = x.shape[-1] // p**2
    cells = x.reshape(len(x), attrs["height"], attrs["width"], p, p, channels)
    return cells.transpose(2, 3).reshape(len(x), -1, channels)


def _add_grid_positions(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    (x,) = inputs
    table: Any = position_table(attrs["height"], attrs["width"], x.shape[-1], attrs)
    return x + torch.from_numpy(np.ascontiguousarray(table)).to(x.device, x.dtype)


def _concat(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    return torch.cat(inputs, dim=-1)


def _columns(inputs: Rows, w: Slots, attrs: Attrs) -> Tensor:
    return inputs[0][..., attrs["start"] : attrs["start"] + attrs["count"]]


ROWS: dict[str, Callable[[Rows, Slots, Attrs], Tensor]] = {
    "layer_norm": _layer_norm,
    "row_rms": _row_rms,
    "activation": _activation,
    "xielu": _xielu,
    "modulate": _modulate,
    "gated_add": _gated_add,
    "add_row": _add_row,
    "timestep": _timestep,
    "dot_attention": _dot_attention,
    "patchify": _patchify,
    "unpatchify": _unpatchify,
    "add_grid_positions": _add_grid_positions,
    "concat": _concat,
    "columns": _columns,
}
