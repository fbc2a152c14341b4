"""minicpm3: MiniCPM3 4B, latent attention and factors of depth and width (arXiv 2404.06395)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import blocks, latent, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a MiniCPM3. `head_dim` is the turning part's, if it is there."""

    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    kv_lora_rank: int = 256
    q_lora_rank: int | None = 768
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int | None = None
    scale_emb: float = 12.0
    scale_depth: float | None = 1.4
    dim_model_base: float | None = 256.0


SCHEMA = Schema(
    "MiniCPM3ForCausalLM", fixed={"hidden_act": ("silu",)}, ignored=frozenset({"qk_head_dim"})
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    params, broken, value = rope_parameters(c), list[str](), c.v_head_dim
    if value is None:
        value = c.hidden_size // c.num_attention_heads
    p = latent.planned(c, value, params, broken, neighbours=False)
    faults += broken
    b = blocks.Builder(c, head_dim=p.size)
    turns = blocks.rotary(b, rope(params, p.turning, b.context, faults))
    (embed,) = blocks.multipliers(c, ("scale_emb",), faults)
    residual = logits = 1.0
    if c.scale_depth is not None:
        residual = blocks.multipliers(c, ("scale_depth",), faults)[0] / math.sqrt(b.layers)
    if c.dim_model_base is not None:
        logits = blocks.multipliers(c, ("dim_model_base",), faults)[0] / b.width

    def layer(index: int, x: str) -> str:
        at = f"layers.{index}"
        h = blocks.layer_norm(b, index, x, "norm1", "input_layernorm")
        x = b.add(x, latent.attention(b, index, h, turns, p, residual=residual), f"{at}.add1")
        h = blocks.layer_norm(b, index, x, "norm2", "post_attention_layernorm")
        h = blocks.mlp(b, index, h, "silu", bias=c.mlp_bias, scales=(1.0, 1.0, residual))
        return b.add(x, h, f"{at}.add2")

    return layers.decoder(b, c, layer, scale=embed, scale_logits=logits)
