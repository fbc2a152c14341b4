"""linear_attention step by step on the CPU: bits do not depend on how a text was fed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels.ops import CATALOGUE
from edgert.kernels.ops_linear import feature_width

from edgert.errors import RequestError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import F32, Feed, State
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession
from edgert.session.tailed import TailedSlots

from ..closeness import assert_close
from ..onnx_model import ort_session

HEADS, GROUPS, SIZE, LENGTH, ROWS = 6, 2, 16, 333, 200
WIDTH = (HEADS + 2 * GROUPS) * SIZE
RNG = np.random.default_rng(3)
QKV = RNG.standard_normal((LENGTH, WIDTH)).astype(np.float32)
GATES = (RNG.standard_normal((LENGTH, GROUPS)) - 2).astype(np.float32)
OTHER = RNG.standard_normal((LENGTH, WIDTH)).astype(np.float32)
MODES = {"square": 64, "shifted": 16, "mamba2s": 33, "window": 32, "2mamba-e": 64}  # and chunks


def graph_of(mode: str, chunk: int) -> tuple[Graph, dict[str, F32]]:
    """The op alone, over float rows. Mode "window" is `shifted` with one."""
    window, mode = mode == "window", "shifted" if mode == "window" else mode
    weights = {"beta": (GROUPS,), "gamma": (GROUPS,)} if mode == "shifted" else {}
    weights |= {"log_window": (HEADS,)} if window else {}  # type: ignore[dict-item]
    attrs: dict[str, Any] = {
        "heads": HEADS, "kv_heads": GROUPS, "head_dim": SIZE, "features": SIZE, "mode": mode,
        "scale": SIZE**-0.5, "chunk": chunk, "eps": 1e-6 if mode == "square" else 0.0,
        "window": window,
    }  # fmt: skip
    gates = GROUPS * (1 + (mode == "mamba2s"))
    op = CATALOGUE["linear_attention"]
    state = op.state_of(op.check_attrs(attrs)) if op.state_of else None
    assert state is not None
    node = Node(op.name, op.inputs, "y", {name: name for name in weights}, attrs, "s")
    graph = Graph(
        "op",
        (Value("qkv", ("T", WIDTH)), Value("gates", ("T", gates))),
        (Value("y", ("T", HEADS * SIZE)),),
        (node,),
        {name: Weight(shape) for name, shape in weights.items()},
        {"s": state},
        1024,
    )
    rng = np.random.default_rng(1)
    return graph, {n: rng.standard_normal(s).astype(np.float32) for n, s in weights.items()}


def feed_of(state: State, rows: Sequence[int] | slice, qkv: F32 = QKV) -> Feed:
    taken = rows if isinstance(rows, slice) else list(rows)
    gates = state_gates(state)
    return Feed(state, logits="all", inputs={"qkv": qkv[taken], "gates": gates[taken]})


def state_gates(state: State) -> F32:
    wide = getattr(state, "gate_width", GROUPS)
    return np.tile(GATES, (1, wide // GROUPS))


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[1, 3])
def session(mode: str, request: pytest.FixtureRequest) -> Iterator[CpuSession]:
    graph, weights = graph_of(mode, MODES[mode])
    made = CpuSession(graph, weights, threads=request.param, max_rows=ROWS)
    yield made
    made.close()


def opened(session: CpuSession) -> State:
    state = session.new_state()
    state.gate_width = session.graph.inputs[1].shape[1]  # type: ignore[attr-defined]
    return state


def fed(session: CpuSession, state: State, pieces: Sequence[int], qkv: F32 = QKV) -> F32:
    """Rows of the tokens behind those that the state holds, fed in pieces."""
    found = []
    for count in pieces:
        part = slice(state.length, state.length + count)
        found.append(session.step([feed_of(state, part, qkv)])[0].logits)
        state.commit(count)
    return np.concatenate(found)


PIECES = {
    "one by one": [1] * LENGTH,
    "by three": [3] * 111,
    "by the chunk": [64] * 5 + [13],
    "uneven": [1, 62, 1, 66, 200, 3],
    "large": [200, 133],
}


@pytest.fixture(scope="module")
def expected(session: CpuSession) -> F32:
    return fed(session, opened(session), PIECES["one by one"])


def test_rows_are_those_of_the_reference(session: CpuSession, mode: str, expected: F32) -> None:
    graph, weights = graph_of(mode, MODES[mode])
    reference = ReferenceSession(graph, weights, max_rows=LENGTH)
    state = reference.new_state()
    state.gate_width = graph.inputs[1].shape[1]  # type: ignore[attr-defined]
    wanted = reference.step([feed_of(state, slice(None))])[0].logits
    assert_close(mode, wanted, expected, rms=2e-5)


@pytest.mark.parametrize("pieces", PIECES)
def test_oracle_3_no_cut_changes_a_bit(session: CpuSession, expected: F32, pieces: str) -> None:
    assert np.array_equal(fed(session, opened(session), PIECES[pieces]), expected)


def test_threads_change_no_bit(mode: str, expected: F32) -> None:
    graph, weights = graph_of(mode, MODES[mode])
    two = CpuSession(graph, weights, threads=2, max_rows=ROWS)
    assert np.array_equal(fed(two, opened(two), PIECES["uneven"]), expected)
    two.close()


def test_neighbours_change_no_bit(session: CpuSession, expected: F32) -> None:
    states = [opened(session) for _ in range(3)]
    fed(session, states[0], [100], OTHER)
    fed(session, states[2], [7], OTHER)
    found, start = [], 0
    for count in (1, 40, 65, 5, 1, 65, 65, 65, 26):
        feeds = [
            feed_of(states[0], slice(count), OTHER),
            feed_of(states[1], slice(start, start + count)),
            feed_of(states[2], slice(min(count, 3)), OTHER),
        ]
        found.append(session.step(feeds)[1].logits)
        states[1].commit(count)
        states[0].commit(1)
        states[2].discard()
        start += count
    assert np.array_equal(np.concatenate(found), expected)
    for state in states:
        state.close()


@pytest.mark.parametrize("width", [2, 5, 8])
def test_oracle_10_rejected_drafts_were_never_there(
    session: CpuSession, expected: F32, width: int
) -> None:
    """A draft's first rows are right, its others are not; what is kept equals plain decoding."""
    state, rng = opened(session), np.random.default_rng(width)
    found = [fed(session, state, [60])]
    while state.length < LENGTH:
        count = min(width, LENGTH - state.length)
        right = int(rng.integers(1, count + 1))
        rows = np.arange(state.length, state.length + count)
        drafts = QKV.copy()
        drafts[rows[right:]] = OTHER[rows[right:]]
        y = session.step([feed_of(state, rows.tolist(), drafts)])[0].logits
        found.append(y[:right])
        state.commit(right)
    assert np.array_equal(np.concatenate(found), expected)
    plain = opened(session)
    fed(session, plain, PIECES["uneven"])
    one, other = state.snapshot(), plain.snapshot()
    for name, part in one["slots"]["s"].items():
        assert np.array_equal(part, other["slots"]["s"][name]), name


