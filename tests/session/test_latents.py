"""Attention over latents: the same on every executor, in pages of half the bytes or less, and in
everything that sequences can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.converters.families import deepseek_v2, minicpm3
from edgert.kernels.states import BorrowedState, LatentState

from edgert.bundle.describe import cache_per_token
from edgert.errors import BundleError, DeviceError
from edgert.forecast.memory import cache_bytes
from edgert.forecast.work import lowered, works
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.pages import page_bytes
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..converters.expert_cases import CONFIGS
from . import toy
from .test_toy_graphs import EXACT, EXECUTORS, TOKENS, TREE, Opener, _chains, feed

__all__ = ["executor", "opener"]
HALF = 2e-3  # what float16 of the cache loses
PIECES = ([96], [1] * 5 + [64, 1, 3, 23], [63, 33])


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opener(executor: str, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    def opened(graph: Graph, weights: Any) -> Session:
        return EXECUTORS[executor](graph, weights, tmp_path_factory.mktemp("latents"), ())

    return opened


@pytest.mark.parametrize("heads", [4, 5, 1])
def test_every_executor_has_the_same_rows(opener: Opener, heads: int) -> None:
    graph, weights = toy.latents(heads=heads)
    expected = feed(ReferenceSession(graph, weights), [96])
    session = opener(graph, weights)
    for pieces in PIECES:
        got = feed(session, pieces)
        assert_close(f"{pieces}", expected.logits, got.logits, rms=EXACT)


def test_a_tree_equals_the_chains_it_is_made_of(opener: Opener, executor: str) -> None:
    graph, weights = toy.latents()
    session = opener(graph, weights)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:61])])
    state.commit(61)
    nodes = TOKENS[70 : 70 + len(TREE)]
    got = session.step([Feed(state, nodes, "all", parents=TREE)])[0].logits
    for chain in _chains(TREE):
        alone = session.new_state()
        want = session.step([Feed(alone, np.r_[TOKENS[:61], nodes[chain]].astype(np.int32))])
        assert_close(f"chain {chain}", want[0].logits, got[chain[-1:]], rms=EXACT)
        if executor.startswith("cpu"):
            assert np.array_equal(want[0].logits, got[chain[-1:]])
    state.commit([0, 3, 4])
    after = session.step([Feed(state, TOKENS[60:65], "all")])[0].logits
    tokens = np.concatenate([TOKENS[:61], nodes[[0, 3, 4]], TOKENS[60:65]])
    want = session.step([Feed(session.new_state(), tokens, "all")])[0].logits
    assert_close("after the branch", want[64:], after, rms=EXACT)


def test_states_go_back_fork_and_come_again(opener: Opener) -> None:
    graph, weights = toy.latents()
    session = opener(graph, weights)
    expected = feed(session, [90]).logits
    state = session.new_state()
    session.step([Feed(state, TOKENS[:80])])
    state.commit(80)
    session.step([Feed(state, TOKENS[20:30])])
    state.discard()
    assert state.rewind(66) == 66
    twin, restored = state.fork(), session.new_state()
    restored.restore(state.snapshot())
    for other in (twin, state, restored):
        got = session.step([Feed(other, TOKENS[66:90], "all")])[0].logits
        assert_close("again", expected[66:], got, rms=EXACT)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_have_the_same_bits_in_any_step(threads: int) -> None:
    """In pieces, beside another conversation, on threads that share a row's segments."""
    graph, weights = toy.latents()
    graph = graph.replace(context=1024)
    ids = np.random.default_rng(3).integers(0, toy.VOCAB, 700).astype(np.int32)
    session = CpuSession(graph, weights, threads=threads, kv_bits=16)
    first, second = session.new_state(), session.new_state()
    whole = []
    for at in range(0, 700, 100):
        whole.append(session.step([Feed(first, ids[at : at + 100], "all")])[0].logits)
        first.commit(100)
    rows = np.concatenate(whole)
    third, at = session.new_state(), 0
    for count, beside in ((200, 0), (199, 40), (1, 1), (255, 1), (1, 1), (44, 0)):
        feeds = [Feed(third, ids[at : at + count], "all")]
        if beside:
            feeds.append(Feed(second, ids[second.length : second.length + beside], "all"))
        found = session.step(feeds)
        assert np.array_equal(found[0].logits, rows[at : at + count])
        third.commit(count)
        at += count
        if beside:
            assert np.array_equal(found[1].logits, rows[second.length : second.length + beside])
            second.commit(beside)
    reference = feed(ReferenceSession(graph, weights), [96])
    assert_close("float16", reference.logits, feed(session, [96]).logits, rms=HALF)
    session.close()


