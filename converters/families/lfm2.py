"""lfm2: short gated convolutions with an attention layer here and there (arXiv 2511.23404)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import limits
from . import blocks, recurrent
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel, Part
from .rope import rope, rope_parameters

TAIL = 64  # tokens that the convolutions can be taken back by, beside keys and values
CONV, FULL = KINDS = ("conv", "full_attention")
# Old names, read by transformers, and sizes that it takes from hidden_size.
OLD = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
WIDTHS = ("block_dim", "conv_dim", "conv_dim_out")


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an LFM2."""

    tie_word_embeddings: bool = True
    norm_eps: float = 1e-5
    conv_bias: bool = False
    conv_L_cache: int = 3
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: list[int] | None = None
    layer_types: list[str] | None = None


SCHEMA = Schema(
    "Lfm2ForCausalLM",
    fixed={"hidden_act": ("silu",), "block_use_swiglu": (True,), "use_pos_enc": (True,)},
    ignored=frozenset(
        "block_mlp_init_scale block_norm_eps block_out_init_scale block_use_xavier_init "
        "conv_use_xavier_init theta".split()
    ),
)


def _kinds(c: Config, faults: list[str]) -> list[str]:
    """Type of each layer."""
    full = range(c.num_hidden_layers) if c.full_attn_idxs is None else c.full_attn_idxs
    kinds = c.layer_types or [FULL if i in full else CONV for i in range(c.num_hidden_layers)]
    if len(kinds) != c.num_hidden_layers or set(kinds) - set(KINDS):
        faults.append(
            f"config 'layer_types' has {len(kinds)} entries of {sorted(set(kinds))[:8]}, expected "
            f"{c.num_hidden_layers} of {list(KINDS)}"
        )
        return [CONV] * c.num_hidden_layers
    return kinds


def _feed_forward(c: Config, faults: list[str]) -> int:
    """Width of the feed-forward layers, which the config may mean to be adjusted."""
    size, factor, multiple = c.intermediate_size, c.block_ffn_dim_multiplier, c.block_multiple_of
    known = 0 < multiple < 1 << 20 and (factor is None or 1e-3 < factor < 1e3)
    if c.block_auto_adjust_ff_dim and known:
        size = int(2 * size / 3)
        if factor is not None:
            size = -(-int(factor * size) // multiple) * multiple
    if not (known and 0 < size < limits.TENSOR_DIM):
        faults.append(
            f"config 'intermediate_size' is {c.intermediate_size}, 'block_ffn_dim_multiplier' "
            f"{factor}, 'block_multiple_of' {multiple}, expected sizes of a layer"
        )
        return 1
    return size


def _conv(b: blocks.Builder, layer: int, x: str, width: int, *, bias: bool) -> str:
    """C * conv(B * x), of one projection's rows [B | C | x]."""
    at, tensor = f"layers.{layer}", f"model.layers.{layer}.conv"
    size, name = b.width, f"{tensor}.in_proj.weight"
    parts = [recurrent.span(name, (3 * size, size), i * size, size) for i in range(3)]
    before, behind, rows = (
        b.linear(x, f"{at}.conv_{label}", [part], bias=bias)
        for label, part in zip(("b", "c", "x"), parts, strict=True)
    )
    rows = recurrent.gate(b, rows, before, f"{at}.conv_in", "identity")
    rows = recurrent.conv(b, layer, rows, f"{tensor}.conv", size, width, bias=bias, tail=TAIL)
    rows = recurrent.gate(b, rows, behind, f"{at}.conv_out", "identity")
    out = Part(f"{tensor}.out_proj.weight", (size, size))
    return b.linear(rows, f"{at}.o", [out], bias=bias)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    raw = {key: value for key, value in raw.items() if key not in OLD} | {
        new: raw[old] for old, new in OLD.items() if old in raw
    }
    widths = {key: raw[key] for key in WIDTHS if raw.get(key) is not None}
    raw = {key: value for key, value in raw.items() if key not in WIDTHS}
    c = read_config(raw, Config, SCHEMA, faults)
    if any(width != c.hidden_size for width in widths.values()):
        faults.append(f"config has widths {widths}, expected 'hidden_size' {c.hidden_size}")
    if not 0 < c.norm_eps < 1 or raw.get("rms_norm_eps", c.norm_eps) != c.norm_eps:
        faults.append(f"config 'norm_eps' is {c.norm_eps}, expected one number from 0 to 1")
    b = blocks.Builder(c)
    b.eps, b.ff = c.norm_eps, _feed_forward(c, faults)
    kinds = _kinds(c, faults)
    width = recurrent.conv_width(c.conv_L_cache, "conv_L_cache", faults)
    parameters = rope_parameters(c, theta=1_000_000.0)
    turns = blocks.NO_ROPE
    if FULL in kinds:
        turns = blocks.rotary(b, rope(parameters, b.head_dim, b.context, faults))
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer, kind in enumerate(kinds):
        at = f"layers.{layer}"
        h = blocks.layer_norm(b, layer, x, "norm1", "operator_norm")
        if kind == CONV:
            h = _conv(b, layer, h, width, bias=c.conv_bias)
        else:
            h = blocks.attention(
                b, layer, blocks.qkv(b, layer, h), turns, qk_norm=True,
                norms=("q_layernorm", "k_layernorm"),
            )  # fmt: skip
            h = blocks.output_projection(b, layer, h, name="out_proj")
        x = b.add(x, h, f"{at}.add1")
        h = blocks.layer_norm(b, layer, x, "norm2", "ffn_norm")
        names = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        x = b.add(x, blocks.mlp(b, layer, h, "silu", names=names), f"{at}.add2")
    return blocks.head(b, x, tied=c.tie_word_embeddings, norm="model.embedding_norm")
