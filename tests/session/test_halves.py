"""Beginnings of recurrent states in bfloat16: half the bytes, and how much rows differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.kernels import linear_forms as forms

from edgert.bundle import Bundle
from edgert.errors import DeviceError
from edgert.session import SessionOptions, open_session
from edgert.session.cpu import CpuSession
from edgert.session.halves import from_bfloat16, to_bfloat16

from ..closeness import assert_close, distance
from ..tiny import tiny_bundle
from .test_linear_attention import MODES, fed, graph_of, opened


def test_rounding_is_to_the_nearest_even() -> None:
    exact = np.float32([1.0, -2.5, 0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, 1e-40])
    found = from_bfloat16(to_bfloat16(exact))
    assert found[:5].tolist() == [1.0, -2.5, 0.0, 1.0, 1 + 2**-6]
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert (np.abs(from_bfloat16(to_bfloat16(x)) - x) <= 2.0**-8 * np.abs(x)).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("mode", ["square", "shifted"])
def test_what_rounding_costs_where_nothing_fades(mode: str) -> None:
    """Rows that go on from 2000 tokens, which decay by half in 2000 more."""
    rng, count = np.random.default_rng(1), 2000
    q, k = rng.standard_normal((2, count + 100, 2, 16)) / 2
    v, rate = rng.standard_normal((count + 100, 2, 16)), np.full((count + 100, 2), -3.5e-4)
    form = forms.Form(mode, np.ones(2), np.ones(2), 0.0)
    sums = forms.chunked(q[:count], k[:count], v[:count], rate[:count], form, 64)[1]
    rest = q[count:], k[count:], v[count:], rate[count:]
    exact = forms.chunk_rows(sums, *rest, form)
    half = from_bfloat16(to_bfloat16(sums.matrix.astype(np.float32)))
    rounded = forms.chunk_rows(sums._replace(matrix=half.astype(np.float64)), *rest, form)
    assert_close(mode, exact, rounded, rms=4e-3)
    assert distance(exact, rounded)[0] > 1e-4


@pytest.mark.parametrize("mode", ["shifted", "window"])
def test_a_text_goes_on_from_a_rounded_beginning(mode: str) -> None:
    """A beginning in the tree of beginnings, taken up by another sequence."""
    graph, weights = graph_of(mode, MODES[mode])
    tokens, rows, sizes = list(range(200)), [], []
    for bits in (32, 16):
        session = CpuSession(graph, weights, threads=1, snapshot_bits=bits)
        cache, state, other = session.prefix_cache(), opened(session), opened(session)
        fed(session, state, [150, 50])
        cache.keep(state, tokens)
        assert cache.resume(other, [*tokens, 7]) == 200
        wanted = fed(session, state, [60])
        rows.append(fed(session, other, [1, 29, 30]))
        if bits == 32:
            assert np.array_equal(rows[0], wanted)
        sizes.append(cache.nbytes)
        assert state.checkpoint()
        fed(session, state, [40, 33])
        assert state.rewind(262) == 260
        session.close()
    assert_close(mode, rows[0], rows[1], rms=2e-3)
    assert distance(rows[0], rows[1])[0] > 1e-6
    parts = graph.states["s"]
    matrix = 4 * parts.heads * parts.key_dim * parts.value_dim  # type: ignore[union-attr]
    assert sizes[0] - sizes[1] == matrix // 2


def test_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    with (
        Bundle.open(tiny_bundle(tmp_path / "a.edge", context=96)) as bundle,
        pytest.raises(DeviceError, match="snapshot_bits is 16, expected 32") as caught,
    ):
        open_session(bundle, SessionOptions("reference", snapshot_bits=16))
    assert caught.value.code == "snapshot-bits"
