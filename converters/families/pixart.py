"""PixArtTransformer2DModel: captioned diffusion transformers (PixArt-alpha, arXiv 2310.00426;
PixArt-sigma, arXiv 2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...graph import Value
from ...image import pieces
from . import diffusion
from .component import Eps, HeadDim, Heads, Keys, Layers, Side, Size, read_component
from .config import refused
from .dit import ACTIVATIONS, check_sizes
from .nodes import Nodes
from .recipe import FamilyModel

SIZED = 128  # models for latents of this side know the picture's size unless they say otherwise
KEYS = Keys(
    fixed={
        "activation_fn": tuple(ACTIVATIONS), "norm_type": ("ada_norm_single",),
        "norm_elementwise_affine": (False,), "attention_type": ("default",),
        # of the older class Transformer2DModel, under which these models were published first
        "num_vector_embeds": (None,), "double_self_attention": (False,),
        "only_cross_attention": (False,), "use_linear_projection": (False,),
    },
    ignored=frozenset({"dropout", "norm_num_groups", "upcast_attention", "num_embeds_ada_norm"}),
)  # fmt: skip


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a PixArt. caption_channels: width of the text encoder's rows.
    use_additional_conditions: whether height, width and aspect ratio are inputs."""

    num_attention_heads: Heads = 16
    attention_head_dim: HeadDim = 72
    in_channels: Size = 4
    out_channels: Size | None = 8
    num_layers: Layers = 28
    cross_attention_dim: Size = 1152
    attention_bias: bool = True
    sample_size: Side = 128
    patch_size: Side = 2
    activation_fn: str = "gelu-approximate"
    norm_eps: Eps = 1e-6
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None
    caption_channels: Size | None = None

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sized(self) -> bool:
        """Whether the picture's size is an input."""
        chosen = self.use_additional_conditions
        return self.sample_size == SIZED if chosen is None else chosen

    @property
    def interpolation(self) -> float:
        """How much finer than the base grid places are."""
        chosen = self.interpolation_scale
        return float(max(self.sample_size // 64, 1) if chosen is None else chosen)


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    config = read_component(raw, Config, KEYS, faults)
    check_sizes(config, faults, multiple=12 if config.sized else 4)
    if config.caption_channels is None:
        raise refused(["config 'caption_channels' is null, expected the caption rows' width",
                       *faults])  # fmt: skip
    if config.cross_attention_dim != config.width:
        faults.append(
            f"config 'cross_attention_dim' is {config.cross_attention_dim}, expected the model's "
            f"width {config.width}"
        )
    if not 0 < config.interpolation < 1e6:
        raise refused([f"config 'interpolation_scale' is {config.interpolation}, expected a "
                       "positive number", *faults])  # fmt: skip
    return config


def build(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """Graph and recipes for latents of `height` x `width`."""
    c = read(raw, faults)
    b, dim = Nodes(), c.width
    grid = diffusion.grid_of(height, width, c.in_channels, c.patch_size)
    base = c.sample_size // c.patch_size
    x = diffusion.patches(b, grid, dim, base=base, interpolation=c.interpolation)
    _condition(b, c, dim)
    for layer in range(c.num_layers):
        x = _block(b, c, layer, x)
    x = b.layer_norm(x, "head.norm", 1e-6)
    shifts = diffusion.table(b, "head.table", "scale_shift_table", (2, dim))
    x = diffusion.modulate(b, x, pieces.TIME, "head.modulated", (0, 1), table=shifts)
    out = c.out_channels or c.in_channels
    diffusion.unpatched(b, x, grid, "proj_out", dim, out)
    inputs = [Value(pieces.CAPTION, ("M", c.caption_channels or 0))]
    if c.sized:
        inputs += [Value(n, (1, 1)) for n in (pieces.HEIGHT, pieces.WIDTH, pieces.ASPECT)]
    return diffusion.denoiser(b, grid, inputs, out)


def _condition(b: Nodes, c: Config, dim: int) -> None:
    """`time`, `modulation` and `embed.caption`."""
    embedder, whole = "adaln_single.emb", "" if c.sized else pieces.TIME
    t = diffusion.sinusoid(
        b, pieces.TIMESTEP, "timestep", f"{embedder}.timestep_embedder", dim, output=whole
    )
    if c.sized:
        b.add(t, _size(b, embedder, dim // 3), "sized", output=pieces.TIME)
    m = b.activation(pieces.TIME, "shared.act", "silu")
    shape = (6 * dim, dim)
    b.product(m, "shared", "adaln_single.linear", shape, output=pieces.MODULATION)
    shape = (dim, c.caption_channels or 0)
    y = b.product(pieces.CAPTION, "caption.1", "caption_projection.linear_1", shape)
    y = b.activation(y, "caption.act", "gelu_tanh")
    b.product(
        y, "caption.2", "caption_projection.linear_2", (dim, dim), output=pieces.EMBEDDED_CAPTION
    )


def _size(b: Nodes, embedder: str, width: int) -> str:
    """Height, width and aspect ratio as one row [1, 3 * width]; the first two share weights."""
    height, across = (
        diffusion.sinusoid(
            b, name, f"size.{name}", f"{embedder}.resolution_embedder", width, weights="resolution"
        )
        for name in (pieces.HEIGHT, pieces.WIDTH)
    )
    aspect = diffusion.sinusoid(
        b, pieces.ASPECT, "size.aspect", f"{embedder}.aspect_ratio_embedder", width
    )
    sides = b.node("concat", [height, across], "size.sides")
    return b.node("concat", [sides, aspect], "size")


def _block(b: Nodes, c: Config, layer: int, x: str) -> str:
    """adaLN-single: the shared modulation plus the block's own table."""
    at, tensor, dim = f"blocks.{layer}", f"transformer_blocks.{layer}", c.width
    heads = diffusion.Heads(c.num_attention_heads, c.attention_head_dim, dim, c.attention_bias)
    own = diffusion.table(b, f"{at}.table", f"{tensor}.scale_shift_table", (6, dim))
    m, feature = pieces.MODULATION, pieces.FEATURE if layer == 0 else ""
    h = b.layer_norm(x, f"{at}.norm1", c.norm_eps)
    h = diffusion.modulate(b, h, m, f"{at}.modulated1", (0, 1), table=own, output=feature)
    h = diffusion.attention(b, h, h, f"{at}.attention", f"{tensor}.attn1", heads)
    x = diffusion.gated_add(b, x, h, m, f"{at}.add1", 2, table=own)
    h = diffusion.attention(
        b, x, pieces.EMBEDDED_CAPTION, f"{at}.cross", f"{tensor}.attn2", heads,
        seen_width=c.cross_attention_dim,
    )  # fmt: skip
    x = b.add(x, h, f"{at}.add2")
    h = b.layer_norm(x, f"{at}.norm2", c.norm_eps)
    h = diffusion.modulate(b, h, m, f"{at}.modulated2", (3, 4), table=own)
    act = ACTIVATIONS.get(c.activation_fn, "gelu")
    h = diffusion.feed_forward(b, h, f"{at}.ff", f"{tensor}.ff", dim, act)
    return diffusion.gated_add(
        b, x, h, m, f"{at}.add3", 5, table=own, output=diffusion.behind(layer, c.num_layers)
    )
