"""qwen3_next: gated delta rule with gated attention in each 4th layer, where no layer has experts.

Experts are refused: of this family edgert converts models whose layers are all dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, delta
from .config import Schema, read_config
from .recipe import FamilyModel, Part
from .recurrent import span


class Config(delta.Config, frozen=True, kw_only=True):
    """config.json of a Qwen3-Next."""

    num_experts: int = 512
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None


SCHEMA = Schema(
    "Qwen3NextForCausalLM",
    fixed={"hidden_act": ("silu",)},
    ignored=frozenset(
        "moe_intermediate_size shared_expert_intermediate_size num_experts_per_tok "
        "norm_topk_prob".split()
    ),
)


def _check_dense(c: Config, faults: list[str]) -> None:
    """A fault where a layer has experts."""
    dense, step = c.mlp_only_layers or [], c.decoder_sparse_step
    if step < 1:
        faults.append(f"config 'decoder_sparse_step' is {step}, expected 1 or more")
        return
    sparse = [
        i for i in range(c.num_hidden_layers)
        if c.num_experts and i not in dense and (i + 1) % step == 0
    ]  # fmt: skip
    if sparse:
        faults.append(
            f"config 'num_experts' is {c.num_experts}: layers {sparse[:8]} have experts, expected "
            "none: edgert has no experts yet, of this family it converts dense models"
        )


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
    qkv = [*rows(0, keys), *rows(keys, keys), *rows(2 * keys, values)]
    return delta.Projections(qkv, rows(2 * keys + values, values), gates)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    _check_dense(c, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = delta.checked(c, faults)
    rotary = delta.turns(b, c, kinds, faults)
    linear = [layer for layer, kind in enumerate(kinds) if kind == delta.LINEAR]
    projections = {layer: _projections(c, layer) for layer in linear}
    return delta.layers(b, c, kinds, rotary, projections)
