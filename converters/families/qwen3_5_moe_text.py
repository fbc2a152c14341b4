"""qwen3_5_moe_text: the text of Qwen 3.5 with experts, its layers those of `qwen3_5_text`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import blocks, delta, experts, mtp, qwen3_5_text
from .config import Schema, read_config
from .recipe import FamilyModel


class Config(delta.Config, frozen=True, kw_only=True):
    """Its config.json. No layer is dense, so `intermediate_size` says nothing."""

    intermediate_size: int = 1
    num_experts: int = 256
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512


SCHEMA = Schema(
    "Qwen3_5MoeForCausalLM",
    fixed={**qwen3_5_text.SCHEMA.fixed, "norm_topk_prob": (True,)},
    ignored=qwen3_5_text.SCHEMA.ignored,
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = delta.checked(c, faults)
    rotary = delta.turns(b, c, kinds, faults)
    projections = {layer: qwen3_5_text.projections_of(c, layer) for layer in range(b.layers)}
    feed = experts.beside_shared(b, c, c.num_experts, faults, [True] * b.layers)
    return delta.layers(b, c, kinds, rotary, projections, feed)


def draft(raw: Mapping[str, Any], model: FamilyModel, ids: Sequence[int]) -> FamilyModel:
    """The layer that predicts one token more, of a built model, see `mtp.layer`."""
    c = read_config(raw, Config, SCHEMA, [])

    def feeds(b: blocks.Builder) -> delta.Feed:
        return experts.beside_shared(b, c, c.num_experts, [], [True])

    return mtp.layer(c, model, ids, feeds)
