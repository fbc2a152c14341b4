"""COMPOT's exact invariants (arXiv 2602.15200), float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from edgert.converters.compress.baselines import svd_llm
from edgert.converters.compress.coders import NofM, SharedSupport, TopS, largest
from edgert.converters.compress.compot import (
    HalfStep,
    Options,
    compot,
    compot_shared,
    half_steps,
)
from edgert.converters.compress.dictionary import leading_left, polar, polar_svd, start
from edgert.converters.compress.result import Factors
from edgert.converters.compress.whiten import whiten

from .data import energy, falls, gram, inputs, layer, rotation, weight

CODERS = {"top-s": TopS(6), "2:4": NofM(2, 4), "2:4 in SVD order": NofM(2, 4, strided=False),
          "shared by 3": SharedSupport(6, 3)}  # fmt: skip


def every_step(**options: Any) -> tuple[Any, list[HalfStep]]:
    _, w, white = layer()
    y = white.apply(w)
    return y, list(half_steps(y, 16, TopS(6), Options(**options)))


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 1e-1])
def test_the_whitened_error_is_the_error_on_the_inputs_and_the_ridge(ridge: float) -> None:
    x, w, white = layer(ridge=ridge)
    found = compot(w, white, 16, 6)
    gap = w - found.product()
    expected = energy(x @ gap) + white.ridge * energy(gap)
    assert energy(white.apply(gap)) == pytest.approx(expected, rel=1e-9)
    d = white.apply(found.a)
    assert energy(white.apply(w) - d @ found.code()) == pytest.approx(expected, rel=1e-9)
    assert found.residual.sum() == pytest.approx(expected, rel=1e-9)
    assert found.error == pytest.approx((expected / energy(white.apply(w))) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("polar_route", ["fast", "svd"])
@pytest.mark.parametrize("init", ["svd", "random", "permuted"])
def test_dictionaries_stay_orthonormal(init: str, polar_route: str) -> None:
    _, steps = every_step(init=init, polar=polar_route, iterations=30)
    assert len(steps) == 61
    for step in steps:
        assert np.abs(step.d.T @ step.d - np.eye(16)).max() < 1e-12


def test_every_output_has_exactly_s_slots() -> None:
    _, w, white = layer()
    w[:, 3] = 0
    found = compot(w, white, 16, 6)
    assert found.idx.shape == found.values.shape == (40, 6)
    assert (np.diff(found.idx, axis=1) > 0).all()
    assert (np.count_nonzero(found.code(), axis=0) <= 6).all()
    assert not found.values[3].any()


def test_what_a_code_keeps_and_the_error_add_up_to_the_weight() -> None:
    y, steps = every_step()
    for step in steps:
        if step.coding:
            left = energy(y - step.d @ step.code.T)
            assert left == pytest.approx(energy(y) - energy(step.code), rel=1e-9)


@pytest.mark.parametrize("init", ["svd", "random", "permuted"])
@pytest.mark.parametrize("coder", list(CODERS))
def test_no_half_step_makes_the_error_larger(init: str, coder: str) -> None:
    for seed in range(3):
        _, w, white = layer(seed=seed, kind="power" if seed else "subspaces")
        options = Options(init=init, trace=True, iterations=25)
        trace = compot(w, white, 16, CODERS[coder], options).trace
        assert len(trace) == 51
        assert falls(trace, 1e-12 * energy(white.apply(w)))
        assert trace[-1] < trace[0]


def truncation(w: Any, white: Any, k: int) -> float:
    """The smallest relative error of any matrix of rank k."""
    sigma = np.linalg.svd(white.apply(w), compute_uv=False)
    return float(np.sqrt((sigma[k:] ** 2).sum() / (sigma**2).sum()))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_a_full_code_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    _, w, white = layer(*shape)
    best = truncation(w, white, 12)
    for iterations in (0, 1, 20):
        found = compot(w, white, 12, 12, Options(iterations=iterations))
        assert found.error == pytest.approx(best, rel=1e-9)
    for s in (1, 4, 11):
        assert compot(w, white, 12, s).error >= best
    slow = compot(w, white, 12, 12, Options(init="random", iterations=1000))
    assert best <= slow.error * (1 + 1e-12)
    assert slow.error == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_a_full_code_of_all_atoms_is_exact(shape: tuple[int, int]) -> None:
    _, w, white = layer(*shape)
    found = compot(w, white, min(shape), min(shape))
    assert found.error < 1e-10
    assert np.linalg.norm(found.product() - w) < 1e-10 * np.linalg.norm(w)


def test_no_orthonormal_matrix_beats_procrustes() -> None:
    y, steps = every_step(iterations=2)
    draw = np.random.default_rng(1)
    for before, after in itertools.pairwise(steps):
        if after.coding:
            continue
        best = energy(y - after.d @ before.code.T)
        for _ in range(200):
            q = np.linalg.qr(draw.standard_normal(after.d.shape))[0]
            assert energy(y - q @ before.code.T) >= best
        product = after.d.T @ (y @ before.code)
        assert np.abs(product - product.T).max() < 1e-9 * np.abs(product).max()
        assert np.linalg.eigvalsh(product).min() > 0


@pytest.mark.parametrize("condition", [1e1, 1e4, 4e4])
def test_the_fast_polar_factor_is_the_one_of_the_svd(condition: float) -> None:
    draw = np.random.default_rng(0)
    spectrum = np.geomspace(1, 1 / condition, 16)
    matrix = (rotation(24, draw)[:, :16] * spectrum) @ rotation(16, draw)
    d = polar(matrix)
    assert np.abs(d.T @ d - np.eye(16)).max() < 1e-13
    assert np.abs(d - polar_svd(matrix)).max() < 1e-16 * condition**2 + 1e-14


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e200])
def test_the_polar_factor_of_deficient_tiny_and_huge_matrices_is_orthonormal(scale: float) -> None:
    matrix = scale * np.random.default_rng(0).standard_normal((24, 16))
    matrix[:, 5] = 0  # an atom that nobody uses
    d = polar(matrix)
    assert np.abs(d.T @ d - np.eye(16)).max() < 1e-12


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_both_routes_give_the_leading_singular_vectors(shape: tuple[int, int]) -> None:
    y = weight(*shape, np.random.default_rng(0))
    u = np.linalg.svd(y)[0][:, :10]
    d = leading_left(y, 10)
    assert np.abs(d.T @ d - np.eye(10)).max() < 1e-13
    assert np.abs(np.abs(u.T @ d) - np.eye(10)).max() < 1e-10
    first = start(y, 10, "svd", 0)
    assert (first[np.abs(first).argmax(axis=0), np.arange(10)] > 0).all()


def test_no_support_is_better_than_the_largest_projections() -> None:
    draw = np.random.default_rng(0)
    d = np.linalg.qr(draw.standard_normal((12, 8)))[0]
    y = draw.standard_normal((12, 5))
    p = y.T @ d
    code = np.where(TopS(3).mask(p), p, 0)
    for j in range(5):
        left = []
        for support in itertools.combinations(range(8), 3):
            part = d[:, support]
            values = np.linalg.lstsq(part, y[:, j], rcond=None)[0]
            left.append(energy(y[:, j] - part @ values))
            if set(support) == set(np.flatnonzero(code[j])):
                np.testing.assert_allclose(values, code[j][list(support)], rtol=1e-9)
        assert energy(y[:, j] - d @ code[j]) == pytest.approx(min(left), rel=1e-9)


def test_ties_go_to_the_lower_atom() -> None:
    a = np.array([[1.0, 2, 2, 2, 0], [0, 0, 0, 0, 0], [3, 1, 3, 1, 1]])
    kept = [list(np.flatnonzero(row)) for row in largest(a, 3)]
    assert kept == [[1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert list(np.flatnonzero(largest(a, 2)[0])) == [1, 2]
    assert largest(a, 5).all()


def test_the_rules_for_supports_hold_for_every_output() -> None:
    p = np.random.default_rng(0).standard_normal((10, 16))
    assert (NofM(2, 4).mask(p).reshape(10, 4, 4).sum(axis=2) == 2).all()
    shared = SharedSupport(6, 4).mask(p)
    assert (shared.sum(axis=1) == 6).all()
    assert (shared[:4] == shared[0]).all()
    assert (shared[8:] == shared[8]).all()
    ranks = NofM(2, 4).arrange(np.arange(16.0)[None])[0]
    assert list(ranks[:4]) == [0, 4, 8, 12]


def test_a_strided_start_is_better_for_n_of_m() -> None:
    _, w, white = layer(64, 96)
    strided = compot(w, white, 32, NofM(2, 4)).error
    assert strided < compot(w, white, 32, NofM(2, 4, strided=False)).error
    assert compot(w, white, 32, 16).error < strided


def test_whitened_dictionaries_are_orthonormal_in_the_inputs_metric() -> None:
    x, w, white = layer(ridge=0.0)
    found = compot(w, white, 16, 6)
    assert np.abs(found.a.T @ (x.T @ x) @ found.a - np.eye(16)).max() < 1e-9


def test_a_refit_never_makes_the_error_larger() -> None:
    for seed in range(5):
        for k, s in ((16, 6), (24, 24), (1, 1), (20, 3)):
            _, w, white = layer(seed=seed)
            plain = compot(w, white, k, s)
            refit = compot(w, white, k, s, Options(refit=True))
            assert refit.error <= plain.error
            assert (refit.idx == plain.idx).all()
    assert compot(np.zeros((24, 40)), white, 4, 2, Options(refit=True)).error == 0


RANK = 17  # of SVD-LLM in the bits of 24 atoms and 12 values for [32, 64]


def hard(case: str) -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    x = inputs(32, draw, rows={"few rows": 24, "fewer rows than ranks": 10}.get(case, 300))
    if case == "a dead channel":
        x[:, 7] = 0
    if case == "equal channels":
        x[:, 8:16] = x[:, 8:9]
    return x, weight(32, 64, draw)


@pytest.mark.parametrize(
    "case", ["few rows", "fewer rows than ranks", "a dead channel", "equal channels"]
)
@pytest.mark.parametrize("ridge", [None, 1e-8, 0.0])
def test_a_singular_gram_matrix_gives_finite_factors(case: str, ridge: float | None) -> None:
    """And an error of outputs on the calibration inputs that is not above SVD-LLM's, where there
    are more inputs than ranks: with fewer, SVD-LLM reproduces all of these outputs."""
    x, w = hard(case)
    assert np.linalg.matrix_rank(x) < 32
    white = whiten(gram(x), ridge)
    found = compot(w, white, 24, 12)
    print(f"{case}, ridge {ridge}: max |A| {np.abs(found.a).max():.3g}, retries {white.retries}")
    for factors in (found, compot(w, white, 24, 12, Options(refit=True))):
        assert np.isfinite(factors.a).all()
        assert np.isfinite(factors.values).all()
    assert (16 * 24 * 32 + 16 * 12 * 64 + 24 * 64) // (16 * (32 + 64)) == RANK
    other = svd_llm(w, white, RANK)
    if len(x) > RANK:
        assert np.linalg.norm(x @ (w - found.product())) <= np.linalg.norm(
            x @ (w - other.product())
        )
    if ridge is None:
        assert found.error < other.error


def blob(found: Factors) -> bytes:
    return found.a.tobytes() + found.idx.tobytes() + found.values.tobytes()


@pytest.mark.parametrize("init", ["svd", "random", "permuted"])
def test_the_same_seed_gives_the_same_bytes(init: str) -> None:
    _, w, white = layer(48, 64)
    first = compot(w, white, 32, 12, Options(init=init, refit=True))
    again = compot(w.copy(), white, 32, 12, Options(init=init, refit=True))
    assert blob(first) == blob(again)
    if init != "svd":
        other = compot(w, white, 32, 12, Options(init=init, refit=True, seed=1))
        assert blob(first) != blob(other)


def test_signs_do_not_depend_on_the_linear_algebra() -> None:
    _, w, white = layer()
    found = compot(w, white, 16, 6)
    d = white.apply(found.a)
    assert (d[np.abs(d).argmax(axis=0), np.arange(16)] > 0).all()


@pytest.mark.parametrize("shape", [(40, 24), (200, 30)])
def test_a_tall_weight_has_the_factors_of_its_core(shape: tuple[int, int]) -> None:
    """The QR that makes tall weights cheap changes nothing but rounding."""
    _, w, white = layer(*shape)
    y = white.apply(w)
    *_, last = half_steps(y, 16, TopS(6), Options(iterations=3))
    found = compot(w, white, 16, 6, Options(iterations=3))
    assert found.residual.sum() == pytest.approx(energy(y - last.d @ last.code.T), rel=1e-9)


def test_a_tolerance_stops_early() -> None:
    _, w, white = layer()
    runs = [
        compot(w, white, 16, 6, Options(iterations=200, tol=tol, trace=True))
        for tol in (0.0, 1e-4, 1e-2)
    ]
    lengths = [len(run.trace) for run in runs]
    assert lengths[0] == 401
    assert lengths[0] > lengths[1] > lengths[2]
    assert runs[0].error <= runs[1].error <= runs[2].error


def test_a_shared_dictionary_is_split_back() -> None:
    _, w, white = layer(24, 60)
    parts = [w[:, :30], w[:, 30:45], w[:, 45:]]
    joint = compot(w, white, 16, 6)
    found = compot_shared(parts, white, 16, 6)
    assert all(part.a is found[0].a for part in found)
    product = np.concatenate([part.product() for part in found], axis=1)
    np.testing.assert_array_equal(product, joint.product())
    for part, original in zip(found, parts, strict=True):
        gap = white.apply(original - part.product())
        assert part.error == pytest.approx(
            np.linalg.norm(gap) / np.linalg.norm(white.apply(original)), rel=1e-9
        )
    bits = 16 * 24 * 16 + 60 * (16 * 6 + 16)
    apart = [compot(p, white, 8, 4) for p in parts]
    assert sum(16 * 24 * 8 + p.n * (16 * 4 + 8) for p in apart) > bits
    assert sum(p.residual.sum() for p in found) < sum(p.residual.sum() for p in apart)
