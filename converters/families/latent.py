"""Latent attention, as DeepSeek has it: keys and values of all heads from one narrow row, a part of
the key shared by all (arXiv 2405.04434).

What a token leaves is its narrow row and that part of the key, and nothing for each head: the
matrices that make keys of narrow rows are multiplied into queries, those that make values into
what heads give out (the paper's section 2.1.2). Sizes that are no multiples of 16, which no
published model has, keep keys and values of all heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import limits
from ...kernels.ops_latent import WHOLE
from ...kernels.states import KVState, LatentState
from .blocks import Builder, Rotary
from .config import size_faults
from .recipe import Part, Recipe

CAPS = {
    "kv_lora_rank": limits.TENSOR_DIM - 1, "qk_nope_head_dim": limits.HEAD_DIM,
    "qk_rope_head_dim": limits.HEAD_DIM,
}  # fmt: skip
EPS = 1e-6  # of the norms of narrow rows, whatever the config says


@dataclass(frozen=True)
class Latent:
    """Sizes of a head's parts: `turning` with the position, shared by keys, `still`, and `value`;
    ranks of the rows that queries (0: of none) and keys and values are made of. neighbours: whether
    rotary pairs are, in the checkpoint's rows; else they are half of the turning part apart."""

    turning: int
    still: int
    value: int
    query_rank: int
    rank: int
    scale: float
    bias: bool = False
    neighbours: bool = True

    @property
    def size(self) -> int:
        return self.turning + self.still

    @property
    def whole(self) -> bool:
        """Whether kernels take all sizes, so that narrow rows are what is kept."""
        return not any(n % WHOLE for n in (self.turning, self.still, self.value, self.rank))

    @property
    def pairs(self) -> tuple[int, int] | None:
        """`Part.pairs` of turning rows."""
        return (self.turning, self.turning) if self.neighbours else None

    def fault(self) -> str:
        """What is wrong with the sizes, or ""."""
        whole = self.turning if self.neighbours else 1
        if self.turning % 2 or self.still % whole or self.rank % whole:
            return (
                f"'qk_nope_head_dim' is {self.still}, 'kv_lora_rank' {self.rank} and "
                f"'qk_rope_head_dim' {self.turning}, expected multiples of an even number"
            )
        if self.value > self.size:
            return f"'v_head_dim' is {self.value}, expected at most the {self.size} of a key"
        return ""


def planned(
    c: Any, value: int, params: Mapping[str, Any], faults: list[str], *, neighbours: bool = True
) -> Latent:
    """The latent attention of a config, whose values have `value` channels a head; of sizes that
    build, where faults say what is wrong. params: of its rotary embedding."""
    faults += size_faults(c, CAPS)
    if not 1 <= value <= limits.HEAD_DIM:
        faults.append(f"config 'v_head_dim' is {value}, expected 1 to {limits.HEAD_DIM}")
    if c.kv_heads != c.num_attention_heads:
        faults.append(
            f"config 'num_key_value_heads' is {c.num_key_value_heads}, expected "
            f"'num_attention_heads' {c.num_attention_heads}"
        )
    if c.q_lora_rank is not None and not 1 <= c.q_lora_rank < limits.TENSOR_DIM:
        faults.append(f"config 'q_lora_rank' is {c.q_lora_rank}, expected 1 or more, or null")
    if not faults:
        p = Latent(
            c.qk_rope_head_dim, c.qk_nope_head_dim, value, c.q_lora_rank or 0, c.kv_lora_rank,
            _scale(c.qk_nope_head_dim + c.qk_rope_head_dim, params), c.attention_bias, neighbours,
        )  # fmt: skip
        if not (fault := p.fault()):
            return p
        faults.append(f"config {fault}")
    return Latent(2, 2, 2, 0, 1, 1.0)


def _scale(size: int, params: Mapping[str, Any]) -> float:
    """Of q . k: with YaRN also by the square of what its `mscale_all_dim` says."""
    scale = float(size**-0.5)
    weight, factor = params.get("mscale_all_dim", 0), params.get("factor", 1)
    if params.get("rope_type") != "yarn" or not weight:
        return scale
    if not all(type(x) in (int, float) and 0 < x < 1e9 for x in (weight, factor)):
        return scale  # faults of `rope`
    more = 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
    return scale * more * more


def _normed(b: Builder, layer: int, x: str, label: str, tensor: str, width: int) -> str:
    name = b.at(layer, f"self_attn.{tensor}.weight")
    weights = {"weight": b.vector(f"layers.{layer}.{label}", name, width)}
    return b.node("rms_norm", [x], f"layers.{layer}.{label}", weights=weights, attrs={"eps": EPS})


