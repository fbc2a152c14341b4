"""granitemoe: Granite 3's mixtures of experts, with the multipliers of `granite`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, experts, layers
from .config import Decoder, Schema, read_config
from .granite import FACTORS
from .recipe import FamilyModel

KEYS = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
MODULE = "block_sparse_moe"


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Granite 3 with experts."""

    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    num_local_experts: int = 8
    num_experts_per_tok: int = 2


SCHEMA = Schema("GraniteMoeForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    embed, logits, residual, scale = blocks.multipliers(c, FACTORS, faults)
    turns = layers.turning(b, c, faults)
    e = experts.Experts(
        c.num_local_experts, c.num_experts_per_tok, c.intermediate_size, attrs={"scale": residual}
    )
    e = experts.checked(e, b.width, KEYS, faults)

    def feed(layer: int, x: str) -> str:
        return experts.feed_forward(
            b, layer, x, e, f"{MODULE}.router.layer", module=f"{MODULE}.experts"
        )

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", qkv_bias=c.attention_bias, o_bias=c.attention_bias,
            residual=residual, scale=scale, feed=feed,
        )  # fmt: skip

    return layers.decoder(b, c, layer, scale=embed, scale_logits=1 / logits)
