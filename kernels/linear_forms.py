"""The forms that linear attention can be computed in, as they stand in the formulas.

    x_tj = q_t . k_j                              q and k with the square root of the scale in them
    w_tj = f(x_tj) exp(c_t - c_j)  for j <= t     c = cumulative sum of log decays, its own included
    y_t  = sum_j w_tj v_j / (sum_j w_tj + eps)    without the division in mode mamba2s

f is x^2 (`square`, arXiv 2602.17363), (x + beta)^2 + gamma (`shifted`), or x. Since f(q . k) is a
product of features, phi(q) . phi(k), the sums over j are a matrix S and a vector z (`recurrent`,
`chunked`); `parallel` has the sums as they are.

Shapes: q [T, H, r], k [T, G, r], v [T, G, P], rate [T, G] (logarithms of decays, at most 0), beta
and gamma [G]; y [T, H, P]. Query head h reads key head h // (H / G). All in the dtype of q.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Form(NamedTuple):
    """What the weights are made by. beta, gamma: [G], of mode shifted."""

    mode: str
    beta: Array
    gamma: Array
    eps: float

    @property
    def normalised(self) -> bool:
        return self.mode != "mamba2s"


class Sums(NamedTuple):
    """S [G, D, P] and z [G, D] of what came before."""

    matrix: Array
    normaliser: Array


def pairs(size: int) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.float32]]:
    """i, j and coefficient of the features of second order, i <= j, row by row."""
    i, j = np.triu_indices(size)
    factor = np.where(i == j, 1.0, np.sqrt(2.0)).astype(np.float32)
    return i.astype(np.int16), j.astype(np.int16), factor


def features(u: Array, form: Form) -> Array:
    """phi(u) [..., G, D] of u [..., G, r]: phi(u) . phi(k) = f(u . k)."""
    if form.mode in ("mamba2s", "relu"):
        return u
    i, j = np.triu_indices(u.shape[-1])
    factor = np.where(i == j, 1.0, np.sqrt(2.0)).astype(u.dtype)
    squares = factor * u[..., i] * u[..., j]
    if form.mode == "square":
        return squares
    linear = np.sqrt(2 * form.beta)[:, None] * u
    constant = np.sqrt(form.beta**2 + form.gamma)[:, None] + np.zeros_like(u[..., :1])
    return np.concatenate([squares, linear, constant], -1).astype(u.dtype)


def weights(x: Array, form: Form) -> Array:
    """f(x) of x [G, ...]."""
    if form.mode == "square":
        return np.square(x)
    if form.mode == "shifted":
        beta, gamma = (p.reshape(-1, *[1] * (x.ndim - 1)) for p in (form.beta, form.gamma))
        return (x + beta) ** 2 + gamma
    return x


def parallel(q: Array, k: Array, v: Array, rate: Array, form: Form) -> Array:
    """All pairs of the last T rows, whose queries are given, and of all n rows, T <= n."""
    count, heads = q.shape[:2]
    share = heads // k.shape[1]
    c = np.cumsum(rate, axis=0, dtype=np.float64).T  # [G, n]
    start = len(k) - count
    seen = np.arange(len(k))[None, :] <= np.arange(start, len(k))[:, None]  # [T, n]
    gap = np.where(seen, c[:, start:, None] - c[:, None, :], -np.inf)
    queries = q.reshape(count, -1, share, q.shape[-1])
    x = np.einsum("tgsr,jgr->gstj", queries, k)
    w = (weights(x, form) * np.exp(gap)[:, None]).astype(q.dtype)
    return _rows(np.einsum("gstj,jgp->tgsp", w, v), w.sum(-1).transpose(2, 0, 1), form)


def _rows(total: Array, norm: Array, form: Form) -> Array:
    """Weighted sums [T, G, H / G, P] and their weights [T, G, H / G] to y [T, H, P]."""
    y = total / (norm + form.eps)[..., None] if form.normalised else total
    return y.reshape(len(y), -1, y.shape[-1])


def empty(k: Array, v: Array, form: Form) -> Sums:
    """S and z of nothing."""
    wide = features(k[:1], form).shape[-1] if len(k) else 0
    groups = k.shape[1]
    return Sums(np.zeros((groups, wide, v.shape[-1]), v.dtype), np.zeros((groups, wide), v.dtype))


def folded(before: Sums, k: Array, v: Array, rate: Array, form: Form) -> Sums:
    """S and z once tokens k, v, rate are in them."""
    c = np.cumsum(rate, axis=0, dtype=np.float64)  # [n, G]
    fed = features(k, form) * np.exp(c[-1] - c)[..., None].astype(k.dtype)
    keep = np.exp(c[-1]).astype(k.dtype)
    return Sums(
        keep[:, None, None] * before.matrix + np.einsum("jgd,jgp->gdp", fed, v),
        keep[:, None] * before.normaliser + fed.sum(0),
    )


def chunk_rows(before: Sums, q: Array, k: Array, v: Array, rate: Array, form: Form) -> Array:
    """The rows of the queries, over S and z of what came before and explicit rows k, v, rate."""
    count = len(q)
    share = q.shape[1] // k.shape[1]
    c = np.cumsum(rate, axis=0, dtype=np.float64).T
    start = len(k) - count
    seen = np.arange(len(k))[None, :] <= np.arange(start, len(k))[:, None]
    gap = np.where(seen, c[:, start:, None] - c[:, None, :], -np.inf)
    queries = q.reshape(count, -1, share, q.shape[-1])
    w = weights(np.einsum("tgsr,jgr->gstj", queries, k), form) * np.exp(gap)[:, None]
    w = w.astype(q.dtype)
    phi = features(queries.swapaxes(1, 2), form)  # [T, H / G, G, D]
    phi = phi * np.exp(c[:, start:].T)[:, None, :, None].astype(q.dtype)
    total = np.einsum("gstj,jgp->tgsp", w, v) + np.einsum("tsgd,gdp->tgsp", phi, before.matrix)
    norm = w.sum(-1).transpose(2, 0, 1) + np.einsum("tsgd,gd->tgs", phi, before.normaliser)
    return _rows(total, norm, form)


def chunked(
    q: Array, k: Array, v: Array, rate: Array, form: Form, chunk: int, before: Sums | None = None
) -> tuple[Array, Sums]:
    """Chunks of `chunk` tokens one after the other; y, and S and z behind the last one."""
    sums, found = before or empty(k, v, form), []
    for start in range(0, len(q), chunk):
        part = slice(start, start + chunk)
        found.append(chunk_rows(sums, q[part], k[part], v[part], rate[part], form))
        sums = folded(sums, k[part], v[part], rate[part], form)
    return np.concatenate(found), sums


def recurrent(
    q: Array, k: Array, v: Array, rate: Array, form: Form, before: Sums | None = None
) -> tuple[Array, Sums]:
    """Token by token: S <- a S + phi(k) v^T, z <- a z + phi(k), y = phi(q)^T S / phi(q)^T z."""
    matrix, norm = before or empty(k, v, form)
    found, share = [], q.shape[1] // k.shape[1]
    for t in range(len(q)):
        decay, new = np.exp(rate[t]).astype(q.dtype), features(k[t], form)
        matrix = decay[:, None, None] * matrix + new[:, :, None] * v[t][:, None, :]
        norm = decay[:, None] * norm + new
        phi = features(q[t].reshape(-1, share, q.shape[-1]).swapaxes(0, 1), form)
        total = np.einsum("sgd,gdp->gsp", phi, matrix)[None]
        found.append(_rows(total, np.einsum("sgd,gd->gs", phi, norm)[None], form))
    return np.concatenate(found), Sums(matrix, norm)


def lazy(q: Array, k: Array, v: Array, rate: Array, form: Form, chunk: int) -> Array:
    """Token by token with the tail kept explicit: a chunk is folded when two are there."""
    sums, found, start = empty(k, v, form), [], 0
    for t in range(len(q)):
        if t - start >= 2 * chunk:
            part = slice(start, start + chunk)
            sums, start = folded(sums, k[part], v[part], rate[part], form), start + chunk
        part = slice(start, t + 1)
        found.append(chunk_rows(sums, q[t : t + 1], k[part], v[part], rate[part], form))
    return np.concatenate(found)
