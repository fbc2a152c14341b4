"""What no family needs yet, the same on every executor: functions of arrays, shared caches, cuts,
embeddings, taps, trees, positions.

A new executor is one more line of EXECUTORS: a function from a graph, its weights, a folder of its
own and wanted taps to a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels.quant import Matrix

from edgert.errors import DeviceError, RequestError
from edgert.graph import Graph
from edgert.session.base import F32, Feed, Session, StepResult
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import PLAIN, Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import ort_session
from ..tiny import tiny_graph, tiny_weights
from . import toy

Open = Callable[[Graph, Mapping[str, Matrix], Path, Sequence[str]], Session]


def _onnx(variant: Variant) -> Open:
    def opened(
        graph: Graph, weights: Mapping[str, Matrix], folder: Path, taps: Sequence[str]
    ) -> Session:
        return ort_session(graph, weights, folder, variant, taps, context=toy.CONTEXT)

    return opened


def _reference(graph: Graph, weights: Mapping[str, Matrix], _: Path, __: Sequence[str]) -> Session:
    return ReferenceSession(graph, weights, context=toy.CONTEXT)


def _cpu(threads: int) -> Open:
    def opened(graph: Graph, weights: Mapping[str, Matrix], _: Path, __: Sequence[str]) -> Session:
        return CpuSession(graph, weights, threads=threads, context=toy.CONTEXT, kv_bits=32)

    return opened


EXECUTORS: dict[str, Open] = {
    "cpu-1": _cpu(1),
    "cpu-3": _cpu(3),
    "reference": _reference,
    "onnx": _onnx(PLAIN),
    "onnx-standard": _onnx(Variant(standard=True)),
}
# Their attention counts positions by itself, unless a node is emitted of plain ops.
FUSED = {"onnx"}
TOKENS = np.random.default_rng(2).integers(0, toy.VOCAB, 100).astype(np.int32)
EXACT = 2e-5
CODES = 1e-2  # activations are quantized: a value on the edge may take the next code

Opener = Callable[..., Session]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opener(executor: str, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """open(graph, weights, taps) on one executor."""

    def opened(graph: Graph, weights: Mapping[str, Matrix], taps: Sequence[str] = ()) -> Session:
        return EXECUTORS[executor](graph, weights, tmp_path_factory.mktemp("toy"), taps)

    return opened


def feed(session: Session, pieces: Sequence[int], **more: Any) -> StepResult:
    """All rows of the first sum(pieces) tokens fed in pieces; `more` for every feed."""
    state, start, logits = session.new_state(), 0, list[F32]()
    taps: dict[str, list[F32]] = {name: [] for name in more.get("taps", ())}
    for count in pieces:
        result = session.step([Feed(state, TOKENS[start : start + count], "all", **more)])[0]
        state.commit(count)
        start += count
        logits.append(result.logits)
        for name, parts in taps.items():
            parts.append(result.taps[name])
    state.close()
    return StepResult(np.concatenate(logits), {n: np.concatenate(p) for n, p in taps.items()})


@pytest.mark.parametrize("symbols", [("N", "M"), ("S", "P"), ("T", "T"), ("T", "R")])
@pytest.mark.parametrize("counts", [(1, 1), (63, 5), (5, 63)])
def test_a_function_of_three_inputs_and_two_outputs(
    opener: Opener, symbols: tuple[str, str], counts: tuple[int, int]
) -> None:
    graph, weights = toy.function(*symbols, 63, 33)
    first, second = counts if symbols[0] != symbols[1] else counts[:1] * 2
    arrays = {
        "wide": toy.rows(first, 63),
        "narrow": toy.rows(first, 33, 2),
        "ids": np.arange(second, dtype=np.int32),
    }
    expected = ReferenceSession(graph, weights).run(arrays)
    got = opener(graph, weights).run(arrays)
    assert list(got) == ["first", "second"]
    assert_close("first", expected["first"], got["first"], rms=EXACT)
    assert_close("second", expected["second"], got["second"], rms=CODES)
    assert got["second"].dtype == np.float32


def test_run_refuses_what_does_not_fit(opener: Opener) -> None:
    graph, weights = toy.function("N", "M", 40, 24)
    session = opener(graph, weights)
    good = {"wide": toy.rows(3, 40), "narrow": toy.rows(3, 24), "ids": np.arange(4, dtype=np.int32)}
    for name, bad, says in (
        ("wide", toy.rows(3, 39), r"\[3, 39\], expected f32 \[3, 40\]"),
        ("narrow", toy.rows(2, 24), "expected f32"),
        ("ids", np.array([70], np.int32), "expected 0 to 69"),
        ("ids", np.array([-1], np.int32), "expected 0 to 69"),
    ):
        with pytest.raises(RequestError, match=says):
            session.run(good | {name: bad})
    with pytest.raises(RequestError, match="expected"):
        session.run({"wide": good["wide"]})
    remembers, more = toy.shared()
    with pytest.raises(RequestError, match="states"):
        opener(remembers, more).run({"tokens": TOKENS[:3], "rows": np.zeros(1, np.int32)})


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("head", [16, 8, 20])
def test_two_nodes_read_one_cache(opener: Opener, window: int, head: int) -> None:
    graph, weights = toy.shared(window=window, head=head, norm=head != 8)
    expected = feed(ReferenceSession(graph, weights), [60])
    for pieces in ([60], [1] * 5 + [50, 1, 4]):
        got = feed(opener(graph, weights), pieces)
        assert_close(f"{pieces}", expected.logits, got.logits, rms=EXACT)


def test_rewound_shared_caches_forget(opener: Opener) -> None:
    graph, weights = toy.shared(reads=0)
    session = opener(graph, weights)
    expected = feed(session, [30]).logits
    state = session.new_state()
    session.step([Feed(state, TOKENS[:20])])
    state.commit(20)
    session.step([Feed(state, TOKENS[70:90])])
    state.discard()
    assert state.rewind(12) == 12
    twin = state.fork()
    kept = state.snapshot()
    for other in (twin, state):
        got = session.step([Feed(other, TOKENS[12:30], "all")])[0].logits
        assert_close("again", expected[12:], got, rms=EXACT)
    restored = session.new_state()
    restored.restore(kept)
    got = session.step([Feed(restored, TOKENS[12:30], "all")])[0].logits
    assert_close("restored", expected[12:], got, rms=EXACT)


def test_an_input_of_embeddings(opener: Opener) -> None:
    graph, weights = toy.turning("", embeddings=True)
    whole, more = toy.turning("")
    rows = toy.rows(20, toy.WIDTH)
    expected = ReferenceSession(whole, weights | {"embed": more["embed"]})
    first, second = expected.new_state(), opener(graph, weights)
    want = expected.step([Feed(first, embeddings=rows, logits="all")])[0].logits
    state, got = second.new_state(), []
    for part in np.split(rows, [7, 8]):
        got.append(second.step([Feed(state, embeddings=part, logits="all")])[0].logits)
        state.commit(len(part))
    assert_close("embeddings", want, np.concatenate(got), rms=EXACT)


def test_cuts_compose_to_the_whole(opener: Opener) -> None:
    """Head, body (with the states) and embedding of a graph, each a session of its own."""
    graph, weights = toy.shared()
    start = graph.cut(["tokens"], ["x0"], name="start")
    body = graph.cut(["x0"], ["layers.1"], name="body")
    head = graph.cut(["layers.1"], ["logits"], name="head")
    expected = feed(ReferenceSession(graph, weights), [30])
    parts = [opener(part, toy.cut_weights(part, weights)) for part in (start, body, head)]
    state, got = parts[1].new_state(), []
    for tokens in np.split(TOKENS[:30], [11, 12]):
        rows = parts[0].run({"tokens": tokens})["x0"]
        rows = parts[1].step([Feed(state, inputs={"x0": rows}, logits="all")])[0].logits
        state.commit(len(tokens))
        picked = np.arange(len(tokens), dtype=np.int32)
        got.append(parts[2].run({"layers.1": rows, "rows": picked})["logits"])
    assert_close("composed", expected.logits, np.concatenate(got), rms=EXACT)


def test_halves_with_states_of_their_own_compose_to_the_whole(opener: Opener) -> None:
    graph = tiny_graph(quant="f32", context=toy.CONTEXT)
    weights = tiny_weights(graph)
    lower, upper = graph.cut(["tokens"], ["x1"]), graph.cut(["x1"], ["logits"])
    ids = TOKENS[:20] % 60  # below the width of x1: the ids of a step are those its rows can name
    whole = ReferenceSession(graph, weights)
    expected = whole.step([Feed(whole.new_state(), ids, "all")])[0].logits
    below = opener(lower, toy.cut_weights(lower, weights))
    above = opener(upper, toy.cut_weights(upper, weights))
    a, b, got = below.new_state(), above.new_state(), []
    for tokens in np.split(ids, [9]):
        rows = below.step([Feed(a, tokens, "all")])[0].logits
        a.commit(len(tokens))
        got.append(above.step([Feed(b, inputs={"x1": rows}, logits="all")])[0].logits)
        b.commit(len(tokens))
    assert_close("halves", expected, np.concatenate(got), rms=EXACT)


def test_taps(opener: Opener) -> None:
    graph, weights = toy.shared()
    names = ("layers.0", "x0")
    expected = feed(ReferenceSession(graph, weights), [33], taps=names)
    session = opener(graph, weights, names)
    got = feed(session, [20, 1, 12], taps=names)
    for name in names:
        assert_close(name, expected.taps[name], got.taps[name], rms=EXACT)
    one = session.step([Feed(session.new_state(), TOKENS[:5], "none", taps=("x0",))])[0]
    assert list(one.taps) == ["x0"]
    assert one.taps["x0"].shape == (5, toy.WIDTH)
    assert one.logits.shape == (0, toy.VOCAB)


TREE = np.array([-1, 0, 1, 0, 3, -1, 5, 2], np.int32)


def _chains(parents: np.ndarray[Any, Any]) -> list[list[int]]:
    """Rows from the root to each row."""
    chains: list[list[int]] = []
    for row, parent in enumerate(parents.tolist()):
        chains.append([*(chains[parent] if parent >= 0 else []), row])
    return chains


@pytest.mark.parametrize("window", [0, 6])
def test_a_tree_equals_the_chains_it_is_made_of(opener: Opener, executor: str, window: int) -> None:
    graph, weights = toy.shared(window=window, head=20 if executor in FUSED else toy.SIZE)
    session = opener(graph, weights)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:13])])
    state.commit(13)
    nodes = TOKENS[40 : 40 + len(TREE)]
    got = session.step([Feed(state, nodes, "all", parents=TREE)])[0].logits
    for chain in _chains(TREE):
        alone = session.new_state()
        want = session.step([Feed(alone, np.r_[TOKENS[:13], nodes[chain]].astype(np.int32))])
        assert_close(f"chain {chain}", want[0].logits, got[chain[-1:]], rms=EXACT)
    state.commit([0, 3, 4])
    assert state.length == 16
    after = session.step([Feed(state, TOKENS[60:65], "all")])[0].logits
    straight = session.new_state()
    tokens = np.concatenate([TOKENS[:13], nodes[[0, 3, 4]], TOKENS[60:65]])
    want = session.step([Feed(straight, tokens, "all")])[0].logits
    assert_close("after the branch", want[16:], after, rms=EXACT)


def test_positions_given_explicitly(opener: Opener, executor: str) -> None:
    """Consecutive ones change nothing; others turn keys and queries."""
    graph, weights = toy.shared(head=20 if executor in FUSED else toy.SIZE)
    session, reference = opener(graph, weights), ReferenceSession(graph, weights)
    plain = feed(session, [24]).logits
    same = np.arange(24, dtype=np.int32)
    for positions in (same, np.stack([same] * 3)):
        got = session.step([Feed(session.new_state(), TOKENS[:24], "all", positions=positions)])
        assert_close("consecutive", plain, got[0].logits, rms=EXACT)
    moved = (3 * same + 100).astype(np.int32)
    got, want = (
        s.step([Feed(s.new_state(), TOKENS[:24], "all", positions=moved)])[0].logits
        for s in (session, reference)
    )
    assert_close("moved", want, got, rms=EXACT)
    assert np.abs(want - plain).max() > 1e-3


@pytest.mark.parametrize("axes", ["00011122", "01201201", "22220000"])
def test_rotary_axes(opener: Opener, axes: str) -> None:
    graph, weights = toy.turning(axes)
    session, reference = opener(graph, weights), ReferenceSession(graph, weights)
    grid = np.random.default_rng(4).integers(0, 400, (3, 17)).astype(np.int32)
    rows = []
    for one in (session, reference):
        state = one.new_state()
        first = one.step([Feed(state, TOKENS[:17], "all", positions=grid)])[0].logits
        state.commit(17)
        one.step([Feed(state, TOKENS[17:20], positions=np.full((3, 3), 30, np.int32))])
        state.commit(2)
        rows.append(
            np.concatenate([first, one.step([Feed(state, TOKENS[20:23], "all")])[0].logits])
        )
    assert_close(axes, rows[1], rows[0], rms=EXACT)


def test_where_rows_stand(opener: Opener) -> None:
    """Learned positions and factors by position: in pieces, in a tree, at given positions."""
    graph, weights = toy.placed()
    session, reference = opener(graph, weights), ReferenceSession(graph, weights)
    assert_close(
        "pieces", feed(reference, [60]).logits, feed(session, [7, 30, 23]).logits, rms=EXACT
    )
    moved = np.array([3, 250, 255, 9, 0, 17, 99, 100], np.int32)
    for given in ({"parents": TREE}, {"positions": moved}, {"positions": moved, "parents": TREE}):
        got, want = (
            s.step([Feed(s.new_state(), TOKENS[:8], "all", **given)])[0].logits
            for s in (session, reference)
        )
        assert_close(f"{sorted(given)}", want, got, rms=EXACT)
    with pytest.raises(RequestError, match="positions from 0 to 256, expected 0 to 255"):
        session.step([Feed(session.new_state(), TOKENS[:2], positions=np.array([0, 256]))])
    with pytest.raises(RequestError, match="reads where rows stand"):
        session.run({"x0": toy.rows(2, toy.WIDTH)}, graph.cut(["x0"], ["x1"]))


def test_a_tree_of_pictures(opener: Opener) -> None:
    """Rotary axes and parents in one feed."""
    graph, weights = toy.turning("01201201")
    grid = np.random.default_rng(6).integers(0, 50, (3, len(TREE))).astype(np.int32)
    got, want = (
        s.step([Feed(s.new_state(), TOKENS[:8], "all", positions=grid, parents=TREE)])[0].logits
        for s in (opener(graph, weights), ReferenceSession(graph, weights))
    )
    assert_close("tree", want, got, rms=EXACT)


def test_fused_attention_says_what_it_cannot_do(tmp_path: Path) -> None:
    graph, weights = toy.shared()
    session = ort_session(graph, weights, tmp_path)
    chain = np.array([-1, 0, 1], np.int32)
    session.step([Feed(session.new_state(), TOKENS[:3], parents=chain)])
    state = session.new_state()
    with pytest.raises(DeviceError, match="a tree") as caught:
        session.step([Feed(state, TOKENS[:8], parents=TREE)])
    assert "--standard" in caught.value.hint
    moved = np.array([4, 5, 6], np.int32)
    with pytest.raises(DeviceError, match=r"positions \[4, 5, 6\]"):
        session.step([Feed(state, TOKENS[:3], positions=moved)])
    with pytest.raises(DeviceError, match="no rows of") as caught:
        session.step([Feed(state, TOKENS[:3], taps=("layers.0",))])
    assert "--tap layers.0" in caught.value.hint
    with pytest.raises(DeviceError, match="token ids") as caught:
        session.step([Feed(state, embeddings=toy.rows(3, toy.WIDTH))])
    assert "--embeddings" in caught.value.hint
    assert (state.length, state.pending) == (0, 0)


def test_positions_past_the_rotary_tables(tmp_path: Path) -> None:
    graph, weights = toy.shared()
    session = ort_session(graph, weights, tmp_path, Variant(standard=True))
    far = np.array([0, toy.CONTEXT], np.int32)
    with pytest.raises(RequestError, match="tables of this ONNX model end at"):
        session.step([Feed(session.new_state(), TOKENS[:2], positions=far)])


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("encoding", ["f32", "mixed"])
def test_tokens_and_embeddings_of_one_model(tmp_path: Path, encoding: str, standard: bool) -> None:
    graph = tiny_graph(quant=encoding, context=toy.CONTEXT)
    weights = tiny_weights(graph)
    session = ort_session(
        graph, weights, tmp_path, Variant(standard=standard, embeddings=True), ("x1",)
    )
    whole = ort_session(graph, weights, tmp_path, Variant(standard=standard), ("x0", "x1"))
    names = ("x0", "x1")
    expected = whole.step([Feed(whole.new_state(), TOKENS[:12], "all", taps=names)])[0]
    rows = expected.taps["x0"]
    state = session.new_state()
    got = session.step([Feed(state, TOKENS[:5], "all", taps=("x1",))])[0]
    state.commit(5)
    more = session.step([Feed(state, embeddings=rows[5:], logits="all", taps=("x1",))])[0]
    assert_close("logits", expected.logits, np.r_[got.logits, more.logits], rms=EXACT)
    assert_close("x1", expected.taps["x1"], np.r_[got.taps["x1"], more.taps["x1"]], rms=EXACT)


def test_half_precision_gives_float32_outputs(tmp_path: Path) -> None:
    half, taps = Variant(half=True), ("layers.0", "x0")
    graph, weights = toy.shared()
    expected = feed(ReferenceSession(graph, weights), [30], taps=taps)
    session = ort_session(graph, weights, tmp_path, half, taps)
    got = feed(session, [12, 1, 17], taps=taps)
    assert_close("logits", expected.logits, got.logits, rms=CODES)
    for name in taps:
        assert got.taps[name].dtype == np.float32
        assert_close(name, expected.taps[name], got.taps[name], rms=CODES)
    graph, weights = toy.function("N", "M", 40, 24)
    arrays = {
        "wide": toy.rows(5, 40), "narrow": toy.rows(5, 24), "ids": np.arange(4, dtype=np.int32),
    }  # fmt: skip
    folder = tmp_path / "function"
    folder.mkdir()
    found = ort_session(graph, weights, folder, half, context=8).run(arrays)
    for name, rows in ReferenceSession(graph, weights).run(arrays).items():
        assert found[name].dtype == np.float32
        assert_close(name, rows, found[name], rms=2 * CODES)
