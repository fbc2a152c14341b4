"""AutoencoderKL: the autoencoders of latent diffusion (arXiv 2112.10752), as diffusers has them.

Rows of pictures are in [-1, 1]. Latents come and go unscaled: those of the denoiser divided by the
scaling factor, plus the shift. The encoder gives the mean of the distribution that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...bundle.image_spec import LatentSpec
from ...graph import Value
from .autoencoder_tiny import LATENTS, PIXELS
from .component import Keys, Layers, Size, read_component
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe

EPS = 1e-6
UP, DOWN = "UpDecoderBlock2D", "DownEncoderBlock2D"
KEYS = Keys(
    fixed={"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)},
    ignored=frozenset({"sample_size", "force_upcast"}),
)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of an AutoencoderKL."""

    in_channels: Size = 3
    out_channels: Size = 3
    down_block_types: tuple[str, ...] = (DOWN,)
    up_block_types: tuple[str, ...] = (UP,)
    block_out_channels: tuple[Size, ...] = (64,)
    layers_per_block: Layers = 1
    latent_channels: Size = 4
    norm_num_groups: Size = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downscale(self) -> int:
        """Pixels of a side per latent."""
        return int(2 ** (len(self.block_out_channels) - 1))


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    c = read_component(raw, Config, KEYS, faults)
    for key, types, kind in (("down", c.down_block_types, DOWN), ("up", c.up_block_types, UP)):
        if list(types) != [kind] * len(c.block_out_channels):
            faults.append(
                f"config '{key}_block_types' is {list(types)[:8]}, expected {kind!r} for each of "
                f"the {len(c.block_out_channels)} widths of 'block_out_channels'"
            )
    if any(width % c.norm_num_groups for width in c.block_out_channels):
        faults.append(
            f"config 'block_out_channels' is {list(c.block_out_channels)[:8]}, expected multiples "
            f"of 'norm_num_groups' {c.norm_num_groups}"
        )
    if not c.block_out_channels:
        faults.append("config 'block_out_channels' is empty, expected one width or more")
        c = msgspec.structs.replace(c, block_out_channels=(c.norm_num_groups,))
    return c


def latents(raw: Mapping[str, Any], faults: list[str]) -> LatentSpec:
    """What lies between denoiser and decoder."""
    c = read(raw, faults)
    return LatentSpec(c.latent_channels, c.downscale, c.scaling_factor, c.shift_factor or 0.0)


class _Blocks(Nodes):
    """Nodes of a decoder or encoder, and the grid that is worked on."""

    def __init__(self, c: Config, part: str, grid: tuple[int, int]) -> None:
        super().__init__()
        self.c, self.part, self.grid = c, part, grid

    def conv3(self, x: str, name: str, outputs: int, inputs: int, **more: Any) -> str:
        shape = (outputs, inputs, 3, 3)
        return self.conv(x, name, f"{self.part}.{name}", shape, grid=self.grid, **more)

    def normed(self, x: str, name: str, width: int) -> str:
        """group_norm, silu."""
        groups, tensor = self.c.norm_num_groups, f"{self.part}.{name}"
        x = self.group_norm(x, name, tensor, width, groups=groups, eps=EPS)
        return self.activation(x, f"{name}.act", "silu")

    def resnet(self, x: str, name: str, outputs: int, inputs: int) -> str:
        """x, or a product of it, plus conv(act(norm(conv(act(norm(x))))))."""
        h = self.conv3(self.normed(x, f"{name}.norm1", inputs), f"{name}.conv1", outputs, inputs)
        h = self.normed(h, f"{name}.norm2", outputs)
        if inputs != outputs:
            tensor, shape = f"{self.part}.{name}.conv_shortcut", (outputs, inputs, 1, 1)
            x = self.product(x, f"{name}.shortcut", tensor, shape, flat=True)
        return self.add(self.conv3(h, f"{name}.conv2", outputs, outputs), x, f"{name}.sum")

    def attention(self, x: str, name: str, width: int) -> str:
        """One head over all cells. Older files call its products query, key, value, proj_attn."""
        tensor, groups = f"{self.part}.{name}", self.c.norm_num_groups
        h = self.group_norm(
            x, f"{name}.norm", f"{tensor}.group_norm", width, groups=groups, eps=EPS
        )
        rows = [
            self._aliased(h, f"{name}.{key}", f"{tensor}.to_{key}", f"{tensor}.{older}", width)
            for key, older in (("q", "query"), ("k", "key"), ("v", "value"))
        ]
        attrs = {"heads": 1, "head_dim": width, "scale": width**-0.5}
        h = self.node("dot_attention", rows, name, attrs=attrs)
        h = self._aliased(h, f"{name}.out", f"{tensor}.to_out.0", f"{tensor}.proj_attn", width)
        return self.add(h, x, f"{name}.sum")

    def _aliased(self, x: str, label: str, tensor: str, older: str, width: int) -> str:
        weight = Part(f"{tensor}.weight", (width, width), f"{older}.weight")
        bias = Part(f"{tensor}.bias", (width,), f"{older}.bias")
        slots = {
            "weight": self.weight(label, Recipe((weight,))),
            "bias": self.weight(f"{label}_bias", Recipe((bias,))),
        }
        return self.node("linear", [x], label, weights=slots)

    def middle(self, x: str, width: int) -> str:
        x = self.resnet(x, "mid_block.resnets.0", width, width)
        if self.c.mid_block_add_attention:
            x = self.attention(x, "mid_block.attentions.0", width)
        return self.resnet(x, "mid_block.resnets.1", width, width)

    def closed(self, given: Value, made: Value) -> FamilyModel:
        self.nodes[-1] = msgspec.structs.replace(self.nodes[-1], output=made.name)
        return self.model(self.part, [given], [made])


def decoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`latents` [H * W, C] -> `pixels` [f H * f W, 3] in [-1, 1], f the downscale."""
    c = read(raw, faults)
    b, widths, x = _Blocks(c, "decoder", (height, width)), c.block_out_channels[::-1], LATENTS
    channels = c.latent_channels
    if c.use_post_quant_conv:
        shape = (channels, channels, 1, 1)
        x = b.product(x, "post_quant_conv", "post_quant_conv", shape, flat=True)
    x = b.middle(b.conv3(x, "conv_in", widths[0], channels), widths[0])
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        for layer in range(c.layers_per_block + 1):
            name = f"up_blocks.{level}.resnets.{layer}"
            x = b.resnet(x, name, outputs, outputs if layer else inputs)
        if level < len(widths) - 1:
            name = f"up_blocks.{level}.upsamplers.0"
            attrs = {"height": b.grid[0], "width": b.grid[1], "factor": 2}
            x = b.node("upsample", [x], name, attrs=attrs)
            b.grid = 2 * b.grid[0], 2 * b.grid[1]
            x = b.conv3(x, f"{name}.conv", outputs, outputs)
    b.conv3(b.normed(x, "conv_norm_out", widths[-1]), "conv_out", c.out_channels, widths[-1])
    pixels = Value(PIXELS, (b.grid[0] * b.grid[1], c.out_channels))
    return b.closed(Value(LATENTS, (height * width, channels)), pixels)


def encoder(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """`pixels` [f H * f W, 3] in [-1, 1] -> `latents` [H * W, C]."""
    c = read(raw, faults)
    grid = height * c.downscale, width * c.downscale
    b, widths = _Blocks(c, "encoder", grid), c.block_out_channels
    x = b.conv3(PIXELS, "conv_in", widths[0], c.in_channels)
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        for layer in range(c.layers_per_block):
            name = f"down_blocks.{level}.resnets.{layer}"
            x = b.resnet(x, name, outputs, outputs if layer else inputs)
        if level < len(widths) - 1:
            name = f"down_blocks.{level}.downsamplers.0.conv"
            x = b.conv3(x, name, outputs, outputs, stride=2, padding=(0, 1))
            b.grid = b.grid[0] // 2, b.grid[1] // 2
    x = b.normed(b.middle(x, widths[-1]), "conv_norm_out", widths[-1])
    channels = c.latent_channels
    _means(b, x, widths[-1], channels)
    pixels = Value(PIXELS, (grid[0] * grid[1], c.in_channels))
    return b.closed(pixels, Value(LATENTS, (height * width, channels)))


def _means(b: _Blocks, x: str, width: int, channels: int) -> None:
    """conv_out and quant_conv, of whose outputs, means and logarithms of variances, the means."""
    half = (0, channels)
    if b.c.use_quant_conv:
        x = b.conv3(x, "conv_out", 2 * channels, width)
        tensor, shape, op = "quant_conv", (2 * channels, 2 * channels, 1, 1), "linear"
        attrs: dict[str, Any] = {}
    else:
        tensor, shape, op = "encoder.conv_out", (2 * channels, width, 3, 3), "conv2d"
        attrs = {"height": b.grid[0], "width": b.grid[1]}
    weight, bias = (
        Part(f"{tensor}.weight", shape, rows=half),
        Part(f"{tensor}.bias", shape[:1], rows=half),
    )
    slots = {
        "weight": b.weight("means", Recipe((weight,), flat=True)),
        "bias": b.weight("means_bias", Recipe((bias,))),
    }
    b.node(op, [x], "means", weights=slots, attrs=attrs)
