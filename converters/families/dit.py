"""DiTTransformer2DModel: class-conditional diffusion transformers (DiT, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...graph import Value
from ...image import pieces
from . import diffusion
from .component import Eps, HeadDim, Heads, Keys, Layers, Side, Size, read_component
from .nodes import Nodes
from .recipe import FamilyModel

ACTIVATIONS = {"gelu-approximate": "gelu_tanh", "gelu": "gelu"}
KEYS = Keys(
    fixed={
        "activation_fn": tuple(ACTIVATIONS), "norm_type": ("ada_norm_zero",),
        "norm_elementwise_affine": (False,),
        # of the older class Transformer2DModel, under which these models were published first
        "attention_type": ("default",), "cross_attention_dim": (None,),
        "caption_channels": (None,), "num_vector_embeds": (None,),
        "double_self_attention": (False,), "only_cross_attention": (False,),
        "use_linear_projection": (False,), "interpolation_scale": (None,),
        "use_additional_conditions": (None, False),
    },
    ignored=frozenset({"dropout", "norm_num_groups", "upcast_attention"}),
)  # fmt: skip


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a DiT. num_embeds_ada_norm: classes, without the null class."""

    num_attention_heads: Heads = 16
    attention_head_dim: HeadDim = 72
    in_channels: Size = 4
    out_channels: Size | None = None
    num_layers: Layers = 28
    attention_bias: bool = True
    sample_size: Side = 32
    patch_size: Side = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: Size = 1000
    norm_eps: Eps = 1e-5


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    config = read_component(raw, Config, KEYS, faults)
    check_sizes(config, faults, multiple=4)
    return config


def check_sizes(config: Any, faults: list[str], *, multiple: int) -> None:
    """Faults of what DiT's and PixArt's configs have in common."""
    if config.activation_fn not in ACTIVATIONS:
        faults.append(
            f"config 'activation_fn' is {config.activation_fn[:40]!r}, expected one of "
            f"{sorted(ACTIVATIONS)}"
        )
    width = config.num_attention_heads * config.attention_head_dim
    if width % multiple:
        faults.append(
            f"config 'num_attention_heads' times 'attention_head_dim' is {width}, expected a "
            f"multiple of {multiple}"
        )
    if config.sample_size % config.patch_size:
        faults.append(
            f"config 'sample_size' is {config.sample_size}, expected a multiple of 'patch_size' "
            f"{config.patch_size}"
        )
    out = config.out_channels or config.in_channels
    if out not in (config.in_channels, 2 * config.in_channels):
        faults.append(
            f"config 'out_channels' is {out}, expected 'in_channels' {config.in_channels}, or "
            "twice as many with a learned variance"
        )


def build(raw: Mapping[str, Any], height: int, width: int, faults: list[str]) -> FamilyModel:
    """Graph and recipes for latents of `height` x `width`."""
    c = read(raw, faults)
    b, dim = Nodes(), c.num_attention_heads * c.attention_head_dim
    grid = diffusion.grid_of(height, width, c.in_channels, c.patch_size)
    x = diffusion.patches(b, grid, dim, base=c.sample_size // c.patch_size, interpolation=1.0)
    for layer in range(c.num_layers):
        x = _block(b, c, layer, x, dim)
    m = b.activation(pieces.TIME, "head.time", "silu")
    m = b.product(m, "head.modulation", "proj_out_1", (2 * dim, dim))
    x = b.layer_norm(x, "head.norm", 1e-6)
    x = diffusion.modulate(b, x, m, "head.modulated", (0, 1))
    out = c.out_channels or c.in_channels
    diffusion.unpatched(b, x, grid, "proj_out_2", dim, out)
    return diffusion.denoiser(b, grid, [Value(pieces.LABEL, (1,), "int32")], out)


def _block(b: Nodes, c: Config, layer: int, x: str, dim: int) -> str:
    """adaLN-zero: shift, scale and gate of both halves, from the block's own embedding of time
    and label. That of the first block is `time`, which the head reads too."""
    at, tensor, first = f"blocks.{layer}", f"transformer_blocks.{layer}", layer == 0
    heads = diffusion.Heads(c.num_attention_heads, c.attention_head_dim, dim, c.attention_bias)
    embedder = f"{tensor}.norm1.emb"
    t = diffusion.sinusoid(
        b, pieces.TIMESTEP, f"{at}.time", f"{embedder}.timestep_embedder", dim, freq_shift=1.0
    )
    classes = b.tensor(
        f"{at}.classes", f"{embedder}.class_embedder.embedding_table.weight",
        (c.num_embeds_ada_norm + 1, dim),
    )  # fmt: skip
    label = b.node("embed", [pieces.LABEL], f"{at}.label", weights={"weight": classes})
    t = b.add(t, label, f"{at}.condition", output=pieces.TIME if first else "")
    m = b.activation(t, f"{at}.condition.act", "silu")
    m = b.product(m, f"{at}.modulation", f"{tensor}.norm1.linear", (6 * dim, dim))
    h = b.layer_norm(x, f"{at}.norm1", 1e-6)
    feature = pieces.FEATURE if first else ""
    h = diffusion.modulate(b, h, m, f"{at}.modulated1", (0, 1), output=feature)
    h = diffusion.attention(b, h, h, f"{at}.attention", f"{tensor}.attn1", heads)
    x = diffusion.gated_add(b, x, h, m, f"{at}.add1", 2)
    h = b.layer_norm(x, f"{at}.norm2", c.norm_eps)
    h = diffusion.modulate(b, h, m, f"{at}.modulated2", (3, 4))
    act = ACTIVATIONS.get(c.activation_fn, "gelu")
    h = diffusion.feed_forward(b, h, f"{at}.ff", f"{tensor}.ff", dim, act)
    return diffusion.gated_add(
        b, x, h, m, f"{at}.add2", 5, output=diffusion.behind(layer, c.num_layers)
    )
