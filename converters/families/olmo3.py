"""olmo3: OLMo 3, OLMo 2 with windows; only layers without one have scaled positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

THETA = 500_000.0


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an OLMo 3."""

    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None


SCHEMA = Schema("Olmo3ForCausalLM", fixed={"hidden_act": ("silu",), "attention_bias": (False,)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    kinds = c.layer_types or sliding.pattern(4, b.layers, faults)
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    theta = c.rope_theta if c.rope_theta is not None else THETA
    turns = layers.typed_turning(b, c, windows, faults, theta=(theta, theta))

    def layer(index: int, x: str) -> str:
        window = windows[index]
        return layers.post_norm_layer(
            b, index, x, turns[sliding.kind_of(window)], act="silu", row_norm=True, window=window
        )

    return layers.decoder(b, c, layer)
