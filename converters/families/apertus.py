"""apertus: Apertus 8B and 70B, a feed-forward of xIELU without a gate, query and key norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {
    "input_layernorm": "attention_layernorm",
    "post_attention_layernorm": "feedforward_layernorm",
}
DEFAULT = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an Apertus."""

    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False


SCHEMA = Schema(
    "ApertusForCausalLM",
    fixed={"hidden_act": ("xielu",), "qk_norm": (True,), "mlp_bias": (False,)},
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    if not raw.get("rope_parameters") and not raw.get("rope_scaling"):
        raw = {**raw, "rope_parameters": DEFAULT}
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    b.names = NAMES
    turns = layers.turning(b, c, faults, theta=12e6)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="xielu", mlp="plain", qk_norm=True,
            qkv_bias=c.attention_bias, o_bias=c.attention_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
