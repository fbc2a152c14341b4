"""Whole layers of decoders, of the blocks in `blocks`: how their halves are put together.

pre_norm    x + attention(norm(x)), then x + mlp(norm(x))                     (Llama)
post_norm   x + norm(attention(x)), then x + norm(mlp(x))                     (OLMo 2)
sandwich    norms before and behind each half                                 (Gemma 2)
parallel    x + attention(norm(x)) + mlp(norm(x))                             (GPT-J, PaLM)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from . import blocks, plain, positions, sliding
from .blocks import Builder, Rotary
from .config import Decoder
from .recipe import FamilyModel
from .rope import COMMON, rope, rope_parameters

Layer = Callable[[int, str], str]


def turning(
    b: Builder, c: Decoder, faults: list[str], *, theta: float = 10_000.0, partial: float = 0.0
) -> Rotary:
    """The rotary embedding of a config that has one for all layers. partial: share of a head's
    channels that turns where the config does not say (0: all must)."""
    params = rope_parameters(c, theta=theta)
    if partial:
        own = getattr(c, "partial_rotary_factor", None)
        params.setdefault("partial_rotary_factor", partial if own is None else own)
    return blocks.rotary(b, rope(params, b.head_dim, b.context, faults, partial=bool(partial)))


def typed_turning(
    b: Builder,
    c: Decoder,
    windows: Sequence[int],
    faults: list[str],
    *,
    theta: tuple[float, float],
    sizes: Mapping[str, int] = MappingProxyType({}),
    types: tuple[str, ...] = COMMON,
) -> dict[str, Rotary]:
    """Rotary embeddings by type of layer. Scaling (rope_scaling) is that of full attention alone;
    theta: of full and of sliding layers where rope_parameters do not say. sizes: of heads, by type
    of layer, where they differ. types: of rope that the family has."""
    kinds = sorted({sliding.kind_of(window) for window in windows})
    return {
        kind: blocks.rotary(
            b,
            rope(
                _parameters_of(c, kind, theta, faults),
                sizes.get(kind, b.head_dim),
                b.context,
                faults,
                types=types,
            ),
            f"inv_freq_{kind.split('_')[0]}",
        )
        for kind in kinds
    }


def _parameters_of(
    c: Decoder, kind: str, theta: tuple[float, float], faults: list[str]
) -> dict[str, Any]:
    slides = kind == sliding.SLIDING
    if c.rope_parameters is not None:
        found = c.rope_parameters.get(kind) or {}
        if not isinstance(found, dict) or set(c.rope_parameters) - set(sliding.KINDS):
            faults.append(
                f"config 'rope_parameters' has {sorted(c.rope_parameters)[:8]}, expected one set "
                f"for each of {list(sliding.KINDS)}"
            )
            found = {}
        params = dict(found)
    else:
        params = {} if slides else dict(c.rope_scaling or {})
    old = params.pop("type", "default")
    params.setdefault("rope_type", old)
    params.setdefault("rope_theta", theta[1] if slides else theta[0])
    return params


def decoder(
    b: Builder,
    c: Decoder,
    layer: Layer,
    *,
    scale: float = 1.0,
    scale_logits: float = 1.0,
    table: str = blocks.EMBED,
    table_of_positions: str = "",
    **options: Any,
) -> FamilyModel:
    """Layers between an embedding, times `scale`, and a head whose logits are times `scale_logits`;
    table_of_positions: a learned one; options go to `blocks.head`."""
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=scale, table=table)
    if table_of_positions:
        x = positions.learned_positions(b, x, table_of_positions)
    for index in range(b.layers):
        x = layer(index, x)
    return blocks.head(b, x, tied=c.tie_word_embeddings, scale=scale_logits, **options)


def attended(
    b: Builder,
    layer: int,
    x: str,
    rope: Rotary,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    fused: bool = False,
    by_head: bool = False,
    row_norm: bool = False,
    pairs: int = 0,
    factors: tuple[str, int] | None = None,
    residual: float = 1.0,
    **options: Any,
) -> str:
    """Attention from rows of C to rows of C.

    fused: one projection; by_head: one that gives q, k and v of each head in turn. row_norm: q and
    k are normalised over all heads. pairs: as `blocks.qkv` has it. factors: of queries, as
    `positions.scaled_queries` has them. residual: factor of what it gives. options go to
    `blocks.attention`.
    """
    if row_norm:
        rows = blocks.normed_qkv(b, layer, x)
    elif fused:
        rows = blocks.fused_qkv(b, layer, x, bias=qkv_bias)
    elif by_head:
        rows = blocks.qkv_by_head(b, layer, x, bias=qkv_bias)
    else:
        rows = blocks.qkv(b, layer, x, bias=qkv_bias, pairs=pairs)
    if factors:
        rows = positions.scaled_queries(b, layer, rows, factors)
    rows = blocks.attention(b, layer, rows, rope, **options)
    return blocks.output_projection(b, layer, rows, bias=o_bias, scale=residual)


def fed(
    b: Builder,
    layer: int,
    x: str,
    act: str,
    *,
    kind: str = "gated",
    bias: bool = False,
    residual: float = 1.0,
) -> str:
    """Feed-forward from rows of C to rows of C; kind: gated, fused (gated, one projection) or
    plain."""
    if kind == "plain":
        return plain.plain_mlp(b, layer, x, act, bias=bias)
    if kind == "fused":
        return blocks.fused_mlp(b, layer, x, act, scale=residual)
    return blocks.mlp(b, layer, x, act, bias=bias, scales=(1.0, 1.0, residual))


def pre_norm_layer(
    b: Builder,
    layer: int,
    x: str,
    rope: Rotary,
    *,
    act: str,
    mlp_bias: bool = False,
    fused: bool = False,
    mlp: str = "gated",
    offset: float = 0.0,
    residual: float = 1.0,
    feed: Layer | None = None,
    **options: Any,
) -> str:
    """The Llama layer. mlp: as `fed` has it. residual: factor of what the halves give. feed: what
    stands in for its feed-forward, `residual` included. options go to `attended`."""
    at = f"layers.{layer}"
    h = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm", offset=offset)
    h = attended(b, layer, h, rope, fused=fused, residual=residual, **options)
    x = b.add(x, h, f"{at}.add1")
    h = blocks.layer_norm(b, layer, x, "norm2", "post_attention_layernorm", offset=offset)
    if feed is not None:
        return b.add(x, feed(layer, h), f"{at}.add2")
    kind = "fused" if fused and mlp == "gated" else mlp
    return b.add(
        x, fed(b, layer, h, act, kind=kind, bias=mlp_bias, residual=residual), f"{at}.add2"
    )


def sandwich_layer(
    b: Builder,
    layer: int,
    x: str,
    rope: Rotary,
    *,
    act: str,
    mlp: str = "gated",
    offset: float = 1.0,
    before: bool = True,
    **options: Any,
) -> str:
    """Gemma's layer: norms before and after each half, all stored as w - offset. before: whether
    there are those before. options go to `attended`."""
    at = f"layers.{layer}"

    def norm(x: str, label: str, tensor: str) -> str:
        return blocks.layer_norm(b, layer, x, label, tensor, offset=offset)

    h = norm(x, "norm1", "input_layernorm") if before else x
    h = attended(b, layer, h, rope, **options)
    x = b.add(x, norm(h, "norm1_after", "post_attention_layernorm"), f"{at}.add1")
    h = norm(x, "norm2", "pre_feedforward_layernorm") if before else x
    h = fed(b, layer, h, act, kind=mlp)
    return b.add(x, norm(h, "norm2_after", "post_feedforward_layernorm"), f"{at}.add2")


def post_norm_layer(b: Builder, layer: int, x: str, rope: Rotary, **options: Any) -> str:
    """OLMo 2's layer: norms behind each half alone."""
    return sandwich_layer(b, layer, x, rope, offset=0.0, before=False, **options)


def parallel_layer(
    b: Builder,
    layer: int,
    x: str,
    rope: Rotary,
    *,
    act: str,
    mlp: str = "gated",
    mlp_bias: bool = False,
    shared: bool = True,
    **options: Any,
) -> str:
    """Both halves read x, through one norm or, where that is not `shared`, one each. options go to
    `attended`."""
    at = f"layers.{layer}"
    first = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm")
    second = first
    if not shared:
        second = blocks.layer_norm(b, layer, x, "norm2", "post_attention_layernorm")
    h = attended(b, layer, first, rope, **options)
    x = b.add(x, h, f"{at}.add1")
    return b.add(x, fed(b, layer, second, act, kind=mlp, bias=mlp_bias), f"{at}.add2")