def test_a_long_step_of_which_some_rows_are_kept(session: CpuSession, expected: F32) -> None:
    """Ends where no kernel has stopped: the tail is folded outside of a step."""
    state, plain = opened(session), opened(session)
    first = slice(0, 200)
    y = session.step([feed_of(state, first)])[0].logits
    state.commit(150)
    assert np.array_equal(y[:150], expected[:150])
    fed(session, plain, [50, 100])
    for name, part in state.snapshot()["slots"]["s"].items():
        assert np.array_equal(part, plain.snapshot()["slots"]["s"][name]), name
    assert np.array_equal(fed(session, state, [100]), expected[150:250])


def test_forks_snapshots_and_going_back(session: CpuSession, expected: F32) -> None:
    state = opened(session)
    fed(session, state, [200, 40])
    fork, other = state.fork(), opened(session)
    for each in (fork, other):
        each.gate_width = session.graph.inputs[1].shape[1]  # type: ignore[attr-defined]
    other.restore(state.snapshot())
    fed(session, state, [20], OTHER)
    for each in (fork, other):
        assert np.array_equal(fed(session, each, [30]), expected[240:270])
    chunk: int = session.graph.nodes[0].attrs["chunk"]  # type: ignore[assignment]
    low = 270 // chunk * chunk  # what is folded at 270 is folded from here on
    if session.graph.nodes[0].attrs["mode"] == "2mamba-e":  # nothing ever is
        assert fork.rewind(3) == 3
        assert np.array_equal(fed(session, fork, [9]), expected[3:12])
        return
    assert fork.rewind(low) == low
    assert np.array_equal(fed(session, fork, [270 - low, 5]), expected[low:275])
    assert fork.rewind(low - 1) == 0
    assert np.array_equal(fed(session, fork, [9]), expected[:9])


def test_trees_are_refused(session: CpuSession) -> None:
    state = opened(session)
    feed = feed_of(state, slice(0, 3))
    tree = Feed(state, inputs=feed.inputs, parents=np.array([-1, 0, 0], np.int32))
    with pytest.raises(RequestError, match="expected a chain"):
        session.step([tree])


def test_oracle_7_padding_leaves_nothing(mode: str, tmp_path: Path) -> None:
    """A model of 64 rows a step, most of them padding, against one that takes the rows alone."""
    graph, weights = graph_of(mode, MODES[mode])
    found = []
    for variant in (Variant(), Variant(rows=64, capacity=256)):
        session = ort_session(graph, weights, tmp_path, variant)
        state = session.new_state()
        state.gate_width = graph.inputs[1].shape[1]  # type: ignore[attr-defined]
        rows = []
        for count in (5, 40, 1, 30, 1, 60):
            part = slice(state.length, state.length + count)
            rows.append(session.step([feed_of(state, part)])[0].logits)
            state.commit(count)
        found.append((np.concatenate(rows), state.snapshot().get("slots", {})))
        session.close()
    (one, held), (other, padded) = found  # rows are compared, and what behind them is folded
    assert_close("rows", one, other, rms=2e-6)
    names = {"window": ("matrix", "tail", "place"), "2mamba-e": ()}.get(mode, ("matrix",))
    assert list(held) == list(padded) == [f"past_{name}.s" for name in names]
    for name in held:
        assert_close(name, held[name], padded[name], rms=2e-6)


def test_oracle_12_bytes_of_a_state(session: CpuSession, mode: str) -> None:
    """Heads times features times values and a normaliser, and rows of the tail."""
    slots = session.slots.memories["s"]
    assert isinstance(slots, TailedSlots)
    wide = feature_width(SIZE, "shifted" if mode == "window" else mode)
    matrix = 4 * GROUPS * wide * (SIZE + (mode not in ("mamba2s", "2mamba-e")))
    rows = (session.context if mode == "2mamba-e" else 2 * MODES[mode]) + ROWS
    tail = 4 * rows * GROUPS * (SIZE + SIZE + 1 + SIZE * (mode == "window"))
    state = opened(session)
    fed(session, state, [200, 100])
    assert abs(state.nbytes - matrix - tail) <= 0.01 * (matrix + tail) + 128
