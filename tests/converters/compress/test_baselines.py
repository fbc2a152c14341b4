"""Truncated SVD, SVD-LLM, CoSpaDi, and the synthetic comparison of all with COMPOT."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from edgert.converters.compress.baselines import cospadi, pursuit, svd_llm, truncated_svd
from edgert.converters.compress.compot import Options, compot

from ...conftest import ROOT
from .data import energy, falls, layer


def test_the_truncated_svd_is_the_nearest_matrix_of_its_rank() -> None:
    x, w, white = layer(ridge=0.0)
    found = truncated_svd(w, white, 10)
    sigma = np.linalg.svd(w, compute_uv=False)
    assert energy(w - found.product()) == pytest.approx((sigma[10:] ** 2).sum(), rel=1e-9)
    relative = np.linalg.norm(x @ (w - found.product())) / np.linalg.norm(x @ w)
    assert found.error == pytest.approx(relative, rel=1e-9)


def test_svd_llm_loses_exactly_the_singular_values_it_leaves_out() -> None:
    x, w, white = layer(ridge=0.0)
    sigma = np.linalg.svd(white.apply(w), compute_uv=False)
    for rank in (1, 10, 24):
        found = svd_llm(w, white, rank)
        lost = energy(x @ (w - found.product()))
        assert lost == pytest.approx((sigma[rank:] ** 2).sum(), rel=1e-9, abs=1e-20)
    assert svd_llm(w, white, 10).error < truncated_svd(w, white, 10).error
    assert svd_llm(w, white, 10).error == pytest.approx(compot(w, white, 10, 10).error, rel=1e-9)


def test_pursuit_is_greedy_least_squares() -> None:
    draw = np.random.default_rng(0)
    d = draw.standard_normal((12, 20))
    d /= np.linalg.norm(d, axis=0)
    y = draw.standard_normal((12, 7))
    code, mask = pursuit(d, y, 5)
    for j in range(7):
        support: list[int] = []
        left = y[:, j]
        for _ in range(5):
            scores = np.abs(d.T @ left)
            scores[support] = -1
            support.append(int(scores.argmax()))
            values = np.linalg.lstsq(d[:, support], y[:, j], rcond=None)[0]
            left = y[:, j] - d[:, support] @ values
        assert set(np.flatnonzero(mask[j])) == set(support)
        np.testing.assert_allclose(code[j, support], values, rtol=1e-9)


def test_pursuit_takes_copies_of_atoms_with_a_zero() -> None:
    draw = np.random.default_rng(0)
    d = np.linalg.qr(draw.standard_normal((6, 3)))[0][:, [0, 0, 1, 2]]
    code, mask = pursuit(d, draw.standard_normal((6, 9)), 4)
    assert mask.all()
    assert np.isfinite(code).all()
    assert ((code[:, 0] == 0) | (code[:, 1] == 0)).all()


def test_cospadi_has_unit_atoms_exact_sparsity_and_a_falling_error() -> None:
    _, w, white = layer(32, 96)
    found = cospadi(w, white, 40, 8, iterations=15, trace=True)  # more atoms than inputs
    norms = np.linalg.norm(white.apply(found.a), axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-9)
    assert found.idx.shape == (96, 8)
    assert found.trace[-1] < 0.9 * found.trace[0]
    assert found.residual.sum() == pytest.approx(found.trace[-1], rel=1e-9)


def test_dictionary_updates_alone_never_make_the_error_larger() -> None:
    from edgert.converters.compress.baselines import _first_atoms, _update_atoms

    _, w, white = layer(32, 96)
    y = white.apply(w)
    d = _first_atoms(y, 24, np.random.default_rng(0))
    code, mask = pursuit(d, y, 6)
    residual = y - d @ code.T
    errors = [energy(residual)]
    for _ in range(10):
        _update_atoms(d, code, mask, residual)
        np.testing.assert_allclose(residual, y - d @ code.T, atol=1e-9)
        errors.append(energy(residual))
    assert falls(errors, 1e-9 * errors[0])


def test_cospadi_survives_columns_of_zeros_and_is_repeatable() -> None:
    _, w, white = layer(32, 96)
    w[:, 10:] = 0
    first, again = (cospadi(w, white, 24, 4, iterations=10) for _ in range(2))
    assert np.isfinite(first.a).all()
    assert first.a.tobytes() == again.a.tobytes()
    assert first.error < 1e-6


# kind, SVD-LLM's rank, (k, s); reference errors: SVD-LLM, COMPOT 20, + refit, 100, random, CoSpaDi
CASES = [
    ("power", 68, (96, 48), (0.155, 0.110, 0.107, 0.106, 0.143, 0.108)),
    ("power", 51, (72, 36), (0.200, 0.162, 0.160, 0.160, 0.188, 0.162)),
    ("subspaces", 68, (96, 48), (0.119, 0.079, 0.076, 0.075, 0.120, 0.077)),
    ("subspaces", 51, (72, 36), (0.171, 0.129, 0.127, 0.125, 0.160, 0.127)),
]


@pytest.mark.parametrize(("kind", "rank", "size", "reference"), CASES)
def test_compot_against_its_baselines(
    kind: str, rank: int, size: tuple[int, int], reference: tuple[float, ...]
) -> None:
    x, w, white = layer(128, 256, kind=kind)
    low = svd_llm(w, white, rank)
    plain = compot(w, white, *size)
    refit = compot(w, white, *size, Options(refit=True))
    long = compot(w, white, *size, Options(iterations=100))
    random = compot(w, white, *size, Options(init="random"))
    other = cospadi(w, white, *size, iterations=20)
    found = [each.error for each in (low, plain, refit, long, random, other)]
    print([f"{value:.3f} ({expected})" for value, expected in zip(found, reference, strict=True)])
    on_inputs = np.linalg.norm(x @ (w - plain.product())) / np.linalg.norm(x @ w)
    assert plain.error == pytest.approx(on_inputs, rel=1e-6)
    np.testing.assert_allclose(found, reference, rtol=0.12)
    assert plain.error < 0.85 * low.error
    assert plain.error < 0.95 * random.error
    assert refit.error <= 1.01 * other.error


TIMING = """
import time
from edgert.converters.compress.baselines import cospadi
from edgert.converters.compress.compot import Options, compot
from tests.converters.compress.data import layer

def seconds(call, runs):
    times = []
    for _ in range(runs):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)

_, w, white = layer(128, 256)
print(seconds(lambda: compot(w, white, 96, 48, Options(refit=True)), 5),
      seconds(lambda: cospadi(w, white, 96, 48, iterations=20), 2))
"""


def test_compot_is_ten_times_faster_than_cospadi() -> None:
    """In CPU time of one thread: more of them spin while they wait on a busy machine."""
    one = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "VECLIB")}
    done = subprocess.run(
        [sys.executable, "-c", TIMING], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **one}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fast, slow = map(float, done.stdout.split())
    print(f"COMPOT {fast:.3f} s, CoSpaDi {slow:.3f} s of CPU time")
    assert slow >= 10 * fast
