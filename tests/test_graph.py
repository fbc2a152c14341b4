"""The graph: JSON round trip, and every complaint of its checker."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from edgert.kernels.states import (
    BlockStatsState,
    BorrowedState,
    ConvState,
    KVState,
    LatentState,
    RecurrentState,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import limits
from edgert.errors import BundleError
from edgert.graph import Graph, Node, Value, Weight
from edgert.roles import vocab_size
from tests.tiny import MIXES, tiny_graph


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 3),
    half=st.integers(1, 9),
    ff=st.integers(1, 200),
    window=st.integers(0, 50),
    tied=st.booleans(),
    quant=st.sampled_from(sorted(MIXES)),
)
def test_json_round_trip(
    layers: int, kv_heads: int, share: int, half: int, ff: int, window: int, tied: bool, quant: str
) -> None:
    graph = tiny_graph(
        layers=max(1, layers),
        kv_heads=kv_heads,
        heads=kv_heads * share,
        head_dim=2 * half,
        ff=ff,
        window=window,
        tied=tied,
        quant=quant,
    )
    data = graph.to_json()
    again = Graph.from_json(data)
    assert again == graph
    assert again.to_json() == data, "deterministic"
    assert vocab_size(again) == 260
    assert again.shapes()["logits"] == ("R", 260)


def test_shapes_of_the_values() -> None:
    shapes = tiny_graph(ff=86).shapes()
    assert shapes["tokens"] == ("T",)
    assert shapes["l0.rows"] == ("T", (4 + 2 * 2) * 16)
    assert shapes["l1.gu"] == ("T", 172)
    assert shapes["picked"] == ("R", 64)


def test_replace_is_a_copy() -> None:
    graph = tiny_graph()
    assert graph.replace(context=7).context == 7
    assert graph.context == 128


Change = Callable[[dict[str, Any]], Any]


def node(graph: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in graph["nodes"] if n["op"] == op)
    return found


def attr(op: str, **values: Any) -> Change:
    return lambda g: node(g, op)["attrs"].update(values)


def weight(name: str, **values: Any) -> Change:
    return lambda g: g["weights"][name].update(values)


def slots(op: str, **values: str) -> Change:
    return lambda g: node(g, op)["weights"].update(values)


def plus_weight(shape: list[int], op: str, *names: str) -> Change:
    """Declare a weight "new" and put it into slots of the first `op`."""

    def change(graph: dict[str, Any]) -> None:
        graph["weights"]["new"] = {"shape": shape}
        node(graph, op)["weights"].update(dict.fromkeys(names, "new"))

    return change


def plus_node(op: str, *inputs: str, **attrs: Any) -> Change:
    def change(graph: dict[str, Any]) -> None:
        graph["nodes"].append({"op": op, "inputs": list(inputs), "output": "new", "attrs": attrs})

    return change


COMPLAINTS: dict[str, tuple[Change, str]] = {
    "rank of a weight": (weight("norm", shape=[]), "expected 1 to 4 positive sizes"),
    "five sizes": (weight("l0.o", shape=[4, 4, 4, 4, 4]), "expected 1 to 4 positive sizes"),
    "no rows": (weight("l0.o", shape=[0, 64]), r"\(0, 64\), expected 1 to 4 positive sizes"),
    "negative rows": (weight("l0.o", shape=[-1, 64]), "expected 1 to 4 positive sizes"),
    "huge rows": (weight("l0.o", shape=[1 << 31, 64]), "expected 1 to 4 positive sizes"),
    "encoding": (weight("l0.o", encoding="int3"), r"encoding 'int3', expected one of \['f32', "),
    "coded vector": (weight("norm", encoding="int8-g32"), "'int8-g32' and is of rank 1"),
    "defined twice": (lambda g: node(g, "glu").update(output="x0"), "'x0' is defined twice"),
    "input twice": (lambda g: g["inputs"].append(g["inputs"][0]), "'tokens' is defined twice"),
    "unknown op": (lambda g: node(g, "glu").update(op="run"), "unknown op 'run', this edgert kn"),
    "inputs": (lambda g: node(g, "glu").update(inputs=[]), "glu takes 1 inputs, found 0"),
    "from nowhere": (lambda g: node(g, "glu").update(inputs=["y"]), r"reads \['y'\], which noth"),
    "unknown attr": (attr("glu", speed=1), r"glu: unknown attributes \['speed'\], known: \['act'"),
    "no attr": (lambda g: node(g, "glu").update(attrs={}), "glu: attribute 'act' is missing"),
    "attr type": (attr("glu", act=3), "glu: attribute 'act' is 3, expected str"),
    "bool for int": (attr("attention", heads=True), "'heads' is True, expected int"),
    "state on glu": (lambda g: node(g, "glu").update(state="kv0"), "glu has no state, found"),
    "no state": (lambda g: node(g, "attention").pop("state"), "needs a declared state, found ''"),
    "two owners": (lambda g: [n.update(state="kv0") for n in g["nodes"] if n["op"] == "attention"],
                   "state 'kv0' has two owners"),
    "other state": (lambda g: g["states"].update(kv0={"kind": "conv", "channels": 2, "width": 2}),
                    "ConvState.*the node expects"),
    "missing slot": (lambda g: node(g, "linear")["weights"].clear(), r"has weights \[\], expected"),
    "unknown slot": (slots("linear", zero="norm"), r"has weights \['weight', 'zero'\], expected"),
    "undeclared": (slots("linear", weight="gone"), "uses undeclared weight 'gone'"),
    "coded norm": (slots("rms_norm", weight="embed"), "rms_norm.weight must be f32, 'embed' is"),
    "output shape": (lambda g: g["outputs"][0].update(shape=["T", 260]),
                     r"'logits' has shape \('R', 260\), declared \('T', 260\)"),
    "unused weight": (lambda g: g["weights"].update(more={"shape": [1]}), r"weights \['more'\]"),
    "unused state": (lambda g: g["states"].update(kv7=g["states"]["kv0"]), r"a node \['kv7'\]"),
    "embed without weight": (plus_node("embed", "x0"), "has weights"),
    "norm width": (weight("l0.norm1", shape=[63]), r"rms_norm: weight \(63,\) for rows of 64"),
    "eps": (attr("rms_norm", eps=0.0), "rms_norm: eps is 0.0, expected > 0"),
    "linear width": (weight("l0.o", shape=[64, 63]), r"weight \(64, 63\) does not take rows of 64"),
    "bias": (plus_weight([5], "linear", "bias"), r"linear: bias \(5,\) for 128 outputs"),
    "heads": (attr("attention", heads=5), "5 heads are no multiple of 2"),
    "qkv width": (attr("attention", heads=6), "rows of 128, expected 160"),
    "softcap": (attr("attention", softcap=-1.0), "softcap is -1.0, expected >= 0"),
    "growth": (attr("attention", rope_growth=2.0), "only one of rope_growth, rope_length"),
    "much growth": (attr("attention", rope_growth=2e12, rope_length=9), "expected 0 to 1e12"),
    "q_norm": (plus_weight([9], "attention", "q_norm"), r"q_norm \(9,\), expected \(16,\)"),
    "only q_norm": (plus_weight([16], "attention", "q_norm"), "only one of q_norm, k_norm"),
    "inv_freq": (weight("inv_freq", shape=[9]), r"inv_freq \(9,\), head 16"),
    "long rope": (plus_weight([8], "attention", "inv_freq_long"), "needs inv_freq and rope_switch"),
    "norm_last": (attr("attention", norm_last=True), "norm_last without the norms"),
    "few positions": (
        lambda g: (
            g["weights"].update(new={"shape": [127, 64]}),
            g["nodes"].append({"op": "add_learned_positions", "inputs": ["x0"], "output": "new",
                               "weights": {"weight": "new"}}),
        ),
        "knows 127 positions, expected as many as the context of 128",
    ),
    "few factors": (
        lambda g: (
            g["weights"].update(new={"shape": [4]}),
            g["nodes"].append({"op": "scale_by_position", "inputs": ["x0"], "output": "new",
                               "weights": {"weight": "new"}, "attrs": {"every": 31, "width": 8}}),
        ),
        "knows 124 positions, expected as many as the context of 128",
    ),
    "glu width": (weight("l0.gate_up", shape=[191, 64]), "rows of 191, expected an even width"),
    "act": (attr("glu", act="relu"), "act is 'relu', expected one of"),
    "add": (plus_node("add", "x0", "l0.gu"), r"add: shapes \('T', 64\) and \('T', 192\) differ"),
    "select": (plus_node("select", "x0", "x1"), "select.rows is 'x1', expected an int32 input"),
    "glu of tokens": (plus_node("glu", "tokens", act="silu"), "glu.x is 'tokens', expected float"),
    "input rank": (lambda g: g["inputs"][0].update(shape=["T", 2]), "expected rows .N. of int32"),
    "input symbol": (lambda g: g["inputs"][0].update(shape=["a b"]), "N a symbol or a number"),
    "input dtype": (lambda g: g["inputs"][0].update(dtype="f64", shape=["T", 1]), "dtype 'f64'"),
    "reserved name": (lambda g: node(g, "glu").update(output="@ctrl"), "'@ctrl' is empty or holds"),
    "two outputs alike": (lambda g: g["outputs"].append(g["outputs"][0]), "is declared twice"),
    "int output": (lambda g: g["outputs"].append(g["inputs"][0]), "'tokens' is int32"),
    "window of a state": (lambda g: g["states"]["kv0"].update(window=-1), "window is -1"),
    "heads of a state": (lambda g: g["states"]["kv0"].update(kv_heads=0), "kv_heads is 0"),
    "width of a value": (plus_node("patchify", "x0", height=1, width=1, patch=1), "rows .*'T'"),
    "cap": (plus_node("softcap", "x0", cap=0.0), "softcap: cap is 0.0, expected > 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLAINTS)
def test_complaint(name: str) -> None:
    change, message = COMPLAINTS[name]
    graph = json.loads(tiny_graph().to_json())
    change(graph)
    with pytest.raises(BundleError, match=message) as caught:
        Graph.from_json(json.dumps(graph).encode())
    assert caught.value.code == "graph"
    assert "convert the model again" in caught.value.hint


def test_windows_below_zero() -> None:
    graph = json.loads(tiny_graph().to_json())
    node(graph, "attention")["attrs"]["window"] = graph["states"]["kv0"]["window"] = -1
    with pytest.raises(BundleError, match="window is -1, expected 0 or more"):
        Graph.from_json(json.dumps(graph).encode())


def test_embed_wants_tokens() -> None:
    table = Weight((4, 2))
    inputs = (Value("x", ("T", 3)),)
    nodes = (Node("embed", ("x",), "y", {"weight": "w"}),)
    graph = Graph("g", inputs, (Value("y", ("T", 2)),), nodes, {"w": table})
    with pytest.raises(BundleError, match="'x', expected an int32 input"):
        graph.shapes()
    vector = graph.replace(inputs=(Value("x", ("T",), "int32"),), weights={"w": Weight((4,))})
    with pytest.raises(BundleError, match=r"embed: weight has shape \(4,\), expected \[V, C\]"):
        vector.shapes()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"\xff", b'{"name": 1}', b"[" * 100_000, b'{"name": "m", "extra": 1}'],
    ids=["empty", "list", "cut", "bytes", "type", "deep", "field"],
)
def test_no_graph(data: bytes) -> None:
    with pytest.raises(BundleError, match="here: not a graph that this edgert reads"):
        Graph.from_json(data, where="here")


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRAPH_BYTES", 10)
    with pytest.raises(BundleError, match="here: 11 bytes, the limit is 10"):
        Graph.from_json(b"{" * 11, where="here")


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        tiny_graph().context = 3  # type: ignore[misc]
    assert KVState(1, 2) == KVState(1, 2, 0)


ATTENTION = {"heads": 2, "kv_heads": 1, "head_dim": 4, "scale": 0.5}


def sharing(**changes: Any) -> Graph:
    """Two nodes over one cache: the second reads what the first has written."""
    nodes = (
        Node("attention", ("qkv",), "a", {}, ATTENTION, "kv"),
        Node("shared_attention", ("a",), "b", {}, ATTENTION, "lent"),
    )
    states = {"kv": KVState(1, 4), "lent": BorrowedState("kv")}
    inputs, outputs = (Value("qkv", ("T", 16)),), (Value("b", ("T", 8)), Value("a", ("T", 8)))
    return Graph("g", inputs, outputs, nodes, {}, states, 64).replace(**changes)


def test_a_borrowed_state_has_an_owner() -> None:
    graph = sharing()
    assert graph.shapes()["b"] == ("T", 8)
    assert Graph.from_json(graph.to_json()) == graph
    first, _ = graph.nodes
    cases = {
        "no kv state of this graph": {"states": {**graph.states, "lent": BorrowedState("other")}},
        "owner is empty": {"states": {**graph.states, "lent": BorrowedState("")}},
        "read before 'kv' is written": {
            "nodes": (Node("shared_attention", ("q",), "b", {}, ATTENTION, "lent"),
                      first, Node("add", ("a", "b"), "c")),
            "inputs": (*graph.inputs, Value("q", ("T", 8))),
        },
        r"heads \(1, 4\), the node expects \(2, 4\)": {
            "nodes": (first, Node("shared_attention", ("a",), "b", {},
                                  {**ATTENTION, "kv_heads": 2}, "lent")),
        },
        "borrows, but state 'kv'": {
            "nodes": (first, Node("shared_attention", ("a",), "b", {}, ATTENTION, "kv")),
        },
    }  # fmt: skip
    for message, changes in cases.items():
        with pytest.raises(BundleError, match=message):
            graph.replace(**changes).shapes()


def test_states_of_every_kind_are_read_and_written() -> None:
    states = {
        "kv": KVState(1, 4),
        "latents": LatentState(64),
        "stats": BlockStatsState(1, 4, 32, rows=2),
        "s": RecurrentState(2, 3, 4, normaliser=True, tail=8, tail_width=9),
        "c": ConvState(5, 4, tail=8),
        "lent": BorrowedState("kv"),
        "other": BorrowedState("kv0", part="text"),
    }
    graph = sharing(states=states)
    data = graph.to_json()
    assert b'"kind": "block-stats"' in data
    with pytest.raises(BundleError, match="states without a node"):
        Graph.from_json(data)
    decoded = json.loads(data)["states"]
    assert {name: spec["kind"] for name, spec in decoded.items()} == {
        "kv": "kv", "latents": "latent", "stats": "block-stats", "s": "recurrent", "c": "conv",
        "lent": "borrowed", "other": "borrowed",
    }  # fmt: skip
    with pytest.raises(BundleError, match="tail is 8 and tail_width 0"):
        sharing(states={**sharing().states, "s": RecurrentState(1, 1, 1, tail=8)}).shapes()


def test_outputs_can_be_added() -> None:
    graph = tiny_graph()
    tapped = graph.with_outputs(["x1", "logits", "x1"])
    assert [value.name for value in tapped.outputs] == ["logits", "x1"]
    assert tapped.outputs[1].shape == ("T", 64)
    with pytest.raises(BundleError, match=r"computes no \['nowhere'\]"):
        graph.with_outputs(["nowhere"])


def test_cut_keeps_what_is_needed() -> None:
    graph = tiny_graph()
    body = graph.cut(["x0"], ["x1"])
    assert [value.name for value in body.inputs] == ["x0"]
    assert body.shapes()["x1"] == ("T", 64)
    assert set(body.states) == {"kv0"}
    assert body.context == graph.context
    assert "embed" not in body.weights
    head = graph.cut(["x2"], ["logits"])
    assert {value.name for value in head.inputs} == {"x2", "rows"}
    assert (head.states, head.context) == ({}, 0)
    assert {n.output for n in (*graph.cut([], ["x0"]).nodes, *body.nodes)} < {
        n.output for n in graph.nodes
    }
    with pytest.raises(BundleError, match=r"has no values \['y'\]"):
        graph.cut(["y"], ["logits"])
    with pytest.raises(BundleError, match=r"borrows states \['kv'\] whose owners it leaves out"):
        sharing().cut(["a"], ["b"])


def test_index_bounds() -> None:
    assert tiny_graph().index_bounds() == {"tokens": {260}, "rows": {"T"}}


def test_weights_of_four_dimensions() -> None:
    graph = json.loads(tiny_graph().to_json())
    graph["weights"]["filter"] = {"shape": [8, 4, 3, 3]}
    with pytest.raises(BundleError, match="unused weights"):  # and nothing before that
        Graph.from_json(json.dumps(graph).encode())
    graph["weights"]["filter"]["encoding"] = "int4-g32"
    with pytest.raises(BundleError, match="'int4-g32' and is of rank 4"):
        Graph.from_json(json.dumps(graph).encode())
