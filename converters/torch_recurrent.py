"""Recurrent ops on torch, over whole sequences from their first token on.

The recurrences run in chunks of 64 tokens: within a chunk all pairs of tokens at once, between
chunks by the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.slot_rows import CHUNK
from .torch_packed import Packed

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]


def _apart(x: Tensor, heads: int, size: int) -> Tensor:
    """x [B, T, heads * size] as [B, T, heads, size]."""
    return x.reshape(*x.shape[:2], heads, size)


def _gate(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    x, by = inputs
    if attrs["act"] == "silu":
        return x * F.silu(by)
    return x * (by.sigmoid() if attrs["act"] == "sigmoid" else by)


def _head_norm(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    (x,), size = inputs, attrs["size"]
    parts = x.reshape(*x.shape[:-1], -1, size)
    unit = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + attrs["eps"])
    rows: Tensor = (unit * w["weight"].view(-1, size)).flatten(-2)
    return rows


def _mix_streams(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    (x, by), count = inputs, attrs["streams"]
    rows = x.reshape(*x.shape[:-1], count, -1)
    mixed: Tensor = by.reshape(*by.shape[:-1], -1, count) @ rows
    return mixed.flatten(-2)


def _causal_conv(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    x = F.pad(inputs[0].transpose(1, 2), (attrs["width"] - 1, 0))  # [B, C, width - 1 + T]
    y = F.conv1d(x, w["weight"][:, None], w.get("bias"), groups=attrs["channels"])
    y = F.silu(y) if attrs["act"] == "silu" else y
    return y.transpose(1, 2)


def _chunks(x: Tensor) -> Tensor:
    """x [B, T, ...] as [chunks, B, 64, ...], zeros behind the last token."""
    count = -(-x.shape[1] // CHUNK)
    padded = F.pad(x, (0,) * (2 * x.dim() - 4) + (0, count * CHUNK - x.shape[1]))
    chunks: Tensor = padded.reshape(len(x), count, CHUNK, *x.shape[2:]).transpose(0, 1)
    return chunks


def _decays(rate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of rates [B, H, n], logarithms of decays: from token j to i [.., n, n], 0 where j > i; from
    before the chunk to i [.., n, 1]; from j to the end [.., n, 1]; over all [.., 1, 1]."""
    total = rate.cumsum(-1)
    between = total[..., :, None] - total[..., None, :]
    seen = torch.ones_like(between, dtype=torch.bool).tril()
    pairs = between.masked_fill(~seen, -torch.inf).exp()
    end = total[..., -1:]
    return pairs, total.exp()[..., None], (end - total).exp()[..., None], end.exp()[..., None]


def _ssd(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    heads, size, groups, keys = (attrs[k] for k in ("heads", "head_dim", "groups", "state"))
    rows, dt = (part.float() for part in inputs)
    width, share = heads * size, heads // groups
    x = _apart(rows[..., :width], heads, size)
    b, c = (
        _apart(part, groups, keys).repeat_interleave(share, 2)
        for part in rows[..., width:].chunk(2, -1)
    )
    step = F.softplus(dt + w["dt_bias"]).clamp(attrs["dt_min"], attrs["dt_max"])  # [B, T, H]
    state, found = x.new_zeros(len(x), heads, keys, size), []
    parts = (_chunks(part) for part in (x, b, c, step))
    for xs, bs, cs, steps in zip(*parts, strict=True):
        xs, bs, cs = (part.transpose(1, 2) for part in (xs, bs, cs))  # [B, H, 64, ...]
        steps = steps.transpose(1, 2)
        pairs, so_far, rest, whole = _decays(-w["a_log"].exp()[:, None] * steps)
        stepped = xs * steps[..., None]
        y = (cs @ bs.transpose(-1, -2) * pairs) @ stepped + (cs @ state) * so_far
        found.append((y + w["d"][:, None, None] * xs).transpose(1, 2))
        state = state * whole + (bs * rest).transpose(-1, -2) @ stepped
    return torch.cat(found, 1)[:, : rows.shape[1]].flatten(2).to(inputs[0].dtype)


def _gated_delta(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    heads, size, count, keys = (attrs[k] for k in ("heads", "head_dim", "key_heads", "key_dim"))
    rows, gates = (part.float() for part in inputs)
    width = 2 * count * keys
    q, k = (_apart(part, count, keys) for part in rows[..., :width].chunk(2, -1))
    v = _apart(rows[..., width:], heads, size)
    q, k = (p * torch.rsqrt(p.square().sum(-1, keepdim=True) + attrs["eps"]) for p in (q, k))
    q, k = (p.repeat_interleave(heads // count, 2) for p in (q * keys**-0.5, k))
    b, a = gates.chunk(2, -1)
    beta, rate = b.sigmoid(), -w["a_log"].exp() * F.softplus(a + w["dt_bias"])
    state, found = v.new_zeros(len(v), heads, keys, size), []
    parts = (_chunks(part) for part in (q, k, v, beta, rate))
    one = torch.eye(CHUNK, device=v.device)
    for qs, ks, vs, betas, rates in zip(*parts, strict=True):
        qs, ks, vs = (part.transpose(1, 2) for part in (qs, ks, vs))  # [B, H, 64, ...]
        betas = betas.transpose(1, 2)[..., None]
        pairs, so_far, rest, whole = _decays(rates.transpose(1, 2))
        below = (ks @ ks.transpose(-1, -2) * pairs * betas).tril(-1)
        wanted = betas * (vs - (ks @ state) * so_far)
        change = torch.linalg.solve_triangular(below + one, wanted, upper=False)
        y = (qs @ state) * so_far + (qs @ ks.transpose(-1, -2) * pairs) @ change
        found.append(y.transpose(1, 2))
        state = state * whole + (ks * rest).transpose(-1, -2) @ change
    return torch.cat(found, 1)[:, : rows.shape[1]].flatten(2).to(inputs[0].dtype)


def packed_conv(x: Tensor, w: Slots, attrs: Attrs, packed: Packed) -> Tensor:
    """causal_conv over packed documents [B, T, C]: taps that reach beyond one's start are 0."""
    width, y = attrs["width"], torch.zeros_like(x)
    for tap in range(width):
        back = width - 1 - tap
        old = F.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
        y = y + w["weight"][:, tap] * old * packed.before(back)[..., None]
    y = y + w["bias"] if "bias" in w else y
    return F.silu(y) if attrs["act"] == "silu" else y


RECURRENT: dict[str, Callable[[tuple[Tensor, ...], Slots, Attrs], Tensor]] = {
    "gate": _gate,
    "head_norm": _head_norm,
    "mix_streams": _mix_streams,
    "causal_conv": _causal_conv,
    "ssd": _ssd,
    "gated_delta": _gated_delta,
}
