"""helium: Helium 1, Llama's layer whose rotary pairs are neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Helium."""

    head_dim: int | None = 128
    rms_norm_eps: float = 1e-8
    attention_bias: bool = False
    mlp_bias: bool = False


SCHEMA = Schema("HeliumForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    if b.heads * b.head_dim != b.width:
        faults.append(
            f"config has {b.heads} heads of {b.head_dim}, expected 'hidden_size' {b.width} in all"
        )
    turns = layers.turning(b, c, faults, theta=100_000.0)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", pairs=b.head_dim, qkv_bias=c.attention_bias,
            mlp_bias=c.mlp_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
