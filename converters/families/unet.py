"""UNet2DConditionModel: captioned UNets of Stable Diffusion 1 and 2 and of what was distilled from
them (latent diffusion, arXiv 2112.10752)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from ...errors import ConvertError
from ...graph import Value
from ...image import pieces
from . import diffusion
from .component import Eps, Heads, Keys, Layers, Side, Size, read_component
from .config import refused, short
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
MIDDLE = "UNetMidBlock2DCrossAttn"
# Releases of diffusers whose configs say half of the side that the model was trained for.
OLD, OLD_SIDE = re.compile(r"0\.[0-8]\."), 64
LEVELS = 8  # at most; a graph's grids are halved between them
KEYS = Keys(
    fixed={
        "act_fn": ("silu", "swish"), "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,), "attention_type": ("default",),
        "center_input_sample": (False,), "class_embed_type": (None,),
        "class_embeddings_concat": (False,), "conv_in_kernel": (3,),
        "conv_out_kernel": (3,), "cross_attention_norm": (None,), "downsample_padding": (1,),
        "dual_cross_attention": (False,), "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,), "flip_sin_to_cos": (True,),
        "mid_block_only_cross_attention": (None, False), "mid_block_scale_factor": (1, 1.0),
        "num_attention_heads": (None,), "num_class_embeds": (None,),
        "only_cross_attention": (False,), "projection_class_embeddings_input_dim": (None,),
        "resnet_out_scale_factor": (1, 1.0), "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",), "reverse_transformer_layers_per_block": (None,),
        "time_embedding_act_fn": (None,), "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    },
    # upcast_attention: scores are float32 anyway
    ignored=frozenset({"addition_embed_type_num_heads", "dropout", "upcast_attention"}),
)  # fmt: skip
T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a UNet. attention_head_dim: heads, not their size, which diffusers calls so;
    like other sizes one for all blocks or one for each. time_cond_proj_dim: width of the row that
    tells a distilled model its guidance scale."""

    sample_size: Side
    in_channels: Size = 4
    out_channels: Size = 4
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)
    mid_block_type: str | None = MIDDLE
    up_block_types: tuple[str, ...] = (UP, CROSS_UP, CROSS_UP, CROSS_UP)
    block_out_channels: tuple[Size, ...] = (320, 640, 1280, 1280)
    layers_per_block: Layers | tuple[Layers, ...] = 2
    norm_num_groups: Size = 32
    norm_eps: Eps = 1e-5
    cross_attention_dim: Size | tuple[Size, ...] = 1280
    transformer_layers_per_block: Layers | tuple[Layers, ...] = 1
    attention_head_dim: Heads | tuple[Heads, ...] = 8
    use_linear_projection: bool = False
    freq_shift: int = 0
    time_embedding_dim: Size | None = None
    time_cond_proj_dim: Size | None = None

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def time_width(self) -> int:
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def caption_width(self) -> int:
        return self.each(self.cross_attention_dim)[0]

    def each(self, value: T | tuple[T, ...]) -> tuple[T, ...]:
        """A size of every block."""
        return value if isinstance(value, tuple) else (value,) * self.levels


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    if raw.get("addition_embed_type") is not None:
        raise refused([
            f"config 'addition_embed_type' is {short(raw['addition_embed_type'])}, a model that "
            "knows more than one caption (Stable Diffusion XL is one); expected null, as Stable "
            "Diffusion 1 and 2 have it"
        ])  # fmt: skip
    c = read_component(raw, Config, KEYS, faults)
    if broken := _list_faults(c) or _size_faults(c):
        raise refused([*broken, *faults])
    if OLD.match(str(raw.get("_diffusers_version"))) and c.sample_size < OLD_SIDE:
        c = msgspec.structs.replace(c, sample_size=OLD_SIDE)
    return c