def test_a_token_takes_one_row_a_layer() -> None:
    graph, weights = toy.latents(shared=32, rank=48)
    assert cache_per_token(graph) == 2 * (32 + 48) * 2
    assert cache_bytes(graph, 128, 16) == 128 * cache_per_token(graph)
    assert page_bytes(LatentState(80), 16) == (64 * 80 * 2, 0)
    session = CpuSession(graph, weights, threads=1, kv_bits=16)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:64])])
    state.commit(64)
    assert state.nbytes == 64 * cache_per_token(graph)
    session.close()


@pytest.mark.parametrize(
    ("name", "family", "layers", "rank", "turning"),
    [("DeepSeek-V2-Lite", deepseek_v2, 27, 512, 64), ("MiniCPM3-4B", minicpm3, 62, 256, 32)],
)
def test_published_models_keep_rank_and_rotary_part(
    name: str, family: Any, layers: int, rank: int, turning: int
) -> None:
    faults: list[str] = []
    graph = family.build(CONFIGS[name], faults).graph
    assert not faults
    assert cache_per_token(graph) == layers * (rank + turning) * 2
    reads = sum(work.cache for work in works(lowered(graph, kv_bits=16)))
    assert reads == cache_per_token(graph)
    looks = sum(work.look_ops for work in works(lowered(graph, kv_bits=16)))
    heads = CONFIGS[name]["num_attention_heads"]
    assert looks == layers * heads * 2 * (2 * rank + turning)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_latents_are_refused(bits: int) -> None:
    graph, weights = toy.latents()
    with pytest.raises(DeviceError, match=f"kv_bits is {bits}, .* latents .*expected 16 or 32"):
        CpuSession(graph, weights, threads=1, kv_bits=bits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"values": 24}, "values of 24 in keys of 48, expected multiples of 16"),
        ({"values": 48}, "values of 48 in keys of 48"),
        ({"kv_heads": 2, "values": 16}, "values in keys go with one kv head"),
        ({"softcap": 1.0}, "values in keys go with one kv head, without window, cap"),
        ({"values": 0}, "the node expects KVState"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(change: dict[str, Any], says: str) -> None:
    attrs = {"heads": 2, "kv_heads": 1, "head_dim": 48, "values": 32, "scale": 1.0, **change}
    node = Node("attention", ("x",), "y", {}, attrs, "kv")
    y = Value("y", ("T", 2 * 32))
    graph = Graph("g", (Value("x", ("T", 144)),), (y,), (node,), {}, {"kv": LatentState(48)})
    with pytest.raises(BundleError, match=says):
        graph.shapes()


def test_a_borrower_cannot_read_latents() -> None:
    graph, _ = toy.latents()
    attrs = {"heads": 4, "kv_heads": 1, "head_dim": 48, "scale": 1.0}
    node = Node("shared_attention", ("rows0",), "b", {}, attrs, "lent")
    states = {**graph.states, "lent": BorrowedState("kv0")}
    with pytest.raises(BundleError, match="is no kv state of this graph"):
        graph.replace(nodes=(*graph.nodes, node), states=states).shapes()


@pytest.mark.parametrize(
    ("op", "attrs", "widths", "says"),
    [
        ("latent_rows", {"heads": 0}, {}, "0 heads of 16, 32"),
        ("latent_rows", {}, {"latent": 31}, "latent rows of 31, expected 32"),
        ("head_linear", {"heads": 3}, {}, "of 3 heads does not take rows"),
        ("head_linear", {"heads": 0}, {}, "0 heads, expected 1 to 1024"),
        ("head_linear", {"heads": 8}, {"x": 128}, "expected a multiple of 16 rows a head"),
    ],
)
def test_rows_of_heads_that_do_not_fit_are_refused(
    op: str, attrs: dict[str, int], widths: dict[str, int], says: str
) -> None:
    known: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, Weight]]] = {
        "latent_rows": (
            {"heads": 2, "shared": 16, "rank": 32},
            {"turning": 32, "still": 64, "key": 16, "latent": 32}, {},
        ),
        "head_linear": ({"heads": 2}, {"x": 32}, {"w": Weight((64, 16))}),
    }  # fmt: skip
    given, rows, weights = known[op]
    inputs = tuple(Value(name, ("T", width)) for name, width in {**rows, **widths}.items())
    node = Node(op, tuple(rows), "y", {"weight": "w"} if weights else {}, {**given, **attrs})
    graph = Graph("g", inputs, (Value("y", ("T", 48)),), (node,), weights)
    with pytest.raises(BundleError, match=says):
        graph.shapes()
