"""Keys and values in codes of 8 and 4 bits: the formulas, the kernels, and what cuts leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels import kv_codes
from edgert.kernels.attention import rotate
from edgert.kernels.states import KVState

from edgert.errors import RequestError
from edgert.forecast.memory import cache_bytes
from edgert.forecast.work import lowered, works
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession
from edgert.session.pages import page_bytes

from ..closeness import assert_close
from .families import family_graph

BITS = (8, 4)
F32 = Any
RNG = np.random.default_rng(5)


def halves(shape: tuple[int, ...], scale: float = 1.0) -> F32:
    """Random float32 values that float16 holds."""
    return (RNG.standard_normal(shape) * scale).astype(np.float16).astype(np.float32)


# --- the formulas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 24, 32, 40, 64, 80])
def test_codes_are_as_close_as_their_scale(size: int) -> None:
    k, v = halves((64, 2, size), 3.0), halves((64, 2, size))
    k[:, 0, 3] *= 40  # an outlying channel costs no other one anything
    keys = kv_codes.code_keys(k)
    error = np.abs(kv_codes.keys_of(keys) - k)
    scales = np.repeat(keys.scales.astype(np.float32), 32, axis=0)
    assert (error <= 0.501 * scales + 2e-3 * np.abs(k).max((0, 1))).all()
    assert error[:, 0, 4].max() < 0.05
    for bits in BITS:
        made = kv_codes.code_values(v, kv_codes.CODED[bits])
        assert made.codes.max() <= 2 ** kv_codes.CODED[bits] - 1
        error = np.abs(kv_codes.values_of(made) - v)
        assert error.max() <= 0.51 * made.scales.astype(np.float32).max() + 2e-3


def test_what_does_not_vary_is_kept_exactly() -> None:
    k = np.tile(halves((1, 1, 16)), (64, 1, 1))
    made = kv_codes.code_keys(k)
    assert not made.codes.any()
    assert not made.scales.any()
    assert np.array_equal(kv_codes.keys_of(made), k)


@pytest.mark.parametrize(("bits", "each"), [(16, 2.0), (8, 1.125), (4, 0.875)])
def test_bytes_of_an_element(bits: int, each: float) -> None:
    spec = KVState(3, 64)
    assert sum(page_bytes(spec, bits)) == each * 2 * 64 * 3 * 64
    key, value = page_bytes(spec, bits)
    assert (key, value)[bits == 4] == {16: 2.0, 8: 1.125, 4: 0.625}[bits] * 64 * 3 * 64


def test_forecasts_know_the_bits() -> None:
    graph, _ = family_graph("llama", head_dim=64)
    for bits in (16, *BITS):
        state = graph.states["kv0"]
        assert isinstance(state, KVState)
        attending = [w for w in works(lowered(graph, kv_bits=bits)) if w.look_ops]
        assert {w.cache for w in attending} == {sum(page_bytes(state, bits)) / 64}
    few, many = (
        [cache_bytes(graph, tokens, bits) for bits in (16, *BITS)] for tokens in (64, 64_000)
    )
    assert many[0] > many[1] > many[2]
    assert few[1] == sum(2 * sum(page_bytes(s, b)) for s in graph.states.values()
                         for b in (8, 16)) / 2  # fmt: skip


# --- the kernels ----------------------------------------------------------------------------------

CASES = {
    "gqa": {"num_key_value_heads": 2}, "mha": {"num_key_value_heads": 4, "head_dim": 24},
    "wide": {"head_dim": 80, "num_key_value_heads": 1}, "odd": {"head_dim": 20},
}  # fmt: skip
IDS = RNG.integers(0, 120, 330).astype(np.int32)


@pytest.fixture(scope="module", params=[(b, c) for b in BITS for c in CASES],
                ids=lambda p: f"{p[1]}-{p[0]}")  # fmt: skip
def session(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[CpuSession]:
    bits, case = request.param
    graph, weights = family_graph("llama", **CASES[case])
    opened = CpuSession(graph, weights, threads=2, kv_bits=bits, cache=kernel_folder)
    yield opened
    opened.close()


def fed(session: CpuSession, pieces: Sequence[int], state: Any = None) -> F32:
    """Logits of IDS behind a state's tokens, in pieces."""
    state, found = state or session.new_state(), []
    for count in pieces:
        ids = IDS[state.length : state.length + count]
        found.append(session.step([Feed(state, ids, "all")])[0].logits)
        state.commit(len(ids))
    return np.concatenate(found)


