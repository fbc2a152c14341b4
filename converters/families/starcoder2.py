"""starcoder2: StarCoder 2, layer norms, a feed-forward without a gate (arXiv 2402.19173)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
TANH = ("gelu_pytorch_tanh",)


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a StarCoder 2."""

    head_dim: int | None = None
    norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    use_bias: bool = True
    sliding_window: int | None = None


SCHEMA = Schema(
    "Starcoder2ForCausalLM",
    fixed={
        "hidden_act": TANH, "activation_function": TANH, "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
    },
    ignored=frozenset({"layer_norm_epsilon", "scale_attention_softmax_in_fp32"}),
)  # fmt: skip


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    b.names = NAMES
    b.affine, b.eps = "bias", blocks.epsilon(c.norm_epsilon, "norm_epsilon", faults)
    window = sliding.window_of(c.sliding_window, faults)
    turns = layers.turning(b, c, faults)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="gelu_tanh", mlp="plain", mlp_bias=c.use_bias,
            qkv_bias=c.use_bias, o_bias=c.use_bias, window=window,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
