"""dot_attention: every query row over all key rows, nothing cached (arXiv 1706.03762).

    s[h, i, j] = scale * q[i, h] . k[j, h]  (+ relative_bias[bucket(j - i), h])
    y[i, h]    = sum_j softmax_j(s[h, i]) v[j, h]

Keys and values may be rows of another value than the queries (a caption's). causal: row i sees the
rows j <= i. relative_bias [buckets, H]: T5's, with half of the buckets for each direction where the
attention is not causal, exact distances in the first half of those, logarithmic ones up to
`max_distance` in the rest (arXiv 1910.10683).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quant import F32


def buckets_of(
    queries: int, keys: int, buckets: int, max_distance: int, *, causal: bool
) -> NDArray[np.int64]:
    """Bucket of each pair: int64 [queries, keys], 0 to buckets - 1."""
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    if causal:
        first, distance = np.zeros_like(distance), np.maximum(-distance, 0)
    else:
        buckets //= 2
        first, distance = np.where(distance > 0, buckets, 0), np.abs(distance)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
    far = exact + (ratio / math.log(max_distance / exact) * (buckets - exact)).astype(np.int64)
    near = np.where(distance < exact, distance, np.minimum(far, buckets - 1))
    return np.asarray(first + near, np.int64)


def bias_of(weights: Mapping[str, Any], attrs: Mapping[str, Any], n: int, m: int) -> F32 | None:
    """What is added to the scores: float32 [H, n, m], or None."""
    if "relative_bias" not in weights:
        return None
    table: F32 = weights["relative_bias"]
    found = buckets_of(n, m, len(table), attrs["max_distance"], causal=attrs["causal"])
    return table[found].transpose(2, 0, 1)


def dot_attention(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]
) -> F32:
    """q float32 [N, H * D], k, v float32 [M, H * D] -> float32 [N, H * D]."""
    q, k, v = (x.reshape(len(x), attrs["heads"], -1).transpose(1, 0, 2) for x in inputs)
    scores = q @ k.transpose(0, 2, 1) * np.float32(attrs["scale"])  # [H, N, M]
    bias = bias_of(weights, attrs, q.shape[1], k.shape[1])
    if bias is not None:
        scores = scores + bias
    if attrs["causal"]:
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    out: F32 = (share @ v).transpose(1, 0, 2).reshape(len(inputs[0]), -1)
    return out


REFERENCE = {"dot_attention": dot_attention}
