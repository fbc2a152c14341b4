"""qwen3_moe: Qwen3 whose feed-forwards are mixtures of experts (arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, experts, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Qwen3 with experts. transformers writes num_local_experts."""

    num_key_value_heads: int | None
    head_dim: int = 128
    attention_bias: bool = False
    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None


SCHEMA = Schema(
    "Qwen3MoeForCausalLM", fixed={"hidden_act": ("silu",), "use_sliding_window": (False,)}
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    turns = layers.turning(b, c, faults)
    count = experts.said(
        ("num_experts", "num_local_experts"), (c.num_experts, c.num_local_experts), faults
    )
    sparse = experts.sparse_layers(c, count, faults)
    e = experts.Experts(
        count, c.num_experts_per_tok, c.moe_intermediate_size, normalised=c.norm_topk_prob
    )
    if any(sparse):
        e = experts.checked(e, b.width, experts.QWEN_KEYS, faults)

    def feed(layer: int, x: str) -> str:
        if not sparse[layer]:
            return blocks.mlp(b, layer, x, "silu")
        return experts.feed_forward(b, layer, x, e, "mlp.gate")

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", qk_norm=True, qkv_bias=c.attention_bias,
            o_bias=c.attention_bias, feed=feed,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
