"""Latent attention, as DeepSeek has it: keys and values of all heads from one narrow row, a part of
the key shared by all (arXiv 2405.04434).

Heads are made whole before they are stored, so the cache has the size of ordinary attention's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.states import KVState
from .blocks import Builder, Rotary
from .recipe import Part


@dataclass(frozen=True)
class Latent:
    """Sizes of a head's parts: `turning` with the position, shared by keys, `still`, and `value`;
    ranks of the rows that queries (0: of none) and keys and values are made of."""

    turning: int
    still: int
    value: int
    query_rank: int
    rank: int
    eps: float
    scale: float
    bias: bool = False

    @property
    def size(self) -> int:
        return self.turning + self.still

    def fault(self) -> str:
        """What is wrong with the sizes, or ""."""
        if self.turning % 2 or self.still % self.turning or self.rank % self.turning:
            return (
                f"'qk_nope_head_dim' is {self.still}, 'kv_lora_rank' {self.rank} and "
                f"'qk_rope_head_dim' {self.turning}, expected multiples of an even number"
            )
        if self.value > self.size:
            return f"'v_head_dim' is {self.value}, expected at most the {self.size} of a key"
        return ""


def _normed(b: Builder, layer: int, x: str, label: str, tensor: str, width: int, eps: float) -> str:
    name = b.at(layer, f"self_attn.{tensor}.weight")
    weights = {"weight": b.vector(f"layers.{layer}.{label}", name, width)}
    return b.node("rms_norm", [x], f"layers.{layer}.{label}", weights=weights, attrs={"eps": eps})


def _queries(b: Builder, layer: int, x: str, p: Latent) -> str:
    """Rows of heads, the turning part of each first, its pairs in halves."""
    at, tensor, width = f"layers.{layer}", "q_proj", b.width
    if p.query_rank:
        part = Part(b.at(layer, "self_attn.q_a_proj.weight"), (p.query_rank, b.width))
        x = b.linear(x, f"{at}.q_a", [part], bias=p.bias)
        x = _normed(b, layer, x, "q_a_norm", "q_a_layernorm", p.query_rank, p.eps)
        tensor, width = "q_b_proj", p.query_rank
    name, shape = b.at(layer, f"self_attn.{tensor}.weight"), (b.heads * p.size, width)
    parts = []
    for start in range(0, b.heads * p.size, p.size):
        middle = start + p.still
        pairs = (p.turning, p.turning)
        parts.append(Part(name, shape, rows=(middle, start + p.size), pairs=pairs))
        parts.append(Part(name, shape, rows=(start, middle)))
    return b.linear(x, f"{at}.q", parts)


def attention(b: Builder, layer: int, x: str, rope: Rotary, p: Latent) -> str:
    """Latent attention from rows of C to rows of C, over a new state "kv<layer>"."""
    at, name = f"layers.{layer}", b.at(layer, "self_attn.kv_a_proj_with_mqa.weight")
    q, shape = _queries(b, layer, x, p), (p.rank + p.turning, b.width)
    narrow = b.linear(x, f"{at}.kv_a", [Part(name, shape, rows=(0, p.rank))], bias=p.bias)
    narrow = _normed(b, layer, narrow, "kv_a_norm", "kv_a_layernorm", p.rank, p.eps)
    spread = Part(name, shape, rows=(p.rank, p.rank + p.turning), pairs=(p.turning, p.turning))
    shared = b.linear(x, f"{at}.k_shared", [spread], bias=p.bias)
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
    part = Part(b.at(layer, "self_attn.o_proj.weight"), (b.width, b.heads * p.value))
    return b.linear(y, f"{at}.o", [part], bias=p.bias)
