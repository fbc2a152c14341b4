"""falcon_h1: attention and a state space mixer side by side in every layer (arXiv 2507.22448).

The multipliers of a config stand beside products, and go into their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, recurrent
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import rope, rope_parameters

FF = ("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj")
FACTORS = (
    "embedding_multiplier", "lm_head_multiplier", "attention_in_multiplier",
    "attention_out_multiplier", "key_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
)  # fmt: skip


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Falcon-H1."""

    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    mamba_d_ssm: int | None = 1024
    mamba_n_heads: int = 128
    mamba_d_head: int | str = "auto"
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    time_step_limit: list[float] | None = None
    embedding_multiplier: float = 1.0
    lm_head_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    key_multiplier: float = 1.0
    mlp_multipliers: list[float] | None = None
    ssm_multipliers: list[float] | None = None
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0


SCHEMA = Schema(
    "FalconH1ForCausalLM",
    fixed={
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
        "mamba_proj_bias": (False,), "projectors_bias": (False,), "mamba_use_mlp": (True,),
    },
    ignored=frozenset("mamba_chunk_size mlp_expansion_factor num_logits_to_keep".split()),
)  # fmt: skip


def _factors(found: list[float] | None, count: int, name: str, faults: list[str]) -> list[float]:
    """A configured list of factors; null means ones."""
    if found is None:
        return [1.0] * count
    if len(found) != count or not all(1e-9 < value < 1e9 for value in found):
        faults.append(f"config {name!r} is {str(found)[:60]}, expected {count} positive numbers")
        return [1.0] * count
    return found


def _mixer(c: Config, inputs: float, out: float, faults: list[str]) -> recurrent.Mixer:
    inner = c.mamba_expand * c.hidden_size if c.mamba_d_ssm is None else c.mamba_d_ssm
    if isinstance(c.mamba_d_head, str) and c.mamba_d_head != "auto":
        faults.append(f"config 'mamba_d_head' is {c.mamba_d_head[:40]!r}, expected a size or auto")
    size = c.mamba_d_head
    if isinstance(size, str):
        size = inner // max(1, c.mamba_n_heads)
    factors = _factors(c.ssm_multipliers, 5, "ssm_multipliers", faults)
    mixer = recurrent.Mixer(
        c.mamba_n_heads, size, c.mamba_n_groups, c.mamba_d_state, c.mamba_d_conv,
        conv_bias=c.mamba_conv_bias,
        norm=("before" if c.mamba_norm_before_gate else "gated") if c.mamba_rms_norm else "",
        steps=recurrent.step_limits(c.time_step_limit),
        scales=tuple(inputs * factor for factor in factors), out=out,
    )  # fmt: skip
    return mixer.checked(inner, faults)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(recurrent.with_limit(raw), Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    embed, logits, into, out, key, ssm_in, ssm_out = blocks.multipliers(c, FACTORS, faults)
    gated, down = _factors(c.mlp_multipliers, 2, "mlp_multipliers", faults)
    mixer = _mixer(c, ssm_in, ssm_out, faults)
    turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=embed)
    for layer in range(b.layers):
        at, tensor = f"layers.{layer}", f"model.layers.{layer}"
        h = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm")
        mixed = recurrent.mamba(b, layer, h, f"{tensor}.mamba", mixer)
        rows = blocks.qkv(b, layer, h, scales=(into, into * key, into))
        seen = blocks.attention(b, layer, rows, turns)
        seen = blocks.output_projection(b, layer, seen, scale=out)
        x = b.add(b.add(x, mixed, f"{at}.mixed"), seen, f"{at}.add1")
        h = blocks.layer_norm(b, layer, x, "norm2", "pre_ff_layernorm")
        h = blocks.mlp(b, layer, h, "silu", names=FF, scales=(gated, 1.0, down))
        x = b.add(x, h, f"{at}.add2")
    return blocks.head(b, x, tied=c.tie_word_embeddings, norm="model.final_layernorm", scale=logits)
