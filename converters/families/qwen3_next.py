"""qwen3_next: gated delta rule with gated attention in each 4th layer, dense or with experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import blocks, delta, experts, mtp, qwen3_5_text
from .config import Schema, read_config
from .recipe import FamilyModel, Part
from .recurrent import span


class Config(delta.Config, frozen=True, kw_only=True):
    """config.json of a Qwen3-Next. in_proj_apart: whether in_proj_qkvz is in two tensors,
    in_proj_qkv and in_proj_z, as GGUF files have it; no published config says so."""

    in_proj_apart: bool = False
    num_experts: int = 512
    num_experts_per_tok: int = 10
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None


SCHEMA = Schema("Qwen3NextForCausalLM", fixed={"hidden_act": ("silu",)})


def _projections(c: Config, layer: int) -> delta.Projections:
    """in_proj_qkvz holds of each key head its query, key, values and their gates; in_proj_ba the
    gates of update and decay of its values."""
    tensor, width = f"model.layers.{layer}.linear_attn", c.hidden_size
    count, keys = c.linear_num_key_heads, c.linear_key_head_dim
    share = c.linear_num_value_heads // count
    values = share * c.linear_value_head_dim
    name, unit = f"{tensor}.in_proj_qkvz.weight", 2 * keys + 2 * values

    def rows(start: int, size: int) -> list[Part]:
        whole = (count * unit, width)
        return [span(name, whole, head * unit + start, size) for head in range(count)]

    gates = [
        span(f"{tensor}.in_proj_ba.weight", (2 * count * share, width), start, share)
        for first in (0, share)
        for start in range(first, 2 * count * share, 2 * share)
    ]
    if c.in_proj_apart:
        return replace(qwen3_5_text.projections_of(c, layer), gates=gates)
    qkv = [*rows(0, keys), *rows(keys, keys), *rows(2 * keys, values)]
    return delta.Projections(qkv, rows(2 * keys + values, values), gates)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = delta.checked(c, faults)
    rotary = delta.turns(b, c, kinds, faults)
    linear = [layer for layer, kind in enumerate(kinds) if kind == delta.LINEAR]
    projections = {layer: _projections(c, layer) for layer in linear}
    sparse = experts.sparse_layers(c, c.num_experts, faults)
    feed = experts.beside_shared(b, c, c.num_experts, faults, sparse, normalised=c.norm_topk_prob)
    return delta.layers(b, c, kinds, rotary, projections, feed)


def draft(raw: Mapping[str, Any], model: FamilyModel, ids: Sequence[int]) -> FamilyModel:
    """The layer that predicts one token more, of a built model, see `mtp.layer`. Its feed-forward
    is that of the first layer."""
    c = read_config(raw, Config, SCHEMA, [])

    def feeds(b: blocks.Builder) -> delta.Feed:
        sparse = experts.sparse_layers(c, c.num_experts, [])
        normalised = c.norm_topk_prob
        return experts.beside_shared(b, c, c.num_experts, [], sparse, normalised=normalised)

    return mtp.layer(c, model, ids, feeds)
