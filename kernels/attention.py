"""attention: rotary, grouped-query, causal attention over cached keys and values.

Input rows are [q | k | v] of widths H*D, G*D, G*D. For a token at position p of its sequence:

    q, k  <- rms_norm per head (where q_norm/k_norm are given; behind the rotation: norm_last)
    q, k  <- rotate(., p)                      first 2*len(inv_freq) channels, half-split pairs
    append k, v to the sequence's cache
    s_j    = scale * q . k_j ;  s_j <- softcap * tanh(s_j / softcap) where softcap > 0
    y      = sum_j softmax(s)_j v_j            over the tokens j that this one sees

rotate: angle = p * inv_freq; (a, b) -> (a cos - b sin, b cos + a sin), times `rope_scale`
(arXiv 2104.09864). With `rope_growth` f, frequency i of n at positions from L, `rope_length`, on
is times (f (p + 1) / L - f + 1)^(-i / (n - 1)): the dynamic scaling of a text of p + 1 tokens.
With `rope_axes`, character i names the axis of p = (time, height, width) that frequency i turns by
(M-RoPE, arXiv 2409.12191). Sequences longer than `rope_switch` use inv_freq_long and
rope_long_scale.

With `sinks` a head's softmax has one term more, e^sink, that no value belongs to
(arXiv 2309.17453, as gpt-oss learns it).

With `values` > 0 (latent attention, arXiv 2405.04434) a key's last channels are its values, as many
as that says, and rows are [q | k]: one key of D for all heads, y of H * values.

A token sees itself and what came before it, the last `window` of them (0: all). In a tree it sees
its ancestors.

shared_attention: rows of q alone, over the keys and values that another node has appended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention_lower import LOWER, axes_of
from .attention_onnx import ONNX, PORTS
from .norm import normalise
from .quant import F32
from .slot_rows import SlotRows


@dataclass
class KVRows:
    """Where the rows of one step stand, and the caches they extend (the reference's state).

    sequence: int [T]. slot: int [T], where a row's key is stored. place: int [T], how many tokens
    it continues (its slot, except in trees). position: int [3, T], rotary axes. long_rope: bool a
    sequence. ancestors: a sequence each, bool [n, n] (row, ancestor or itself) for trees, or None.
    keys, values: a list a sequence of float32 [n, G, D], extended in place by `append`.
    """

    sequence: NDArray[np.int64]
    slot: NDArray[np.int64]
    place: NDArray[np.int64]
    position: NDArray[np.int64]
    long_rope: list[bool]
    ancestors: list[NDArray[np.bool_] | None]
    keys: list[F32] = field(default_factory=list)
    values: list[F32] = field(default_factory=list)

    def append(self, k: F32, v: F32) -> None:
        """k, v float32 [T, G, D], stored at each row's slot."""
        for index in range(len(self.keys)):
            mine = self.sequence == index
            if not mine.any():
                continue
            length = int(self.slot[mine].min())
            self.keys[index] = np.concatenate([self.keys[index][:length], k[mine]])
            self.values[index] = np.concatenate([self.values[index][:length], v[mine]])

    def seen(self, index: int, window: int) -> NDArray[np.bool_]:
        """Which cached tokens the rows of a sequence see: bool [T, n]."""
        mine = self.sequence == index
        slot, place = self.slot[mine], self.place[mine]
        count = len(self.keys[index])
        known = np.arange(count)  # place of the token in each slot
        known[slot] = place
        age = place[:, None] - known[None, :]
        seen: NDArray[np.bool_] = np.arange(count)[None, :] <= slot[:, None]
        seen &= age < (window or count + 1)
        tree = self.ancestors[index]
        if tree is not None:
            seen[:, slot] &= tree
        return seen


def grown(
    inv_freq: F32, position: NDArray[np.integer[Any]], attrs: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Frequencies of rows, float32 [T, half], or as they are where nothing grows; position: of
    each row, int [T]."""
    growth, length = attrs["rope_growth"], attrs["rope_length"]
    if not growth:
        return inv_freq
    stretch = np.maximum(growth * (position.astype(np.float64) + 1) / length - growth + 1, 1.0)
    share = np.arange(len(inv_freq)) / (len(inv_freq) - 1)
    made: F32 = (inv_freq.astype(np.float64) * stretch[:, None] ** -share).astype(np.float32)
    return made


def rotate(x: F32, position: NDArray[np.int64], inv_freq: F32, scale: float) -> F32:
    """x float32 [T, H, D] rotated by position * inv_freq, position int [T] or [T, half], inv_freq
    [half] or [T, half]; channels past the rotary ones pass."""
    half = inv_freq.shape[-1]
    angle = position.reshape(len(x), -1).astype(np.float32) * inv_freq  # [T, half]
    cos = (np.cos(angle) * np.float32(scale))[:, None, :]
    sin = (np.sin(angle) * np.float32(scale))[:, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def rotated(
    x: F32, weights: Mapping[str, Any], attrs: Mapping[str, Any], kv: KVRows | SlotRows
) -> F32:
    if "inv_freq" not in weights:
        return x
    position = kv.position[axes_of(attrs, len(weights["inv_freq"]))].T  # [T, half]
    frequencies = grown(weights["inv_freq"], kv.position[0], attrs)
    out = rotate(x, position, frequencies, attrs["rope_scale"])
    if "inv_freq_long" in weights:
        long = rotate(x, position, weights["inv_freq_long"], attrs["rope_long_scale"])
        long_row = np.array(kv.long_rope, bool)[kv.sequence]
        out = np.where(long_row[:, None, None], long, out)
    return out


def _prepared(
    x: F32, norm: str, weights: Mapping[str, Any], attrs: Mapping[str, Any], kv: KVRows
) -> F32:
    """Queries or keys [T, heads, D] normed and rotated, in the order that the node has."""
    if norm not in weights:
        return rotated(x, weights, attrs, kv)
    if attrs["norm_last"]:
        return normalise(rotated(x, weights, attrs, kv), weights[norm], attrs["qk_eps"])
    return rotated(normalise(x, weights[norm], attrs["qk_eps"]), weights, attrs, kv)


def attend(
    q: F32, keys: F32, values: F32, seen: NDArray[np.bool_], attrs: Mapping[str, Any],
    sinks: F32 | None = None,
) -> F32:  # fmt: skip
    """Queries float32 [T, H, D] of one sequence over its keys and values float32 [n, G, D], where
    `seen` [T, n] -> [T, H, D]. sinks: float32 [H]."""
    share = q.shape[1] // keys.shape[1]
    keys = np.repeat(keys, share, axis=1).transpose(1, 2, 0)  # [H, D, n]
    values = np.repeat(values, share, axis=1).transpose(1, 0, 2)  # [H, n, D]
    scores = q.transpose(1, 0, 2) @ keys * np.float32(attrs["scale"])  # [H, T, n]
    if attrs["softcap"]:
        scores = attrs["softcap"] * np.tanh(scores / np.float32(attrs["softcap"]))
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= total if sinks is None else total + np.exp(sinks[:, None, None] - top)
    out: F32 = (weights @ values).transpose(1, 0, 2).astype(np.float32)
    return out


def _attended(q: F32, weights: Mapping[str, Any], attrs: Mapping[str, Any], kv: KVRows) -> F32:
    """Queries float32 [T, H, D] of all sequences -> rows [T, H * D], or H * `values`."""
    inside = attrs.get("values", 0)
    out = np.empty((*q.shape[:2], inside or q.shape[2]), np.float32)
    for index in np.unique(kv.sequence):
        mine = kv.sequence == index
        seen = kv.seen(index, attrs["window"])
        keys = kv.keys[index]
        values = keys[..., -inside:] if inside else kv.values[index]
        out[mine] = attend(q[mine], keys, values, seen, attrs, weights.get("sinks"))
    return out.reshape(len(out), -1)


def attention(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], kv: KVRows
) -> F32:
    """qkv float32 [T, (H + 2G) * D] -> float32 [T, H * D]; extends `kv`. With `values`: [T, (H + 1)
    * D] -> [T, H * values], and no values are appended."""
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    rows = inputs[0].reshape(len(inputs[0]), -1, size)
    q, k, v = np.split(rows, [heads, heads + groups], axis=1)
    q, k = _prepared(q, "q_norm", weights, attrs, kv), _prepared(k, "k_norm", weights, attrs, kv)
    kv.append(k, k[..., :0] if attrs["values"] else v)
    return _attended(q, weights, attrs, kv)


def shared_attention(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], kv: KVRows
) -> F32:
    """q float32 [T, H * D] -> float32 [T, H * D], over what the owner of `kv` has appended."""
    q = inputs[0].reshape(len(inputs[0]), attrs["heads"], attrs["head_dim"])
    return _attended(_prepared(q, "q_norm", weights, attrs, kv), weights, attrs, kv)


__all__ = ["LOWER", "ONNX", "PORTS", "REFERENCE", "KVRows", "attend", "attention", "rotate"]

REFERENCE = {"attention": attention, "shared_attention": shared_attention}