def _list_faults(c: Config) -> list[str]:
    """Lists that are not one entry for each block, without which there is no graph."""
    out, count = [], len(c.block_out_channels)
    if not 1 <= count <= LEVELS:
        return [f"config 'block_out_channels' has {count} widths, expected 1 to {LEVELS}"]
    for key in (
        "down_block_types", "up_block_types", "layers_per_block", "cross_attention_dim",
        "transformer_layers_per_block", "attention_head_dim",
    ):  # fmt: skip
        value = getattr(c, key)
        if isinstance(value, tuple) and len(value) != count:
            out.append(
                f"config {key!r} has {len(value)} entries, expected {count}, one for each of "
                "'block_out_channels'"
            )
    for key, known in (
        ("down_block_types", (DOWN, CROSS_DOWN)), ("up_block_types", (UP, CROSS_UP)),
        ("mid_block_type", (MIDDLE, None)),
    ):  # fmt: skip
        value = getattr(c, key)
        for kind in value if isinstance(value, tuple) else (value,):
            if kind not in known:
                out.append(
                    f"config {key!r} has {short(kind)}, expected {' or '.join(map(short, known))}"
                )
    if c.mid_block_type is None and not {CROSS_DOWN, CROSS_UP} & {
        *c.down_block_types, *c.up_block_types
    }:  # fmt: skip
        out.append("config 'mid_block_type' is null and no block reads captions, expected one")
    return out


def _size_faults(c: Config) -> list[str]:
    """Sizes that do not go together."""
    faults = list[str]()
    for width, heads in zip(c.block_out_channels, c.each(c.attention_head_dim), strict=True):
        if width % c.norm_num_groups or width % heads:
            faults.append(
                f"config 'block_out_channels' has {width}, expected multiples of "
                f"'norm_num_groups' {c.norm_num_groups} and of its heads, 'attention_head_dim' "
                f"{heads}"
            )
    if c.block_out_channels[0] % 2 or not 0 <= c.freq_shift < c.block_out_channels[0] // 2:
        faults.append(
            f"config 'freq_shift' is {c.freq_shift} for {c.block_out_channels[0]} frequencies of "
            "time, expected an even number of them, and less than half"
        )
    if len(set(c.each(c.cross_attention_dim))) != 1:
        faults.append(
            f"config 'cross_attention_dim' is {short(c.cross_attention_dim)}, expected one width"
        )
    if c.out_channels != c.in_channels:
        faults.append(
            f"config 'out_channels' is {c.out_channels}, expected 'in_channels' {c.in_channels}: "
            "models that read a mask or another picture besides the latents are not drawn with"
        )
    multiple = 2 ** (c.levels - 1)
    if c.sample_size % multiple:
        faults.append(
            f"config 'sample_size' is {c.sample_size}, expected a multiple of {multiple}, for "
            f"{c.levels} levels"
        )
    return faults


