"""The CPU session: the same bits however the work is cut, and states that keep their promises."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgert.errors import DeviceError, RequestError, ResourceError
from edgert.roles import vocab_size
from edgert.session.base import Feed, Session, State
from edgert.session.cpu import SPLIT_ROWS, CpuSession
from edgert.session.plan import bytes_per_page
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..tiny import tiny_graph, tiny_weights

F32 = NDArray[np.float32]
CONTEXT = 704  # two segments of 256 tokens and a part of a third
LENGTH = 600
WINDOW = 270  # longer than a segment, no multiple of a page
GRAPH = tiny_graph(quant="int4", context=CONTEXT, window=WINDOW)
WEIGHTS = tiny_weights(GRAPH, seed=5)
TOKENS = np.random.default_rng(9).integers(0, vocab_size(GRAPH), LENGTH).astype(np.int32)
FOUR_PAGES = 4 * bytes_per_page(GRAPH, 16)
Sessions = dict[tuple[int, int], CpuSession]


@pytest.fixture(scope="module")
def sessions(kernel_folder: Path) -> Iterator[Sessions]:
    """One session for each (threads, bits of a cached element)."""
    made = {
        (threads, bits): CpuSession(
            GRAPH, WEIGHTS, threads=threads, kv_bits=bits, cache=kernel_folder
        )
        for threads in (1, 2, 3)
        for bits in (32, 16, 8)
    }
    yield made
    for session in made.values():
        assert session.pool.indices.free == session.pool.pages, "a test kept pages"
        session.close()


@pytest.fixture(scope="module")
def alone(sessions: Sessions) -> dict[int, F32]:
    """Logits of every token fed by itself on one thread, by cache bits."""
    return {bits: logits(sessions[1, bits], TOKENS, [1] * LENGTH) for bits in (32, 16, 8)}


def feed(state: State, session: Session, tokens: NDArray[np.int32]) -> F32:
    """One committed step with all its logits."""
    out = session.step([Feed(state, tokens, "all")])[0].logits
    state.commit(len(tokens))
    return out


def logits(session: Session, tokens: NDArray[np.int32], cuts: Sequence[int]) -> F32:
    """All logits of a sequence fed in chunks of these sizes."""
    state, out, start = session.new_state(), [], 0
    for size in cuts:
        out.append(feed(state, session, tokens[start : start + size]))
        start += size
    state.close()
    return np.concatenate(out)


def same_bits(expected: F32, got: F32) -> bool:
    return np.array_equal(expected.view(np.uint32), got.view(np.uint32))


@st.composite
def chunks(draw: st.DrawFn, length: int = LENGTH) -> list[int]:
    """Sizes that add up to `length`: single tokens, drafts, and prompts."""
    sizes: list[int] = []
    size = st.one_of(st.integers(1, SPLIT_ROWS + 1), st.integers(1, 256), st.just(256))
    while sum(sizes) < length:
        sizes.append(min(draw(size), length - sum(sizes)))
    return sizes


KEYS = st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from((32, 16, 8)))


# --- the same bits ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(key=KEYS, cuts=chunks())
def test_threads_and_chunks_change_no_bit(
    sessions: Sessions, alone: dict[int, F32], key: tuple[int, int], cuts: list[int]
) -> None:
    assert same_bits(alone[key[1]], logits(sessions[key], TOKENS, cuts))


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("depth", [63, 64, 255, 256, 511, 512, 590])
def test_the_split_path_and_the_prompt_path_agree(
    sessions: Sessions, alone: dict[int, F32], bits: int, depth: int
) -> None:
    """Steps of up to SPLIT_ROWS rows share segments out between threads, larger ones do not."""
    session = sessions[2, bits]
    state = session.new_state()
    for start in range(0, depth, 200):
        feed(state, session, TOKENS[start : min(start + 200, depth)])
    for rows in range(1, SPLIT_ROWS + 3):
        got = session.step([Feed(state, TOKENS[depth : depth + rows], "all")])[0].logits
        state.rewind(depth)
        assert same_bits(alone[bits][depth : depth + rows], got), rows
    state.close()


def test_steps_of_all_kinds_take_turns(sessions: Sessions, alone: dict[int, F32]) -> None:
    """A step of one chain keeps what the chain before it was filled with, others do not."""
    session, expected = sessions[1, 16], alone[16]
    state, other = session.new_state(), session.new_state()
    for kind in "chain chain tree chain pair chain other chain short chain".split():
        mine = other if kind == "other" else state
        start, rows = mine.length, 2 if kind == "short" else 3
        parents = np.arange(-1, rows - 1, dtype=np.int32) if kind == "tree" else None
        feeds = [Feed(mine, TOKENS[start : start + rows], "all", parents=parents)]
        if kind == "pair":
            feeds.insert(0, Feed(other, TOKENS[:2], "all"))
        got = session.step(feeds)[-1].logits
        for fed in feeds:
            fed.state.commit(fed.rows)
        assert same_bits(expected[start : start + rows], got), kind
    state.close()
    other.close()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(key=KEYS, data=st.data())
def test_sequences_of_one_step_do_not_touch_each_other(
    sessions: Sessions, alone: dict[int, F32], key: tuple[int, int], data: st.DataObject
) -> None:
    session, expected = sessions[key], alone[key[1]]
    count = data.draw(st.integers(2, 8), label="sequences")
    states = [session.new_state() for _ in range(count)]
    for state in states:
        depth = data.draw(st.sampled_from((0, 1, 63, 250, 512)), label="depth")
        for start in range(0, depth, 256):
            feed(state, session, TOKENS[start : min(start + 256, depth)])
    for _ in range(3):
        small = data.draw(st.booleans(), label="few rows")
        feeds, cuts = [], []
        for state in states:
            rows = data.draw(st.integers(1, 1 if small else 28), label="rows")
            tokens = TOKENS[state.length : state.length + rows]
            which = data.draw(st.sampled_from(("all", "last", "none")), label="logits")
            feeds.append(Feed(state, tokens, which))
            wanted = {"all": slice(rows), "last": slice(rows - 1, rows), "none": slice(0)}
            cuts.append(wanted[which])
        for fed, cut, got in zip(feeds, cuts, session.step(feeds), strict=True):
            start = fed.state.length
            assert same_bits(expected[start : start + fed.rows][cut], got.logits)
            fed.state.commit(fed.rows)
    for state in states:
        state.close()


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(3, 3, 16), (4, 2, 80), (7, 1, 48), (6, 2, 64)]
)
def test_rows_of_any_heads_have_the_bits_of_single_ones(
    heads: int, kv_heads: int, size: int, bits: int, kernel_folder: Path
) -> None:
    """A page is read for several query rows at once, the heads of a group by the step's rows."""
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": size}
    graph = tiny_graph(quant="int4", layers=1, **shape)
    session = CpuSession(
        graph, tiny_weights(graph, seed=3), threads=1, kv_bits=bits, cache=kernel_folder
    )
    tokens = TOKENS[:100] % vocab_size(graph)
    expected = logits(session, tokens, [1] * len(tokens))
    for depth in (0, 60, 84):  # in a page, across the end of one, behind it
        for rows in range(2, 12):
            state = session.new_state()
            for start in range(0, depth, 30):
                feed(state, session, tokens[start : min(start + 30, depth)])
            got = feed(state, session, tokens[depth : depth + rows])
            state.close()
            assert same_bits(expected[depth : depth + rows], got), (depth, rows)
    session.close()


