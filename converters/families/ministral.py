"""ministral: Ministral 8B, Llama's layer, some of them with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Ministral."""

    head_dim: int | None = None
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None


SCHEMA = Schema("MinistralForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = c.layer_types or [sliding.kind_of(c.sliding_window or 0)] * b.layers
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(b, index, x, turns, act="silu", window=windows[index])

    return layers.decoder(b, c, layer)
