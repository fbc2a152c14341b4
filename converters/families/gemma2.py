"""gemma2: sandwich norms, soft caps, alternating windows (arXiv 2408.00118)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Gemma 2."""

    num_key_value_heads: int | None
    head_dim: int = 256
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0


SCHEMA = Schema(
    "Gemma2ForCausalLM",
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "hidden_act": (None, "gelu_pytorch_tanh"),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
    ignored=frozenset({"sliding_window_size"}),  # an old name, beside the new one
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = c.layer_types or sliding.pattern(2, b.layers, faults)
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    scale = blocks.attention_scale(c.query_pre_attn_scalar, faults)
    turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    cap = blocks.softcap(c.attn_logit_softcapping, "attn_logit_softcapping", faults)
    last = blocks.softcap(c.final_logit_softcapping, "final_logit_softcapping", faults)
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    for layer in range(b.layers):
        x = layers.sandwich_layer(
            b, layer, x, turns, act="gelu_tanh", window=windows[layer], scale=scale,
            softcap=cap,
        )  # fmt: skip
    return blocks.head(b, x, tied=c.tie_word_embeddings, softcap=last, offset=1.0)
