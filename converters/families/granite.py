"""granite: dense Granite 3, Llama's layer with multipliers, which go into weights beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

FACTORS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a dense Granite 3."""

    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0


SCHEMA = Schema("GraniteForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    embed, logits, residual, scale = blocks.multipliers(c, FACTORS, faults)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", qkv_bias=c.attention_bias, o_bias=c.attention_bias,
            mlp_bias=c.mlp_bias, residual=residual, scale=scale,
        )  # fmt: skip

    return layers.decoder(b, c, layer, scale=embed, scale_logits=1 / logits)
