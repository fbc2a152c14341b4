"""T5EncoderModel: T5 1.0 and 1.1 as text encoders (arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...graph import Value
from .component import Eps, HeadDim, Heads, Keys, Layers, Size, read_component, transformers_neutral
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe

EMBED, COPY = "shared.weight", "encoder.embed_tokens.weight"
# feed_forward_proj -> activation, gated
KINDS = {
    "relu": ("relu", False), "gelu": ("gelu", False),
    "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True),
}  # fmt: skip
ACTS = {"relu": ("relu",), "gelu": ("gelu",), "gated-gelu": ("gelu_new", "gelu"),
        "gated-silu": ("silu",)}  # fmt: skip
KEYS = Keys(
    fixed={
        "model_type": ("t5",), "is_encoder_decoder": (True, False), "is_decoder": (False,),
        "tie_word_embeddings": (True, False), "scale_decoder_outputs": (True, False),
        "architectures": (["T5EncoderModel"], ["T5ForConditionalGeneration"], ["T5Model"],
                          ["T5WithLMHeadModel"]),
    },
    ignored=frozenset({
        "num_decoder_layers", "dropout_rate", "initializer_factor", "classifier_dropout",
        "output_past", "n_positions", "decoder_start_token_id", "_name_or_path",
    }),
)  # fmt: skip


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a T5; the decoder's keys say nothing here."""

    vocab_size: Size
    d_model: Size
    d_kv: HeadDim
    d_ff: Size
    num_layers: Layers
    num_heads: Heads
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: Eps = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    c = read_component(raw, Config, KEYS, faults, neutral=transformers_neutral)
    if c.feed_forward_proj not in KINDS:
        faults.append(
            f"config 'feed_forward_proj' is {c.feed_forward_proj[:40]!r}, expected one of "
            f"{sorted(KINDS)}"
        )
        return c
    gated, acts = KINDS[c.feed_forward_proj][1], ACTS[c.feed_forward_proj]
    if c.is_gated_act not in (None, gated) or c.dense_act_fn not in (None, *acts):
        faults.append(
            f"config says feed_forward_proj {c.feed_forward_proj!r} with dense_act_fn "
            f"{c.dense_act_fn!r} and is_gated_act {c.is_gated_act}, expected {acts[0]!r} and "
            f"{gated}"
        )
    buckets, far = c.relative_attention_num_buckets, c.relative_attention_max_distance
    if buckets % 4 or buckets // 4 >= far:
        faults.append(
            f"config has {buckets} relative buckets up to distance {far}, expected a multiple of 4 "
            "and a distance beyond a quarter of it"
        )
    return c


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes: tokens int32 ["T"] give `hidden` ["T", d_model]."""
    c = read(raw, faults)
    b = Nodes()
    b.tied[COPY] = EMBED
    table = b.weight("embed", Recipe((Part(EMBED, (c.vocab_size, c.d_model), COPY),)))
    x = b.node("embed", ["tokens"], "embed", weights={"weight": table})
    for layer in range(c.num_layers):
        x = _attention(b, c, layer, x)
        x = _feed_forward(b, c, layer, x)
    _norm(b, c, x, "norm", "encoder.final_layer_norm", output="hidden")
    return b.model(
        "text_encoder",
        [Value("tokens", ("T",), "int32")],
        [Value("hidden", ("T", c.d_model))],
    )


def _norm(b: Nodes, c: Config, x: str, label: str, tensor: str, *, output: str = "") -> str:
    weight = b.tensor(label, f"{tensor}.weight", (c.d_model,))
    attrs = {"eps": c.layer_norm_epsilon}
    return b.node("rms_norm", [x], label, weights={"weight": weight}, attrs=attrs, output=output)


def _attention(b: Nodes, c: Config, layer: int, x: str) -> str:
    """x + attention(norm(x)), unscaled; the first layer's relative bias serves all."""
    at, tensor, inner = f"layers.{layer}", f"encoder.block.{layer}.layer.0", c.num_heads * c.d_kv
    h = _norm(b, c, x, f"{at}.norm1", f"{tensor}.layer_norm")
    own = f"{tensor}.SelfAttention"
    rows = [
        b.product(h, f"{at}.{key}", f"{own}.{key}", (inner, c.d_model), bias=False) for key in "qkv"
    ]
    bias = b.tensor(
        "relative_bias",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (c.relative_attention_num_buckets, c.num_heads),
    )
    attrs = {
        "heads": c.num_heads, "head_dim": c.d_kv, "scale": 1.0,
        "max_distance": c.relative_attention_max_distance,
    }  # fmt: skip
    slots = {"relative_bias": bias}
    h = b.node("dot_attention", rows, f"{at}.attention", weights=slots, attrs=attrs)
    h = b.product(h, f"{at}.o", f"{own}.o", (c.d_model, inner), bias=False)
    return b.add(x, h, f"{at}.add1")


def _feed_forward(b: Nodes, c: Config, layer: int, x: str) -> str:
    """x + wo(act(wi x)), or act(wi_0 x) * wi_1 x inside where it is gated."""
    at, tensor = f"layers.{layer}", f"encoder.block.{layer}.layer.1"
    act, gated = KINDS.get(c.feed_forward_proj, ("relu", False))
    h = _norm(b, c, x, f"{at}.norm2", f"{tensor}.layer_norm")
    own, shape = f"{tensor}.DenseReluDense", (c.d_ff, c.d_model)
    if gated:
        parts = tuple(Part(f"{own}.wi_{i}.weight", shape) for i in (0, 1))
        weight = b.weight(f"{at}.gate_up", Recipe(parts))
        h = b.node("linear", [h], f"{at}.gate_up", weights={"weight": weight})
        h = b.node("glu", [h], f"{at}.glu", attrs={"act": act})
    else:
        h = b.product(h, f"{at}.up", f"{own}.wi", shape, bias=False)
        h = b.activation(h, f"{at}.act", act)
    h = b.product(h, f"{at}.down", f"{own}.wo", (c.d_model, c.d_ff), bias=False)
    return b.add(x, h, f"{at}.add2")
