"""stablelm: StableLM 3B and 2, layer norms with biases, a quarter of a head turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a StableLM."""

    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float | None = None
    use_qkv_bias: bool = False
    use_parallel_residual: bool = False


SCHEMA = Schema("StableLmForCausalLM", fixed={"hidden_act": ("silu",), "qk_layernorm": (False,)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    b.affine, b.eps = "bias", blocks.epsilon(c.layer_norm_eps, "layer_norm_eps", faults)
    turns = layers.turning(b, c, faults, partial=0.25)
    put = layers.parallel_layer if c.use_parallel_residual else layers.pre_norm_layer

    def layer(index: int, x: str) -> str:
        return put(b, index, x, turns, act="silu", qkv_bias=c.use_qkv_bias)

    return layers.decoder(b, c, layer)
