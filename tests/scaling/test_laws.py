"""Laws: the reference values of the papers' constants, and fits to measurements."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.scaling.laws import (
    CHINCHILLA,
    PTQ,
    REFIT,
    Base,
    Compression,
    Pruned,
    compression_loss,
    fit_bits,
    fit_chinchilla,
    fit_layers,
    healed_delta,
    kaplan,
    low_precision,
    qat,
)

# N, D, L0, rounding at 3, 4, 5, 6, 8 bits, QAT with groups of 128 and 32, N_eff / N at 4, 5, 6 bits
REFERENCE = [
    (1.345e8, 2e12, 2.5378, (1.0227, 0.1882, 0.0346, 0.0064, 0.0002), (0.0580, 0.0515),
     (0.497, 0.868, 0.974)),
    (3.62e8, 4e12, 2.3116, (1.0338, 0.1902, 0.0350, 0.0064, 0.0002), (0.0454, 0.0404),
     (0.387, 0.820, 0.963)),
    (1.71e9, 1.1e13, 2.0765, (1.0120, 0.1862, 0.0343, 0.0063, 0.0002), (0.0306, 0.0272),
     (0.237, 0.724, 0.940)),
]  # fmt: skip


@pytest.mark.parametrize(("n", "d", "loss", "ptq", "trained", "size"), REFERENCE)
def test_reference_values(
    n: float, d: float, loss: float, ptq: tuple[float, ...], trained: tuple[float, ...],
    size: tuple[float, ...],
) -> None:  # fmt: skip
    assert CHINCHILLA.loss(n, d) == pytest.approx(loss, abs=5e-5)
    found = [PTQ.delta(n, d, bits) for bits in (3, 4, 5, 6, 8)]
    assert found == pytest.approx(ptq, abs=6e-5)
    assert [qat("w4a16", n, d, group) for group in (128, 32)] == pytest.approx(trained, abs=6e-5)
    shares = [
        CHINCHILLA.size_of(CHINCHILLA.loss(n, d) + PTQ.delta(n, d, bits), n, d) / n
        for bits in (4, 5, 6)
    ]
    assert shares == pytest.approx(size, abs=6e-4)


def test_activations_cost_more_than_weights() -> None:
    ratio = qat("w16a4", 595e6, 6e10, 32) / qat("w4a16", 595e6, 6e10, 32)
    assert ratio == pytest.approx(1.65, abs=0.01)
    assert healed_delta(1e8, 1e12, 4, 128) == qat("w4a16", 1e8, 1e12, 128)
    assert healed_delta(1e8, 1e12, 3, 128) > qat("w4a16", 1e8, 1e12, 128)


def test_effective_size_falls_with_the_loss() -> None:
    n, d = 1e8, 1e12
    loss = CHINCHILLA.loss(n, d)
    sizes = [CHINCHILLA.size_of(loss + delta, n, d) for delta in (0.0, 0.01, 0.1, 0.5)]
    assert sizes[0] == pytest.approx(n)
    assert sizes == sorted(sizes, reverse=True)
    assert low_precision(n, w=4, a=16) < low_precision(n, w=8, a=16) < n


def test_the_optimum_spends_the_compute_and_is_least() -> None:
    n, d = REFIT.optimal(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    assert 10 < d / n < 40
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert REFIT.loss(n * factor, d / factor) > REFIT.loss(n, d)


def test_the_other_laws_fall_as_they_should() -> None:
    assert kaplan(n=1e8) > kaplan(n=1e9) > kaplan(n=1e9, d=1e30) * 0.999
    assert kaplan(n=1e9, d=1e9) > kaplan(n=1e9)
    assert Compression().delta(0.4) > Compression().delta(0.2) > Compression().delta(0.2, 1e9)
    assert compression_loss(2.0, 0.5, 1e6, 1.0, 0.3, 0.1) > compression_loss(
        2.0, 0.1, 1e6, 1.0, 0.3, 0.1
    )
    law = Pruned(-1.0, 0.1, 1e3, 0.4, 1e3, 0.4, 0.5)
    assert law.loss(2.0, 0.6, 1e8, 1e9) > law.loss(2.0, 0.3, 1e8, 1e9) > 2.0


@pytest.mark.slow
def test_a_base_law_is_found_again() -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 9.5, 60), 10 ** rng.uniform(9, 11.5, 60)
    loss = np.array([CHINCHILLA.loss(a, b) for a, b in zip(n, d, strict=True)])
    found = fit_chinchilla(n, d, loss, starts=8)
    assert isinstance(found, Base)
    held = [(5e8, 3e11), (2e7, 5e9)]
    for a, b in held:
        assert found.loss(a, b) == pytest.approx(CHINCHILLA.loss(a, b), rel=5e-3)


def test_a_law_of_bits_is_found_again() -> None:
    bits = np.array([3.0, 4.0, 5.0, 6.0])
    noise = np.exp(0.02 * np.random.default_rng(0).normal(size=4))
    found = fit_bits(bits, [PTQ.delta(1e8, 1e11, b) for b in bits] * noise)
    assert found.gp == pytest.approx(PTQ.gp, rel=0.05)
    assert found.delta(8.0) == pytest.approx(PTQ.delta(1e8, 1e11, 8.0), rel=0.3)
    assert 0 < found.spread < 0.1


def test_layers_that_hurt_are_found() -> None:
    rng = np.random.default_rng(0)
    errors, truth = rng.uniform(0, 0.1, (20, 5)), np.array([1.0, 0.0, 3.0, 0.2, 0.0])
    assert fit_layers(errors, errors @ truth) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit_bits([4, 5], [0.1, 0.2]), "expected 3 or more of each for a law of bits"),
        (lambda: fit_bits([3, 4, 5], [0.1, 0.2, 0.3]), "do not fall with the bits"),
        (lambda: fit_bits([3, 4, 5], [0.1, -0.2, 0.3]), "needs positive finite values"),
        (lambda: fit_chinchilla([1] * 4, [1] * 4, [1] * 4), "expected 5 or more"),
        (lambda: fit_layers([[1.0]], [1.0]), "expected 10 probes"),
    ],
)
def test_what_supports_no_law_is_refused(call: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        call()  # type: ignore[operator]
