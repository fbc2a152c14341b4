"""gemma: the first Gemma, Llama's layer with norms stored as w - 1 (arXiv 2403.08295)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Gemma."""

    head_dim: int = 256
    tie_word_embeddings: bool = True
    attention_bias: bool = False


SCHEMA = Schema(
    "GemmaForCausalLM",
    fixed={
        # the first configs say gelu and mean its tanh form, as transformers does
        "hidden_act": ("gelu", "gelu_pytorch_tanh"),
        "hidden_activation": (None, "gelu_pytorch_tanh"),
    },
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="gelu_tanh", offset=1.0, qkv_bias=c.attention_bias,
            o_bias=c.attention_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer, scale=b.width**0.5, offset=1.0)
