"""Sums that take over their summand's memory leave what others still read, and what feeds may not
hold is refused before a kernel sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.kernels.states import KVState

from edgert.errors import BundleError, RequestError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..tiny import tiny_graph, tiny_weights

WIDTH = 64
CAP = Node("softcap", ("x",), "z", {}, {"cap": 5.0})
PRODUCT = Node("linear", ("x",), "l", {"weight": "w"})
SUM = Node("add", ("z", "l"), "y")
TWICE = Node("softcap", ("y",), "out", {}, {"cap": 50.0})
CASES = {
    "product of the summand itself": (
        CAP,
        Node("linear", ("z",), "l", {"weight": "w"}),
        SUM,
        TWICE,
    ),
    "read between product and sum": (
        CAP,
        PRODUCT,
        Node("softcap", ("z",), "m", {}, {"cap": 2.0}),
        SUM,
        Node("add", ("m", "y"), "out"),
    ),
    "norm inside a later product": (
        CAP,
        Node("rms_norm", ("z",), "n", {"weight": "v"}, {"eps": 1e-5}),
        PRODUCT,
        SUM,
        Node("linear", ("n",), "q", {"weight": "w"}),
        Node("add", ("y", "q"), "out"),
    ),
}


@pytest.mark.parametrize("encoding", ["f32", "int8-g32"])
@pytest.mark.parametrize("case", CASES)
def test_a_value_that_is_read_later_is_not_overwritten(case: str, encoding: str) -> None:
    nodes = CASES[case]
    used = {name for node in nodes for name in node.weights.values()}
    weights = {"w": Weight((WIDTH, WIDTH), encoding), "v": Weight((WIDTH,))}
    rows = "T", WIDTH
    graph = Graph(
        "sums",
        (Value("x", rows),),
        (Value("out", rows),),
        nodes,
        {name: weight for name, weight in weights.items() if name in used},
    )
    stored = tiny_weights(graph)
    for threads in (1, 2):
        session = CpuSession(graph, stored, threads=threads)
        for count in (1, 5, 40):
            x = np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)
            expected = ReferenceSession(graph, stored).run({"x": x})["out"]
            exact = 2e-5 if encoding == "f32" else 1e-2
            assert_close(case, expected, session.run({"x": x})["out"], rms=exact)
        session.close()


def _sessions(graph: Graph, context: int = 64) -> list[Session]:
    weights = tiny_weights(graph)
    return [
        CpuSession(graph, weights, threads=1, context=context),
        ReferenceSession(graph, weights, context=context),
    ]


def test_embeddings_of_a_graph_that_remembers_nothing() -> None:
    graph = Graph(
        "plain",
        (Value("tokens", ("T",), "int32"),),
        (Value("y", ("T", 16)),),
        (
            Node("embed", ("tokens",), "x", {"weight": "table"}),
            Node("softcap", ("x",), "y", {}, {"cap": 3.0}),
        ),
        {"table": Weight((10, 16))},
    )
    given = np.full((4, 16), 2, np.float32)
    for session in _sessions(graph):
        result = session.step([Feed(session.new_state(), logits="all", embeddings=given)])[0]
        assert_close(session.device, 3 * np.tanh(given / 3), result.logits, rms=2e-6)


def test_embeddings_of_a_graph_with_two_tables_are_refused() -> None:
    graph = Graph(
        "tables",
        (Value("tokens", ("T",), "int32"),),
        (Value("y", ("T", 4096)), Value("x", ("T", 16))),
        (
            Node("embed", ("tokens",), "x", {"weight": "narrow"}),
            Node("embed", ("tokens",), "y", {"weight": "wide"}),
        ),
        {"narrow": Weight((10, 16)), "wide": Weight((10, 4096))},
    )
    for session in _sessions(graph):
        for width in (0, 16):
            feed = Feed(session.new_state(), embeddings=np.ones((4, width), np.float32))
            with pytest.raises(RequestError) as caught:
                session.step([feed])
            assert caught.value.code == "step-inputs"


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("step-inputs", {"tokens": np.zeros((2, 3), np.int32)}),
        ("step-inputs", {"tokens": np.array([1.5, np.nan])}),
        ("step-inputs", {"tokens": np.array(["a", "b"])}),
        ("step-inputs", {"embeddings": np.full((2, 64), "a")}),
        ("step-positions", {"positions": np.array([0.0, np.nan])}),
        ("step-parents", {"parents": np.array([-1.0, -0.5])}),
        ("step-taps", {"taps": ("picked",)}),
        ("step-taps", {"taps": ("logits",)}),
    ],
)
def test_feeds_of_other_kinds_are_refused(code: str, given: dict[str, Any]) -> None:
    tokens = {} if "embeddings" in given else {"tokens": np.array([1, 2], np.int32)}
    for session in _sessions(tiny_graph(quant="f32")):
        with pytest.raises(RequestError) as caught:
            session.step([Feed(session.new_state(), **(tokens | given))])
        assert caught.value.code == code


def test_an_input_called_embeddings_may_come_by_name() -> None:
    rows = "T", 16
    cap = Node("softcap", ("embeddings",), "y", {}, {"cap": 3.0})
    graph = Graph("rows", (Value("embeddings", rows),), (Value("y", rows),), (cap,), {})
    given = np.full((4, 16), 2, np.float32)
    for session in _sessions(graph):
        feed = Feed(session.new_state(), logits="all", inputs={"embeddings": given})
        assert session.step([feed])[0].logits.shape == (4, 16)


def test_graphs_without_outputs_or_names_are_refused() -> None:
    graph = tiny_graph(quant="f32")
    node = graph.nodes[0]
    unnamed = (Node(node.op, node.inputs, node.output, {"weight": ""}), *graph.nodes[1:])
    for wrong in (
        graph.replace(outputs=()),
        graph.replace(nodes=unnamed, weights={**graph.weights, "": graph.weights["embed"]}),
        graph.replace(states={**graph.states, "": graph.states["kv0"]}),
    ):
        with pytest.raises(BundleError) as caught:
            Graph.from_json(wrong.to_json())
        assert caught.value.code == "graph"
        assert "without outputs" in str(caught.value) or "empty" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"window": 1 << 63}, {"window": 1 << 70}, {"scale": 1e39}, {"softcap": 1e300}]
)
def test_attributes_that_no_kernel_can_hold_are_refused(wrong: dict[str, Any]) -> None:
    graph = tiny_graph(quant="f32", window=4)
    states = {
        name: KVState(s.kv_heads, s.head_dim, wrong.get("window", s.window))
        for name, s in graph.states.items()
        if isinstance(s, KVState)
    }
    nodes = tuple(
        Node(n.op, n.inputs, n.output, n.weights, {**n.attrs, **wrong}, n.state) if n.state else n
        for n in graph.nodes
    )
    with pytest.raises(BundleError, match="out of range"):
        graph.replace(nodes=nodes, states=states).shapes()
