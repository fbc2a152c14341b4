"""What no factorisation is made of, and what the refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgert.converters.compress.baselines import cospadi, svd_llm, truncated_svd
from edgert.converters.compress.coders import NofM, SharedSupport, TopS
from edgert.converters.compress.compot import Options, compot, compot_shared

from edgert.errors import ConvertError

from .data import layer

NAME = "layers.3.self_attn.q_proj"
METHODS: dict[str, Callable[..., Any]] = {
    "compot": lambda w, white, name: compot(w, white, 8, 4, name=name),
    "shared": lambda w, white, name: compot_shared([w, w], white, 8, 4, name=name),
    "svd": lambda w, white, name: truncated_svd(w, white, 8, name=name),
    "svd-llm": lambda w, white, name: svd_llm(w, white, 8, name=name),
    "cospadi": lambda w, white, name: cospadi(w, white, 8, 4, iterations=1, name=name),
}


def spoiled(value: float) -> np.ndarray:
    w = np.ones((24, 40))
    w[5, 7] = value
    return w


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (spoiled(np.nan), r"holds 1 values that are NaN or infinite of 960, the first at \[5, 7\]"),
        (spoiled(-np.inf), "NaN or infinite"),
        (spoiled(1e300), "largest value is 1e\\+300; .* overflows float64"),
        (np.ones((40, 24)), "has 40 rows, expected 24"),
        (np.ones(24), r"shape \(24,\), expected a matrix"),
        (np.ones((24, 0)), "expected a matrix that is not empty"),
        (np.ones((24, 40), np.complex128), "type complex128, expected real numbers"),
        (np.array([["a"]]), "expected real numbers"),
    ],
)
def test_a_weight_that_is_none_is_refused_by_name(method: str, weight: Any, message: str) -> None:
    _, _, white = layer()
    with pytest.raises(ConvertError, match=message) as raised:
        METHODS[method](weight, white, NAME)
    assert NAME in str(raised.value)


@pytest.mark.parametrize(
    ("k", "s", "message"),
    [
        (0, 1, "k is 0, expected 1 to 24"),
        (25, 4, "k is 25, expected 1 to 24"),
        (8, 0, "s is 0, expected 1 to 8"),
        (8, 9, "s is 9, expected 1 to 8"),
        (8.0, 4, r"k is 8\.0, expected an integer"),
        (True, 4, "k is True, expected an integer"),
        (8, TopS(-1), "s is -1"),
        (10, NofM(2, 4), "k is 10, expected a multiple of 4"),
        (8, NofM(5, 4), "keep is 5, expected 1 to 4"),
        (8, SharedSupport(4, 0), "outputs is 0"),
    ],
)
def test_sizes_out_of_range_are_refused(k: Any, s: Any, message: str) -> None:
    _, w, white = layer()
    with pytest.raises(ConvertError, match=message):
        compot(w, white, k, s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(iterations=-1), "iterations is -1"),
        (Options(tol=1.5), r"tol is 1\.5"),
        (Options(init="zeros"), "init is 'zeros', expected one of svd, random, permuted"),
        (Options(polar="newton"), "polar is 'newton'"),
        (Options(seed=-3), "seed is -3"),
    ],
)
def test_options_out_of_range_are_refused(options: Options, message: str) -> None:
    _, w, white = layer()
    with pytest.raises(ConvertError, match=message):
        compot(w, white, 8, 4, options)


def test_baselines_refuse_sizes_out_of_range() -> None:
    _, w, white = layer()
    for call, message in [
        (lambda: svd_llm(w, white, 25), "rank is 25, expected 1 to 24"),
        (lambda: truncated_svd(w, white, 0), "rank is 0"),
        (lambda: cospadi(w, white, 41, 4), "k is 41, expected 1 to 40"),
        (lambda: cospadi(w, white, 30, 25), "s is 25, expected 1 to 24"),
        (lambda: cospadi(w, white, 8, 4, iterations=0), "iterations is 0"),
        (lambda: compot_shared([], white, 8, 4), "no weights"),
        (lambda: compot(w, white, 8, 4).split([30, 20]), r"\[30, 20\] outputs, expected a sum"),
    ]:
        with pytest.raises(ConvertError, match=message):
            call()


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("value", [0.0, 1e-160, 1.0])
def test_weights_without_variance_are_factored(method: str, value: float) -> None:
    _, _, white = layer()
    found = METHODS[method](np.full((24, 40), value), white, NAME)
    for part in found if isinstance(found, list) else [found]:
        assert np.isfinite(part.product()).all()
        assert part.error < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_other_real_numbers_are_read_as_float64(dtype: type) -> None:
    _, w, white = layer()
    weight = (w * 100).astype(dtype)
    found, wide = compot(weight, white, 8, 4), compot(weight.astype(np.float64), white, 8, 4)
    assert found.a.tobytes() == wide.a.tobytes()
