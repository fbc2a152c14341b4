"""A module of an autoencoder that only tests know: one convolution each way, eight pixels of a side
per latent. Registered as the class "ToyAutoencoder" by `tests.image.pipelines`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from edgert.converters.families.component import Keys, Size, read_component
from edgert.converters.families.nodes import Nodes
from edgert.converters.families.recipe import FamilyModel

from edgert.bundle.image_spec import LatentSpec
from edgert.graph import Value


class Config(msgspec.Struct, frozen=True, kw_only=True):
    latent_channels: Size = 4
    scaling_factor: float = 0.5
    shift_factor: float = 0.1


def latents(raw: Mapping[str, Any], faults: list[str]) -> LatentSpec:
    c = read_component(raw, Config, Keys(), faults)
    return LatentSpec(c.latent_channels, 8, c.scaling_factor, c.shift_factor)


def decoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    c, b = read_component(raw, Config, Keys(), faults), Nodes()
    attrs = {"height": height, "width": width, "factor": 8}
    x = b.node("upsample", ["latents"], "up", attrs=attrs)
    shape = (3, c.latent_channels, 3, 3)
    y = b.conv(x, "conv", "decoder", shape, grid=(8 * height, 8 * width))
    inputs = [Value("latents", (height * width, c.latent_channels))]
    return b.model("decoder", inputs, [Value(y, (64 * height * width, 3))])


def encoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    c, b = read_component(raw, Config, Keys(), faults), Nodes()
    y = b.conv(
        "pixels", "conv", "encoder", (c.latent_channels, 3, 8, 8), grid=(8 * height, 8 * width),
        stride=8, padding=(0, 0),
    )  # fmt: skip
    inputs = [Value("pixels", (64 * height * width, 3))]
    return b.model("encoder", inputs, [Value(y, (height * width, c.latent_channels))])
