"""glm4: GLM-4 0414, norms around each half, neighbouring pairs of half a head turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {
    "post_attention_layernorm": "post_self_attn_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a GLM-4 0414."""

    head_dim: int | None = 128
    rms_norm_eps: float = 1.5625e-07
    partial_rotary_factor: float | None = None
    attention_bias: bool = True


SCHEMA = Schema("Glm4ForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    b.names = NAMES
    turns = layers.turning(b, c, faults, partial=0.5)
    pairs = blocks.turned_channels(b, turns)

    def layer(index: int, x: str) -> str:
        return layers.sandwich_layer(
            b, index, x, turns, act="silu", offset=0.0, mlp="fused", pairs=pairs,
            qkv_bias=c.attention_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
