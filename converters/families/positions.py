"""Where tokens stand, besides rotary embeddings: learned tables, and factors of queries."""

from __future__ import annotations

import numpy as np

from .blocks import Builder, Stacked
from .recipe import Recipe


def learned_positions(b: Stacked, x: str, tensor: str) -> str:
    """Rows plus those of a table that has one for each place in the context."""
    weights = {"weight": b.tensor("position_table", tensor, (b.context, b.width))}
    return b.node("add_learned_positions", [x], "placed", weights=weights)


def scaled_queries(b: Builder, layer: int, rows: str, factors: tuple[str, int]) -> str:
    """Rows [q | k | v], queries times a factor by their place. factors: weight, tokens of each."""
    weight, every = factors
    attrs = {"every": every, "width": b.heads * b.head_dim}
    at = f"layers.{layer}.scaled"
    return b.node("scale_by_position", [rows], at, weights={"weight": weight}, attrs=attrs)


def logarithmic(b: Stacked, beta: float, every: int) -> tuple[str, int]:
    """Factors 1 + beta log(1 + floor(p / every)) of queries at p, for the whole context."""
    steps = np.arange(-(-b.context // every), dtype=np.float64)
    values = (1 + beta * np.log1p(steps)).astype(np.float32)
    return b.weight("query_factors", Recipe(values=values)), every