def expected(rows: F32, attrs: dict[str, Any], inv_freq: F32, bits: int) -> F32:
    """Attention written out: rows [T, (H + 2G) * D] of one sequence, float64 -> [T, H * D]."""
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    parts = rows.reshape(len(rows), heads + 2 * groups, size)
    q, k, v = np.split(parts, [heads, heads + groups], axis=1)
    place = np.arange(len(rows))
    q, k = rotate(q, place, inv_freq, 1.0), rotate(k, place, inv_freq, 1.0)
    fresh = [x.astype(np.float16).astype(np.float32) for x in (k, v)]
    coded = [x.copy() for x in fresh]
    for at in range(0, len(rows) - 63, 64):
        page = slice(at, at + 64)
        coded[0][page] = kv_codes.keys_of(kv_codes.code_keys(fresh[0][page]))
        made = kv_codes.code_values(fresh[1][page], kv_codes.CODED[bits])
        coded[1][page] = kv_codes.values_of(made)
    out = np.zeros((len(rows), heads, size))
    for t in range(len(rows)):
        own = t // 64 * 64  # where the page begins that the token stands in
        seen = [np.concatenate([c[:own], f[own : t + 1]]).astype(np.float64)
                for c, f in zip(coded, fresh, strict=True)]  # fmt: skip
        for h in range(heads):
            g = h * groups // heads
            scores = seen[0][:, g] @ q[t, h].astype(np.float64) * attrs["scale"]
            w = np.exp(scores - scores.max())
            out[t, h] = w / w.sum() @ seen[1][:, g]
    return out.reshape(len(rows), -1)


