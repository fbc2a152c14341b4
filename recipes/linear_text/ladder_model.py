"""One small decoder with six ways to mix tokens, everything else alike (arXiv 2602.17363, 1.1-1.4).

    linear    relu(q) . relu(k), divided by the row's sum
    mamba2s   (q . k) exp(c_t - c_j) dt_j, heads normed together afterwards
    2mamba    (q . k)^2 exp(c_t - c_j), divided by the row's sum
    2mamba-e  e^(q . k) exp(c_t - c_j), divided by the row's sum: softmax with a bias
    softmax   e^(q . k), divided by the row's sum
    llama     softmax with rotated queries and keys, and without the convolution

The first four have a convolution of width 2 over [q | k | v] and no rotation, as `softmax` has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from edgert.converters.torch_linear import linear_attention
from edgert.kernels.ops_linear import feature_width
from torch import Tensor, nn

KINDS = ("linear", "mamba2s", "2mamba", "2mamba-e", "softmax", "llama")
MODES = {"linear": "relu", "mamba2s": "mamba2s", "2mamba": "square"}
EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """width: of the model. ff: of the feed-forward part."""

    vocab: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    ff: int = 384

    @property
    def head(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Kind:
    """A way to mix. conv, decay: whether it has them; None for the kind's own."""

    name: str
    conv: bool | None = None
    decay: bool | None = None

    @property
    def has_conv(self) -> bool:
        return self.name != "llama" if self.conv is None else self.conv

    @property
    def has_decay(self) -> bool:
        own = self.name in ("mamba2s", "2mamba", "2mamba-e")
        return own if self.decay is None else self.decay

    @property
    def label(self) -> str:
        off = ["conv"] * (self.conv is False) + ["decay"] * (self.decay is False)
        return " without ".join([self.name, *off])

    def remembered(self, shape: Shape, tokens: int) -> int:
        """Bytes of a sequence of so many tokens: float32 states, or keys and values of 16 bits."""
        size = shape.head
        if self.name in MODES:
            wide = feature_width(size, MODES[self.name])
            return 4 * shape.layers * shape.heads * wide * (size + 1)
        more = 4 * self.has_decay
        return shape.layers * shape.heads * tokens * (2 * 2 * size + more)


class Mixer(nn.Module):
    """Rows [B, T, C] to rows [B, T, C]."""

    def __init__(self, shape: Shape, kind: Kind) -> None:
        super().__init__()
        self.shape, self.kind = shape, kind
        width = shape.width
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        if kind.has_conv:
            self.conv = nn.Conv1d(3 * width, 3 * width, 2, groups=3 * width)
        if kind.has_decay:
            self.decay = nn.Linear(width, shape.heads, bias=False)
        if kind.name == "mamba2s":
            self.step = nn.Linear(width, shape.heads, bias=False)
            self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x)
        if self.kind.has_conv:
            rows = self.conv(F.pad(rows.transpose(1, 2), (1, 0))).transpose(1, 2)
        y = self._linear(x, rows) if self.kind.name in MODES else self._softmax(x, rows)
        if self.kind.name == "mamba2s":
            y = self.norm(y)
        return self.out(y)

    def _linear(self, x: Tensor, rows: Tensor) -> Tensor:
        gates = [self.decay(x)] if self.kind.has_decay else []
        gates += [self.step(x)] if self.kind.name == "mamba2s" else []
        mode = MODES[self.kind.name]
        attrs = {
            "heads": self.shape.heads, "kv_heads": self.shape.heads, "head_dim": self.shape.head,
            "scale": self.shape.head**-0.5, "mode": mode, "decay": self.kind.has_decay,
            "eps": 0.0 if mode == "mamba2s" else EPS,
        }  # fmt: skip
        both = torch.cat(gates, -1) if gates else x
        return linear_attention((rows, both), {}, attrs, lambda part: part.transpose(1, 2))

    def _softmax(self, x: Tensor, rows: Tensor) -> Tensor:
        parts = rows.unflatten(-1, (3, self.shape.heads, self.shape.head))
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
        if self.kind.name == "llama":
            q, k = rotated(q), rotated(k)
        if self.kind.has_decay:
            rate = -F.softplus(self.decay(x).float())
            c = rate.transpose(1, 2).double().cumsum(-1)
            gap = (c[..., :, None] - c[..., None, :]).float()
            seen = torch.ones_like(gap, dtype=torch.bool).tril()
            bias = gap.masked_fill(~seen, -torch.inf).to(q.dtype)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


def rotated(x: Tensor) -> Tensor:
    """x [B, H, T, P] turned by its place, base 10000."""
    half = x.shape[-1] // 2
    step = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * step
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, shape: Shape, kind: Kind) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(shape.width, eps=1e-5) for _ in range(2))
        self.mixer = Mixer(shape, kind)
        self.up = nn.Linear(shape.width, 2 * shape.ff, bias=False)
        self.down = nn.Linear(shape.ff, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Tokens int [B, T] to logits [B, T, V]."""

    def __init__(self, shape: Shape, kind: Kind) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape, kind) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
