"""Every inverse-root solver against exact roots of planted spectra (arXiv 2602.02016)."""

from __future__ import annotations

import math

import pytest
import torch
from edgert.converters.optim.roots import (
    RootConfig,
    chebyshev_coefficients,
    chebyshev_root,
    clenshaw,
    cn_root,
    inverse_root,
    ndb_root,
    repair,
)
from edgert.converters.optim.scaling import (
    frobenius,
    guarded_scale,
    start_vectors,
    top_eigenvalue,
    upper_bound,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(k, cond, *, blocks=4, dtype=torch.float64, seed=0):
    """`blocks` matrices with random bases and log-spaced spectra 1 ... 1/cond, and their roots."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(blocks, k, k, generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(0, -math.log10(cond), k, dtype=torch.float64)
    return ((q * spectrum) @ q.mT).to(dtype), (q * spectrum.pow(-0.25)) @ q.mT


def error(x, exact):
    gap = torch.linalg.matrix_norm(x.double() - exact) / torch.linalg.matrix_norm(exact)
    return gap.max().item()


def pim(a, seed=0):
    return guarded_scale(a, start_vectors(a.shape[-1], seed, a.device, a.dtype))


def ndb(a, steps, scaling="pim"):
    return ndb_root(a, 4, steps, pim(a) if scaling == "pim" else frobenius(a))


@pytest.mark.parametrize("k", [16, 64, 128])
@pytest.mark.parametrize("cond", [1e1, 1e2])
def test_ndb_power_scaling_well_conditioned(k, cond):
    a, exact = planted(k, cond)
    assert error(ndb(a, 10), exact) < 1e-5


@pytest.mark.parametrize("k", [16, 64, 128])
def test_ndb_frobenius_scaling(k):
    a, exact = planted(k, 1e2)
    fro = error(ndb(a, 10, "fro"), exact)
    assert fro < 1e-4
    if k == 128:
        assert error(ndb(a, 10), exact) <= fro


@pytest.mark.parametrize("k", [16, 64, 128])
def test_ndb_ten_steps_do_not_converge_at_condition_1e4(k):
    a, exact = planted(k, 1e4)
    assert 0.1 < error(ndb(a, 10), exact) < 0.6


@pytest.mark.parametrize("k", [16, 64, 128])
def test_ndb_more_steps_converge(k):
    a, exact = planted(k, 1e4)
    assert error(ndb(a, 15), exact) < 2e-4
    assert error(ndb(a, 20), exact) < 1e-5
    a, exact = planted(k, 1e6)
    assert error(ndb(a, 20), exact) < 5e-3


@pytest.mark.parametrize("k", [16, 64, 128])
def test_ndb_float32_floor(k):
    a, exact = planted(k, 1e4, dtype=torch.float32)
    assert error(ndb(a, 20), exact) < 1e-4


@pytest.mark.parametrize("k", [16, 64, 128])
def test_coupled_newton(k):
    a, exact = planted(k, 1e4)
    assert error(cn_root(a, 4, 10), exact) < 0.1
    assert error(cn_root(a, 4, 20), exact) < 1e-4


def test_coupled_newton_half_precision_products():
    a, exact = planted(64, 1e2, dtype=torch.float32)
    assert error(cn_root(a, 4, 15, half=True), exact) < 2e-3


def chebyshev_error(eps, degree):
    a, _ = planted(32, 1e4)
    scale = frobenius(a)
    values, vectors = torch.linalg.eigh(a)
    damped = values + eps * scale[:, :, 0]
    exact = (vectors * damped.pow(-0.25)[:, None, :]) @ vectors.mT
    return error(chebyshev_root(a, 4, degree, eps, scale), exact)


def test_chebyshev_against_its_damped_root():
    assert chebyshev_error(1e-2, 20) < 5e-3
    assert chebyshev_error(1e-2, 60) < 1e-4
    assert chebyshev_error(1e-3, 60) < 5e-3
    assert chebyshev_error(1e-3, 100) < 5e-4
    assert chebyshev_error(1e-6, 100) > 0.05  # documents the limit of the method


def test_clenshaw_equals_three_term_recurrence():
    a, _ = planted(24, 1e3)
    s = 2 * a / upper_bound(a) - torch.eye(24, dtype=a.dtype)
    c = chebyshev_coefficients(1e-2, 30, 4)
    before, now = torch.eye(24, dtype=a.dtype).expand_as(s), s
    total = c[0] * before + c[1] * now
    for k in range(2, len(c)):
        before, now = now, 2 * s @ now - before
        total = total + c[k] * now
    assert (clenshaw(s, c) - total).abs().max() < 1e-10


def test_clenshaw_refuses_degree_one():
    with pytest.raises(ValueError, match="degree >= 2, found 1"):
        clenshaw(torch.eye(3)[None], chebyshev_coefficients(1e-2, 1, 4))


# Chebyshev's own damping makes it the root of another matrix, so it has no exactness tests here.
CONFIGS = [
    RootConfig("evd", eps=0.0),
    RootConfig("ndb", eps=0.0),
    RootConfig("ndb", eps=0.0, scaling="fro"),
    RootConfig("cn", eps=0.0, steps=20),
    RootConfig("chebyshev"),
]
names = [f"{c.solver}-{c.scaling}" for c in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=names)
@pytest.mark.parametrize("power", [2, 4])
def test_scaling_the_matrix_scales_the_root(config, power):
    a, _ = planted(32, 1e2)
    x, _ = inverse_root(a, power, config)
    y, _ = inverse_root(1e3 * a, power, config)
    assert error(y * 1e3 ** (1 / power), x) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_permuting_the_stack_permutes_the_roots(config):
    a, _ = planted(32, 1e2)
    order = torch.tensor([2, 0, 3, 1])
    assert error(inverse_root(a[order], 4, config)[0], inverse_root(a, 4, config)[0][order]) < 1e-12


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_root_commutes_with_its_matrix(config):
    a, _ = planted(32, 1e2)
    x, bad = inverse_root(a, 4, config)
    gap = torch.linalg.matrix_norm(a @ x - x @ a) / torch.linalg.matrix_norm(a @ x)
    assert gap.max() < 1e-6
    assert not bad.any()


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("solver", ["evd", "ndb", "cn"])
def test_both_powers_are_exact(solver, power):
    a, _ = planted(32, 1e2)
    x, _ = inverse_root(a, power, RootConfig(solver, eps=0.0, steps=20))
    product = torch.linalg.matrix_power(x, power) @ a
    assert (product - torch.eye(32, dtype=a.dtype)).abs().max() < 1e-6


@pytest.mark.parametrize("cond", [1.5, 10, 1e4])
def test_power_iteration_estimates_the_top_eigenvalue(cond):
    a, _ = planted(128, cond, blocks=8)
    start = start_vectors(128, 0, CPU, a.dtype)
    rho = top_eigenvalue(a, start).flatten()  # the top eigenvalue is 1
    assert 0.94 <= rho.min() <= rho.max() <= 1.0001
    single = torch.stack([top_eigenvalue(a, start[:, i : i + 1]).flatten() for i in range(16)])
    assert single.min() >= 0.8  # one vector alone is worse: measured down to 0.88
    assert (single <= rho + 1e-12).all()


def test_guard_chooses_the_bound_when_power_iteration_misses_the_top():
    a = torch.diag(torch.tensor([1.0, *[1e-3] * 7]))[None]
    start = start_vectors(8, 0, CPU, a.dtype).clone()
    start[0] = 0
    start /= start.norm(dim=0)
    assert top_eigenvalue(a, start).item() == pytest.approx(1e-3)
    assert guarded_scale(a, start).item() == upper_bound(a).item()


def test_guarded_scale_keeps_the_spectrum_inside_the_convergence_interval():
    a, _ = planted(64, 1e6, blocks=8)
    top = torch.linalg.eigvalsh(a / pim(a)).amax()
    assert 0 < top <= 2


@pytest.mark.parametrize("solver", ["evd", "ndb", "cn", "chebyshev"])
@pytest.mark.parametrize("eps", [None, 0.0, 1e-10])
def test_zero_and_rank_one_blocks_give_finite_roots(solver, eps):
    v = torch.randn(16, generator=torch.Generator().manual_seed(0))
    a = torch.stack([torch.zeros(16, 16), torch.outer(v, v)])
    config = RootConfig(solver, eps=eps)
    x, bad = inverse_root(a, 4, config)
    repair(a, x, bad, 4, config.eps)
    assert torch.isfinite(x).all()


def test_fp16_storage_of_newton_db_is_accurate_when_well_conditioned():
    a, exact = planted(64, 1e2, dtype=torch.float32)
    x = ndb_root(a, 4, 10, pim(a), storage=torch.float16)
    assert error(x, exact) < 2e-3


def test_bf16_storage_of_newton_db_diverges_and_is_repaired():
    a, exact = planted(64, 1e4, dtype=torch.float32)
    config = RootConfig("ndb", steps=20, storage=torch.bfloat16, eps=1e-10)
    x, bad = inverse_root(a, 4, config)
    assert bad.any()
    assert repair(a, x, bad, 4, config.eps) == int(bad.sum())
    assert error(x[bad], exact[bad]) < 1e-4


def test_repair_names_a_factor_that_is_not_finite():
    a = torch.full((1, 4, 4), math.nan)
    x, bad = inverse_root(a, 4, RootConfig("ndb"))
    with pytest.raises(ValueError, match="side 4 holds NaN or infinity"):
        repair(a, x, bad, 4, None)
