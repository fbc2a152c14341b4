"""Recurrent states behind the contract of states: drafts of which some were right, copies, going
back. What a sequence then gives is what it gives if the rejected tokens had never been fed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.session.base import F32, Feed, Session, State
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import ort_session
from . import toy

TOKENS = np.random.default_rng(4).integers(0, toy.VOCAB, 200).astype(np.int32)
WRONG = np.random.default_rng(5).integers(0, toy.VOCAB, 200).astype(np.int32)
# NumPy and onnxruntime add up in another order for another number of rows.
ROWS = {"cpu": 0.0, "reference": 1e-6, "onnx": 1e-5, "onnx-static": 1e-5}
MAX_ROWS = 70


@pytest.fixture(scope="module", params=ROWS)
def session(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Session]:
    graph, weights = toy.recurrent()
    opened: Session
    if request.param == "cpu":
        opened = CpuSession(graph, weights, threads=2, max_rows=MAX_ROWS, kv_bits=32)
    elif request.param == "reference":
        opened = ReferenceSession(graph, weights, max_rows=MAX_ROWS)
    else:
        static = Variant(standard=True, rows=16, capacity=toy.CONTEXT)
        variant = static if request.param == "onnx-static" else Variant()
        folder = tmp_path_factory.mktemp("replay")
        opened = ort_session(graph, weights, folder, variant, ("x1",), max_rows=MAX_ROWS)
    opened.limit = ROWS[request.param]  # type: ignore[attr-defined]
    yield opened
    opened.close()


def feed(session: Session, state: State, tokens: Any, keep: int = -1, **more: Any) -> F32:
    """Logits of all rows; `keep` of them are committed, by default all."""
    (result,) = session.step([Feed(state, np.asarray(tokens, np.int32), "all", **more)])
    state.commit(len(tokens) if keep < 0 else keep)
    return result.logits


def plain(session: Session, count: int, start: int = 0) -> F32:
    """Logits of TOKENS[start:count] of a sequence that is fed them one by one."""
    state = session.new_state()
    rows = [feed(session, state, TOKENS[i : i + 1]) for i in range(count)]
    state.close()
    return np.concatenate(rows[start:])


def equal(session: Session, label: str, expected: F32, got: F32) -> None:
    assert_close(label, expected, got, rms=session.limit)  # type: ignore[attr-defined]


def drafted(session: Session, state: State, cycles: Sequence[tuple[int, int]]) -> None:
    """Cycles of drafts: (how many are right, how many are wrong) behind each next token."""
    for right, wrong in cycles:
        at = state.length
        tokens = np.r_[TOKENS[at : at + 1 + right], WRONG[at : at + wrong]]
        feed(session, state, tokens, 1 + right)
        assert state.length == at + 1 + right


CYCLES = {
    "none right": [(0, 4)],
    "some right": [(2, 3)],
    "all right": [(4, 0)],
    "again and again": [(0, 1), (3, 2), (0, 5), (1, 1), (5, 0), (2, 1)],
    "past a page": [(30, 5), (30, 5), (10, 1)],
}


@pytest.mark.parametrize("cycles", CYCLES.values(), ids=CYCLES)
def test_rejected_drafts_leave_no_trace(session: Session, cycles: list[tuple[int, int]]) -> None:
    state = session.new_state()
    feed(session, state, TOKENS[:9])
    drafted(session, state, cycles)
    at = state.length
    expected = plain(session, at + 12, at)
    got = [feed(session, state, TOKENS[at : at + 1])]
    got.append(feed(session, state, TOKENS[at + 1 : at + 12]))
    equal(session, str(cycles), expected, np.concatenate(got))
    assert not state.behind


def test_rows_of_a_step_that_catches_up_are_their_own(session: Session) -> None:
    """Logits of the last row, of none, and of all; two sequences of which one is behind."""
    late, level = session.new_state(), session.new_state()
    feed(session, late, TOKENS[:6], 3)
    feed(session, level, TOKENS[:3])
    for kind, rows in (("last", 1), ("none", 0), ("all", 5)):
        feeds = [Feed(state, TOKENS[3:8], kind) for state in (late, level)]
        found = [result.logits for result in session.step(feeds)]
        assert [len(part) for part in found] == [rows, rows]
        if rows:
            equal(session, kind, found[1], found[0])
        for state in (late, level):
            state.discard()
    (result,) = session.step([Feed(late, TOKENS[3:7], "none", taps=("x1",))])
    (other,) = session.step([Feed(level, TOKENS[3:7], "none", taps=("x1",))])
    equal(session, "taps", other.taps["x1"], result.taps["x1"])


def test_discarded_and_rewound_steps_leave_no_trace(session: Session) -> None:
    state = session.new_state()
    feed(session, state, TOKENS[:9])
    feed(session, state, np.r_[TOKENS[9:14], WRONG[:3]], 5)
    feed(session, state, WRONG[:4], 0)
    session.step([Feed(state, WRONG[:2])])
    state.discard()
    assert state.rewind(11) == 11  # three of the five that were not taken in yet
    assert state.late == 2
    equal(session, "within", plain(session, 20, 11), feed(session, state, TOKENS[11:20]))
    reached = state.rewind(13)
    assert reached <= 13
    again = feed(session, state, TOKENS[reached:20])
    equal(session, "behind it", plain(session, 20, reached), again)


def test_copies_of_a_state_that_is_behind(session: Session) -> None:
    state = session.new_state()
    feed(session, state, TOKENS[:9])
    drafted(session, state, [(3, 2), (1, 2)])
    expected = plain(session, 25, 15)
    kept = state.snapshot()
    twin, restored = state.fork(), session.new_state()
    restored.restore(kept)
    feed(session, twin, WRONG[:3], 1)
    for name, other in (("itself", state), ("restored", restored)):
        equal(session, name, expected, feed(session, other, TOKENS[15:25]))
    late = session.new_state()
    feed(session, late, TOKENS[:9], 4)
    session.step([Feed(late, TOKENS[4:6])])
    with pytest.raises(RequestError, match="2 tokens are pending"):
        late.fork()


def test_a_step_without_room_for_more_rows(session: Session) -> None:
    state = session.new_state()
    feed(session, state, TOKENS[:20], 11)
    got = feed(session, state, TOKENS[11 : 11 + MAX_ROWS])
    equal(session, "full", plain(session, 11 + MAX_ROWS, 11), got)


def test_embeddings_behind_tokens(session: Session) -> None:
    if not isinstance(session, ReferenceSession | CpuSession):
        pytest.skip("this ONNX model takes tokens")
    rows = toy.rows(6, toy.WIDTH)
    states = [session.new_state() for _ in range(2)]
    feed(session, states[0], TOKENS[:9], 4)
    feed(session, states[1], TOKENS[:4])
    found = []
    for state in states:
        (result,) = session.step([Feed(state, embeddings=rows, logits="all")])
        state.commit(3 if state is states[0] else 6)
        found.append(result.logits)
    equal(session, "rows", found[1], found[0])
    feed(session, states[0], TOKENS[:1], 0)
    (result,) = session.step([Feed(states[0], embeddings=rows[3:], logits="all")])
    equal(session, "the rest", found[1][3:], result.logits)


def test_positions_of_rows_that_are_fed_again(session: Session) -> None:
    if not isinstance(session, ReferenceSession | CpuSession):
        pytest.skip("its attention counts positions by itself")
    places = np.array([5, 9, 9, 12, 20, 21], np.int32)
    late, level = session.new_state(), session.new_state()
    feed(session, late, TOKENS[:6], 4, positions=places)
    feed(session, level, TOKENS[:4], positions=places[:4])
    expected = feed(session, level, TOKENS[4:9])
    equal(session, "moved", expected, feed(session, late, TOKENS[4:9]))


def test_a_tree_is_refused_and_a_chain_is_not(session: Session) -> None:
    state = session.new_state()
    chain = np.array([-1, 0, 1], np.int32)
    got = feed(session, state, TOKENS[:3], parents=chain)
    equal(session, "chain", plain(session, 3), got)
    with pytest.raises(RequestError, match="a tree for recurrent states"):
        session.step([Feed(state, TOKENS[3:6], parents=np.array([-1, -1, 0], np.int32))])
    assert (state.length, state.pending) == (3, 0)


def test_a_refused_step_keeps_what_is_behind(session: Session) -> None:
    state = session.new_state()
    feed(session, state, TOKENS[:9], 4)
    with pytest.raises(RequestError, match="token ids"):
        session.step([Feed(state, np.array([toy.VOCAB], np.int32))])
    assert (state.length, state.late) == (4, 4)
    equal(session, "after", plain(session, 9, 4), feed(session, state, TOKENS[4:9]))


def test_a_cancelled_step_keeps_what_is_behind() -> None:
    graph, weights = toy.recurrent()
    session = CpuSession(graph, weights, threads=1, kv_bits=32)
    state = session.new_state()
    feed(session, state, TOKENS[:9], 4)
    program, execute = session.program(), session.program().execute

    def fail(**options: Any) -> None:
        raise RequestError("cancelled", code="cancelled")

    program.execute = fail  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="cancelled"):
        session.step([Feed(state, TOKENS[4:6])])
    program.execute = execute  # type: ignore[method-assign]
    assert (state.length, state.late) == (4, 4)
    assert np.array_equal(plain(session, 9, 4), feed(session, state, TOKENS[4:9]))
    session.close()


def test_checkpoints_of_a_state_that_is_behind() -> None:
    graph, weights = toy.recurrent()
    session = CpuSession(graph, weights, threads=1, kv_bits=32)
    state = session.new_state()
    feed(session, state, TOKENS[:9], 7)
    assert state.checkpoint()
    feed(session, state, TOKENS[7:30])
    assert state.rewind(12) == 7
    assert np.array_equal(plain(session, 20, 7), feed(session, state, TOKENS[7:20]))
    assert session.slots.indices.free == session.slots.indices.count - 1
    session.close()
