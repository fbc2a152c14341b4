"""smollm3: Llama's layer, with layers that know no positions (NoPE, arXiv 2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a SmolLM3. no_rope_layers: 1 where a layer turns q and k, 0 where not."""

    num_key_value_heads: int | None
    head_dim: int | None = None
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[str] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


SCHEMA = Schema(
    "SmolLM3ForCausalLM",
    fixed={"hidden_act": ("silu",)},
    ignored=frozenset({"max_window_layers"}),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    turning = _turning(c, faults)
    windows = _windows(c, turning, faults)
    params = rope_parameters(c, theta=2_000_000.0)
    turns = blocks.NO_ROPE
    if any(turning):
        turns = blocks.rotary(b, rope(params, b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        x = layers.pre_norm_layer(
            b, layer, x, turns if turning[layer] else blocks.NO_ROPE, act="silu",
            window=windows[layer], qkv_bias=c.attention_bias, o_bias=c.attention_bias,
            mlp_bias=c.mlp_bias,
        )  # fmt: skip
    return blocks.head(b, x, tied=c.tie_word_embeddings)


def _turning(c: Config, faults: list[str]) -> list[bool]:
    """Which layers have rotary positions."""
    every, layers = c.no_rope_layer_interval, c.num_hidden_layers
    flags = c.no_rope_layers
    if flags is None and every < 1:
        faults.append(f"config 'no_rope_layer_interval' is {every}, expected 1 or more")
    elif flags is None:
        flags = [int((i + 1) % every != 0) for i in range(layers)]
    elif len(flags) < layers or set(flags) - {0, 1}:
        faults.append(f"config 'no_rope_layers' is {str(flags)[:60]}, expected {layers} of 0 or 1")
        flags = None
    return [bool(flag) for flag in flags[:layers]] if flags is not None else [True] * layers


def _windows(c: Config, turning: list[bool], faults: list[str]) -> list[int]:
    """Window of each layer; without layer_types, the layers without rotary positions slide."""
    window = c.sliding_window if c.use_sliding_window else None
    kinds = c.layer_types or [sliding.kind_of(0 if turns else window or 0) for turns in turning]
    return sliding.typed_windows(kinds, window, c.num_hidden_layers, faults)
