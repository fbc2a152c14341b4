"""gemma4_text: Gemma 4's dense text models, an embedding for each layer, keys that layers share.

The last `num_kv_shared_layers` layers read the keys and values of the last layer before them that
is of their type. Layers without a window have heads of their own size, of which a part turns. A
layer's own embedding e of a token, and a projection of its first rows, enter behind its halves:

    p  = (norm(W x0) + e) / sqrt(2)
    x <- (x + norm(U (gelu(V x) * p))) * s                s is the layer's own number
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, per_layer, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel, Part, Recipe
from .rope import COMMON

DEFAULT = {
    sliding.SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    sliding.FULL: {
        "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0,
    },
}  # fmt: skip


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Gemma 4 text model. Sizes of layers without a window are said by
    `global_head_dim`, or for each by `per_layer_config`."""

    head_dim: int = 256
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 512
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    per_layer_config: dict[str, Any] | None = None


SCHEMA = Schema(
    "Gemma4ForCausalLM",
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh",),
        "enable_moe_block": (False,), "use_bidirectional_attention": ("vision", None),
    },
    ignored=frozenset({"expert_intermediate_size"}),
)  # fmt: skip


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    if raw.get("rope_parameters") is None:
        raw = {**raw, "rope_parameters": DEFAULT}
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = list(c.layer_types or sliding.pattern(6, b.layers, faults))
    kinds[-1:] = [sliding.FULL]
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    heads = _global_heads(c, kinds, faults)
    shared = c.num_kv_shared_layers
    if not 0 <= shared < b.layers or set(kinds[: b.layers - shared]) != set(kinds):
        faults.append(
            f"config 'num_kv_shared_layers' is {shared}, expected fewer than {b.layers} layers, "
            "behind one of each type that they have"
        )
        shared = 0
    turns = layers.typed_turning(
        b, c, windows, faults, theta=(1e6, 1e4), sizes={sliding.FULL: heads[1]},
        types=(*COMMON, "proportional"),
    )  # fmt: skip
    found = {
        kind: per_layer.Kind(*(heads if kind == sliding.FULL else (b.kv_heads, b.head_dim)), window,
                    turns[kind])
        for kind, window in zip(kinds, windows, strict=False)
    }  # fmt: skip
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    each = per_layer.inputs(b, c, x, faults) if c.hidden_size_per_layer_input else ""
    for index, kind in enumerate(kinds):
        first = b.layers - shared
        owner = index if index < first else first - 1 - kinds[:first][::-1].index(kind)
        x = _layer(b, c, index, x, found[kind], owner, each)
    cap = blocks.softcap(c.final_logit_softcapping, "final_logit_softcapping", faults)
    return blocks.head(b, x, tied=c.tie_word_embeddings, softcap=cap)


def _global_heads(c: Config, kinds: list[str], faults: list[str]) -> tuple[int, int]:
    """Heads of keys, and size of heads, of layers without a window."""
    size, groups = c.global_head_dim or 512, c.kv_heads
    if c.attention_k_eq_v:
        groups = c.num_global_key_value_heads or groups
    if c.per_layer_config is not None:
        full = {str(i) for i, kind in enumerate(kinds) if kind == sliding.FULL}
        own = [dict(each) for each in c.per_layer_config.values() if isinstance(each, dict)]
        known = {"head_dim", "num_key_value_heads"}
        if set(c.per_layer_config) - full or any(each != own[0] for each in own):
            faults.append("config 'per_layer_config' differs between layers of one type")
        elif own and not set(own[0]) <= known:
            faults.append(f"config 'per_layer_config' has {sorted(own[0])}, expected {known}")
        elif own:
            size = own[0].get("head_dim", c.head_dim)
            groups = own[0].get("num_key_value_heads", c.kv_heads)
    good = all(type(n) is int and 0 < n < 1 << 16 for n in (size, groups))
    if not good or c.num_attention_heads % groups or size % 2:
        faults.append(f"config: {groups} heads of {size} without a window, expected a divisor of "
                      f"{c.num_attention_heads}, and an even size")  # fmt: skip
        return c.kv_heads, c.head_dim
    return groups, size


def _layer(
    b: blocks.Builder, c: Config, index: int, x: str, kind: per_layer.Kind, owner: int, each: str
) -> str:
    """Gemma's layer, then what is its own."""
    at = f"layers.{index}"
    b.head_dim, b.kv_heads = kind.head_dim, kind.kv_heads
    b.ff = c.intermediate_size * (2 if c.use_double_wide_mlp and owner != index else 1)
    h = blocks.layer_norm(b, index, x, "norm1", "input_layernorm")
    h = per_layer.attended(b, c, index, h, kind, owner)
    h = blocks.output_projection(b, index, h, bias=c.attention_bias)
    h = blocks.layer_norm(b, index, h, "norm1_after", "post_attention_layernorm")
    x = b.add(x, h, f"{at}.add1")
    h = blocks.layer_norm(b, index, x, "norm2", "pre_feedforward_layernorm")
    h = blocks.mlp(b, index, h, "gelu_tanh")
    h = blocks.layer_norm(b, index, h, "norm2_after", "post_feedforward_layernorm")
    x = b.add(x, h, f"{at}.add2")
    if each:
        rows = per_layer.taken_in(b, index, x, each, c.hidden_size_per_layer_input)
        x = b.add(x, rows, f"{at}.add3")
    scalar = b.weight(f"{at}.scalar", Recipe((Part(f"model.layers.{index}.layer_scalar", (1,)),)))
    whole = {"every": max(1, b.context), "width": b.width}
    return b.node("scale_by_position", [x], f"{at}.scaled", weights={"weight": scalar}, attrs=whole)