def test_kernels_compute_what_the_formulas_say(session: CpuSession) -> None:
    node = next(n for n in session.graph.nodes if n.op == "attention")
    state = session.new_state()
    taps = (node.inputs[0], node.output)
    feed = Feed(state, IDS[:200], "last", taps=taps)
    found = session.step([feed])[0].taps
    inv_freq = session._vectors[node.weights["inv_freq"]][: node.attrs["head_dim"] // 2]
    wanted = expected(found[taps[0]], node.attrs, inv_freq, session.kv_bits)
    assert_close(f"{session.kv_bits} bits", wanted, found[node.output], rms=2e-5)


def test_kernels_code_pages_as_the_formulas_do(session: CpuSession) -> None:
    state = session.new_state()
    fed(session, [100, 28], state)
    pool = session.pool
    page = state.pages[-1]  # full, and still open
    assert pool.fresh[page] >= 0
    made = {n: (pool.keys[n][page].copy(), pool.values[n][page].copy()) for n in pool.keys}
    pool.code(page)
    for name, (key, value) in made.items():
        assert np.array_equal(pool.keys[name][page], key)
        assert np.array_equal(pool.values[name][page], value)


def test_bits_do_not_depend_on_steps(session: CpuSession) -> None:
    whole = fed(session, [256, 74])
    for pieces in ([1] * 70 + [5, 63, 62, 130], [127, 1, 1, 64, 64, 63, 10], [63, 2, 63, 202]):
        assert np.array_equal(whole, fed(session, pieces))


def test_neighbours_and_threads_change_nothing(session: CpuSession) -> None:
    alone = fed(session, [100, 30])
    states = [session.new_state() for _ in range(3)]
    fed(session, [57], states[1])
    feeds = [Feed(states[0], IDS[:100], "all"), Feed(states[1], IDS[57:130], "all"),
             Feed(states[2], IDS[:40], "all")]  # fmt: skip
    found = [result.logits for result in session.step(feeds)]
    assert np.array_equal(found[0], alone[:100])
    assert np.array_equal(found[1], alone[57:])
    assert np.array_equal(found[2], alone[:40])


@pytest.mark.parametrize(("start", "drafts", "kept"), [(60, 8, 1), (62, 6, 2), (50, 63, 20),
                                                       (120, 16, 8), (63, 1, 0)])  # fmt: skip
def test_rejected_drafts_leave_no_trace(
    session: CpuSession, start: int, drafts: int, kept: int
) -> None:
    whole, state = fed(session, [256, 74]), session.new_state()
    fed(session, [start], state)
    wrong = IDS[start : start + drafts].copy()
    wrong[kept:] = (wrong[kept:] + 7) % 120
    rows = session.step([Feed(state, wrong, "all")])[0].logits
    assert np.array_equal(rows[:kept], whole[start : start + kept])
    state.commit(kept)
    rest = fed(session, [64, 330 - start - kept - 64], state)
    assert np.array_equal(rest, whole[start + kept :])


def test_cuts_end_where_a_page_is_open_or_begins(session: CpuSession) -> None:
    whole, state = fed(session, [256, 74]), session.new_state()
    fed(session, [200], state)
    assert state.rewind(140) == 140  # the last full page is open
    assert state.rewind(100) == 64  # codes alone
    assert np.array_equal(fed(session, [256, 10], state), whole[64:])
    fork = state.fork()
    assert fork.rewind(325) == 320  # another one counts on the page
    assert np.array_equal(fed(session, [10], fork), whole[320:])
    saved = state.snapshot()
    other = session.new_state()
    other.restore(saved)
    assert other.length == 330
    assert other.rewind(325) == 325
    assert np.array_equal(fed(session, [5], other), whole[325:])


def test_memory_is_that_of_codes(session: CpuSession) -> None:
    state = session.new_state()
    fed(session, [200, 130], state)
    pool = session.pool
    assert len(state.pages) == 6
    assert sum(pool.fresh[page] >= 0 for page in state.pages) == 2
    assert state.nbytes == 6 * pool.bytes_per_page + 2 * pool.bytes_per_fresh


def test_damaged_snapshots_are_refused(session: CpuSession) -> None:
    state = session.new_state()
    fed(session, [100], state)
    saved = state.snapshot()
    for bad in ({}, None, {n: a[:0] for n, a in saved["fresh"].items()}):
        with pytest.raises(RequestError, match="the snapshot's fresh of"):
            session.new_state().restore(saved | {"fresh": bad})


def test_trees_are_refused(session: CpuSession) -> None:
    state = session.new_state()
    tree = Feed(state, IDS[:3], "all", parents=np.array([-1, -1, 0], np.int32))
    with pytest.raises(RequestError, match="a tree for keys and values in codes"):
        session.step([tree])
    chain = Feed(state, IDS[:3], "all", parents=np.array([-1, 0, 1], np.int32))
    assert np.array_equal(session.step([chain])[0].logits, fed(session, [3]))


@pytest.mark.parametrize("bits", BITS)
def test_windows_and_readers_of_other_layers(bits: int, kernel_folder: Path) -> None:
    graph, weights = family_graph(
        "ministral", num_hidden_layers=4, kv_map=[0, 1, 2, 2], sliding_window=70,
        layer_types=["sliding_attention"] * 2 + ["full_attention"] * 2,
    )  # fmt: skip
    opened = CpuSession(graph, weights, threads=1, kv_bits=bits, cache=kernel_folder)
    exact = CpuSession(graph, weights, threads=1, kv_bits=32, cache=kernel_folder)
    found = fed(opened, [256, 74])
    assert np.array_equal(found, fed(opened, [77, 3, 180, 70]))
    assert_close(f"{bits} bits", fed(exact, [256, 74]), found, rms={8: 0.02, 4: 0.2}[bits])
    opened.close()
    exact.close()
