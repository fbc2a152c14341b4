"""qwen2: Llama's layer with biases on q, k, v; the upper layers may have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Qwen2 or Qwen2.5."""

    num_key_value_heads: int | None
    head_dim: int | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None


SCHEMA = Schema(
    "Qwen2ForCausalLM",
    fixed={"hidden_act": ("silu",), "use_mrope": (False,), "attention_bias": (True,)},
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    windows = sliding.upper_windows(c, faults)
    turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        x = layers.pre_norm_layer(
            b, layer, x, turns, act="silu", qkv_bias=True, window=windows[layer]
        )
    return blocks.head(b, x, tied=c.tie_word_embeddings)
