"""TAEF2: the tiny autoencoder of FLUX.2's latents (github.com/madebyollin/taesd).

Tensors are `encoder.N...` and `decoder.N...`, N the layer's place, as in the original's files with
their parts' names in front. The three blocks at the latents' size have a branch that knows the
whole grid. Pictures are RGB in [0, 1] on both sides (`latents`: low 0, high 1); latents come and go
unscaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...bundle.image_spec import LatentSpec
from .autoencoder_tiny import PIXELS, Tiny, clamped
from .component import Keys, Size, read_component
from .recipe import FamilyModel

DOWNSCALE = 8


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a TAEF2."""

    latent_channels: Size = 32
    width: Size = 64
    scaling_factor: float = 1.0
    shift_factor: float = 0.0


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    return read_component(raw, Config, Keys(), faults)


def latents(raw: Mapping[str, Any], faults: list[str]) -> LatentSpec:
    """What lies between denoiser and decoder."""
    c = read(raw, faults)
    return LatentSpec(
        c.latent_channels, DOWNSCALE, c.scaling_factor, c.shift_factor, low=0.0, high=1.0
    )


def decoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`latents` [H * W, C] -> `pixels` [8 H * 8 W, 3] in [0, 1]."""
    c = read(raw, faults)
    b = Tiny("decoder", (height, width), c.width)
    x = clamped(b)
    b.named()  # the clamp is a layer
    x = b.turn(b.edge(x, c.width, c.latent_channels))
    for _ in range(3):
        x = b.block(x, pooled=True)
    for blocks in (3, 3, 1):
        x = b.larger(x, 2)
        for _ in range(blocks):
            x = b.block(x)
    b.edge(x, 3, c.width)
    return b.close("decoder", (height * width, b.grid[0] * b.grid[1]), (c.latent_channels, 3))


def encoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`pixels` [8 H * 8 W, 3] in [0, 1] -> `latents` [H * W, C]."""
    c = read(raw, faults)
    grid = height * DOWNSCALE, width * DOWNSCALE
    b = Tiny("encoder", grid, c.width)
    x = b.block(b.edge(PIXELS, c.width, 3))
    for stage in range(3):
        x = b.smaller(x)
        for _ in range(3):
            x = b.block(x, pooled=stage == 2)
    b.edge(x, c.latent_channels, c.width)
    return b.close("encoder", (grid[0] * grid[1], height * width), (3, c.latent_channels))
