"""mistral: Llama's layer with one sliding window in every layer (arXiv 2310.06825)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Mistral. sliding_window null: every layer sees everything."""

    num_key_value_heads: int | None
    head_dim: int | None = None
    sliding_window: int | None = 4096


SCHEMA = Schema(
    "MistralForCausalLM",
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    window = sliding.window_of(c.sliding_window, faults)
    turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        x = layers.pre_norm_layer(b, layer, x, turns, act="silu", window=window)
    return blocks.head(b, x, tied=c.tie_word_embeddings)
