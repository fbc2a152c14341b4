"""deepseek_v2: latent attention, and experts beside shared ones (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...kernels.ops_experts import EXPERTS
from . import blocks, experts, latent
from .config import Decoder, Schema, read_config, size_faults
from .recipe import FamilyModel
from .rope import rope, rope_parameters

KEYS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
CAPS = {"moe_intermediate_size": 1 << 20, "n_shared_experts": EXPERTS}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a DeepSeek-V2. `head_dim` is the turning part's, if it is there."""

    head_dim: int | None = None
    attention_bias: bool = False
    first_k_dense_replace: int = 0
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int
    moe_intermediate_size: int = 1407
    routed_scaling_factor: float = 1.0


SCHEMA = Schema(
    "DeepseekV2ForCausalLM",
    fixed={
        "hidden_act": ("silu",), "topk_method": ("greedy",), "scoring_func": ("softmax",),
        "norm_topk_prob": (False,), "moe_layer_freq": (1,), "n_group": (1,), "topk_group": (1,),
    },
    ignored=frozenset({"qk_head_dim"}),
)  # fmt: skip


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    broken = size_faults(c, CAPS)
    params = rope_parameters(c)
    p = latent.planned(c, c.v_head_dim, params, broken)
    faults += broken
    b = blocks.Builder(c, head_dim=p.size)
    turns = blocks.rotary(b, rope(params, p.turning, b.context, faults))
    (scale,) = blocks.multipliers(c, ("routed_scaling_factor",), faults)
    e = experts.Experts(
        c.n_routed_experts, c.num_experts_per_tok, c.moe_intermediate_size, normalised=False,
        attrs={"scale": scale},
    )  # fmt: skip
    sparse = [not broken and i >= c.first_k_dense_replace for i in range(b.layers)]
    if any(sparse):
        e = experts.checked(e, b.width, KEYS, faults)
    shared = ("gate_proj", "up_proj", "down_proj")
    names = tuple(f"mlp.shared_experts.{key}" for key in shared)
    x = blocks.embedding(b, tied=c.tie_word_embeddings)
    for layer in range(b.layers):
        at = f"layers.{layer}"
        h = blocks.layer_norm(b, layer, x, "norm1", "input_layernorm")
        x = b.add(x, latent.attention(b, layer, h, turns, p), f"{at}.add1")
        h = blocks.layer_norm(b, layer, x, "norm2", "post_attention_layernorm")
        if sparse[layer]:
            width = c.moe_intermediate_size * c.n_shared_experts
            y = experts.feed_forward(b, layer, h, e, "mlp.gate")
            h = blocks.mlp(b, layer, h, "silu", names=names, width=width)  # type: ignore[arg-type]
            h = b.add(y, h, f"{at}.experts_shared")
        else:
            h = blocks.mlp(b, layer, h, "silu")
        x = b.add(x, h, f"{at}.add2")
    return blocks.head(b, x, tied=c.tie_word_embeddings)
