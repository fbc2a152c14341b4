"""gemma4_text: Gemma 4's dense text models, an embedding for each layer, keys that layers share.

The last `num_kv_shared_layers` layers read the keys and values of the last layer before them that
is of their type. Layers without a window have heads of their own size, of which a part turns. A
layer's own embedding e of a token, and a projection of its first rows, enter behind its halves:

    p  = (norm(W x0) + e) / sqrt(2)
    x <- (x + norm(U (gelu(V x) * p))) * s                s is the layer's own number
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...kernels.states import BorrowedState
from . import blocks, layers, sliding
from .blocks import Rotary
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


@dataclass(frozen=True)
class _Kind:
    """Layers of one type: heads of keys, their size, their window and how they turn."""

    kv_heads: int
    head_dim: int
    window: int
    rope: Rotary


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
        kind: _Kind(*(heads if kind == sliding.FULL else (b.kv_heads, b.head_dim)), window,
                    turns[kind])
        for kind, window in zip(kinds, windows, strict=False)
    }  # fmt: skip
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    each = _layer_inputs(b, c, x, faults) if c.hidden_size_per_layer_input else ""
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


def _layer_inputs(b: blocks.Builder, c: Config, x: str, faults: list[str]) -> str:
    """Rows [T, L * P] of what each of L layers takes in besides."""
    size, half = c.hidden_size_per_layer_input, 2.0**-0.5
    if size % 16 or not 0 < size < 1 << 16 or c.vocab_size_per_layer_input < 1:
        faults.append(
            f"config 'hidden_size_per_layer_input' is {size} and 'vocab_size_per_layer_input' "
            f"{c.vocab_size_per_layer_input}, expected a multiple of 16, and 1 or more"
        )
        return ""
    width = b.layers * size
    table = Part("model.embed_tokens_per_layer.weight", (c.vocab_size_per_layer_input, width))
    weights = {"weight": b.weight("embed_each", Recipe((table,)))}
    own = b.node(
        "embed", ["tokens"], "embed_each", weights=weights, attrs={"scale": size**0.5 * half}
    )
    part = Part("model.per_layer_model_projection.weight", (width, b.width), scale=b.width**-0.5)
    rows = b.linear(x, "project_each", [part])
    norm = b.vector("norm_each", "model.per_layer_projection_norm.weight", size, scale=half)
    attrs = {"size": size, "eps": b.eps}
    rows = b.node("head_norm", [rows], "normed_each", weights={"weight": norm}, attrs=attrs)
    return b.add(rows, own, "each")


def _layer(
    b: blocks.Builder, c: Config, index: int, x: str, kind: _Kind, owner: int, each: str
) -> str:
    """Gemma's layer, then what is its own."""
    at = f"layers.{index}"
    b.head_dim, b.kv_heads = kind.head_dim, kind.kv_heads
    b.ff = c.intermediate_size * (2 if c.use_double_wide_mlp and owner != index else 1)
    h = blocks.layer_norm(b, index, x, "norm1", "input_layernorm")
    h = _attended(b, c, index, h, kind, owner)
    h = blocks.output_projection(b, index, h, bias=c.attention_bias)
    h = blocks.layer_norm(b, index, h, "norm1_after", "post_attention_layernorm")
    x = b.add(x, h, f"{at}.add1")
    h = blocks.layer_norm(b, index, x, "norm2", "pre_feedforward_layernorm")
    h = blocks.mlp(b, index, h, "gelu_tanh")
    h = blocks.layer_norm(b, index, h, "norm2_after", "post_feedforward_layernorm")
    x = b.add(x, h, f"{at}.add2")
    if each:
        size = c.hidden_size_per_layer_input
        gate = b.matrix(index, "per_layer_input_gate.weight", size, b.width)
        rows = b.linear(x, f"{at}.each_gate", [gate])
        attrs = {"start": index * size, "count": size}
        own = b.node("columns", [each], f"{at}.each", attrs=attrs)
        rows = b.node("concat", [rows, own], f"{at}.each_pair")
        rows = b.node("glu", [rows], f"{at}.each_glu", attrs={"act": "gelu_tanh"})
        up = b.matrix(index, "per_layer_projection.weight", b.width, size)
        rows = b.linear(rows, f"{at}.each_up", [up])
        rows = blocks.layer_norm(b, index, rows, "norm3", "post_per_layer_input_norm")
        x = b.add(x, rows, f"{at}.add3")
    scalar = b.weight(f"{at}.scalar", Recipe((Part(f"model.layers.{index}.layer_scalar", (1,)),)))
    whole = {"every": max(1, b.context), "width": b.width}
    return b.node("scale_by_position", [x], f"{at}.scaled", weights={"weight": scalar}, attrs=whole)


def _attended(b: blocks.Builder, c: Config, index: int, x: str, kind: _Kind, owner: int) -> str:
    """Attention, over the layer's own keys and values or over those of `owner`."""
    at, size = f"layers.{index}", kind.head_dim
    keys = kind.kv_heads * size
    parts = {
        name: b.matrix(index, f"self_attn.{name}_proj.weight", rows, b.width)
        for name, rows in (("q", b.heads * size), ("k", keys), ("v", keys))
    }
    options: dict[str, Any] = {"window": kind.window, "scale": 1.0}
    if owner != index:
        q = b.linear(x, f"{at}.q", [parts["q"]], bias=c.attention_bias)
        return _borrowed(b, index, q, kind, owner)
    qk = b.linear(x, f"{at}.qk", [parts["q"], parts["k"]], bias=c.attention_bias)
    same = c.attention_k_eq_v and not kind.window
    v = b.linear(x, f"{at}.v", [parts["k" if same else "v"]], bias=c.attention_bias)
    ones = b.weight(f"ones_{size}", Recipe(values=np.ones(size, np.float32)))
    attrs = {"size": size, "eps": b.eps}
    v = b.node("head_norm", [v], f"{at}.v_normed", weights={"weight": ones}, attrs=attrs)
    rows = b.node("concat", [qk, v], f"{at}.qkv")
    return blocks.attention(b, index, rows, kind.rope, qk_norm=True, **options)


def _borrowed(b: blocks.Builder, index: int, q: str, kind: _Kind, owner: int) -> str:
    at, state = f"layers.{index}", f"kv{index}"
    norm = b.vector(f"{at}.q_norm", b.at(index, "self_attn.q_norm.weight"), kind.head_dim)
    attrs: dict[str, Any] = {
        "heads": b.heads, "kv_heads": kind.kv_heads, "head_dim": kind.head_dim, "scale": 1.0,
        "qk_eps": b.eps, **kind.rope.attrs,
    }  # fmt: skip
    if kind.window:
        attrs["window"] = kind.window
    b.states[state] = BorrowedState(f"kv{owner}")
    return b.node(
        "shared_attention", [q], f"{at}.attention", weights={**kind.rope.slots, "q_norm": norm},
        attrs=attrs, state=state,
    )  # fmt: skip
