"""2mamba: decoders that are trained with linear attention, edgert's own layout (arXiv 2602.17363).

A Llama with `linear.LinearAttention` in the layers that `layer_types` calls "linear_attention"
(all, by default), without a rotary embedding there: convolution and decay tell the place. Layers of
full attention rotate by `rope_theta` where that is given. In mode mamba2s the heads' outputs are
normed together before the output projection (self_attn.norm.weight [H * D]).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, linear
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a 2mamba."""

    head_dim: int | None = None
    layer_types: list[str] | None = None
    linear_attention: dict[str, Any] | None = None


SCHEMA = Schema("TwoMambaForCausalLM", fixed={"hidden_act": ("silu",)})


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    kinds = c.layer_types or [linear.LINEAR] * c.num_hidden_layers
    if len(kinds) != c.num_hidden_layers or set(kinds) - {linear.LINEAR, linear.FULL}:
        faults.append(
            f"config 'layer_types' has {len(kinds)} entries of {sorted(set(kinds))[:8]}, expected "
            f"{c.num_hidden_layers} of {[linear.LINEAR, linear.FULL]}"
        )
        kinds = [linear.LINEAR] * c.num_hidden_layers
    spec = linear.read({"decay_bias": False} | (c.linear_attention or {}), faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    turns = blocks.NO_ROPE
    if linear.FULL in kinds and (c.rope_theta or c.rope_parameters):
        turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer, kind in enumerate(kinds):
        mine = turns if kind == linear.FULL else blocks.NO_ROPE
        x = _layer(b, layer, x, mine, normed=kind == linear.LINEAR and spec.mode == "mamba2s")
    model = blocks.head(b, x, tied=c.tie_word_embeddings)
    layers = [index for index, kind in enumerate(kinds) if kind == linear.LINEAR]
    return linear.hybrid(model, layers, spec, faults)


def _layer(b: blocks.Builder, layer: int, x: str, turns: blocks.Rotary, *, normed: bool) -> str:
    """The Llama layer, with a norm over all heads' outputs where it is `normed`."""
    at = f"layers.{layer}"
    h = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm")
    h = blocks.attention(b, layer, blocks.qkv(b, layer, h), turns)
    if normed:
        tensor = f"model.layers.{layer}.self_attn.norm.weight"
        weight = b.vector(f"{at}.heads_norm", tensor, b.heads * b.head_dim)
        h = b.node(
            "rms_norm", [h], f"{at}.heads_norm", weights={"weight": weight}, attrs={"eps": b.eps}
        )
    x = b.add(x, blocks.output_projection(b, layer, h), f"{at}.add1")
    h = blocks.layer_norm(b, layer, x, "norm2", "post_attention_layernorm")
    return b.add(x, blocks.mlp(b, layer, h, "silu"), f"{at}.add2")
