"""granitemoehybrid: Granite 4.0, state space mixers with attention here and there, maybe experts.

Multipliers go into the weights that they stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import limits
from . import blocks, experts, recurrent
from .config import Decoder, Schema, read_config, size_faults
from .granitemoe import KEYS, MODULE
from .recipe import FamilyModel
from .rope import rope, rope_parameters

MIXER, FULL = "linear_attention", "full_attention"
KINDS = {"mamba": MIXER, "attention": FULL, MIXER: MIXER, FULL: FULL}
NO_POSITIONS = (None, "nope")
FACTORS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Granite 4.0. mamba_norm_eps: of a mixer's norm, where it is not that of the
    others, as sources have it that scale rows between layers."""

    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: list[str] | None = None
    layers_block_type: list[str] | None = None
    mamba_n_heads: int = 128
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_head: int | str = "auto"
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_norm_eps: float | None = None
    time_step_limit: list[float] | None = None


SCHEMA = Schema(
    "GraniteMoeHybridForCausalLM",
    fixed={"hidden_act": ("silu",), "normalization_function": ("rmsnorm",)},
    ignored=frozenset("mamba_chunk_size init_method".split()),
)


def _kinds(c: Config, faults: list[str]) -> list[str]:
    """Type of each layer."""
    found = c.layer_types or c.layers_block_type or [MIXER] * c.num_hidden_layers
    if len(found) != c.num_hidden_layers or set(found) - set(KINDS):
        faults.append(
            f"config 'layer_types' has {len(found)} entries of {sorted(set(found))[:8]}, expected "
            f"{c.num_hidden_layers} of {sorted(KINDS)}"
        )
        return [MIXER] * c.num_hidden_layers
    return [KINDS[kind] for kind in found]


def _mixer(c: Config, out: float, kinds: list[str], faults: list[str]) -> recurrent.Mixer:
    inner = c.mamba_expand * c.hidden_size
    if isinstance(c.mamba_d_head, str) and c.mamba_d_head != "auto":
        faults.append(f"config 'mamba_d_head' is {c.mamba_d_head[:40]!r}, expected a size or auto")
    size = c.mamba_d_head
    if isinstance(size, str):
        size = inner // max(1, c.mamba_n_heads)
    mixer = recurrent.Mixer(
        c.mamba_n_heads, size, c.mamba_n_groups, c.mamba_d_state, c.mamba_d_conv,
        conv_bias=c.mamba_conv_bias, bias=c.mamba_proj_bias,
        steps=recurrent.step_limits(c.time_step_limit), out=out, eps=c.mamba_norm_eps,
    )  # fmt: skip
    if c.mamba_norm_eps is not None:
        blocks.epsilon(c.mamba_norm_eps, "mamba_norm_eps", faults)
    return mixer.checked(inner, faults) if MIXER in kinds else mixer


def _fed(b: blocks.Builder, layer: int, x: str, e: experts.Experts, residual: float) -> str:
    """The feed-forward of all rows, and beside it that of experts, where there are some."""
    names = ("shared_mlp.input_linear", "shared_mlp.output_linear")
    y = blocks.fused_mlp(b, layer, x, "silu", names=names, scale=residual)
    if not e.count:
        return y
    picked = experts.feed_forward(
        b, layer, x, e, f"{MODULE}.router.layer", module=f"{MODULE}.experts"
    )
    return b.add(picked, y, f"layers.{layer}.experts_shared")


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(recurrent.with_limit(raw), Config, SCHEMA, faults)
    b = blocks.Builder(c)
    broken = size_faults(c, {"shared_intermediate_size": limits.TENSOR_DIM - 1})
    faults += broken
    b.ff = 1 if broken else c.shared_intermediate_size
    embed, logits, residual, scale = blocks.multipliers(c, FACTORS, faults)
    e = experts.Experts(
        c.num_local_experts, c.num_experts_per_tok, c.intermediate_size, attrs={"scale": residual}
    )
    if e.count:
        e = experts.checked(e, b.width, KEYS, faults)
    kinds = _kinds(c, faults)
    mixer = _mixer(c, residual, kinds, faults)
    turns = blocks.NO_ROPE
    if c.position_embedding_type not in (*NO_POSITIONS, "rope"):
        kind = c.position_embedding_type
        faults.append(f"config 'position_embedding_type' is {kind!r}, expected rope or nope")
    elif c.position_embedding_type == "rope" and FULL in kinds:
        turns = blocks.rotary(b, rope(rope_parameters(c), b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=embed)
    for layer, kind in enumerate(kinds):
        at, tensor = f"layers.{layer}", f"model.layers.{layer}"
        h = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm")
        if kind == MIXER:
            h = recurrent.mamba(b, layer, h, f"{tensor}.mamba", mixer)
        else:
            rows = blocks.qkv(b, layer, h, bias=c.attention_bias)
            h = blocks.attention(b, layer, rows, turns, scale=scale)
            h = blocks.output_projection(b, layer, h, bias=c.attention_bias, scale=residual)
        x = b.add(x, h, f"{at}.add1")
        h = blocks.layer_norm(b, layer, x, "norm2", "post_attention_layernorm")
        x = b.add(x, _fed(b, layer, h, e, residual), f"{at}.add2")
    return blocks.head(b, x, tied=c.tie_word_embeddings, scale=1 / logits)
