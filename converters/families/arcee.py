"""arcee: AFM 4.5B, Llama's attention and a feed-forward of relu squared without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

ACTS = {"relu2": "relu2", "relu": "relu", "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an AFM."""

    head_dim: int | None = None
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


SCHEMA = Schema("ArceeForCausalLM")


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    act = blocks.act_of(c.hidden_act, ACTS, faults)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act=act, mlp="plain", qkv_bias=c.attention_bias,
            o_bias=c.attention_bias, mlp_bias=c.mlp_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
