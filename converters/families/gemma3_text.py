"""gemma3_text: Gemma 3's text model: q/k norm, local and global RoPE (arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import Rope, rope

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
    kinds = c.layer_types or blocks.pattern(c.sliding_window_pattern, b.layers, faults)
    windows = blocks.typed_windows(kinds, c.sliding_window, b.layers, faults)
    scale = blocks.attention_scale(c.query_pre_attn_scalar, faults)
    turns = {
        kind: blocks.rotary(b, _rope(c, kind, b, faults), f"inv_freq_{kind.split('_')[0]}")
        for kind in sorted({blocks.kind_of(window) for window in windows})
    }
    last = blocks.softcap(c.final_logit_softcapping, "final_logit_softcapping", faults)
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    for layer in range(b.layers):
        x = blocks.sandwich_layer(
            b, layer, x, turns[blocks.kind_of(windows[layer])], act="gelu_tanh",
            window=windows[layer], scale=scale, qk_norm=True, qk_offset=1.0,
        )  # fmt: skip
    return blocks.head(b, x, tied=c.tie_word_embeddings, softcap=last, offset=1.0)


def _rope(c: Config, kind: str, b: blocks.Builder, faults: list[str]) -> Rope:
    """Local layers turn by their own base; scaling (rope_scaling) is the global layers' alone."""
    slides = kind == blocks.SLIDING
    if c.rope_parameters is not None:
        found = c.rope_parameters.get(kind) or {}
        if not isinstance(found, dict) or set(c.rope_parameters) - set(blocks.KINDS):
            faults.append(
                f"config 'rope_parameters' has {sorted(c.rope_parameters)[:8]}, expected one set "
                f"for each of {list(blocks.KINDS)}"
            )
            found = {}
        params = dict(found)
    else:
        params = {} if slides else dict(c.rope_scaling or {})
    old = params.pop("type", "default")
    params.setdefault("rope_type", old)
    own, default = (c.rope_local_base_freq, LOCAL_THETA) if slides else (c.rope_theta, GLOBAL_THETA)
    params.setdefault("rope_theta", own if own is not None else default)
    return rope(params, b.head_dim, b.context, faults)
