"""mamba2: layers of nothing but state space mixers (arXiv 2405.21060)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import limits
from . import blocks, recurrent
from .config import Schema, Stack, read_config
from .recipe import FamilyModel


class Config(Stack, frozen=True, kw_only=True):
    """config.json of a Mamba 2."""

    num_heads: int = 128
    head_dim: int = 64
    state_size: int = 128
    expand: int = 2
    conv_kernel: int = 4
    n_groups: int = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    time_step_limit: list[float] | None = None


SCHEMA = Schema(
    "Mamba2ForCausalLM",
    fixed={"hidden_act": ("silu",), "rms_norm": (True,)},
    ignored=frozenset(
        "chunk_size norm_before_gate rescale_prenorm_residual time_step_floor time_step_max "
        "time_step_min time_step_rank".split()
    ),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`.

    The context is as long as edgert takes any: nothing in the model ends.
    """
    c = read_config(recurrent.with_limit(raw), Config, SCHEMA, faults)
    mixer = recurrent.Mixer(
        c.num_heads, c.head_dim, c.n_groups, c.state_size, c.conv_kernel,
        conv_bias=c.use_conv_bias, bias=c.use_bias, steps=recurrent.step_limits(c.time_step_limit),
    ).checked(c.expand * c.hidden_size, faults)  # fmt: skip
    if not 0 < c.layer_norm_epsilon < 1:
        faults.append(f"config 'layer_norm_epsilon' is {c.layer_norm_epsilon}, expected 0 to 1")
    b = blocks.Stacked(c, eps=c.layer_norm_epsilon, context=limits.CONTEXT_TOKENS)
    x = blocks.embedding(b, tied=c.tie_word_embeddings, table="backbone.embeddings.weight")
    for layer in range(b.layers):
        at, tensor = f"layers.{layer}", f"backbone.layers.{layer}"
        h = b.norm(x, f"{at}.norm1", f"{tensor}.norm.weight")
        x = b.add(x, recurrent.mamba(b, layer, h, f"{tensor}.mixer", mixer), f"{at}.add2")
    return blocks.head(b, x, tied=c.tie_word_embeddings, norm="backbone.norm_f")
