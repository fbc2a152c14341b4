"""gpt_oss: experts with clamped gates, sinks, a window in every other layer (arXiv 2508.10925)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, experts, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel

KEYS = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
THETA = 150_000.0


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a gpt-oss. `experts_per_token` is another name."""

    head_dim: int = 64
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: list[str] | None = None
    num_local_experts: int = 128
    num_experts_per_tok: int | None = None
    experts_per_token: int | None = None
    swiglu_limit: float = 7.0


SCHEMA = Schema(
    "GptOssForCausalLM",
    fixed={"hidden_act": ("silu",), "swiglu_alpha": (1.702,)},
    ignored=frozenset({"initial_context_length"}),
)


def _windows(c: Config, faults: list[str]) -> list[int]:
    kinds = c.layer_types or [
        sliding.FULL if i % 2 else sliding.SLIDING for i in range(c.num_hidden_layers)
    ]
    return sliding.typed_windows(kinds, c.sliding_window, c.num_hidden_layers, faults)


def _experts(c: Config, faults: list[str]) -> experts.Experts:
    names = ("num_experts_per_tok", "experts_per_token")
    found = (c.num_experts_per_tok, c.experts_per_token)
    active = experts.said(names, found, faults) if set(found) != {None} else 4
    if not 0 < c.swiglu_limit < 1e9:
        faults.append(f"config 'swiglu_limit' is {c.swiglu_limit}, expected a positive number")
    attrs = {"limit": float(c.swiglu_limit), "shift": 1.0}
    e = experts.Experts(
        c.num_local_experts, active, c.intermediate_size, act="quick_gelu", attrs=attrs
    )
    return experts.checked(e, c.hidden_size, KEYS, faults)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    if not raw.get("rope_parameters") and not raw.get("rope_scaling"):
        raw = {**raw, "rope_scaling": YARN}
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    windows, e = _windows(c, faults), _experts(c, faults)
    turns = layers.turning(b, c, faults, theta=THETA)

    def feed(layer: int, x: str) -> str:
        return experts.feed_forward(b, layer, x, e, "mlp.router", bias=True)

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", window=windows[index], sinks=True,
            qkv_bias=c.attention_bias, o_bias=c.attention_bias, feed=feed,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
