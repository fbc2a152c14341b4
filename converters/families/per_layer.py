"""What Gemma's layers take in besides: an embedding of the token for each of them, and keys and
values of an earlier layer.

    p  = (norm(W x0) + e) / sqrt(2)           e the layer's own embedding, times sqrt(P)
    y  = norm(U (gelu(V x) * p))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import limits
from ...kernels.states import BorrowedState
from . import blocks
from .blocks import Rotary
from .recipe import Part, Recipe

UNKNOWN = 4096  # tokens at most that have no embedding for each layer: they take that of token 0


@dataclass(frozen=True)
class Kind:
    """Layers of one type: heads of keys, their size, their window and how they turn."""

    kv_heads: int
    head_dim: int
    window: int
    rope: Rotary


def inputs(b: blocks.Builder, c: Any, x: str, faults: list[str]) -> str:
    """Rows [T, L * P] of what each of L layers takes in besides."""
    size, half = c.hidden_size_per_layer_input, 2.0**-0.5
    known, lowest = c.vocab_size_per_layer_input, max(1, b.vocab - UNKNOWN)
    if size % 16 or not 0 < size < 1 << 16 or not lowest <= known < limits.TENSOR_DIM:
        faults.append(
            f"config 'hidden_size_per_layer_input' is {size} and 'vocab_size_per_layer_input' "
            f"{known}, expected a multiple of 16, and {lowest} or more"
        )
        return ""
    width = b.layers * size
    table = Part("model.embed_tokens_per_layer.weight", (known, width))
    beyond = [table._replace(rows=(0, 1))] * max(0, b.vocab - known)  # tokens that it does not know
    weights = {"weight": b.weight("embed_each", Recipe((table, *beyond)))}
    own = b.node(
        "embed", ["tokens"], "embed_each", weights=weights, attrs={"scale": size**0.5 * half}
    )
    part = Part("model.per_layer_model_projection.weight", (width, b.width), scale=b.width**-0.5)
    rows = b.linear(x, "project_each", [part])
    norm = b.vector("norm_each", "model.per_layer_projection_norm.weight", size, scale=half)
    attrs = {"size": size, "eps": b.eps}
    rows = b.node("head_norm", [rows], "normed_each", weights={"weight": norm}, attrs=attrs)
    return b.add(rows, own, "each")


def taken_in(b: blocks.Builder, index: int, x: str, each: str, size: int) -> str:
    """Rows [T, C] that a layer adds to its own: rows x gate what `inputs` has for it."""
    at = f"layers.{index}"
    gate = b.matrix(index, "per_layer_input_gate.weight", size, b.width)
    rows = b.linear(x, f"{at}.each_gate", [gate])
    attrs = {"start": index * size, "count": size}
    own = b.node("columns", [each], f"{at}.each", attrs=attrs)
    rows = b.node("concat", [rows, own], f"{at}.each_pair")
    rows = b.node("glu", [rows], f"{at}.each_glu", attrs={"act": "gelu_tanh"})
    up = b.matrix(index, "per_layer_projection.weight", b.width, size)
    rows = b.linear(rows, f"{at}.each_up", [up])
    return blocks.layer_norm(b, index, rows, "norm3", "post_per_layer_input_norm")


def attended(b: blocks.Builder, c: Any, index: int, x: str, kind: Kind, owner: int) -> str:
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


def _borrowed(b: blocks.Builder, index: int, q: str, kind: Kind, owner: int) -> str:
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
