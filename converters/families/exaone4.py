"""exaone4: EXAONE 4, norms behind each half, no positions without a window (arXiv 2507.11407)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers, sliding
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of an EXAONE 4. sliding_window_pattern: "LLLG" (local, global) or its length."""

    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 4096
    sliding_window_pattern: int | str | None = 4
    layer_types: list[str] | None = None


SCHEMA = Schema("Exaone4ForCausalLM", fixed={"hidden_act": ("silu",)})


def _kinds(c: Config, faults: list[str]) -> list[str]:
    """Type of each layer."""
    found, count = c.sliding_window_pattern, c.num_hidden_layers
    if c.layer_types is not None:
        return c.layer_types
    if c.sliding_window is None or found is None:
        return [sliding.FULL] * count
    return sliding.pattern(
        len(found) if isinstance(found, str) else found, c.num_hidden_layers, faults
    )


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    windows = sliding.typed_windows(_kinds(c, faults), c.sliding_window, b.layers, faults)
    turning = [c.sliding_window is None or window > 0 for window in windows]
    turns = layers.turning(b, c, faults) if any(turning) else blocks.NO_ROPE

    def layer(index: int, x: str) -> str:
        return layers.post_norm_layer(
            b, index, x, turns if turning[index] else blocks.NO_ROPE, act="silu", qk_norm=True,
            window=windows[index],
        )  # fmt: skip

    return layers.decoder(b, c, layer)
