"""llama: Llama 2 and 3 (with llama3 RoPE scaling), SmolLM2, TinyLlama and models like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Llama."""

    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


SCHEMA = Schema(
    "LlamaForCausalLM",
    fixed={"hidden_act": ("silu",), "rope_interleaved": (False,)},
    ignored=frozenset({"is_llama_config"}),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        x = layers.pre_norm_layer(
            b, layer, x, turns, act="silu",
            qkv_bias=c.attention_bias, o_bias=c.attention_bias, mlp_bias=c.mlp_bias,
        )  # fmt: skip
    return blocks.head(b, x, tied=c.tie_word_embeddings)
