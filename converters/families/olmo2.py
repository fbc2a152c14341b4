"""olmo2: OLMo 2, norms behind each half, q and k normalised over all heads (arXiv 2501.00656)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an OLMo 2."""

    rms_norm_eps: float = 1e-5


SCHEMA = Schema("Olmo2ForCausalLM", fixed={"hidden_act": ("silu",), "attention_bias": (False,)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.post_norm_layer(b, index, x, turns, act="silu", row_norm=True)

    return layers.decoder(b, c, layer)
