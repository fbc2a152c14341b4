"""Linear attention's forms agree.

All in float64 unless said: L = 333 tokens, r = P = 16, gates biased by -6, 0 and 3.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgert.kernels import linear_forms as forms
from edgert.kernels.linear_forms import Form
from edgert.kernels.ops_linear import feature_width
from numpy.typing import NDArray

from ..closeness import assert_close

Array = NDArray[Any]
LENGTH, SIZE = 333, 16
BIASES = (-6.0, 0.0, 3.0)
CHUNKS = (1, 7, 64, LENGTH)
SHARES = (1, 3)


class Given(NamedTuple):
    """q [L, H, r], k and v [L, G, r], rate [L, G]."""

    q: Array
    k: Array
    v: Array
    rate: Array

    def rows(self, part: slice) -> Given:
        return Given(*(array[part] for array in self))


def given(seed: int, bias: float = 0.0, share: int = 1, groups: int = 2) -> Given:
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((LENGTH, groups * share, SIZE)) * SIZE**-0.25
    k = rng.standard_normal((LENGTH, groups, SIZE)) * SIZE**-0.25
    v = rng.standard_normal((LENGTH, groups, SIZE))
    gates = rng.standard_normal((LENGTH, groups)) + bias
    return Given(q, k, v, -np.logaddexp(0, gates))


def form(mode: str, groups: int = 2, eps: float = 0.0) -> Form:
    """beta and gamma that differ between heads."""
    return Form(mode, np.linspace(0.5, 1.5, groups), np.linspace(1.0, 0.3, groups), eps)


SEEDED = [(seed, BIASES[seed % 3], SHARES[seed % 2]) for seed in range(5)]
SEEDED += [(5, -6.0, 3), (6, 3.0, 1)]
FORMS = ("square", "shifted", "mamba2s", "relu")


def nonnegative(mode: str, x: Given) -> Given:
    return Given(np.maximum(x.q, 0), np.maximum(x.k, 0), x.v, x.rate) if mode == "relu" else x


@pytest.mark.parametrize("mode", FORMS)
def test_oracle_1_features_give_the_weights(mode: str) -> None:
    rng = np.random.default_rng(1)
    u, y = rng.standard_normal((2, 50, 2, SIZE))
    made = form(mode)
    phi, other = forms.features(u, made), forms.features(y, made)
    assert phi.shape[-1] == feature_width(SIZE, mode)
    x = (u * y).sum(-1)
    wanted = forms.weights(x.T, made).T
    assert np.abs((phi * other).sum(-1) - wanted).max() < 1e-12 * np.abs(wanted).max()
    if mode == "square":
        whole = np.einsum("ngi,ngj->ngij", u, u), np.einsum("ngi,ngj->ngij", y, y)
        kronecker = (whole[0] * whole[1]).sum((-1, -2))
        assert np.abs((phi * other).sum(-1) - kronecker).max() < 1e-12 * kronecker.max()


def test_oracle_1_shifted_by_nothing_is_the_square() -> None:
    u, y = np.random.default_rng(2).standard_normal((2, 9, 2, SIZE))
    none = Form("shifted", np.zeros(2), np.zeros(2), 0.0)
    found = (forms.features(u, none) * forms.features(y, none)).sum(-1)
    assert np.abs(found - np.square((u * y).sum(-1))).max() < 1e-12


def test_pairs_stand_row_by_row() -> None:
    i, j, factor = forms.pairs(SIZE)
    assert (i.dtype, j.dtype, factor.dtype) == (np.int16, np.int16, np.float32)
    for p in range(len(i)):
        assert p == i[p] * SIZE - i[p] * (i[p] - 1) // 2 + j[p] - i[p]


@pytest.mark.parametrize("mode", FORMS)
@pytest.mark.parametrize(("seed", "bias", "share"), SEEDED)
def test_oracle_2_all_forms_agree(mode: str, seed: int, bias: float, share: int) -> None:
    x, made = nonnegative(mode, given(seed, bias, share)), form(mode, eps=1e-6)
    expected = forms.parallel(*x, made)
    found = {"recurrent": forms.recurrent(*x, made)[0]}
    for chunk in CHUNKS:
        found[f"chunked-{chunk}"] = forms.chunked(*x, made, chunk)[0]
    chunk = CHUNKS[seed % 4]
    found[f"lazy-{chunk}"] = forms.lazy(*x, made, chunk)
    size = max(1.0, np.abs(expected).max())
    for name, got in found.items():
        assert np.abs(got - expected).max() < 1e-10 * size, name


@pytest.mark.parametrize("mode", ["square", "shifted"])
def test_oracle_2_in_float32(mode: str) -> None:
    x, made = given(3, 0.0, 3), form(mode, eps=1e-6 * (mode == "square"))
    small = Given(*(array.astype(np.float32) for array in x))
    thin = Form(mode, made.beta.astype(np.float32), made.gamma.astype(np.float32), made.eps)
    expected = forms.parallel(*x, made)
    for got in (forms.recurrent(*small, thin)[0], forms.chunked(*small, thin, 64)[0]):
        assert got.dtype == np.float32
        assert_close(mode, expected, got, rms=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, LENGTH])
def test_oracle_3_a_prompt_may_be_cut(cut: int) -> None:
    x, made = given(4, -6.0, 3), form("shifted")
    first, rest = x.rows(slice(0, cut)), x.rows(slice(cut, None))
    whole, sums = forms.chunked(*x, made, 64)
    found, between = [], None
    if cut:
        y, between = forms.chunked(*first, made, 64)
        found.append(y)
    if cut < LENGTH:
        y, between = forms.recurrent(*rest, made, between)
        found.append(y)
    assert np.abs(np.concatenate(found) - whole).max() < 1e-10
    assert between is not None
    assert np.abs(between.matrix - sums.matrix).max() < 1e-10 * np.abs(sums.matrix).max()


@pytest.mark.parametrize("mode", ["square", "shifted"])
def test_oracle_4_what_decays_and_scales_do(mode: str) -> None:
    x, made = given(0), form(mode)
    still = x._replace(rate=np.zeros_like(x.rate))
    order = np.concatenate([np.random.default_rng(5).permutation(LENGTH - 1), [LENGTH - 1]])
    last = slice(LENGTH - 1, None)
    expected = forms.parallel(still.q[last], *still[1:], made)
    mixed = forms.parallel(still.q[last], *(a[order] for a in still[1:]), made)
    assert np.abs(mixed - expected).max() < 1e-12
    gone = x._replace(rate=np.full_like(x.rate, -30.0))
    strong = np.abs(forms.parallel(*gone, made) - x.v)
    scores = np.square((x.q * x.k).sum(-1))
    assert strong[(scores > 1e-4) | (mode == "shifted")].max() < 1e-8
    if mode == "square":
        scaled = forms.parallel(7 * x.q, *x[1:], made)
        assert np.abs(scaled - forms.parallel(*x, made)).max() < 1e-10


def test_oracle_5_the_first_token_and_no_question() -> None:
    for mode in ("square", "shifted"):
        x = given(1)
        assert np.abs(forms.parallel(*x, form(mode))[0] - x.v[0]).max() < 1e-12
    x = given(2, 0.0)
    c = np.cumsum(x.rate, axis=0)
    y = forms.parallel(np.zeros_like(x.q), *x[1:], form("shifted"))
    for t, g in product((0, 5, LENGTH - 1), range(2)):
        share = np.exp(c[t, g] - c[: t + 1, g])
        mean = (share[:, None] * x.v[: t + 1, g]).sum(0) / share.sum()
        assert np.abs(y[t, g] - mean).max() < 1e-12


def test_oracle_8_shared_keys_are_repeated_keys() -> None:
    for mode in ("square", "shifted"):
        x, made = given(3, 0.0, 3), form(mode)
        many = Given(x.q, *(np.repeat(array, 3, axis=1) for array in x[1:]))
        wide = Form(mode, made.beta.repeat(3), made.gamma.repeat(3), 0.0)
        for chunk in (7, 64):
            one, other = (forms.chunked(*a, f, chunk)[0] for a, f in ((x, made), (many, wide)))
            assert np.abs(one - other).max() < 1e-10


def documents() -> Array:
    """Texts of 1, 70, 128 tokens and so on, that begin inside of chunks and with them."""
    return np.searchsorted([1, 71, 199, 200, 256], np.arange(LENGTH), side="right")


@pytest.mark.parametrize("mode", FORMS)
@pytest.mark.parametrize(("seed", "bias", "share"), SEEDED[::3])
def test_oracle_7_packed_documents_are_those_apart(
    mode: str, seed: int, bias: float, share: int
) -> None:
    x, made = nonnegative(mode, given(seed, bias, share)), form(mode, eps=1e-6)
    own = documents()
    apart = [x.rows(slice(*np.flatnonzero(own == d)[[0, -1]] + [0, 1])) for d in range(6)]
    expected = np.concatenate([forms.parallel(*one, made) for one in apart])
    found = {"parallel": forms.parallel(*x, made, own)}
    y, sums = forms.recurrent(*x, made, None, own)
    found["recurrent"], last = y, forms.recurrent(*apart[-1], made)[1]
    for chunk in CHUNKS:
        y, state = forms.chunked(*x, made, chunk, None, own)
        found[f"chunked-{chunk}"] = y
        assert np.abs(state.matrix - last.matrix).max() < 1e-10 * np.abs(last.matrix).max()
    found["lazy"] = forms.lazy(*x, made, CHUNKS[seed % 4], own)
    size = max(1.0, np.abs(expected).max())
    for name, got in found.items():
        assert np.abs(got - expected).max() < 1e-10 * size, name
    assert np.abs(sums.matrix - last.matrix).max() < 1e-10 * np.abs(last.matrix).max()


def near_of(x: Given, log_window: float, chunk: int, seed: int = 0) -> forms.Near:
    """Logits of their own, and windows that weigh differently by head."""
    rng = np.random.default_rng(seed)
    heads = x.q.shape[1]
    q = rng.standard_normal((len(x.q), heads, 24)) / 2
    k = rng.standard_normal((len(x.k), x.k.shape[1], 24))
    return forms.Near(q, k, log_window + np.linspace(-1, 1, heads), chunk)


@pytest.mark.parametrize("mode", ["square", "shifted"])
@pytest.mark.parametrize(("seed", "bias", "share"), SEEDED[::3])
def test_oracle_11_window_and_state_are_all_pairs(
    mode: str, seed: int, bias: float, share: int
) -> None:
    """Chunk by chunk over the folded state, against the weights of all pairs."""
    x, made = given(seed, bias, share), form(mode)
    for chunk in (16, 64):
        near = near_of(x, 0.5, chunk, seed)
        expected, found = forms.windowed(*x, made, near), []
        sums = forms.empty(x.k, x.v, made)
        for start in range(0, LENGTH, chunk):
            low, end = max(0, start - chunk), min(LENGTH, start + chunk)
            if low >= chunk:
                old = x.rows(slice(low - chunk, low))
                sums = forms.folded(sums, *old[1:], made)
            part = near._replace(q=near.q[start:end], k=near.k[low:end])
            rows = x.v[low:end], x.rate[low:end]
            found.append(forms.window_rows(sums, x.q[start:end], *rows, made, part))
        assert np.abs(np.concatenate(found) - expected).max() < 1e-10


def test_oracle_11_a_window_alone_and_a_state_alone() -> None:
    x, chunk = given(3, 0.0, 3), 64
    made = form("shifted")
    t = np.arange(LENGTH)
    inside = (t <= t[:, None]) & (t >= chunk * np.maximum(0, t // chunk - 1)[:, None])
    near = near_of(x, 0.0, chunk)
    # a state that weighs nothing: keys that nobody asks for, beta and gamma of 0
    none = forms.Form("shifted", np.zeros(2), np.zeros(2), 0.0)
    found = forms.windowed(np.zeros_like(x.q), *x[1:], none, near)
    logits = np.einsum("tgsd,jgd->gstj", near.q.reshape(LENGTH, 2, 3, -1), near.k)
    odds = np.exp(np.where(inside, logits, -np.inf) - logits.max(-1, keepdims=True))
    wanted = np.einsum("gstj,jgp->tgsp", odds / odds.sum(-1, keepdims=True), x.v)
    assert np.abs(found - wanted.reshape(found.shape)).max() < 1e-12
    # a window that weighs nothing: linear attention over what stands before it
    first = 2 * chunk  # rows before it have no state
    closed = near._replace(q=near.q[first:], log_window=np.full(6, -np.inf))
    found = forms.windowed(x.q[first:], *x[1:], made, closed)
    for row in (first, first + 5, LENGTH - 1):
        low = chunk * (row // chunk - 1)
        fade = np.exp(x.rate[low : row + 1].sum(0))
        sums = forms.chunked(*x.rows(slice(0, low)), made, chunk)[1]
        phi = forms.features(x.q[row].reshape(2, 3, -1).swapaxes(0, 1), made) * fade[:, None]
        total = np.einsum("sgd,gdp->gsp", phi, sums.matrix)
        norm = np.einsum("sgd,gd->gs", phi, sums.normaliser)
        one = (total / norm[..., None]).reshape(6, -1)
        assert np.abs(found[row - first] - one).max() < 1e-10


@pytest.mark.parametrize(("seed", "bias", "share"), SEEDED[::3])
def test_oracle_9_exponentiated_is_softmax_with_a_bias(seed: int, bias: float, share: int) -> None:
    x, made = given(seed, bias, share), form("2mamba-e")
    c, seen = np.cumsum(x.rate, axis=0), np.tri(LENGTH, dtype=bool)
    for rate in (np.zeros_like(x.rate), x.rate):
        found = forms.parallel(x.q, x.k, x.v, rate, made)
        for head in range(2 * share):
            g = head // share
            logits = x.q[:, head] @ x.k[:, g].T
            if rate is x.rate:
                logits = logits + c[:, None, g] - c[None, :, g]
            odds = np.exp(np.where(seen, logits, -np.inf))
            wanted = odds / odds.sum(-1, keepdims=True) @ x.v[:, g]
            assert np.abs(found[:, head] - wanted).max() < 1e-12


# p, d, N, accuracy: how often the nearest stored value comes back
CAPACITY = [
    *((1, 16, n, a) for n, a in ((32, 0.95), (128, 0.40), (256, 0.13), (512, 0.05))),
    *((2, 16, n, a) for n, a in ((32, 1.00), (128, 0.97), (256, 0.88), (512, 0.50))),
    *((1, 32, n, a) for n, a in ((128, 0.73), (256, 0.39), (1024, 0.03))),
    *((2, 32, n, a) for n, a in ((128, 1.00), (256, 1.00), (1024, 0.82))),
    *((1, 64, n, a) for n, a in ((512, 0.34), (2048, 0.03))),
    *((2, 64, n, a) for n, a in ((512, 1.00), (2048, 0.99))),
]


@pytest.mark.parametrize(("order", "size", "count", "accuracy"), CAPACITY)
def test_capacity_of_a_state(order: int, size: int, count: int, accuracy: float) -> None:
    right = total = 0
    for seed in range(max(1, 1024 // count)):
        rng = np.random.default_rng(seed)
        keys = rng.standard_normal((count, size)).astype(np.float32)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        values = rng.choice(np.float32([-1, 1]), (count, 64))
        phi = forms.features(keys[:, None], form("square" if order == 2 else "mamba2s", 1))[:, 0]
        found = phi @ (phi.T @ values)
        nearest = (found @ values.T).argmax(1)
        right, total = right + int((nearest == np.arange(count)).sum()), total + count
    assert abs(right / total - accuracy) <= 0.05
