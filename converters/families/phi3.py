"""phi3: fused projections, partial rotary channels, LongRoPE (arXiv 2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Phi-3, Phi-3.5 or Phi-4-mini text model."""

    rms_norm_eps: float = 1e-5
    head_dim: int | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None
    sliding_window: int | None = None


SCHEMA = Schema(
    "Phi3ForCausalLM",
    fixed={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
    },
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    window = sliding.window_of(c.sliding_window, faults)
    found = rope(
        _parameters(c), b.head_dim, b.context, faults, types=("default", "longrope"), partial=True
    )
    turns = blocks.rotary(b, found)
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        x = layers.pre_norm_layer(b, layer, x, turns, act="silu", fused=True, window=window)
    return blocks.head(b, x, tied=c.tie_word_embeddings)


def _parameters(c: Config) -> dict[str, Any]:
    """The keys outside the rope parameters belong to them; "su" and "yarn" are old names."""
    params = rope_parameters(c)
    if params["rope_type"] in ("su", "yarn"):
        params["rope_type"] = "longrope"
    if c.partial_rotary_factor is not None:
        params.setdefault("partial_rotary_factor", c.partial_rotary_factor)
    if params["rope_type"] == "longrope":
        # transformers' default for an absent key
        params["original_max_position_embeddings"] = c.original_max_position_embeddings or 4096
    else:
        params.pop("original_max_position_embeddings", None)
    return params
