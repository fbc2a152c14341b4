"""ministral3: Ministral 3, Llama's layer with YaRN and queries that grow along the text.

A query at p is multiplied by 1 + beta log(1 + floor(p / original)), which is 1 in the first
`original_max_position_embeddings` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, positions, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
DEFAULT = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, ORIGINAL: 16_384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, BETA: 0.1,
}  # fmt: skip


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Ministral 3 text model."""

    head_dim: int | None = 128
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None


SCHEMA = Schema("Ministral3ForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or DEFAULT
    rope = dict(found) if isinstance(found, dict) else {}
    beta, end = rope.pop(BETA, None), rope.get(ORIGINAL)
    rope.pop("max_position_embeddings", None)  # which transformers does not read
    raw = {key: value for key, value in raw.items() if key != "rope_scaling"}
    c = read_config({**raw, "rope_parameters": rope}, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    window = sliding.window_of(c.sliding_window, faults)
    turns = layers.turning(b, c, faults)
    factors = None
    if type(beta) not in (int, float) or not 0 <= beta < 1e9 or type(end) is not int or end < 1:
        faults.append(f"rope: {BETA} is {beta!r:.40} and {ORIGINAL} {end!r:.40}, expected numbers")
    elif beta and end < b.context:
        factors = positions.logarithmic(b, float(beta), end)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(b, index, x, turns, act="silu", window=window, factors=factors)

    return layers.decoder(b, c, layer)
