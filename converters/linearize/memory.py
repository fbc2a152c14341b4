"""What a turned model remembers, in bytes, beside keys and values: is turning worth it at all.

    state   G (4 D (P + 1))  and 4 (H + 2G) P for the convolution        of a layer, at any length
    cache   G b 2 P N                                                    of a layer, N tokens

D features (`ops_linear.feature_width`), G key/value heads of size P; b bytes an element: 2 in half
precision, 1.125 and 0.625 for codes of 8 and 4 bits with a scale and a minimum for each 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConvertError
from ...kernels.ops_linear import feature_width

ELEMENT = {"f16": 2.0, "int8": 1.125, "int4": 0.625}  # bytes of a key's or a value's element
STATE = 4  # bytes of a state's element


@dataclass(frozen=True)
class Memory:
    """Of `turned` alike layers. heads, kv_heads, head_dim: H, G, P. features: r."""

    turned: int
    heads: int
    kv_heads: int
    head_dim: int
    features: int
    mode: str

    @property
    def state(self) -> int:
        """Bytes of all turned layers, besides the tail of unfolded tokens."""
        wide = feature_width(self.features, self.mode)
        matrix = self.kv_heads * STATE * wide * (self.head_dim + 1)
        return self.turned * (matrix + STATE * (self.heads + 2 * self.kv_heads) * self.head_dim)

    def cache(self, tokens: int, kind: str) -> int:
        """Bytes of the same layers' keys and values."""
        one = self.kv_heads * ELEMENT[kind] * 2 * self.head_dim
        return round(self.turned * one * tokens)

    def crossover(self, kind: str) -> int:
        """From how many tokens on the states are smaller than keys and values of that kind."""
        wide = feature_width(self.features, self.mode)
        return math.ceil(STATE * wide * (self.head_dim + 1) / (2 * ELEMENT[kind] * self.head_dim))

    def table(self, context: int) -> str:
        """Lines for a user."""
        rows = [f"{self.turned} layers, state: {_mib(self.state)} at any length"]
        rows += [
            f"keys and values in {kind}: {_mib(self.cache(context, kind))} at {context} tokens, "
            f"as much as the state at {self.crossover(kind)}"
            for kind in ELEMENT
        ]
        return "\n".join(rows)

    def to_dict(self, context: int) -> dict[str, Any]:
        """JSON-ready."""
        caches = {kind: self.cache(context, kind) for kind in ELEMENT}
        crossovers = {kind: self.crossover(kind) for kind in ELEMENT}
        return {"context": context, "state": self.state, "cache": caches, "crossover": crossovers}

    def advice(self, context: int) -> str:
        """What to do instead below the crossover; "" where turning saves memory."""
        if self.state < self.cache(context, "int8"):
            return ""
        other = self.cache(context, "int8")
        return (
            f"at {context} tokens keys and values in int8 take {_mib(other)}, the states of "
            f"{self.turned} turned layers {_mib(self.state)}: keep softmax and quantize its keys "
            f"and values, or serve more than {self.crossover('int8')} tokens"
        )

    def check(self, context: int, *, anyway: bool) -> str:
        """`advice`. Raises ConvertError where states are larger than keys and values in f16 at the
        served context, unless that is wanted."""
        told = self.advice(context)
        if not told or anyway or self.state < self.cache(context, "f16"):
            return told
        raise ConvertError(
            f"linear layers would remember {_mib(self.state)}, keys and values in f16 take "
            f"{_mib(self.cache(context, 'f16'))} at {context} tokens, expected less: {told}",
            code="linearize-memory",
            hint=f"fewer --features than {self.features}, a larger --serve, or --anyway",
        )


def memory_of(layers: Sequence[Any], mode: str) -> Memory:
    """Of layers as `plan.Turn` describes them, which are alike."""
    first = layers[0]
    return Memory(len(layers), first.heads, first.kv_heads, first.head_dim, first.features, mode)


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"
