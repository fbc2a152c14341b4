"""phi: Phi-1, 1.5 and 2, halves side by side, biases everywhere (arXiv 2309.05463)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {
    "self_attn.o_proj": "self_attn.dense",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
ACTS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Phi."""

    head_dim: int | None = None
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float | None = None
    hidden_act: str = "gelu_new"


SCHEMA = Schema("PhiForCausalLM", fixed={"qk_layernorm": (False,)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    b.names = NAMES
    b.affine, b.eps = "bias", blocks.epsilon(c.layer_norm_eps, "layer_norm_eps", faults)
    act = blocks.act_of(c.hidden_act, ACTS, faults)
    turns = layers.turning(b, c, faults, partial=0.5)

    def layer(index: int, x: str) -> str:
        return layers.parallel_layer(
            b, index, x, turns, act=act, mlp="plain", mlp_bias=True, qkv_bias=True, o_bias=True
        )

    return layers.decoder(b, c, layer, norm="model.final_layernorm", bias=True)
