"""TAEF2, the tiny autoencoder: pictures of 128 x 128 to latents of 32 x 16 x 16 and back.

Weights are those of `vae-taef2`; the exported file holds both halves, its names begin with
`encoder.` and `decoder.`. Pictures are RGB in 0..1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CHANNELS = 32
FACTOR = 8
WIDTH = 64


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


class Block(nn.Module):
    """conv-ReLU-conv-ReLU-conv plus its input, then ReLU; `pool` adds the global branch first."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH)
        )
        self.pool: nn.Module | None = None
        if pool:
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] -> [B, 64, H, W]"""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Soft limit of the latents at 3."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 32, h, w] -> [B, 32, h, w]"""
        return torch.tanh(x / 3) * 3


def encoder() -> nn.Sequential:
    """[B, 3, H, W] -> [B, 32, H/8, W/8]"""
    layers: list[nn.Module] = [_conv(3, WIDTH), Block()]
    for stage in range(3):
        layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += [Block(pool=stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, _conv(WIDTH, CHANNELS))


def decoder() -> nn.Sequential:
    """[B, 32, h, w] -> [B, 3, 8h, 8w]"""
    layers: list[nn.Module] = [Clamp(), _conv(CHANNELS, WIDTH), nn.ReLU()]
    layers += [Block(pool=True) for _ in range(3)]
    for blocks in (3, 3, 1):
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
        layers += [Block() for _ in range(blocks)]
    return nn.Sequential(*layers, _conv(WIDTH, 3))


class Autoencoder(nn.Module):
    """Both halves; z = (latent - shift) * scale is what the denoiser sees."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()
        self.shift, self.scale = 0.0, 1.0

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in 0..1 -> z float [B, 32, H/8, W/8]"""
        latent: Tensor = self.encoder(images)
        return (latent.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """z [B, 32, h, w] -> float [B, 3, 8h, 8w] in 0..1"""
        weight = next(self.decoder.parameters())
        images: Tensor = self.decoder((z / self.scale + self.shift).to(weight.dtype))
        return images.float().clamp(0, 1)


def load_autoencoder(data: Path) -> Autoencoder:
    """The autoencoder from the two files in `data`/vae-taef2, float32, no gradients."""
    model = Autoencoder()
    for name, half in (("encoder", model.encoder), ("decoder", model.decoder)):
        half.load_state_dict(load_file(data / "vae-taef2" / f"taef2_{name}.safetensors"))
    return model.float().eval().requires_grad_(False)
