"""experts on torch: each expert in turn, for the tokens that picked it; rows of latent attention.

Differentiable in everything but the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]


def picked(logits: Tensor, attrs: Attrs) -> tuple[Tensor, Tensor]:
    """Logits [..., E] -> the picked experts int64 [..., active], and their weights. Of equal logits
    the first is picked, as everywhere."""
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., : attrs["active"]]
    wide = logits.float()
    top = wide.gather(-1, order)
    shares = top.softmax(-1) if attrs["normalised"] else wide.softmax(-1).gather(-1, order)
    return order, (attrs["scale"] * shares).to(logits.dtype)


def _act(x: Tensor, act: str) -> Tensor:
    if act == "silu":
        return F.silu(x)
    if act == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")


def _fed(x: Tensor, expert: int, w: Slots, attrs: Attrs) -> Tensor:
    """Rows [n, C] through one expert."""
    count, width = attrs["experts"], w["down"].shape[1]
    gates, ups = (slice(i * width, (i + 1) * width) for i in (expert, count + expert))
    outs = slice(expert * x.shape[1], (expert + 1) * x.shape[1])
    bias, down_bias = w.get("gate_up_bias"), w.get("down_bias")
    gate, up = (
        F.linear(x, w["gate_up"][rows], None if bias is None else bias[rows])
        for rows in (gates, ups)
    )
    if limit := attrs["limit"]:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    hidden = _act(gate, attrs["act"]) * (up + attrs["shift"])
    return F.linear(hidden, w["down"][outs], None if down_bias is None else down_bias[outs])


def experts(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    """x [B, T, C], logits [B, T, E] -> [B, T, C]."""
    x, logits = (value.flatten(0, -2) for value in inputs)
    order, shares = picked(logits, attrs)
    y = torch.zeros_like(x)
    for expert in sorted(set(order.flatten().tolist())):
        rows, ranks = (order == expert).nonzero(as_tuple=True)
        part = _fed(x[rows], expert, w, attrs) * shares[rows, ranks, None].to(x.dtype)
        y = y.index_add(0, rows, part.to(y.dtype))
    return y.view(inputs[0].shape)


def _latent_heads(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    q, kv, shared = inputs
    own, value, heads = attrs["own"], attrs["value"], attrs["heads"]
    each = kv.view(*kv.shape[:-1], heads, own + value)
    turning = shared.unsqueeze(-2).expand(*each.shape[:-1], attrs["shared"])
    keys = torch.cat([turning, each[..., :own]], dim=-1)
    values = F.pad(each[..., own:], (0, attrs["shared"] + own - value))
    return torch.cat([q, keys.flatten(-2), values.flatten(-2)], dim=-1)


def _latent_rows(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    turning, still, key, latent = inputs
    apart = [x.reshape(*x.shape[:-1], attrs["heads"], -1) for x in (turning, still)]
    return torch.cat([torch.cat(apart, dim=-1).flatten(-2), key, latent], dim=-1)


def _head_linear(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    (x,), matrix, heads = inputs, w["weight"], attrs["heads"]
    rows = x.reshape(*x.shape[:-1], heads, 1, -1)
    made: Tensor = rows @ matrix.reshape(heads, -1, matrix.shape[1]).transpose(1, 2)
    return made.flatten(-3)


def _first_columns(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    (x,) = inputs
    parts = x.reshape(*x.shape[:-1], -1, attrs["size"])
    return parts[..., : attrs["keep"]].flatten(-2)


EXPERTS: dict[str, Callable[[tuple[Tensor, ...], Slots, Attrs], Tensor]] = {
    "experts": experts,
    "latent_heads": _latent_heads,
    "first_columns": _first_columns,
    "latent_rows": _latent_rows,
    "head_linear": _head_linear,
}
