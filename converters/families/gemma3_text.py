"""gemma3_text: Gemma 3's text model: q/k norm, local and global RoPE (arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Gemma 3 text model."""

    num_key_value_heads: int | None
    head_dim: int = 256
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 6
    layer_types: list[str] | None = None
    rope_local_base_freq: float | None = None
    final_logit_softcapping: float | None = None


SCHEMA = Schema(
    "Gemma3ForCausalLM",
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "hidden_act": (None, "gelu_pytorch_tanh"),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
    },
    ignored=frozenset({"_sliding_window_pattern"}),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = c.layer_types or sliding.pattern(c.sliding_window_pattern, b.layers, faults)
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    scale = blocks.attention_scale(c.query_pre_attn_scalar, faults)
    wide, local = (
        own if own is not None else default
        for own, default in ((c.rope_theta, GLOBAL_THETA), (c.rope_local_base_freq, LOCAL_THETA))
    )
    turns = layers.typed_turning(b, c, windows, faults, theta=(wide, local))
    last = blocks.softcap(c.final_logit_softcapping, "final_logit_softcapping", faults)
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    for layer in range(b.layers):
        x = layers.sandwich_layer(
            b, layer, x, turns[sliding.kind_of(windows[layer])], act="gelu_tanh",
            window=windows[layer], scale=scale, qk_norm=True, qk_offset=1.0,
        )  # fmt: skip
    return blocks.head(b, x, tied=c.tie_word_embeddings, softcap=last, offset=1.0)