def _queries(b: Builder, layer: int, x: str, p: Latent) -> tuple[str, list[tuple[Part, Part]]]:
    """What queries are made of, and of each head the rows of its turning part, whose pairs are half
    of it apart, and those of the other."""
    at, tensor, width = f"layers.{layer}", "q_proj", b.width
    if p.query_rank:
        part = Part(b.at(layer, "self_attn.q_a_proj.weight"), (p.query_rank, b.width))
        x = b.linear(x, f"{at}.q_a", [part], bias=p.bias)
        x = _normed(b, layer, x, "q_a_norm", "q_a_layernorm", p.query_rank)
        tensor, width = "q_b_proj", p.query_rank
    name, shape = b.at(layer, f"self_attn.{tensor}.weight"), (b.heads * p.size, width)
    parts = []
    for start in range(0, b.heads * p.size, p.size):
        middle = start + p.still
        turning = Part(name, shape, rows=(middle, start + p.size), pairs=p.pairs)
        parts.append((turning, Part(name, shape, rows=(start, middle))))
    return x, parts


def _by_head(b: Builder, x: str, label: str, parts: list[Part]) -> str:
    """Each head's part of a row times its own matrix."""
    weights = {"weight": b.weight(label, Recipe(tuple(parts)))}
    return b.node("head_linear", [x], label, weights=weights, attrs={"heads": b.heads})


def _over_latents(
    b: Builder, layer: int, x: str, shared: str, narrow: str, rope: Rotary, p: Latent
) -> str:
    """Values of heads [T, H * V], over narrow rows and shared parts of keys."""
    at, (x, parts) = f"layers.{layer}", _queries(b, layer, x, p)
    turning = b.linear(x, f"{at}.q_turning", [first for first, _ in parts])
    still = b.linear(x, f"{at}.q_still", [second for _, second in parts])
    name, size = b.at(layer, "self_attn.kv_b_proj.weight"), p.still + p.value
    shape, starts = (b.heads * size, p.rank), range(0, b.heads * size, size)
    keys = [Part(name, shape, transposed=True, inputs=(i, i + p.still)) for i in starts]
    still = _by_head(b, still, f"{at}.k_b", keys)
    attrs = {"heads": b.heads, "shared": p.turning, "rank": p.rank}
    rows = b.node("latent_rows", [turning, still, shared, narrow], f"{at}.qkv", attrs=attrs)
    state, width = f"kv{layer}", p.turning + p.rank
    b.states[state] = LatentState(width)
    attrs = {"heads": b.heads, "kv_heads": 1, "head_dim": width, "values": p.rank}
    y = b.node(
        "attention", [rows], f"{at}.attention", weights=dict(rope.slots),
        attrs={**attrs, "scale": p.scale, **rope.attrs}, state=state,
    )  # fmt: skip
    values = [Part(name, shape, rows=(i + p.still, i + size)) for i in starts]
    return _by_head(b, y, f"{at}.v_b", values)


def _over_heads(
    b: Builder, layer: int, x: str, shared: str, narrow: str, rope: Rotary, p: Latent
) -> str:
    """The same, over keys and values of all heads."""
    at, (x, turns) = f"layers.{layer}", _queries(b, layer, x, p)
    q = b.linear(x, f"{at}.q", [part for both in turns for part in both])
    part = Part(b.at(layer, "self_attn.kv_b_proj.weight"), (b.heads * (p.still + p.value), p.rank))
    kv = b.linear(narrow, f"{at}.kv_b", [part])
    attrs = {"heads": b.heads, "shared": p.turning, "own": p.still, "value": p.value}
    rows = b.node("latent_heads", [q, kv, shared], f"{at}.qkv", attrs=attrs)
    state = f"kv{layer}"
    b.states[state] = KVState(b.heads, p.size, 0)
    attrs = {"heads": b.heads, "kv_heads": b.heads, "head_dim": p.size}
    y = b.node(
        "attention", [rows], f"{at}.attention", weights=dict(rope.slots),
        attrs={**attrs, "scale": p.scale, **rope.attrs}, state=state,
    )  # fmt: skip
    if p.value < p.size:
        y = b.node("first_columns", [y], f"{at}.values", attrs={"size": p.size, "keep": p.value})
    return y


def attention(
    b: Builder, layer: int, x: str, rope: Rotary, p: Latent, *, residual: float = 1.0
) -> str:
    """Latent attention from rows of C to rows of C, over a new state "kv<layer>". residual: factor
    of what it gives."""
    at, name = f"layers.{layer}", b.at(layer, "self_attn.kv_a_proj_with_mqa.weight")
    shape = (p.rank + p.turning, b.width)
    narrow = b.linear(x, f"{at}.kv_a", [Part(name, shape, rows=(0, p.rank))], bias=p.bias)
    narrow = _normed(b, layer, narrow, "kv_a_norm", "kv_a_layernorm", p.rank)
    spread = Part(name, shape, rows=(p.rank, p.rank + p.turning), pairs=p.pairs)
    shared = b.linear(x, f"{at}.k_shared", [spread], bias=p.bias)
    made = _over_latents if p.whole else _over_heads
    y = made(b, layer, x, shared, narrow, rope, p)
    name = b.at(layer, "self_attn.o_proj.weight")
    part = Part(name, (b.width, b.heads * p.value), scale=residual)
    return b.linear(y, f"{at}.o", [part], bias=p.bias)
