"""gpt_neox: Pythia and GPT-NeoX, halves side by side, q, k and v in turn (arXiv 2204.06745)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

NAMES = {
    "self_attn.qkv_proj": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
ACTS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu"}
OLD = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a GPT-NeoX."""

    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float | None = None
    hidden_act: str = "gelu"
    use_parallel_residual: bool = True
    attention_bias: bool = True


SCHEMA = Schema("GPTNeoXForCausalLM")


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    raw = {OLD.get(key, key): value for key, value in raw.items()}
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c)
    b.prefix, b.names = "gpt_neox.layers", NAMES
    b.affine, b.eps = "bias", blocks.epsilon(c.layer_norm_eps, "layer_norm_eps", faults)
    act = blocks.act_of(c.hidden_act, ACTS, faults)
    turns = layers.turning(b, c, faults, partial=0.25)
    options: dict[str, Any] = {
        "act": act, "mlp": "plain", "mlp_bias": True, "by_head": True,
        "qkv_bias": c.attention_bias, "o_bias": c.attention_bias,
    }  # fmt: skip

    def layer(index: int, x: str) -> str:
        if c.use_parallel_residual:
            return layers.parallel_layer(b, index, x, turns, shared=False, **options)
        return layers.pre_norm_layer(b, index, x, turns, **options)

    return layers.decoder(
        b, c, layer, table="gpt_neox.embed_in.weight", norm="gpt_neox.final_layer_norm",
        alias="embed_out.weight",
    )  # fmt: skip
