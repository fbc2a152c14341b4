"""CLIPTextModel and CLIPTextModelWithProjection as text encoders (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...graph import Value
from .component import Eps, Heads, Keys, Layers, Size, read_component, transformers_neutral
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe

PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
ACTS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
KEYS = Keys(fixed={"model_type": ("clip_text_model",), "architectures": ([PLAIN], [PROJECTED])})


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a CLIP text model."""

    vocab_size: Size = 49_408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size | None = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Size = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Eps = 1e-5
    eos_token_id: int | None = None


def read(raw: Mapping[str, Any], faults: list[str]) -> Config:
    """The config, checked."""
    c = read_component(raw, Config, KEYS, faults, neutral=transformers_neutral)
    if c.hidden_act not in ACTS:
        faults.append(
            f"config 'hidden_act' is {c.hidden_act[:40]!r}, expected one of {sorted(ACTS)}"
        )
    if c.hidden_size % c.num_attention_heads:
        faults.append(
            f"config 'hidden_size' is {c.hidden_size}, expected a multiple of "
            f"'num_attention_heads' {c.num_attention_heads}"
        )
    return c


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes: tokens and positions int32 ["T"] give `hidden` ["T", C]; of a model with
    projection rows int32 ["R"], those of the end tokens, also give `pooled` ["R", P]."""
    c = read(raw, faults)
    b = Nodes()
    tokens = _table(b, "embed", "embeddings.token_embedding", c.vocab_size, c.hidden_size)
    x = b.node("embed", ["tokens"], "embed", weights={"weight": tokens})
    places = _table(
        b, "places", "embeddings.position_embedding", c.max_position_embeddings, c.hidden_size
    )
    place = b.node("embed", ["positions"], "places", weights={"weight": places})
    x = b.add(x, place, "placed")
    for layer in range(c.num_hidden_layers):
        x = _layer(b, c, layer, x)
    hidden = _norm(b, c, x, "norm", "final_layer_norm", output="hidden")
    inputs = [Value("tokens", ("T",), "int32"), Value("positions", ("T",), "int32")]
    outputs = [Value(hidden, ("T", c.hidden_size))]
    if raw.get("architectures") == [PROJECTED]:
        width = c.projection_dim or c.hidden_size
        picked = b.node("select", [hidden, "rows"], "picked")
        shape = (width, c.hidden_size)
        b.product(picked, "projection", "text_projection", shape, bias=False, output="pooled")
        inputs.append(Value("rows", ("R",), "int32"))
        outputs.append(Value("pooled", ("R", width)))
    return b.model("text_encoder", inputs, outputs)


def _part(tensor: str, shape: tuple[int, ...]) -> Recipe:
    """A tensor, which some releases of transformers write without its prefix."""
    return Recipe((Part(f"text_model.{tensor}", shape, tensor),))


def _table(b: Nodes, label: str, tensor: str, rows: int, width: int) -> str:
    return b.weight(label, _part(f"{tensor}.weight", (rows, width)))


def _affine(b: Nodes, label: str, tensor: str, shape: tuple[int, ...]) -> dict[str, str]:
    return {
        "weight": b.weight(label, _part(f"{tensor}.weight", shape)),
        "bias": b.weight(f"{label}_bias", _part(f"{tensor}.bias", shape[:1])),
    }


def _norm(b: Nodes, c: Config, x: str, label: str, tensor: str, *, output: str = "") -> str:
    slots, attrs = _affine(b, label, tensor, (c.hidden_size,)), {"eps": c.layer_norm_eps}
    return b.node("layer_norm", [x], label, weights=slots, attrs=attrs, output=output)


def _layer(b: Nodes, c: Config, layer: int, x: str) -> str:
    """x + attention(norm(x)), then x + mlp(norm(x)); a token sees those before it."""
    at, tensor, width = f"layers.{layer}", f"encoder.layers.{layer}", c.hidden_size

    def product(value: str, label: str, name: str, shape: tuple[int, int]) -> str:
        slots = _affine(b, f"{at}.{label}", f"{tensor}.{name}", shape)
        return b.node("linear", [value], f"{at}.{label}", weights=slots)

    h = _norm(b, c, x, f"{at}.norm1", f"{tensor}.layer_norm1")
    rows = [product(h, key, f"self_attn.{key}_proj", (width, width)) for key in "qkv"]
    size = width // c.num_attention_heads
    attrs = {
        "heads": c.num_attention_heads, "head_dim": size, "scale": size**-0.5, "causal": True,
    }  # fmt: skip
    h = b.node("dot_attention", rows, f"{at}.attention", attrs=attrs)
    x = b.add(x, product(h, "out", "self_attn.out_proj", (width, width)), f"{at}.add1")
    h = _norm(b, c, x, f"{at}.norm2", f"{tensor}.layer_norm2")
    h = product(h, "up", "mlp.fc1", (c.intermediate_size, width))
    h = b.activation(h, f"{at}.act", ACTS.get(c.hidden_act, "gelu"))
    return b.add(x, product(h, "down", "mlp.fc2", (width, c.intermediate_size)), f"{at}.add2")
