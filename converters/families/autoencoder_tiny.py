"""AutoencoderTiny: small autoencoders of pictures (TAESD and its kin), as diffusers has them.

Rows of pictures are in [0, 1], of the decoder and of the encoder: diffusers' 2 x - 1 around them is
left out, and `latents` says so by `low` and `high`. Latents come and go unscaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...bundle.image_spec import LatentSpec
from ...graph import Value
from .component import Keys, Layers, Size, read_component
from .nodes import Nodes
from .recipe import FamilyModel

LATENTS, PIXELS = "latents", "pixels"
CLAMP = 3.0  # latents go through 3 tanh(x / 3) first
KEYS = Keys(
    fixed={"upsample_fn": ("nearest",)},
    ignored=frozenset({"latent_magnitude", "latent_shift", "force_upcast", "block_out_channels"}),
)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of an AutoencoderTiny."""

    in_channels: Size = 3
    out_channels: Size = 3
    encoder_block_out_channels: tuple[Size, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[Size, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    latent_channels: Size = 4
    upsampling_scaling_factor: Size = 2
    num_encoder_blocks: tuple[Layers, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[Layers, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    @property
    def downscale(self) -> int:
        """Pixels of a side per latent."""
        return int(2 ** (len(self.num_encoder_blocks) - 1))


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    c = read_component(raw, Config, KEYS, faults)
    if c.act_fn not in ("relu", "silu"):
        faults.append(f"config 'act_fn' is {c.act_fn[:40]!r}, expected relu or silu")
    for key in ("encoder", "decoder"):
        widths = getattr(c, f"{key}_block_out_channels")
        blocks = getattr(c, f"num_{key}_blocks")
        if len(widths) != len(blocks) or len(set(widths)) != 1:
            faults.append(
                f"config '{key}_block_out_channels' is {list(widths)[:8]}, expected one width for "
                f"each of the {len(blocks)} stages of 'num_{key}_blocks', all the same"
            )
    grown = c.upsampling_scaling_factor ** (len(c.num_decoder_blocks) - 1)
    if grown != c.downscale:
        faults.append(f"the decoder makes {grown} pixels of a latent's side, the encoder reads "
                      f"{c.downscale}, expected the same")  # fmt: skip
    return c


def latents(raw: Mapping[str, Any], faults: list[str]) -> LatentSpec:
    """What lies between denoiser and decoder."""
    c = read(raw, faults)
    return LatentSpec(
        c.latent_channels, c.downscale, c.scaling_factor, c.shift_factor, low=0.0, high=1.0
    )


class Tiny(Nodes):
    """Nodes of a tiny autoencoder: a grid that is worked on, and how many layers there are."""

    def __init__(self, prefix: str, grid: tuple[int, int], width: int, act: str = "relu") -> None:
        super().__init__()
        self.prefix, self.grid, self.width, self.act = prefix, grid, width, act
        self.layer = 0

    def named(self) -> tuple[str, str]:
        """Label and tensor of the next layer."""
        at = self.layer
        self.layer += 1
        return f"layers.{at}", f"{self.prefix}.{at}"

    def edge(self, x: str, outputs: int, inputs: int) -> str:
        """The first or last convolution."""
        label, tensor = self.named()
        return self.conv(x, label, tensor, (outputs, inputs, 3, 3), grid=self.grid)

    def turn(self, x: str) -> str:
        """An activation that is a layer of its own."""
        return self.activation(x, self.named()[0], self.act)

    def block(self, x: str, *, pooled: bool = False) -> str:
        """conv, act, conv, act, conv, plus its input, relu. pooled: with the branch that knows the
        whole grid, in front of it: x + conv1(relu(group_norm(conv1(x))))."""
        (label, tensor), shape = self.named(), (self.width, self.width, 3, 3)
        if pooled:
            x = self._pooled(x, f"{label}.pool", f"{tensor}.pool")
        h = x
        for index in (0, 2, 4):
            h = self.conv(h, f"{label}.{index}", f"{tensor}.conv.{index}", shape, grid=self.grid)
            if index < 4:
                h = self.activation(h, f"{label}.{index + 1}", self.act)
        return self.activation(self.add(h, x, f"{label}.sum"), f"{label}.fuse", "relu")

    def _pooled(self, x: str, label: str, tensor: str) -> str:
        width, wide = self.width, 4 * self.width
        h = self.product(x, f"{label}.0", f"{tensor}.0", (wide, width, 1, 1), bias=False, flat=True)
        h = self.group_norm(h, f"{label}.1", f"{tensor}.1", wide, groups=4, eps=1e-5)
        h = self.activation(h, f"{label}.2", "relu")
        h = self.product(h, f"{label}.3", f"{tensor}.3", (width, wide, 1, 1), bias=False, flat=True)
        return self.add(h, x, f"{label}.sum")

    def smaller(self, x: str) -> str:
        """A convolution of stride 2."""
        (label, tensor), shape = self.named(), (self.width, self.width, 3, 3)
        x = self.conv(x, label, tensor, shape, grid=self.grid, bias=False, stride=2)
        self.grid = self.grid[0] // 2, self.grid[1] // 2
        return x

    def larger(self, x: str, factor: int) -> str:
        """Nearest cells, then the convolution that follows."""
        label, (height, width) = self.named()[0], self.grid
        attrs = {"height": height, "width": width, "factor": factor}
        x = self.node("upsample", [x], label, attrs=attrs)
        self.grid = height * factor, width * factor
        (label, tensor), shape = self.named(), (self.width, self.width, 3, 3)
        return self.conv(x, label, tensor, shape, grid=self.grid, bias=False)

    def close(self, name: str, rows: tuple[int, int], widths: tuple[int, int]) -> FamilyModel:
        """The graph whose last node is its output; rows, widths: of input and output."""
        given, made = (LATENTS, PIXELS) if name == "decoder" else (PIXELS, LATENTS)
        self.nodes[-1] = msgspec.structs.replace(self.nodes[-1], output=made)
        return self.model(
            name, [Value(given, (rows[0], widths[0]))], [Value(made, (rows[1], widths[1]))]
        )


def clamped(b: Nodes) -> str:
    """3 tanh(x / 3) of the latents."""
    return b.node("softcap", [LATENTS], "clamp", attrs={"cap": CLAMP})


def decoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`latents` [H * W, C] -> `pixels` [f H * f W, 3] in [0, 1], f the downscale."""
    c = read(raw, faults)
    b = Tiny("decoder.layers", (height, width), c.decoder_block_out_channels[0], c.act_fn)
    x = b.turn(b.edge(clamped(b), b.width, c.latent_channels))
    for stage, blocks in enumerate(c.num_decoder_blocks):
        for _ in range(blocks):
            x = b.block(x)
        if stage < len(c.num_decoder_blocks) - 1:
            x = b.larger(x, c.upsampling_scaling_factor)
    b.edge(x, c.out_channels, b.width)
    rows = height * width, b.grid[0] * b.grid[1]
    return b.close("decoder", rows, (c.latent_channels, c.out_channels))


def encoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`pixels` [f H * f W, 3] in [0, 1] -> `latents` [H * W, C]."""
    c = read(raw, faults)
    grid = height * c.downscale, width * c.downscale
    b = Tiny("encoder.layers", grid, c.encoder_block_out_channels[0], c.act_fn)
    x = b.edge(PIXELS, b.width, c.in_channels)
    for stage, blocks in enumerate(c.num_encoder_blocks):
        x = b.smaller(x) if stage else x
        for _ in range(blocks):
            x = b.block(x)
    b.edge(x, c.latent_channels, b.width)
    return b.close(
        "encoder", (grid[0] * grid[1], height * width), (c.in_channels, c.latent_channels)
    )
