"""The forms that linear attention can be computed in, as they stand in the formulas.

    x_tj = q_t . k_j                              q and k with the square root of the scale in them
    w_tj = f(x_tj) exp(c_t - c_j)  for j <= t     c = cumulative sum of log decays, its own included
    y_t  = sum_j w_tj v_j / (sum_j w_tj + eps)    without the division in mode mamba2s

f is x^2 (`square`, arXiv 2602.17363), (x + beta)^2 + gamma (`shifted`), or x. Since f(q . k) is a
product of features, phi(q) . phi(k), the sums over j are a matrix S and a vector z (`recurrent`,
`chunked`); `parallel` has the sums as they are, and alone takes e^x (`2mamba-e`).

Shapes: q [T, H, r], k [T, G, r], v [T, G, P], rate [T, G] (logarithms of decays, at most 0), beta
and gamma [G]; y [T, H, P]. Query head h reads key head h // (H / G). All in the dtype of q.

document: int [T], of several texts that stand behind each other, which one a token is of. A token
sees those of its own text: w_tj is 0 where documents differ, and a state begins anew (its decay is
0) where one does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ops_linear import EXP

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


class Near(NamedTuple):
    """What a window reads: q [T, H, D] and k [n, G, D], whose products are logits; log_window [H],
    and chunk C. A row at place t has the window C max(0, t // C - 1) .. t, and what stands before
    that reaches it through S: at least C tokens are exact, at most 2 C."""

    q: Array
    k: Array
    log_window: Array
    chunk: int

    def points(self, count: int) -> NDArray[np.int64]:
        """The first token of each row's window, of the last T of `count` tokens."""
        t = np.arange(count - len(self.q), count)
        points: NDArray[np.int64] = self.chunk * np.maximum(0, t // self.chunk - 1)
        return points


class Sums(NamedTuple):
    """S [G, D, P] and z [G, D] of what came before, of one document."""

    matrix: Array
    normaliser: Array
    document: int = 0


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


def parallel(
    q: Array, k: Array, v: Array, rate: Array, form: Form, document: Array | None = None
) -> Array:
    """All pairs of the last T rows, whose queries are given, and of all n rows, T <= n."""
    count, heads = q.shape[:2]
    gap = gaps(rate, len(k) - count, document)
    queries = q.reshape(count, -1, heads // k.shape[1], q.shape[-1])
    x = np.einsum("tgsr,jgr->gstj", queries, k)
    if form.mode == EXP:
        x = x + gap[:, None]
        w = np.exp(x - x.max(-1, keepdims=True)).astype(q.dtype)
    else:
        w = (weights(x, form) * np.exp(gap)[:, None]).astype(q.dtype)
    return rows_of(np.einsum("gstj,jgp->tgsp", w, v), w.sum(-1).transpose(2, 0, 1), form)


def gaps(rate: Array, start: int, document: Array | None = None) -> Array:
    """Logarithms of the decays from token j to row t, c_t - c_j, of the rows from `start` on:
    [G, T, n], -inf where t does not see j."""
    c, n = np.cumsum(rate, axis=0, dtype=np.float64).T, len(rate)
    seen = np.arange(n)[None, :] <= np.arange(start, n)[:, None]  # [T, n]
    if document is not None:
        seen &= document[None, :] == document[start:, None]
    return np.where(seen, c[:, start:, None] - c[:, None, :], -np.inf)


def windowed(q: Array, k: Array, v: Array, rate: Array, form: Form, near: Near) -> Array:
    """As `parallel`, with softmax over each row's window in place of its weights there, scaled by
    e^log_window: exp(log_window + l_tj - max_j l_tj), logits l without a decay (arXiv 2410.10254).
    Places count from the first of all n rows."""
    n, count = len(k), len(q)
    before = np.arange(n)[None, :] < near.points(n)[:, None]  # [T, n]
    gap = gaps(rate, n - count)
    queries = q.reshape(count, k.shape[1], -1, q.shape[-1])
    x = np.einsum("tgsr,jgr->gstj", queries, k)
    fade = np.exp(np.where(before, gap, -np.inf))
    w = (weights(x, form) * fade[:, None]).astype(q.dtype)
    w = w + window_weights(near, np.isfinite(gap[0]) & ~before)
    return rows_of(np.einsum("gstj,jgp->tgsp", w, v), w.sum(-1).transpose(2, 0, 1), form)


def window_weights(near: Near, seen: NDArray[np.bool_]) -> Array:
    """Weights [G, H / G, T, n] of the window. seen: bool [T, n]."""
    groups = near.k.shape[1]
    queries = near.q.reshape(len(near.q), groups, -1, near.q.shape[-1])
    x = np.einsum("tgsd,jgd->gstj", queries, near.k)
    x = np.where(seen, x, -np.inf)
    factor = np.exp(near.log_window).reshape(groups, -1, 1, 1)
    found: Array = (factor * np.exp(x - x.max(-1, keepdims=True))).astype(near.q.dtype)
    return found


def window_rows(before: Sums, q: Array, v: Array, rate: Array, form: Form, near: Near) -> Array:
    """The rows of the queries, all of one chunk: over S and z of what stands before their window,
    and all explicit rows v, rate and near.k of the window."""
    n, count = len(v), len(q)
    seen = np.arange(n)[None, :] <= np.arange(n - count, n)[:, None]
    w = window_weights(near, seen)
    total, norm = added(before, q, rate, form, np.zeros(count, bool))
    total = total + np.einsum("gstj,jgp->tgsp", w, v)
    return rows_of(total, norm + w.sum(-1).transpose(2, 0, 1), form)


def rows_of(total: Array, norm: Array, form: Form) -> Array:
    """Weighted sums [T, G, H / G, P] and their weights [T, G, H / G] to y [T, H, P]."""
    y = total / (norm + form.eps)[..., None] if form.normalised else total
    return y.reshape(len(y), -1, y.shape[-1])


def empty(k: Array, v: Array, form: Form) -> Sums:
    """S and z of nothing."""
    wide = features(k[:1], form).shape[-1] if len(k) else 0
    groups = k.shape[1]
    return Sums(np.zeros((groups, wide, v.shape[-1]), v.dtype), np.zeros((groups, wide), v.dtype))


def folded(
    before: Sums, k: Array, v: Array, rate: Array, form: Form, document: Array | None = None
) -> Sums:
    """S and z once tokens k, v, rate are in them; of the last document alone."""
    c = np.cumsum(rate, axis=0, dtype=np.float64)  # [n, G]
    own = np.zeros(len(k), int) if document is None else document
    fade = np.exp(c[-1] - c) * (own == own[-1])[:, None]
    fed = features(k, form) * fade[..., None].astype(k.dtype)
    keep = np.exp(c[-1]).astype(k.dtype) * (before.document == own[-1])
    return Sums(
        keep[:, None, None] * before.matrix + np.einsum("jgd,jgp->gdp", fed, v),
        keep[:, None] * before.normaliser + fed.sum(0),
        int(own[-1]),
    )


def added(before: Sums, q: Array, rate: Array, form: Form, fresh: Array) -> tuple[Array, Array]:
    """What S and z add to rows [T, H, r]: weighted sums [T, G, H / G, P] and their weights. rate:
    of the tokens since, the last T of them the rows' own. fresh: bool [T], rows of another
    document than S is of."""
    queries = q.reshape(len(q), rate.shape[1], -1, q.shape[-1])
    fade = np.exp(np.cumsum(rate, axis=0, dtype=np.float64)[len(rate) - len(q) :])
    phi = features(queries.swapaxes(1, 2), form)  # [T, H / G, G, D]
    phi = phi * (fade * ~fresh[:, None])[:, None, :, None].astype(q.dtype)
    total = np.einsum("tsgd,gdp->tgsp", phi, before.matrix)
    return total, np.einsum("tsgd,gd->tgs", phi, before.normaliser)


def chunk_rows(
    before: Sums, q: Array, k: Array, v: Array, rate: Array, form: Form,
    document: Array | None = None,
) -> Array:  # fmt: skip
    """The rows of the queries, over S and z of what came before and explicit rows k, v, rate."""
    count = len(q)
    start = len(k) - count
    queries = q.reshape(count, k.shape[1], -1, q.shape[-1])
    gap = gaps(rate, start, document)
    w = weights(np.einsum("tgsr,jgr->gstj", queries, k), form) * np.exp(gap)[:, None]
    w = w.astype(q.dtype)
    own = np.zeros(len(k), int) if document is None else document
    total, norm = added(before, q, rate, form, own[start:] != before.document)
    total = total + np.einsum("gstj,jgp->tgsp", w, v)
    return rows_of(total, norm + w.sum(-1).transpose(2, 0, 1), form)


def _part(document: Array | None, part: slice) -> Array | None:
    return None if document is None else document[part]


def chunked(
    q: Array, k: Array, v: Array, rate: Array, form: Form, chunk: int, before: Sums | None = None,
    document: Array | None = None,
) -> tuple[Array, Sums]:  # fmt: skip
    """Chunks of `chunk` tokens one after the other; y, and S and z behind the last one."""
    sums, found = before or empty(k, v, form), []
    for start in range(0, len(q), chunk):
        part = slice(start, start + chunk)
        rows, own = (k[part], v[part], rate[part]), _part(document, part)
        found.append(chunk_rows(sums, q[part], *rows, form, own))
        sums = folded(sums, *rows, form, own)
    return np.concatenate(found), sums


def recurrent(
    q: Array, k: Array, v: Array, rate: Array, form: Form, before: Sums | None = None,
    document: Array | None = None,
) -> tuple[Array, Sums]:  # fmt: skip
    """Token by token: S <- a S + phi(k) v^T, z <- a z + phi(k), y = phi(q)^T S / phi(q)^T z."""
    matrix, norm, last = before or empty(k, v, form)
    found, share = [], q.shape[1] // k.shape[1]
    for t in range(len(q)):
        own = 0 if document is None else int(document[t])
        decay, new = np.exp(rate[t]).astype(q.dtype) * (own == last), features(k[t], form)
        matrix = decay[:, None, None] * matrix + new[:, :, None] * v[t][:, None, :]
        norm, last = decay[:, None] * norm + new, own
        phi = features(q[t].reshape(-1, share, q.shape[-1]).swapaxes(0, 1), form)
        total = np.einsum("sgd,gdp->gsp", phi, matrix)[None]
        found.append(rows_of(total, np.einsum("sgd,gd->gs", phi, norm)[None], form))
    return np.concatenate(found), Sums(matrix, norm, last)


def lazy(
    q: Array, k: Array, v: Array, rate: Array, form: Form, chunk: int,
    document: Array | None = None,
) -> Array:  # fmt: skip
    """Token by token with the tail kept explicit: a chunk is folded when two are there."""
    sums, found, start = empty(k, v, form), [], 0
    for t in range(len(q)):
        if t - start >= 2 * chunk:
            part = slice(start, start + chunk)
            rows = k[part], v[part], rate[part]
            sums, start = folded(sums, *rows, form, _part(document, part)), start + chunk
        part = slice(start, t + 1)
        rows, own = (k[part], v[part], rate[part]), _part(document, part)
        found.append(chunk_rows(sums, q[t : t + 1], *rows, form, own))
    return np.concatenate(found)
