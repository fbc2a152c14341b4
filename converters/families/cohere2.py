"""cohere2: Command R7B and A, halves side by side, no positions without a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Command R7B or A. logit_scale: factor of the logits."""

    head_dim: int | None = None
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    logit_scale: float = 0.0625
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: list[str] | None = None


SCHEMA = Schema(
    "Cohere2ForCausalLM",
    fixed={
        "hidden_act": ("silu",),
        "position_embedding_type": ("rope_gptj",),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_embedding_sharing": (True,),
        "rotary_pct": (1.0, 1),
    },
    # how the published pattern of windows came about, and how training was spread
    ignored=frozenset({"layer_switch", "order_of_interleaved_layers", "use_parallel_embedding"}),
)


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=max(1, c.hidden_size // c.num_attention_heads))
    if c.head_dim not in (None, b.head_dim) or b.heads * b.head_dim != b.width:
        faults.append(
            f"config 'head_dim' is {c.head_dim}, expected 'hidden_size' {b.width} of "
            f"{b.heads} heads, which is what transformers reads"
        )
    b.affine, b.eps = "weight", blocks.epsilon(c.layer_norm_eps, "layer_norm_eps", faults)
    kinds = c.layer_types or sliding.pattern(c.sliding_window_pattern, b.layers, faults)
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    (logits,) = blocks.multipliers(c, ("logit_scale",), faults)
    turns = layers.turning(b, c, faults) if any(windows) else blocks.NO_ROPE

    def layer(index: int, x: str) -> str:
        window = windows[index]
        return layers.parallel_layer(
            b, index, x, turns if window else blocks.NO_ROPE, act="silu", window=window,
            pairs=b.head_dim if window else 0, qkv_bias=c.attention_bias, o_bias=c.attention_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer, scale_logits=logits)
