"""gpt2: GPT-2 124M to 1.5B, a learned table of positions, matrices stored as [inputs, outputs]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {
    "input_layernorm": "ln_1",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
ACTS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "relu": "relu", "silu": "silu",
}  # fmt: skip
OLD = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size",
    "activation_function": "hidden_act", "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a GPT-2, by the names that other families have."""

    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False


SCHEMA = Schema(
    "GPT2LMHeadModel",
    also=("GPT2Model",),
    # how sums are rounded in training, and a head for other tasks
    ignored=frozenset(
        """
        reorder_and_upcast_attn summary_activation summary_proj_to_labels summary_type
        summary_use_proj
        """.split()
    ),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    raw = {OLD.get(key, key): value for key, value in raw.items()}
    if raw.get("intermediate_size") is None and type(raw.get("hidden_size")) is int:
        raw["intermediate_size"] = 4 * raw["hidden_size"]
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    b.prefix, b.names, b.transposed = "transformer.h", NAMES, True
    b.affine, b.eps = "bias", blocks.epsilon(c.layer_norm_eps, "layer_norm_epsilon", faults)
    act = blocks.act_of(c.hidden_act, ACTS, faults)
    scale = b.head_dim**-0.5 if c.scale_attn_weights else 1.0

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, blocks.NO_ROPE, act=act, fused=True, mlp="plain", mlp_bias=True,
            qkv_bias=True, o_bias=True,
            scale=scale / (index + 1) if c.scale_attn_by_inverse_layer_idx else scale,
        )  # fmt: skip

    return layers.decoder(
        b, c, layer, table="transformer.wte.weight", norm="transformer.ln_f",
        table_of_positions="transformer.wpe.weight",
    )  # fmt: skip