def build(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """Graph and recipes for latents of `height` x `width`."""
    c = read(raw, faults)
    multiple = 2 ** (c.levels - 1)
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise ConvertError(
            f"latents of {height} x {width}, expected multiples of {multiple}, for {c.levels} "
            "levels",
            code="image-size",
            hint="take a height and width that divide",
        )
    b, widths = _Blocks(c, (height, width)), c.block_out_channels
    b.embed_time()
    x = b.conv3(pieces.X, "conv_in", widths[0], c.in_channels)
    skips = [(x, widths[0])]
    for level in range(c.levels):
        x = _down(b, level, x, skips)
    if c.mid_block_type:
        x = b.resnet(x, "mid_block.resnets.0", widths[-1], widths[-1])
        x = b.transformer(x, "mid_block.attentions.0", c.levels - 1)
        x = b.resnet(x, "mid_block.resnets.1", widths[-1], widths[-1])
    for step in range(c.levels):
        x = _up(b, step, x, skips)
    b.conv3(
        b.normed(x, "conv_norm_out", widths[0], c.norm_eps), "conv_out", c.out_channels, widths[0]
    )
    b.nodes[-1] = msgspec.structs.replace(b.nodes[-1], output=pieces.OUT)
    inputs = [Value(pieces.CAPTION, ("M", c.caption_width))]
    if c.time_cond_proj_dim:
        inputs.append(Value(pieces.GUIDANCE, (1, c.time_cond_proj_dim)))
    grid = diffusion.grid_of(height, width, c.in_channels, 1)
    return diffusion.denoiser(b, grid, inputs, c.out_channels)


def _down(b: _Blocks, level: int, x: str, skips: list[tuple[str, int]]) -> str:
    """One level on the way down; what the way up reads again goes into `skips`, with its width."""
    c, at = b.c, f"down_blocks.{level}"
    outputs, inputs = c.block_out_channels[level], c.block_out_channels[max(level - 1, 0)]
    for layer in range(c.each(c.layers_per_block)[level]):
        x = b.resnet(x, f"{at}.resnets.{layer}", outputs, outputs if layer else inputs)
        if c.down_block_types[level] == CROSS_DOWN:
            x = b.transformer(x, f"{at}.attentions.{layer}", level)
        skips.append((x, outputs))
    if level < c.levels - 1:
        x = b.conv3(x, f"{at}.downsamplers.0.conv", outputs, outputs, stride=2)
        b.grid = b.grid[0] // 2, b.grid[1] // 2
        skips.append((x, outputs))
    return x


def _up(b: _Blocks, step: int, x: str, skips: list[tuple[str, int]]) -> str:
    """One level on the way up, which reads the values of `skips` from the last on."""
    c, at, level = b.c, f"up_blocks.{step}", b.c.levels - 1 - step
    outputs, inputs = (
        c.block_out_channels[level],
        c.block_out_channels[min(level + 1, c.levels - 1)],
    )
    for layer in range(c.each(c.layers_per_block)[level] + 1):
        name, (skip, more) = f"{at}.resnets.{layer}", skips.pop()
        x = b.node("concat", [x, skip], f"{name}.joined")
        x = b.resnet(x, name, outputs, (outputs if layer else inputs) + more)
        if c.up_block_types[step] == CROSS_UP:
            x = b.transformer(x, f"{at}.attentions.{layer}", level)
    if level:
        name = f"{at}.upsamplers.0"
        attrs = {"height": b.grid[0], "width": b.grid[1], "factor": 2}
        x = b.node("upsample", [x], name, attrs=attrs)
        b.grid = 2 * b.grid[0], 2 * b.grid[1]
        x = b.conv3(x, f"{name}.conv", outputs, outputs)
    return x


class _Blocks(Nodes):
    """Nodes of a UNet, named as its tensors are, and the grid that is worked on."""

    time: str  # row [1, time_width] that every resnet projects

    def __init__(self, c: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.c, self.grid = c, grid

    def conv3(self, x: str, name: str, outputs: int, inputs: int, *, stride: int = 1) -> str:
        shape = (outputs, inputs, 3, 3)
        return self.conv(x, name, name, shape, grid=self.grid, stride=stride)

    def normed(self, x: str, name: str, width: int, eps: float) -> str:
        """group_norm, silu."""
        x = self.group_norm(x, name, name, width, groups=self.c.norm_num_groups, eps=eps)
        return self.activation(x, f"{name}.act", "silu")

    def embed_time(self) -> None:
        """Timestep, and guidance where the model is told it, as one row behind its activation,
        which all blocks read."""
        c, name, first = self.c, "time_embedding", self.c.block_out_channels[0]
        attrs = {"dim": first, "freq_shift": float(c.freq_shift)}
        x = self.node("timestep", [pieces.TIMESTEP], "timestep", attrs=attrs)
        if c.time_cond_proj_dim:
            shape = (first, c.time_cond_proj_dim)
            told = self.product(
                pieces.GUIDANCE, f"{name}.guidance", f"{name}.cond_proj", shape, bias=False
            )
            x = self.add(x, told, f"{name}.told")
        x = self.product(x, f"{name}.1", f"{name}.linear_1", (c.time_width, first))
        x = self.activation(x, f"{name}.act", "silu")
        shape = (c.time_width, c.time_width)
        x = self.product(x, f"{name}.2", f"{name}.linear_2", shape, output=pieces.TIME)
        self.time = self.activation(x, "time.act", "silu")

    def resnet(self, x: str, name: str, outputs: int, inputs: int) -> str:
        """x, or a product of it, plus conv(act(norm(conv(act(norm(x))) + time)))."""
        c = self.c
        h = self.normed(x, f"{name}.norm1", inputs, c.norm_eps)
        h = self.conv3(h, f"{name}.conv1", outputs, inputs)
        tensor = f"{name}.time_emb_proj"
        row = self.product(self.time, f"{name}.time", tensor, (outputs, c.time_width))
        h = self.node("add_row", [h, row], f"{name}.timed")
        h = self.conv3(
            self.normed(h, f"{name}.norm2", outputs, c.norm_eps), f"{name}.conv2", outputs, outputs
        )
        if inputs != outputs:
            tensor, shape = f"{name}.conv_shortcut", (outputs, inputs, 1, 1)
            x = self.product(x, f"{name}.shortcut", tensor, shape, flat=True)
        return self.add(h, x, f"{name}.sum")

    def transformer(self, x: str, name: str, level: int) -> str:
        """Cells as tokens: a norm, a product, blocks, a product, plus what came in."""
        c, width = self.c, self.c.block_out_channels[level]
        count = c.each(c.attention_head_dim)[level]
        heads = diffusion.Heads(count, width // count, width, bias=False)
        linear = c.use_linear_projection
        shape: tuple[int, ...] = (width, width) if linear else (width, width, 1, 1)
        h = self.group_norm(
            x, f"{name}.norm", f"{name}.norm", width, groups=c.norm_num_groups, eps=1e-6
        )
        h = self.product(h, f"{name}.proj_in", f"{name}.proj_in", shape, flat=not linear)
        for layer in range(c.each(c.transformer_layers_per_block)[level]):
            h = self._block(h, f"{name}.transformer_blocks.{layer}", heads)
        h = self.product(h, f"{name}.proj_out", f"{name}.proj_out", shape, flat=not linear)
        return self.add(h, x, f"{name}.sum")

    def _block(self, x: str, name: str, heads: diffusion.Heads) -> str:
        """Attention over the cells, over the caption, and a gated product; each behind a norm, and
        added to what came in."""
        width, seen = heads.width, self.c.caption_width
        h = self._norm(x, f"{name}.norm1", width)
        h = diffusion.attention(self, h, h, f"{name}.attn1", f"{name}.attn1", heads)
        x = self.add(x, h, f"{name}.add1")
        h = self._norm(x, f"{name}.norm2", width)
        h = diffusion.attention(
            self, h, pieces.CAPTION, f"{name}.attn2", f"{name}.attn2", heads, seen_width=seen
        )
        x = self.add(x, h, f"{name}.add2")
        h = self._norm(x, f"{name}.norm3", width)
        return self.add(x, self._gated(h, f"{name}.ff", width), f"{name}.add3")

    def _norm(self, x: str, name: str, width: int) -> str:
        return self.layer_norm(x, name, 1e-5, tensor=name, width=width)

    def _gated(self, x: str, name: str, width: int) -> str:
        """GEGLU, four times as wide inside. diffusers has the gate's rows last, `glu` first."""
        tensor, inner = f"{name}.net.0.proj", 4 * width

        def swapped(kind: str, shape: tuple[int, ...]) -> Recipe:
            part = Part(f"{tensor}.{kind}", shape)
            return Recipe((part._replace(rows=(inner, 2 * inner)), part._replace(rows=(0, inner))))

        slots = {
            "weight": self.weight(f"{name}.up", swapped("weight", (2 * inner, width))),
            "bias": self.weight(f"{name}.up_bias", swapped("bias", (2 * inner,))),
        }
        h = self.node("linear", [x], f"{name}.up", weights=slots)
        h = self.node("glu", [h], f"{name}.gate", attrs={"act": "gelu"})
        return self.product(h, f"{name}.down", f"{name}.net.2", (width, inner))
