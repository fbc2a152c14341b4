"""Layers of the gated delta rule, and the gated attention between them, as Qwen has both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ... import limits
from ...kernels.states import RecurrentState
from . import blocks, recurrent
from .config import Decoder, size_faults
from .recipe import FamilyModel, Part
from .rope import rope, rope_parameters

LINEAR, FULL = KINDS = ("linear_attention", "full_attention")
CAPS = {
    "linear_key_head_dim": limits.HEAD_DIM, "linear_value_head_dim": limits.HEAD_DIM,
    "linear_num_key_heads": limits.HEADS, "linear_num_value_heads": limits.HEADS,
}  # fmt: skip
Feed = Callable[[int, str], str]  # a layer's number and its rows, to what stands in for an mlp
NORM = 1.0  # what the checkpoint's norms, stored as w - 1, are off


class Config(Decoder, frozen=True, kw_only=True):
    """What configs of these layers have."""

    num_key_value_heads: int | None
    head_dim: int = 256
    attention_bias: bool = False
    partial_rotary_factor: float | None = None
    layer_types: list[str] | None = None
    full_attention_interval: int = 4
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32


@dataclass(frozen=True)
class Projections:
    """Where a delta layer's projections come from, as rows of tensors: queries, keys and values
    one after the other, the output's gate, and the gates of update and decay."""

    qkv: Sequence[Part]
    z: Sequence[Part]
    gates: Sequence[Part]


def checked(c: Config, faults: list[str]) -> list[str]:
    """Type of each layer; what no such model has goes into `faults`, and then no layer is of the
    delta rule."""
    before = len(faults)
    faults += size_faults(c, CAPS)
    if c.linear_num_key_heads > 0 and c.linear_num_value_heads % c.linear_num_key_heads:
        faults.append(
            f"config 'linear_num_value_heads' is {c.linear_num_value_heads}, expected a multiple "
            f"of 'linear_num_key_heads' {c.linear_num_key_heads}"
        )
    recurrent.conv_width(c.linear_conv_kernel_dim, "linear_conv_kernel_dim", faults)
    every, layers = c.full_attention_interval, c.num_hidden_layers
    if every < 1:
        faults.append(f"config 'full_attention_interval' is {every}, expected 1 or more")
        every = 1
    kinds = c.layer_types or [FULL if (i + 1) % every == 0 else LINEAR for i in range(layers)]
    if len(kinds) != layers or set(kinds) - set(KINDS):
        faults.append(
            f"config 'layer_types' has {len(kinds)} entries of {sorted(set(kinds))[:8]}, expected "
            f"{layers} of {list(KINDS)}"
        )
    return kinds if len(faults) == before else [FULL] * layers


def turns(b: blocks.Builder, c: Config, kinds: Sequence[str], faults: list[str]) -> blocks.Rotary:
    """Rotary weights of a quarter of a head's channels, unless the config says otherwise. Of text
    alone the three axes of a position are equal, so its sections say nothing."""
    params = rope_parameters(c)
    default = 0.25 if c.partial_rotary_factor is None else c.partial_rotary_factor
    params.setdefault("partial_rotary_factor", default)
    section = params.pop("mrope_section", None)
    params.pop("mrope_interleaved", None)
    if section is not None and not (
        isinstance(section, list) and len(section) == 3 and all(type(n) is int for n in section)
    ):
        faults.append(f"rope: mrope_section is {str(section)[:60]}, expected three whole numbers")
    found = rope(params, b.head_dim, b.context, faults, partial=True)
    return blocks.rotary(b, found) if FULL in kinds else blocks.NO_ROPE


