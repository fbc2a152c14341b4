"""The denoiser: diffusers' PixArtTransformer2DModel in plain torch, with its tensor names.

adaLN-single, cross-attention to the projected caption, sine-cosine positions, tanh-GELU. The
output has as many channels as the input: the velocity eps - x0, and no learned variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_CHANNELS = 256


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of the transformer; heads x head_size is its width d."""

    heads: int = 5
    head_size: int = 64
    layers: int = 10
    channels: int = 32
    grid: int = 16  # latents a side; every latent is a token
    caption: int = 256  # width of the text encoder

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_size


TINY_DENOISER = DenoiserConfig(heads=2, head_size=32, layers=2, caption=64)


class Attention(nn.Module):
    """Multi-head attention over [B, N, d], or from it to a context [B, L, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: bool [B, 1, 1, L], False where the context is padding."""
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )  # [B, heads, N, head_size]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class Gelu(nn.Module):
    """Linear layer and tanh-GELU, under diffusers' name `proj`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """d -> 4 d -> d"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]"""
        out: Tensor = self.net[2](self.net[0](x))
        return out


def norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    """Self-attention, cross-attention (neither normed nor gated), feed-forward."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.width
        self.attn1 = Attention(width, config.heads)
        self.attn2 = Attention(width, config.heads)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, caption: Tensor, keep: Tensor, time: Tensor) -> Tensor:
        """x [B, N, d], caption [B, L, d], time [B, 6 d] -> [B, N, d]"""
        table = self.scale_shift_table[None] + time.unflatten(-1, (6, -1))
        shift1, scale1, gate1, shift2, scale2, gate2 = table.chunk(6, dim=1)  # [B, 1, d] each
        y = norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn1(y, y)
        x = x + self.attn2(x, caption, keep)
        return x + gate2 * self.ff(norm(x) * (1 + scale2) + shift2)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, inputs: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., width]"""
        out: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return out


class Denoiser(nn.Module):
    """Velocity of latents at times 1000 sigma, for captions from the text encoder."""

    positions: Tensor

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(config.channels, width, 1)})
        self.register_buffer("positions", sincos(width, config.grid), persistent=False)
        time = Mlp(TIME_CHANNELS, width, nn.SiLU())
        self.adaln_single = nn.ModuleDict(
            {
                "emb": nn.ModuleDict({"timestep_embedder": time}),
                "linear": nn.Linear(width, 6 * width),
            }
        )
        self.caption_projection = Mlp(config.caption, width, nn.GELU(approximate="tanh"))
        self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.channels)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for the matrices; what writes to the residual stream, and the output, start at
        zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.pos_embed["proj"].bias.data.zero_()
        for block in self.transformer_blocks:
            nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.zeros_(self.adaln_single["linear"].weight)
        nn.init.zeros_(self.proj_out.weight)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, z: Tensor, time: Tensor, caption: Tensor, mask: Tensor) -> Tensor:
        """z [B, C, g, g], time [B] in 0..1000, caption [B, L, c], mask bool [B, L]; as z."""
        x = self.pos_embed["proj"](z).flatten(2).transpose(1, 2) + self.positions
        emb = self.adaln_single["emb"]["timestep_embedder"](time_embedding(time))  # [B, d]
        shared = self.adaln_single["linear"](F.silu(emb))
        context = self.caption_projection(caption)
        keep = mask[:, None, None, :]
        for block in self.transformer_blocks:
            x = block(x, context, keep, shared)
        shift, scale = (self.scale_shift_table[None] + emb[:, None]).chunk(2, dim=1)
        out = self.proj_out(norm(x) * (1 + scale) + shift)  # [B, N, C]
        return out.transpose(1, 2).unflatten(2, z.shape[2:])


def time_embedding(time: Tensor) -> Tensor:
    """float [B] -> [B, 256], cosines first."""
    half = TIME_CHANNELS // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


def sincos(width: int, grid: int) -> Tensor:
    """[1, grid * grid, width]: columns in the first half, rows in the second; sines first.

    The frequencies are those of a 16 x 16 grid whatever the size (`base_size` of diffusers).
    """
    places = torch.arange(grid, dtype=torch.float64)
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = places[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, width / 2]
    columns = line[None].expand(grid, -1, -1)
    rows = line[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], -1).reshape(1, grid * grid, width).float()


def transformer_config(config: DenoiserConfig) -> dict:
    """config.json of `transformer/`."""
    return {
        "_class_name": "PixArtTransformer2DModel",
        "_diffusers_version": "0.42.1",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.head_size,
        "attention_type": "default",
        "caption_channels": config.caption,
        "cross_attention_dim": config.width,
        "dropout": 0.0,
        "in_channels": config.channels,
        "interpolation_scale": 1,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config.heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": config.layers,
        "out_channels": config.channels,
        "patch_size": 1,
        "sample_size": config.grid,
        "upcast_attention": False,
        "use_additional_conditions": False,
    }
