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
from ..kernels.ops_linear import EXP
from .torch_packed import Packed

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]
ROWS = 256  # of queries that are computed at once: what is above the diagonal is wasted


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    unit: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return unit * weight


def _mapped(x: Tensor, table: Tensor | None, attrs: Attrs) -> Tensor:
    """Heads [B, n, T, D] to their features [B, n, T, r]."""
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
    inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs, turn: Callable[[Tensor], Tensor],
    packed: Packed | None = None, keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """qkv [B, T, (H + 2G) * D], gates [B, T, G or 2G] -> [B, T, H * D]. turn: rotates
    [B, T, heads, D] and gives [B, heads, T, D]. packed: documents that begin anew. keep: bool [B],
    sequences that have the window (default: all, where the node has one)."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        y = _heads(prepared(inputs, w, attrs, turn, packed, keep), w, attrs)
    return y.to(inputs[0].dtype)


class Near(NamedTuple):
    """What the window reads: queries [B, G, H / G, T, D] and keys [B, G, T, D], whose product is
    the logit, and bool [B], which sequences have the window."""

    q: Tensor
    k: Tensor
    keep: Tensor


class Prepared(NamedTuple):
    """Queries [B, G, H / G, T, r], keys [B, G, T, r], values [B, G, T, P], and the sums of
    logarithms of decays, float64 [B, G, T]."""

    q: Tensor
    k: Tensor
    v: Tensor
    total: Tensor
    near: Near | None = None
    packed: Packed | None = None

    def point(self, start: int, count: int, chunk: int) -> Tensor:
        """Of `count` rows from `start` on, the first token of the window, int [n] or [B, n]."""
        t = torch.arange(start, start + count, device=self.q.device)
        place = t if self.packed is None else self.packed.place[:, start : start + count]
        return t - place + chunk * (place // chunk - 1).clamp(min=0)


def prepared(
    inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs, turn: Callable[[Tensor], Tensor],
    packed: Packed | None = None, keep: Tensor | None = None,
) -> Prepared:  # fmt: skip
    """What the weights are computed from; arguments as of `linear_attention`."""
    qkv, gates = inputs
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    rows = qkv.reshape(*qkv.shape[:2], heads + 2 * groups, size)
    q, k, v = rows[:, :, :heads], rows[:, :, heads:-groups], rows[:, :, -groups:]
    if "q_norm" in w:
        q, k = _rms(q, w["q_norm"], attrs["qk_eps"]), _rms(k, w["k_norm"], attrs["qk_eps"])
    q, k, v = turn(q).float(), turn(k).float(), v.transpose(1, 2).float()
    if "key_mean" in w:
        k = k - w["key_mean"][:, None]
    if attrs["mode"] == "mamba2s":
        v = F.softplus(gates[..., -groups:].float()).transpose(1, 2)[..., None] * v
    batch, _, length, _ = q.shape
    near = None
    if attrs.get("window"):
        keep = torch.ones(batch, dtype=torch.bool, device=q.device) if keep is None else keep
        root = attrs["scale"] ** 0.5
        near = Near((q * root).reshape(batch, groups, -1, length, size), k * root, keep)
    q, k = _mapped(q, w.get("q_map"), attrs), _mapped(k, w.get("k_map"), attrs)
    total = k.new_zeros(k.shape[:3], dtype=torch.float64)
    if attrs["decay"]:
        rate = (-F.softplus(gates[..., :groups].float())).clamp(min=LEAST_RATE)
        total = rate.transpose(1, 2).double().cumsum(-1)
    q = q.reshape(batch, groups, -1, length, q.shape[-1])
    return Prepared(q, k, v, total, near, packed)


def _heads(x: Prepared, w: Slots, attrs: Attrs) -> Tensor:
    parts = []
    for start in range(0, x.q.shape[3], ROWS):
        if torch.is_grad_enabled():
            part = checkpoint(
                _block, x, start, w, attrs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = _block(x, start, w, attrs)
        parts.append(part)
    return torch.cat(parts, dim=3).flatten(1, 2).transpose(1, 2).flatten(2)


def block_weights(x: Prepared, start: int, w: Slots, attrs: Attrs) -> tuple[Tensor, Tensor | None]:
    """Of ROWS queries from row `start` on, weights [B, G, H / G, n, end] over all tokens up to the
    last of them, and the window's over the tokens from `window_start` on; 0 for what is not
    seen."""
    end = min(start + ROWS, x.q.shape[3])
    # counted from the block's first row, differences are exact enough in single precision
    near = (x.total[:, :, :end] - x.total[:, :, start : start + 1]).float()
    gap = near[:, :, start:, None] - near[:, :, None, :]  # [B, G, n, end]
    seen = torch.ones(gap.shape[-2:], dtype=torch.bool, device=gap.device).tril(start)
    if x.packed is not None:
        seen = seen & x.packed.together[:, start:end, :end]
    tokens = torch.arange(end, device=gap.device)
    point = x.point(start, end - start, attrs["chunk"]) if x.near is not None else None
    far = seen
    if x.near is not None and point is not None:
        far = seen & ((tokens < point[..., None]) | ~x.near.keep[:, None, None])
    gap = gap.masked_fill(~(far if far.dim() == 2 else far[:, None]), -torch.inf)[:, :, None]
    scores = x.q[:, :, :, start:end] @ x.k[:, :, None, :end].transpose(-1, -2)
    if attrs["mode"] == EXP:
        return (scores + gap).softmax(-1), None
    weights = _weights(scores, w, attrs) * gap.exp()
    if x.near is None or point is None:
        return weights, None
    low = window_start(start, attrs)
    inside = (seen & (tokens >= point[..., None]))[..., low:]
    return weights, _window(x.near, start, end, low, inside, w["log_window"])


def window_start(start: int, attrs: Attrs) -> int:
    """The first token that a window of a row from `start` on can hold."""
    return max(0, start + 1 - 2 * int(attrs["chunk"]))


def _window(near: Near, start: int, end: int, low: int, seen: Tensor, logs: Tensor) -> Tensor:
    """Weights [B, G, H / G, n, end - low] of the window: e to the logit, over the row's largest,
    times e to the head's `log_window`. seen: bool [n, ..] or [B, n, ..]."""
    x = near.q[:, :, :, start:end] @ near.k[:, :, None, low:end].transpose(-1, -2)
    x = x.masked_fill(~(seen if seen.dim() == 2 else seen[:, None, None]), -torch.inf)
    factor = logs.float().exp().reshape(x.shape[1], x.shape[2], 1, 1)
    kept = near.keep[:, None, None, None, None]
    weights: Tensor = (x - x.amax(-1, keepdim=True)).exp() * factor * kept
    return weights


def _block(x: Prepared, start: int, w: Slots, attrs: Attrs) -> Tensor:
    """Queries from row `start` on, ROWS at most, over all rows up to them: [B, G, H / G, n, P]."""
    weights, inside = block_weights(x, start, w, attrs)
    end = weights.shape[-1]
    y = weights @ x.v[:, :, None, :end]
    if attrs["mode"] == "mamba2s":
        return y
    norm = weights.sum(-1, keepdim=True) + attrs["eps"]
    if inside is not None:
        y = y + inside @ x.v[:, :, None, window_start(start, attrs) : end]
        norm = norm + inside.sum(-1, keepdim=True)
    out: Tensor = y / norm
    return out
