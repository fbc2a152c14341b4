"""internlm3: InternLM 3, Llama's layer under other names of its biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

OLD = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an InternLM 3."""

    head_dim: int | None = 128
    attention_bias: bool = False
    mlp_bias: bool = False


SCHEMA = Schema("InternLM3ForCausalLM", fixed={"hidden_act": ("silu",)}, also=("LlamaForCausalLM",))


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    raw = {OLD.get(key, key): value for key, value in raw.items()}
    c = read_config(raw, Config, SCHEMA, faults)
    if c.attention_bias != c.mlp_bias:
        faults.append(
            f"config 'qkv_bias' is {c.attention_bias} and 'bias' {c.mlp_bias}, expected the same, "
            "as transformers does"
        )
    b = blocks.Builder(c, head_dim=c.head_dim)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", qkv_bias=c.attention_bias, o_bias=c.attention_bias,
            mlp_bias=c.mlp_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