def gated_attention(
    b: blocks.Builder, layer: int, x: str, rope: blocks.Rotary, *, bias: bool
) -> str:
    """Attention whose output is gated by sigmoids; q_proj holds a head's query, then its gate."""
    at, size = f"layers.{layer}", b.head_dim
    name, shape = b.at(layer, "self_attn.q_proj.weight"), (2 * b.heads * size, b.width)
    spans = [recurrent.span(name, shape, i * size, size) for i in range(2 * b.heads)]
    shared = [
        Part(b.at(layer, f"self_attn.{key}_proj.weight"), (b.kv_heads * size, b.width))
        for key in ("k", "v")
    ]
    rows = b.linear(x, f"{at}.qkv", [*spans[::2], *shared], bias=bias)
    by = b.linear(x, f"{at}.gate", spans[1::2], bias=bias)
    y = blocks.attention(b, layer, rows, rope, qk_norm=True, qk_offset=NORM)
    y = recurrent.gate(b, y, by, f"{at}.gated", "sigmoid")
    return blocks.output_projection(b, layer, y, bias=bias)


def delta(b: blocks.Builder, layer: int, x: str, c: Config, p: Projections) -> str:
    """Convolved queries, keys and values, the delta rule, a norm of each head and a gate."""
    at, tensor = f"layers.{layer}", f"model.layers.{layer}.linear_attn"
    heads, size = c.linear_num_value_heads, c.linear_value_head_dim
    keys, key_heads = c.linear_key_head_dim, c.linear_num_key_heads
    rows = b.linear(x, f"{at}.delta_qkv", p.qkv)
    by = b.linear(x, f"{at}.z", p.z)
    gates = b.linear(x, f"{at}.delta_gates", p.gates)
    rows = recurrent.conv(
        b, layer, rows, f"{tensor}.conv1d", 2 * key_heads * keys + heads * size,
        c.linear_conv_kernel_dim, bias=False, act="silu",
    )  # fmt: skip
    weights = {
        slot: b.vector(f"{at}.delta_{slot}", f"{tensor}.{name}", heads)
        for slot, name in (("a_log", "A_log"), ("dt_bias", "dt_bias"))
    }
    attrs = {"heads": heads, "key_heads": key_heads, "key_dim": keys, "head_dim": size}
    state = f"matrix{layer}"
    b.states[state] = RecurrentState(heads, keys, size)
    y = b.node(
        "gated_delta", [rows, gates], f"{at}.delta", weights=weights, attrs=attrs, state=state
    )
    norm = {"weight": b.vector(f"{at}.head_norm", f"{tensor}.norm.weight", size)}
    y = b.node("head_norm", [y], f"{at}.head_norm", weights=norm,
               attrs={"size": size, "eps": b.eps})  # fmt: skip
    y = recurrent.gate(b, y, by, f"{at}.gated", "silu")
    return b.linear(y, f"{at}.o", [Part(f"{tensor}.out_proj.weight", (b.width, heads * size))])


def layers(
    b: blocks.Builder,
    c: Config,
    kinds: Sequence[str],
    rotary: blocks.Rotary,
    projections: Mapping[int, Projections],
    feed: Feed | None = None,
) -> FamilyModel:
    """The model behind its config: layers of both kinds with gated feed-forwards, norms stored as
    w - 1. projections: of the delta layers, by number. feed: other feed-forwards."""
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for number, kind in enumerate(kinds):
        found = projections[number] if kind == LINEAR else None
        x = layer(b, number, x, c, rotary, found, feed)
    return blocks.head(b, x, tied=c.tie_word_embeddings, offset=NORM)


def layer(
    b: blocks.Builder,
    number: int,
    x: str,
    c: Config,
    rotary: blocks.Rotary,
    projections: Projections | None = None,
    feed: Feed | None = None,
) -> str:
    """One of them: of the delta rule where it has projections for that, else gated attention."""
    at = f"layers.{number}"
    h = blocks.layer_norm(b, number, x, "norm1", "input_layernorm", offset=NORM)
    if projections is not None:
        h = delta(b, number, h, c, projections)
    else:
        h = gated_attention(b, number, h, rotary, bias=c.attention_bias)
    x = b.add(x, h, f"{at}.add1")
    h = blocks.layer_norm(b, number, x, "norm2", "post_attention_layernorm", offset=NORM)
    h = feed(number, h) if feed else blocks.mlp(b, number, h, "silu")
    return b.add(x, h, f"{at}.add2")
