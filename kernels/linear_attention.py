"""linear_attention: attention whose memory does not grow, with weights of second order.

Rows of qkv are [q | k | v] of widths H*D, G*D, G*D, rows of gates [a | dt] of widths G, G (dt in
mode mamba2s). For a token at position p of its sequence:

    q, k   <- rms_norm per head (where q_norm/k_norm are given), rotate(., p) as in `attention`
    k      <- k - key_mean
    q, k   <- q_map^T q, k_map^T k              r features, of each key/value head's own map
    q, k   <- sqrt(scale) q, sqrt(scale) k      mode relu: and max(., 0)
    v      <- softplus(dt) v                    mode mamba2s
    rate    = max(-softplus(a), -30)            logarithm of the decay, 0 without `decay`
    w_tj    = f(q_t . k_j) exp(sum of rate over j + 1 .. t)      for j <= t
    y_t     = sum_j w_tj v_j / (sum_j w_tj + eps)                mode mamba2s: no division

f(x): square x^2; shifted (x + b)^2 + c with b = softplus(beta), c = 0.001 + softplus(gamma), so
that the sum of the weights is never less than c; mamba2s and relu x; 2mamba-e e^x, softmax with
decays, whose state is all tokens. "2Mamba2Furious", arXiv 2602.17363; shifted is twice the
second-order Taylor polynomial of e^x for b = c = 1.

With a window, the tokens of a row's own chunk and of the one before it (`chunk` tokens each,
counted from the sequence's start) have softmax's weights instead, of queries and keys before the
maps: w_tj = exp(log_window + l_tj - max_j l_tj), l = scale q . k, each head with its log_window
(LoLCATs, arXiv 2410.10254).

Decays, maps, beta and gamma belong to key/value heads, and so does the state: D features by P
values, whatever H is. The last `chunk` to 2 `chunk` tokens stand beside it as rows (`linear_forms`,
`edgert/session/tailed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .attention import rotated
from .linear_attention_lower import LOWER
from .linear_attention_onnx import chunk_ports, emit_chunk
from .linear_exp_onnx import emit_exp, exp_ports
from .linear_forms import Form, Near, parallel, windowed
from .linear_window_onnx import emit_windowed, window_ports
from .norm import normalise
from .onnx_ports import Dialect, NodePorts
from .onnx_tools import Call, EmitContext
from .ops_linear import EXP, padded, row_width
from .quant import F32

LEAST_RATE = -30.0
LEAST_GAMMA = 1e-3


def softplus(x: Any) -> Any:
    """log(1 + e^x)."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def form_of(weights: Mapping[str, Any], attrs: Mapping[str, Any], dtype: Any = np.float64) -> Form:
    """The form that a node's weights and attributes name."""
    zero = np.zeros(attrs["kv_heads"], dtype)
    beta = softplus(weights["beta"].astype(dtype)) if "beta" in weights else zero
    gamma = LEAST_GAMMA + softplus(weights["gamma"].astype(dtype)) if "gamma" in weights else zero
    return Form(attrs["mode"], beta, gamma, attrs["eps"])


def _mapped(x: F32, name: str, weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """Heads [T, n, D] to their features [T, n, r]."""
    if name in weights:
        groups, size = attrs["kv_heads"], attrs["head_dim"]
        table = weights[name].reshape(groups, size, -1).repeat(x.shape[1] // groups, axis=0)
        x = np.einsum("tnd,ndr->tnr", x, table)
    x = x * np.float32(np.sqrt(attrs["scale"]))
    return np.maximum(x, 0) if attrs["mode"] == "relu" else x


def prepared(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], slots: Any
) -> tuple[F32, F32, F32]:
    """Queries [T, H, r], those of the window [T, H, D], and the rows that tokens leave in the tail
    [T, row width]."""
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    rows = inputs[0].reshape(len(inputs[0]), heads + 2 * groups, size)
    q, k, v = np.split(rows, [heads, heads + groups], axis=1)
    if "q_norm" in weights:
        q = normalise(q, weights["q_norm"], attrs["qk_eps"])
        k = normalise(k, weights["k_norm"], attrs["qk_eps"])
    q, k = rotated(q, weights, attrs, slots), rotated(k, weights, attrs, slots)
    if "key_mean" in weights:
        k = k - weights["key_mean"]
    rate = np.zeros((len(rows), groups), np.float32)
    if attrs["decay"]:
        rate = np.maximum(-softplus(inputs[1][:, :groups]), LEAST_RATE)
    if attrs["mode"] == "mamba2s":
        v = softplus(inputs[1][:, -groups:])[..., None] * v
    v = np.pad(v, ((0, 0), (0, 0), (0, padded(size) - size)))
    near = [part * np.float32(np.sqrt(attrs["scale"])) for part in (q, k)]
    q, k = _mapped(q, "q_map", weights, attrs), _mapped(k, "k_map", weights, attrs)
    kept = [k, v, rate, near[1]] if attrs["window"] else [k, v, rate]
    flat = [part.reshape(len(rows), -1) for part in kept]
    return q, near[0], np.concatenate(flat, axis=1).astype(np.float32)


def linear_attention(
    inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any], slots: Any
) -> F32:
    """qkv float32 [T, (H + 2G) * D], gates float32 [T, G or 2G] -> float32 [T, H * D]. The state
    is the rows of all tokens so far, float32 [n, row width]."""
    groups, size = attrs["kv_heads"], attrs["head_dim"]
    q, near, new = prepared(inputs, weights, attrs, slots)
    y, form = np.empty((len(q), attrs["heads"], size), np.float32), form_of(weights, attrs)
    cuts = np.cumsum([attrs["features"], padded(size), 1]) * groups
    for rows, before in slots:
        kept = np.concatenate([before, new[rows]])
        slots.made.append(kept)
        k, v, rate, keys = (part.astype(np.float64) for part in np.split(kept, cuts, axis=1))
        k, v = k.reshape(len(k), groups, -1), v.reshape(len(v), groups, -1)[..., :size]
        one = q[rows].astype(np.float64), k, v, rate, form
        if attrs["window"]:
            logs = weights["log_window"].astype(np.float64)
            keys = keys.reshape(len(k), groups, -1)
            y[rows] = windowed(
                *one, Near(near[rows].astype(np.float64), keys, logs, attrs["chunk"])
            )
        else:
            y[rows] = parallel(*one)
    return y.reshape(len(y), -1)


def emit(ctx: EmitContext, call: Call) -> None:
    """The ONNX face of the node's mode."""
    if call.attrs["mode"] == EXP:
        emit_exp(ctx, call)
    else:
        (emit_windowed if call.attrs["window"] else emit_chunk)(ctx, call)


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """What the node's ONNX face needs."""
    if call.attrs["mode"] == EXP:
        return exp_ports(call, dialect)
    return (window_ports if call.attrs["window"] else chunk_ports)(call, dialect)


ONNX = {"linear_attention": emit}
PORTS = {"linear_attention": ports}

__all__ = [
    "LOWER",
    "ONNX",
    "PORTS",
    "REFERENCE",
    "form_of",
    "linear_attention",
    "prepared",
    "row_width",
    "softplus",
]

REFERENCE = {"linear_attention": linear_attention}
