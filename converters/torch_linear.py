"""linear_attention on torch, over whole sequences: all pairs of tokens, by blocks of rows.

Differentiable in everything it reads. Decays are summed in double precision, weights are float32
whatever the activations are, and whatever autocast says. Where gradients are wanted, a block's
weights are computed a second time instead of kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels.linear_attention import LEAST_GAMMA, LEAST_RATE

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]
ROWS = 256  # of queries that are computed at once: what is above the diagonal is wasted


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    unit: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return unit * weight


def _mapped(x: Tensor, table: Tensor | None, attrs: Attrs) -> Tensor:
    """Heads [B, n, T, D] to their features [B, n, T, r]."""
    x = x.float()
    if table is not None:
        maps = table.float().reshape(attrs["kv_heads"], -1, table.shape[-1])
        x = x @ maps.repeat_interleave(x.shape[1] // attrs["kv_heads"], dim=0)
    x = x * attrs["scale"] ** 0.5
    return x.relu() if attrs["mode"] == "relu" else x


def _weights(x: Tensor, w: Slots, attrs: Attrs) -> Tensor:
    """f(x) of x [B, G, H / G, T, n]."""
    if attrs["mode"] == "square":
        return x.square()
    if attrs["mode"] == "shifted":
        beta, gamma = (
            F.softplus(w[name].float())[:, None, None, None] for name in ("beta", "gamma")
        )
        return (x + beta).square() + (gamma + LEAST_GAMMA)
    return x


def linear_attention(
    inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs, turn: Callable[[Tensor], Tensor]
) -> Tensor:
    """qkv [B, T, (H + 2G) * D], gates [B, T, G or 2G] -> [B, T, H * D]. turn: rotates
    [B, T, heads, D] and gives [B, heads, T, D]."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        y = _heads(inputs, w, attrs, turn)
    return y.to(inputs[0].dtype)


class Prepared(NamedTuple):
    """Queries [B, G, H / G, T, r], keys [B, G, T, r], values [B, G, T, P], and the sums of
    logarithms of decays, float64 [B, G, T]."""

    q: Tensor
    k: Tensor
    v: Tensor
    total: Tensor


def prepared(
    inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs, turn: Callable[[Tensor], Tensor]
) -> Prepared:
    """What the weights are computed from; arguments as of `linear_attention`."""
    qkv, gates = inputs
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    rows = qkv.reshape(*qkv.shape[:2], heads + 2 * groups, size)
    q, k, v = rows[:, :, :heads], rows[:, :, heads:-groups], rows[:, :, -groups:]
    if "q_norm" in w:
        q, k = _rms(q, w["q_norm"], attrs["qk_eps"]), _rms(k, w["k_norm"], attrs["qk_eps"])
    q, k, v = turn(q), turn(k), v.transpose(1, 2).float()
    if "key_mean" in w:
        k = k - w["key_mean"][:, None]
    if attrs["mode"] == "mamba2s":
        v = F.softplus(gates[..., -groups:].float()).transpose(1, 2)[..., None] * v
    q, k = _mapped(q, w.get("q_map"), attrs), _mapped(k, w.get("k_map"), attrs)
    total = k.new_zeros(k.shape[:3], dtype=torch.float64)
    if attrs["decay"]:
        rate = (-F.softplus(gates[..., :groups].float())).clamp(min=LEAST_RATE)
        total = rate.transpose(1, 2).double().cumsum(-1)
    batch, _, length, wide = q.shape
    return Prepared(q.reshape(batch, groups, -1, length, wide), k, v, total)


def _heads(
    inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs, turn: Callable[[Tensor], Tensor]
) -> Tensor:
    q, k, v, total = prepared(inputs, w, attrs, turn)
    parts = []
    for start in range(0, q.shape[3], ROWS):
        rows, cache = q[:, :, :, start : start + ROWS], (k, v, total)
        if torch.is_grad_enabled():
            part = checkpoint(
                _block, rows, start, cache, w, attrs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = _block(rows, start, cache, w, attrs)
        parts.append(part)
    return torch.cat(parts, dim=3).flatten(1, 2).transpose(1, 2).flatten(2)


def block_weights(
    q: Tensor, start: int, k: Tensor, total: Tensor, w: Slots, attrs: Attrs
) -> Tensor:
    """Weights [B, G, H / G, n, end] of queries from row `start` on, 0 above the diagonal."""
    end = start + q.shape[3]
    # counted from the block's first row, differences are exact enough in single precision
    near = (total[:, :, :end] - total[:, :, start : start + 1]).float()
    gap = near[:, :, start:, None] - near[:, :, None, :]  # [B, G, n, end]
    seen = torch.ones(gap.shape[-2:], dtype=torch.bool, device=gap.device).tril(start)
    fade = gap.masked_fill(~seen, -torch.inf).exp()[:, :, None]
    return _weights(q @ k[:, :, None, :end].transpose(-1, -2), w, attrs) * fade


def _block(
    q: Tensor, start: int, cache: tuple[Tensor, Tensor, Tensor], w: Slots, attrs: Attrs
) -> Tensor:
    """Queries [B, G, H / G, n, r] from row `start` on, over all rows up to them."""
    k, v, total = cache
    weights = block_weights(q, start, k, total, w, attrs)
    y = weights @ v[:, :, None, : start + q.shape[3]]
    if attrs["mode"] == "mamba2s":
        return y
    out: Tensor = y / (weights.sum(-1, keepdim=True) + attrs["eps"])
    return out
