"""linear: y[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n]).

With f32 or f16 weights the product is a plain float one. With int8-g32 or int4-g32 weights the
activations are quantized too, per token and block of 32 inputs (`quant.quantize_rows`), and

    y[t, n] = sum_b  xs[t, b] * ws[n, b] * sum_i xq[t, b, i] * wq[n, b, i]

with the inner sum exact in integers and the outer one in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .quant import F32, Matrix, Quantized, codes_of, quantize_rows


def product(x: F32, w: Matrix) -> F32:
    """float32 [T, K] times a stored matrix [N, K] -> float32 [T, N], by the formula above."""
    if not isinstance(w, Quantized):
        return x.astype(np.float32) @ w.astype(np.float32).T
    xq, xs = quantize_rows(x)  # [T, KB, 32], [T, KB]
    wq, ws = codes_of(w), w.scales.astype(np.float32)  # [N, KB, 32], [N, KB]
    y = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for b in range(xs.shape[1]):
        dots = xq[:, b].astype(np.float32) @ wq[:, b].astype(np.float32).T  # exact: < 2^24
        y += dots * (xs[:, b, None] * ws[None, :, b])
    return y


def linear(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, K], weight [N, K] in any encoding, bias float32 [N] or absent -> [T, N]."""
    y = product(inputs[0], weights["weight"])
    return y + weights["bias"] if "bias" in weights else y


REFERENCE = {"linear": linear}
