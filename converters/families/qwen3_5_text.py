"""qwen3_5_text: the text of Qwen 3.5, gated delta rule with gated attention in each 4th layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import blocks, delta, mtp
from .config import Schema, read_config
from .recipe import FamilyModel, Part

SCHEMA = Schema(
    "Qwen3_5ForCausalLM",
    fixed={"hidden_act": ("silu",), "attn_output_gate": (True,), "mlp_only_layers": ([],)},
    ignored=frozenset("mamba_ssm_dtype mtp_num_hidden_layers mtp_use_dedicated_embeddings".split()),
)


def projections_of(c: delta.Config, layer: int) -> delta.Projections:
    """A tensor for each."""
    tensor, width = f"model.layers.{layer}.linear_attn", c.hidden_size
    keys = c.linear_num_key_heads * c.linear_key_head_dim
    heads = c.linear_num_value_heads
    values = heads * c.linear_value_head_dim
    return delta.Projections(
        [Part(f"{tensor}.in_proj_qkv.weight", (2 * keys + values, width))],
        [Part(f"{tensor}.in_proj_z.weight", (values, width))],
        [Part(f"{tensor}.in_proj_{key}.weight", (heads, width)) for key in ("b", "a")],
    )


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, delta.Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = delta.checked(c, faults)
    rotary = delta.turns(b, c, kinds, faults)
    projections = {layer: projections_of(c, layer) for layer in range(b.layers)}
    return delta.layers(b, c, kinds, rotary, projections)


def draft(raw: Mapping[str, Any], model: FamilyModel, ids: Sequence[int]) -> FamilyModel:
    """The layer that predicts one token more, of a built model, see `mtp.layer`."""
    return mtp.layer(read_config(raw, delta.Config, SCHEMA, []), model, ids)