@pytest.mark.parametrize("window", [0, 1, 63, 64, 65, 256, 257, 500])
def test_windows_and_segments_against_numpy(window: int, kernel_folder: Path) -> None:
    graph = tiny_graph(quant="f32", context=CONTEXT, window=window)
    weights = tiny_weights(graph)
    expected = logits(ReferenceSession(graph, weights), TOKENS, [256, 256, 88])
    for bits, limit in ((32, 2e-5), (16, 5e-3), (8, 5e-2)):
        session = CpuSession(graph, weights, threads=2, kv_bits=bits, cache=kernel_folder)
        got = logits(session, TOKENS, [250, 1, 8, 9, 200, *[1] * 120, 12])
        session.close()
        assert_close(f"window {window}, {bits} bits", expected, got, rms=limit)


# --- states -----------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("feed", "draft", "trim", "save", "load", "empty")),
        st.integers(0, 150),
        st.integers(0, 150),
    ),
    min_size=3,
    max_size=12,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(key=KEYS, operations=OPERATIONS)
def test_a_state_is_its_tokens(
    sessions: Sessions, alone: dict[int, F32], key: tuple[int, int], operations: list[Any]
) -> None:
    """Whatever was fed, rejected, trimmed, saved and restored: the next logits are those of the
    committed tokens. The tokens are one text, so a position tells what was committed there."""
    session, expected = sessions[key], alone[key[1]]
    state, other = session.new_state(), session.new_state()
    saved = other.snapshot()
    for name, a, b in operations:
        left = LENGTH - 1 - state.length
        if name in ("feed", "draft") and left:
            tokens = TOKENS[state.length : state.length + min(max(a, 1), left)].copy()
            keep = len(tokens) if name == "feed" else min(b, len(tokens))
            tokens[keep:] = (tokens[keep:] + 1) % vocab_size(GRAPH)  # rejected guesses
            session.step([Feed(state, tokens, "none")])
            state.commit(keep)
        elif name == "trim":
            state.rewind(max(0, state.length - a))
        elif name == "save":
            saved = state.snapshot()
        elif name == "load":
            state.restore(saved)
        elif name == "empty":
            state.close()
            state, other = other, session.new_state()
            state.rewind(0)
    pages = -(-state.length // 64)
    assert state.nbytes >= pages * session.pool.bytes_per_page
    got = session.step([Feed(state, TOKENS[state.length : state.length + 1])])[0].logits
    assert same_bits(expected[state.length : state.length + 1], got)
    state.close()
    other.close()
    assert session.pool.indices.free == session.pool.pages


def test_a_snapshot_is_a_copy(sessions: Sessions, alone: dict[int, F32]) -> None:
    session = sessions[2, 16]
    first, second = session.new_state(), session.new_state()
    feed(first, session, TOKENS[:100])
    saved = first.snapshot()
    feed(first, session, TOKENS[:120])
    first.close()
    second.restore(saved)
    assert same_bits(alone[16][100:101], feed(second, session, TOKENS[100:101]))
    second.close()


SPOILED: dict[str, Any] = {
    "fingerprint": "another model",
    "length": [-1, CONTEXT + 1, 64, 129, 2.0, None, "100"],
    "long_rope": [None, 2],
    "keys": [{}, None, {"kv0": np.zeros((2, 3), np.uint8)}],
    "values": [{}],
}


def test_foreign_and_edited_snapshots_are_refused(sessions: Sessions) -> None:
    session = sessions[1, 16]
    state, target = session.new_state(), session.new_state()
    feed(state, session, TOKENS[:100])
    feed(target, session, TOKENS[:30])
    saved = state.snapshot()
    foreign = [sessions[1, 8].new_state().snapshot(), {}]
    foreign += [
        saved | {field: value}
        for field, values in SPOILED.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    foreign += [{k: v for k, v in saved.items() if k != field} for field in saved]
    one = {name: array.astype(np.int8) for name, array in saved["keys"].items()}
    for snapshot in [*foreign, saved | {"keys": one}]:
        with pytest.raises(RequestError) as caught:
            target.restore(snapshot)
        assert caught.value.code == "snapshot"
        assert (target.length, len(target.pages)) == (30, 1), "the state was touched"
    target.restore(saved)
    assert target.length == 100
    state.close()
    target.close()


def test_a_closed_state_is_refused_and_closing_twice_is_not(sessions: Sessions) -> None:
    session = sessions[1, 32]
    state = session.new_state()
    feed(state, session, TOKENS[:5])
    saved = state.snapshot()
    state.close()
    state.close()
    for use in (lambda: session.step([Feed(state, TOKENS[:1])]), lambda: state.restore(saved)):
        with pytest.raises(RequestError) as caught:
            use()
        assert caught.value.code == "state-closed"


def test_a_dropped_state_gives_its_pages_back(kernel_folder: Path) -> None:
    session = CpuSession(GRAPH, WEIGHTS, threads=1, kv_memory=FOUR_PAGES, cache=kernel_folder)
    for _ in range(session.pool.pages + 1):
        feed(session.new_state(), session, TOKENS[:3])
    gc.collect()
    assert session.pool.indices.free == session.pool.pages
    state = session.new_state()
    feed(state, session, TOKENS[:130])
    state.close()
    del state
    gc.collect()
    assert session.pool.indices.free == session.pool.pages, "given back twice"
    session.close()


def test_states_of_another_session_are_refused(sessions: Sessions) -> None:
    state = sessions[2, 32].new_state()
    with pytest.raises(RequestError) as caught:
        sessions[1, 32].step([Feed(state, TOKENS[:3])])
    assert caught.value.code == "state-foreign"
    state.close()


# --- limits -----------------------------------------------------------------------------------


def test_the_pool_runs_dry_and_recovers(kernel_folder: Path) -> None:
    session = CpuSession(GRAPH, WEIGHTS, threads=2, kv_memory=FOUR_PAGES, cache=kernel_folder)
    one, two = session.new_state(), session.new_state()
    feed(one, session, TOKENS[:130])  # three of four pages
    for feeds in ([Feed(two, TOKENS[:80])], [Feed(one, TOKENS[:70]), Feed(two, TOKENS[:3])]):
        with pytest.raises(ResourceError) as caught:
            session.step(feeds)
        assert caught.value.code == "kv-pages"
        assert (one.length, one.pending, two.length, two.pending) == (130, 0, 0, 0)
        assert session.pool.indices.free == 1, "a failed step kept pages"
    with pytest.raises(ResourceError):
        two.restore(one.snapshot())
    wanted = Feed(one, TOKENS[130:200])  # the last page is still to be had
    reference = session.step([wanted])[0].logits
    one.commit(70)
    saved = one.snapshot()
    one.close()
    two.restore(saved)
    two.rewind(130)
    assert same_bits(reference, session.step([Feed(two, TOKENS[130:200])])[0].logits)
    session.close()


def test_a_full_context_is_refused(kernel_folder: Path) -> None:
    session = CpuSession(GRAPH, WEIGHTS, threads=1, context=100, cache=kernel_folder)
    state = session.new_state()
    feed(state, session, TOKENS[:99])
    with pytest.raises(RequestError) as caught:
        session.step([Feed(state, TOKENS[99:101])])
    assert caught.value.code == "context"
    assert feed(state, session, TOKENS[99:100]).shape == (1, vocab_size(GRAPH))
    session.close()


@pytest.mark.parametrize(
    ("options", "code"),
    [({"kv_bits": 5}, "kv-bits"), ({"threads": 0}, "threads"), ({"threads": 257}, "threads")],
)
def test_options_out_of_range(options: dict[str, int], code: str) -> None:
    with pytest.raises(DeviceError) as caught:
        CpuSession(GRAPH, WEIGHTS, **options)
    assert caught.value.code == code


def test_steps_that_make_no_sense(sessions: Sessions) -> None:
    session = sessions[1, 16]
    state = session.new_state()
    none = TOKENS[:0]
    cases: list[tuple[str, list[Feed]]] = [
        ("step-rows", []),
        ("step-rows", [Feed(state, none)]),
        ("step-rows", [Feed(state, TOKENS[:257])]),
        ("step-states", [Feed(state, TOKENS[:1]), Feed(state, TOKENS[:1])]),
        ("token-range", [Feed(state, np.array([vocab_size(GRAPH)], np.int32))]),
        ("token-range", [Feed(state, np.array([0, -1], np.int32))]),
    ]
    for code, feeds in cases:
        with pytest.raises(RequestError) as caught:
            session.step(feeds)
        assert caught.value.code == code
    session.step([Feed(state, TOKENS[:4])])
    with pytest.raises(RequestError) as caught:
        session.step([Feed(state, TOKENS[:1])])
    assert caught.value.code == "step-pending"
    with pytest.raises(RequestError) as caught:
        state.commit(5)
    assert caught.value.code == "commit-range"
    with pytest.raises(RequestError) as caught:
        state.rewind(1)
    assert caught.value.code == "rewind-range"
    state.close()
