"""A draft head on torch: the first guess at every place of a text at once, then guesses behind it.

A further guess at place t sees the keys of the text up to t and those of the guesses before it at
the same place, so that a guess costs a few dot products more and not a text more (the training-time
test of EAGLE-3, arXiv 2503.01840). `first` and `further` compute what the head's graph computes
when the text is fed to it and then guess by guess.

Letters: B texts of T tokens, S places of each that guess, H heads over G of keys, D their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..torch_graph import _rms, _rotate
from .shape import EPS, HeadShape

F32 = NDArray[np.float32]


def fresh(
    shape: HeadShape, frequencies: F32, norm: F32 | None, rows: F32, *, seed: int
) -> dict[str, F32]:
    """Weights to begin with, by graph name: the model's own output rows [vocabulary, C] and norm
    [C], over its last tap; the others random. frequencies: [rotary]."""
    rng, c = np.random.default_rng(seed), shape.width
    attended = shape.heads * shape.head_dim

    def matrix(n: int, k: int, scale: float = 1.0) -> F32:
        made = rng.standard_normal((n, k)).astype(np.float32)
        return made * np.float32(scale / np.sqrt(k))

    ones = np.ones(c, np.float32)
    fc = matrix(c, len(shape.taps) * c, 0.1)
    fc[:, -c:] += np.eye(c, dtype=np.float32)
    return {
        "fc": fc, "norm_e": ones, "norm_h": ones.copy(),
        "qkv": matrix(attended + 2 * shape.kv_heads * shape.head_dim, 2 * c),
        "inv_freq": np.asarray(frequencies, np.float32), "o": matrix(c, attended, 0.3),
        "norm2": ones.copy(), "gate_up": matrix(2 * shape.ff, c),
        "down": matrix(c, shape.ff, 0.3),
        "norm": ones.copy() if norm is None else np.asarray(norm, np.float32).copy(),
        "head": np.asarray(rows, np.float32).copy(),
    }  # fmt: skip


@dataclass
class Memory:
    """Keys and values [B, G, T, D] of the text, and of the guesses so far at each place, each
    [B, G, S, D]. places: int [B, S] or [S], what guesses. a: [B, S, C], what they go on from."""

    keys: Tensor
    values: Tensor
    places: Tensor
    a: Tensor
    chain: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Head:
    """weights: tensors by graph name, those to be trained with gradients."""

    def __init__(self, shape: HeadShape, weights: Mapping[str, Tensor]) -> None:
        self.shape, self.weights = shape, dict(weights)

    def first(self, features: Tensor, embedded: Tensor, places: Tensor | None = None) -> Memory:
        """The text: features [B, T, k C] of its tokens, embedded [B, T, C] of those behind them;
        places int [S] or [B, S] that guess (default: all)."""
        g = F.linear(features, self.weights["fc"]).float()  # the residual rows stay exact
        at = torch.arange(g.shape[1], device=g.device)
        q, k, v = self._heads(embedded, g, at)
        places = at if places is None else places
        if places.dim() == 2:
            rows = places[..., None]
            q = q.gather(2, rows[:, None].expand(-1, q.shape[1], -1, q.shape[3]))
            g = g.gather(1, rows.expand(-1, -1, g.shape[2]))
        else:
            q, g = q[:, :, places], g[:, places]
        memory = Memory(k, v, places, g)
        memory.a = self._behind(g, self._attend(q, memory))
        return memory

    def further(self, memory: Memory, embedded: Tensor) -> None:
        """Go on behind guesses whose rows are embedded [B, S, C]."""
        at = memory.places + len(memory.chain) + 1
        q, k, v = self._heads(embedded, memory.a, at)
        memory.chain.append((k, v))
        memory.a = self._behind(memory.a, self._attend(q, memory))

    def logits(self, a: Tensor) -> Tensor:
        """Rows [.., C] -> logits [.., V_d] of the token behind."""
        return F.linear(_rms(a, self.weights["norm"], EPS), self.weights["head"])

    def _heads(self, embedded: Tensor, g: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, S, D], keys and values [B, G, S, D] of rows at positions int [(B,) S]."""
        w, shape = self.weights, self.shape
        both = [_rms(embedded, w["norm_e"], EPS), _rms(g, w["norm_h"], EPS)]
        rows = F.linear(torch.cat(both, -1), w["qkv"])
        rows = rows.view(*rows.shape[:2], -1, shape.head_dim).transpose(1, 2)  # [B, H + 2 G, S, D]
        position = at.to(torch.float32)[..., None]  # [(B,) S, 1]
        position = position[:, None] if at.dim() == 2 else position
        turned = _rotate(rows[:, : -shape.kv_heads], position, w["inv_freq"], 1.0)
        q, k = turned[:, : shape.heads], turned[:, shape.heads :]
        return q, k, rows[:, -shape.kv_heads :]

    def _attend(self, q: Tensor, memory: Memory) -> Tensor:
        """Queries over the text up to their places and over their own chains: [B, S, H D]."""
        shape, batch = self.shape, q.shape[0]
        q = q.view(batch, shape.kv_heads, -1, *q.shape[2:]) * shape.head_dim**-0.5
        text = torch.einsum("bghsd,bgtd->bghst", q, memory.keys)
        keys = torch.arange(text.shape[-1], device=q.device)
        places = memory.places if memory.places.dim() == 2 else memory.places[None]
        seen = keys <= places[..., None]  # [B or 1, S, T]
        if shape.window:
            newest = places[..., None] + len(memory.chain)
            seen = seen & (keys > newest - shape.window)
        text = text.masked_fill(~seen[:, None, None], -torch.inf)
        own = [torch.einsum("bghsd,bgsd->bghs", q, k)[..., None] for k, _ in memory.chain]
        weights = torch.cat([text, *own], -1).float().softmax(-1).to(q.dtype)
        count = memory.keys.shape[2]
        y = torch.einsum("bghst,bgtd->bghsd", weights[..., :count], memory.values)
        for index, (_, v) in enumerate(memory.chain):
            y = y + weights[..., count + index, None] * v[:, :, None]
        return y.flatten(1, 2).transpose(1, 2).flatten(2)

    def _behind(self, g: Tensor, attended: Tensor) -> Tensor:
        """Rows a [B, S, C]."""
        w = self.weights
        r = g + F.linear(attended, w["o"])
        gate, up = F.linear(_rms(r, w["norm2"], EPS), w["gate_up"]).chunk(2, -1)
        return r + F.linear(self._act(gate) * up, w["down"])

    def _act(self, gate: Tensor) -> Tensor:
        if self.shape.act == "silu":
            return F.silu(gate)
        return F.gelu(gate, approximate="tanh" if self.shape.act == "gelu_tanh" else "none")
