"""AWQ, HQQ and clipped ranges."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.quantize.awq import RATIOS, awq, fold_norm, fold_rows
from edgert.converters.quantize.base import energy, output_error
from edgert.converters.quantize.hqq import hqq
from edgert.converters.quantize.rtn import round_to_nearest
from edgert.kernels.elementwise import glu
from edgert.kernels.encodings import ENCODINGS, damage, dequantize, quantize
from edgert.kernels.grid import BITS, GROUPS
from edgert.kernels.quant import F32

from edgert.errors import ConvertError
from tests.closeness import assert_close

from .data import gram, inputs, matrix


def rms_norm(x: F32, weight: F32) -> F32:
    out: F32 = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)) * weight
    return out


# --- AWQ --------------------------------------------------------------------------------------


def test_folding_leaves_the_function_unchanged() -> None:
    k = 96
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, k)).astype(np.float32)
    norm = (1 + rng.standard_normal(k) / 4).astype(np.float32)
    w = matrix(40, k)
    scale = awq(w, gram(k), bits=3, group=32).scale
    assert scale.max() > 1.5 > 0.7 > scale.min()
    expected = rms_norm(x, norm) @ w.T
    got = rms_norm(x, fold_norm(norm, scale)) @ (w * scale).T
    assert_close("norm", expected, got, rms=1e-6)
    up, gate, bias = matrix(k, 24, seed=1), matrix(k, 24, seed=2), norm
    y = x[:, :24]
    act = lambda u, b: glu([np.hstack([y @ gate.T, y @ u.T + b])], {}, {"act": "silu"})
    expected = act(up, bias) @ w.T
    got = act(fold_rows(up, scale), fold_rows(bias, scale)) @ (w * scale).T
    assert_close("gated", expected, got, rms=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_loses_less_than_rounding_and_clipping_less_again(symmetric: bool) -> None:
    k = 128
    w, x = matrix(64, k, tails=5), inputs(k)
    x[:, 17] *= 20  # a few large inputs are what it is for
    g = x.T @ x
    for bits in (2, 3, 4):
        options = {"bits": bits, "group": 64, "symmetric": symmetric}
        lost = [
            np.sqrt(energy(dequantize(found.matrix) / found.scale - w.astype(np.float64), g))
            for found in (awq(w, g, **options), awq(w, g, clip=True, **options))
        ]
        plain = output_error(w, round_to_nearest(w, **options), g)
        plain *= np.sqrt(energy(w.astype(np.float64), g))
        assert lost[0] < 0.9 * plain
        assert lost[1] < lost[0]


def test_awq_without_large_inputs_is_rounding() -> None:
    w = matrix(16, 64)
    found = awq(w, np.eye(64), bits=4, group=32, symmetric=True)
    assert (found.ratio, found.scale.tolist()) == (0.0, [1.0] * 64)
    assert np.array_equal(dequantize(found.matrix), dequantize(quantize(w, "int4-g32")))
    none = awq(w, np.zeros((64, 64)), bits=4, group=32)
    assert np.isfinite(none.scale).all()
    dead = gram(64)
    dead[5], dead[:, 5] = 0, 0
    found = awq(w, dead, bits=4, group=32, clip=True)
    assert np.isfinite(dequantize(found.matrix)).all()
    assert found.ratio in RATIOS


# --- HQQ, clipped ranges ----------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_hqq_loses_less_than_rounding_with_heavy_tails(symmetric: bool) -> None:
    w = matrix(64, 256, tails=3)
    for bits, share in ((2, 0.85), (3, 0.93), (4, 0.99)):
        options = {"bits": bits, "group": 64, "symmetric": symmetric}
        plain = np.abs(dequantize(round_to_nearest(w, **options)) - w)
        found = np.abs(dequantize(hqq(w, **options)) - w)
        print(bits, found.mean() / plain.mean())
        assert found.mean() < share * plain.mean()
        groups = lambda e: e.reshape(64, -1, 64).mean(-1)
        assert (groups(found) <= groups(plain) + 1e-7).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipped_ranges_lose_less_in_what_they_measure(symmetric: bool) -> None:
    w, g = matrix(64, 250, tails=3), gram(250)
    for bits in (2, 3, 4, 8):
        options = {"bits": bits, "group": 32, "symmetric": symmetric}
        errors = [
            dequantize(found).astype(np.float64) - w
            for found in (
                round_to_nearest(w, **options),
                round_to_nearest(w, clip=True, **options),
                round_to_nearest(w, clip=True, gram=g, **options),
            )
        ]
        plain, mean, weighted = (np.vdot(e, e) for e in errors)
        assert mean <= plain
        assert mean <= weighted
        plain, mean, weighted = (np.vdot(e * np.diagonal(g), e) for e in errors)
        assert weighted <= min(plain, mean)


METHODS = {
    "rtn": round_to_nearest,
    "clip": lambda w, **o: round_to_nearest(w, clip=True, **o),
    "hqq": hqq,
    "awq": lambda w, **o: awq(w, gram(w.shape[1]), **o).matrix,
}


@pytest.mark.parametrize("method", METHODS)
def test_hostile_rows(method: str) -> None:
    w = matrix(7, 150)
    w[0], w[1], w[2], w[3, 7], w[4] = 0, 0.5, 1e-9, 1e4, -0.25
    quantized = METHODS[method]
    for bits in BITS:
        for group in GROUPS:
            for symmetric in (True, False):
                found = quantized(w, bits=bits, group=group, symmetric=symmetric)
                assert found.shape == w.shape
                assert ENCODINGS[found.encoding].group == group
                assert damage(found) == ""
                wide = dequantize(found)
                assert np.isfinite(wide).all()
                assert not wide[0].any()
    options = {"bits": 4, "group": 32, "symmetric": True}
    with pytest.raises(ConvertError, match="1050 of 1050 weights are not finite"):
        quantized(w * np.float32(np.nan), **options)
    with pytest.raises(ConvertError, match="does not fit float16"):
        quantized(w * 1e8, **options)
    with pytest.raises(ConvertError, match="1 bits in groups of 32"):
        quantized(w, bits=1, group=32, symmetric=True)


def test_the_benchmark_measures_every_method() -> None:
    from benchmarks.quantizers import METHODS as MEASURED
    from benchmarks.quantizers import Layer, measure

    layers = {"a": Layer(matrix(32, 64), gram(64), gram(64, rows=600))}
    options = {"bits": 3, "group": 32, "symmetric": False}
    errors = {name: measure(layers, name, **options) for name in MEASURED}
    assert {round(found.bits, 3) for found in errors.values()} == {3.625}  # a byte for two zeros
    assert errors["gptq"].error < errors["awq"].error < errors["rtn"].error < 0.5
