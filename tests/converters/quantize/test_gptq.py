"""GPTQ: by a second implementation, and what must hold whatever the data."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.quantize.base import F64, grid_of, output_error
from edgert.converters.quantize.gptq import gptq, inverse_factor
from edgert.converters.quantize.rtn import round_to_nearest
from edgert.kernels.encodings import ENCODINGS, damage, dequantize, quantize
from edgert.kernels.grid import BITS
from edgert.kernels.quant import F32, Quantized

from edgert.errors import ConvertError

from .data import gram, matrix

MODES = {
    "plain": {"act_order": False},
    "static": {"act_order": False, "static": True},
    "act-order": {"act_order": True},
}


def same(a: Quantized, b: Quantized) -> bool:
    return a.encoding == b.encoding and all(
        np.array_equal(a.tensors[key], b.tensors[key]) for key in b.tensors
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_without_correlation_it_is_round_to_nearest_bit_for_bit(mode: str, symmetric: bool) -> None:
    for bits in BITS:
        for k in (96, 150):
            w = matrix(17, k, tails=3)
            got = gptq(w, np.eye(k), bits=bits, group=32, symmetric=symmetric, **MODES[mode])
            name = grid_of(bits, 32, symmetric).name
            expected = quantize(w, name)
            assert isinstance(expected, Quantized)
            assert same(got, expected), name
            assert damage(got) == ""
    diagonal = np.diag(np.random.default_rng(0).random(150) + 0.1)
    assert same(gptq(w, diagonal, bits=8, group=32, symmetric=symmetric, **MODES[mode]), expected)


def naive(w: F32, h: F64, bits: int, group: int, symmetric: bool, *, act_order: bool) -> F32:
    """Optimal brain quantization in a fixed order: after each input, the inverse of what is left of
    H is taken anew, and the rest is moved by it."""
    grid = grid_of(bits, group, symmetric)
    steps = grid.fit(grid.grouped(w))
    h = h + 0.01 * np.diagonal(h).mean() * np.eye(len(h))
    order = np.argsort(-np.diagonal(h), kind="stable") if act_order else np.arange(len(h))
    left, out = w.astype(np.float64), np.zeros(w.shape, np.float32)
    for place, i in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        b = slice(i // group, i // group + 1)
        mine = type(steps)(steps.scales[:, b], steps.zeros[:, b])
        column = left[:, i].astype(np.float32)[:, None, None]
        out[:, i] = grid.decode(grid.encode(column, mine), mine)[:, 0, 0]
        error = (left[:, i] - out[:, i]) / inverse[0, 0]
        left[:, rest] -= np.outer(error, inverse[0])
    return out


@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_optimal_brain_quantization(act_order: bool) -> None:
    w, g = matrix(20, 150), gram(150)
    for bits, symmetric in ((2, True), (3, False), (4, True)):
        expected = naive(w, g, bits, 32, symmetric, act_order=act_order)
        got = gptq(w, g, bits=bits, group=32, symmetric=symmetric, act_order=act_order, static=True)
        assert np.array_equal(dequantize(got), expected)


@pytest.mark.parametrize("mode", MODES)
def test_batches_are_the_same_as_input_by_input(mode: str) -> None:
    w, g = matrix(33, 300), gram(300)
    options = {"bits": 3, "group": 32, "symmetric": False, **MODES[mode]}
    whole = gptq(w, g, **options)
    assert same(gptq(w, g, batch=32, **options), whole)
    assert same(gptq(w, g, batch=1024, **options), whole)
    if mode != "plain":
        assert same(gptq(w, g, batch=1, **options), whole)


def test_the_last_input_moves_nothing_and_moves_nowhere() -> None:
    k = 65  # the last input has a group of its own
    w, g = matrix(9, k), gram(k)
    options = {"bits": 4, "group": 32, "act_order": False}
    before = dequantize(gptq(w, g, **options))
    w[:, -1] += 0.05
    after = dequantize(gptq(w, g, **options))
    assert np.array_equal(before[:, :-1], after[:, :-1])
    assert not np.array_equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("mode", MODES)
def test_outputs_lose_less_than_by_rounding(mode: str) -> None:
    g = gram(256)
    for tails in (3.0, 30.0):
        w = matrix(64, 256, tails=tails)
        for bits in (2, 4):
            for symmetric in (True, False):
                options = {"bits": bits, "group": 64, "symmetric": symmetric}
                plain = output_error(w, round_to_nearest(w, **options), g)
                found = output_error(w, gptq(w, g, **options, **MODES[mode]), g)
                print(bits, symmetric, plain, found)
                assert found < 0.7 * plain


def test_the_factor_of_the_inverse() -> None:
    for k in (1, 63, 64, 65, 200):
        h = gram(k)
        u = inverse_factor(h, 0.01)
        assert np.array_equal(u, np.triu(u))
        damped = h + 0.01 * np.diagonal(h).mean() * np.eye(k)
        assert np.abs(u.T @ u @ damped - np.eye(k)).max() < 1e-9


def test_inputs_that_were_never_seen() -> None:
    """One of them gets the weight 0, as published; a layer never reached is rounded to nearest."""
    w, g = matrix(8, 96), gram(96)
    g[40], g[:, 40] = 0, 0
    for mode in MODES.values():
        wide = dequantize(gptq(w, g, bits=4, group=32, **mode))
        assert not wide[:, 40].any()
        assert np.isfinite(wide).all()
        none = gptq(w, np.zeros((96, 96)), bits=4, group=32, **mode)
        assert same(none, quantize(w, "int4-g32"))  # type: ignore[arg-type]


def test_fewer_inputs_than_channels() -> None:
    """G of rank 10: damping makes it regular."""
    w, g = matrix(16, 128), gram(128, rows=10)
    plain = output_error(w, round_to_nearest(w, bits=3, group=32), g)
    assert output_error(w, gptq(w, g, bits=3, group=32), g) < plain
    with pytest.raises(ConvertError, match="not positive definite with 10000 times"):
        inverse_factor(np.array([[1.0, -1e9], [-1e9, 1.0]]), 0.01)


def test_what_is_refused() -> None:
    w, g = matrix(4, 64), gram(64)
    for bad in (np.nan, np.inf):
        spoiled = w.copy()
        spoiled[1, 2] = bad
        with pytest.raises(ConvertError, match="1 of 256 weights are not finite"):
            gptq(spoiled, g, bits=4, group=32)
        broken = g.copy()
        broken[3, 3] = bad
        with pytest.raises(ConvertError, match="values that are not finite"):
            gptq(w, broken, bits=4, group=32)
    with pytest.raises(ConvertError, match=r"shape \[64, 64\], expected \[32, 32\]"):
        gptq(w[:, :32], g, bits=4, group=32)
    with pytest.raises(ConvertError, match="7 bits in groups of 32, expected bits of"):
        gptq(w, g, bits=7, group=32)
    with pytest.raises(ConvertError, match="4 bits in groups of 16, expected"):
        gptq(w, g, bits=4, group=16)
    with pytest.raises(ConvertError, match="does not fit float16"):
        gptq(w * 1e12, g, bits=4, group=32)
    with pytest.raises(ConvertError, match=r"shape \[4\], expected a matrix"):
        gptq(w[:, 0], g, bits=4, group=32)


def test_every_encoding_and_hostile_rows() -> None:
    w = matrix(6, 150)
    w[0], w[1], w[2], w[3, 7] = 0, 0.5, 1e-9, 1e4
    for row in ENCODINGS.values():
        if row.grid is None:
            continue
        for mode in ("plain", "act-order"):
            grid = row.grid
            got = gptq(
                w,
                gram(150),
                bits=grid.bits,
                group=grid.group,
                symmetric=grid.symmetric,
                **MODES[mode],
            )
            assert (got.encoding, got.shape) == (row.name, w.shape)
            assert damage(got) == ""
            wide = dequantize(got)
            assert np.isfinite(wide).all()
            assert not wide[0].any()
