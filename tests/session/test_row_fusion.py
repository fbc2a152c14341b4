"""What norms, modulations and activations of pictures' graphs become: one instruction where what
reads them can do their work on the way, and the same numbers in every case."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.graph import Graph, Node, Value, Weight
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..tiny import tiny_weights

WIDTH = 48
NORM = Node("layer_norm", ("x",), "n", {}, {"eps": 1e-6})
WEIGHED = Node("layer_norm", ("x",), "n", {"weight": "v", "bias": "b"}, {"eps": 1e-6})
MODULATED = Node("modulate", ("n", "m"), "h", {}, {"shift": 1, "scale": 0})
TABLED = Node("modulate", ("n", "m"), "h", {"table": "t"}, {"shift": 2, "scale": 1})
GELU = Node("activation", ("x",), "h", {}, {"act": "gelu_tanh"})
OUT = Node("linear", ("h",), "out", {"weight": "w"})
TWO = (
    Node("linear", ("h",), "l", {"weight": "w"}),
    Node("linear", ("h",), "r", {"weight": "u"}),
    Node("add", ("l", "r"), "out"),
)
# nodes, kernels with float weights, kernels with codes
CASES: dict[str, tuple[tuple[Node, ...], list[str], list[str]]] = {
    "norm and modulation": (
        (NORM, MODULATED, OUT),
        ["layer_norm", "linear_f32"],
        ["quantize", "linear_int8"],
    ),
    "norm with weights and a modulation with a table": (
        (WEIGHED, TABLED, OUT),
        ["layer_norm", "linear_f32"],
        ["quantize", "linear_int8"],
    ),
    "one modulation for two products": (
        (NORM, MODULATED, *TWO),
        ["layer_norm", "linear_f32", "linear_f32"],
        ["quantize", "linear_int8", "linear_int8"],
    ),
    "a norm alone": (
        (WEIGHED, Node("linear", ("n",), "out", {"weight": "w"})),
        ["layer_norm", "linear_f32"],
        ["quantize", "linear_int8"],
    ),
    "a modulation alone": (
        (Node("modulate", ("x", "m"), "h", {}, {"shift": 1, "scale": 0}), OUT),
        ["modulate", "linear_f32"],
        ["quantize", "linear_int8"],
    ),
    "an activation": (
        (GELU, OUT),
        ["activation", "linear_f32"],
        ["quantize", "linear_int8"],
    ),
    "a modulation that a sum reads, too": (
        (NORM, MODULATED, Node("linear", ("h",), "l", {"weight": "w"}),
         Node("add", ("h", "l"), "out")),
        ["layer_norm", "linear_f32"],
        ["layer_norm", "quantize", "linear_int8"],
    ),
    "a norm that two nodes read": (
        (NORM, MODULATED, Node("linear", ("h",), "l", {"weight": "w"}),
         Node("add", ("n", "l"), "out")),
        ["layer_norm", "modulate", "linear_f32"],
        ["layer_norm", "quantize", "linear_int8"],
    ),
    "rows that are overwritten between the norm and its reader": (
        (Node("softcap", ("x",), "z", {}, {"cap": 5.0}),
         Node("layer_norm", ("z",), "n", {}, {"eps": 1e-6}),
         Node("activation", ("z",), "a", {}, {"act": "relu"}),
         Node("gated_add", ("a", "x", "m"), "s", {}, {"gate": 0}),
         MODULATED, Node("linear", ("h",), "l", {"weight": "w"}),
         Node("add", ("s", "l"), "out")),
        ["softcap", "activation", "gated_add", "layer_norm", "linear_f32"],
        ["softcap", "activation", "gated_add", "quantize", "linear_int8"],
    ),
}  # fmt: skip


def _graph(nodes: tuple[Node, ...], encoding: str) -> Graph:
    weights = {
        "w": Weight((WIDTH, WIDTH), encoding), "u": Weight((WIDTH, WIDTH), encoding),
        "v": Weight((WIDTH,)), "b": Weight((WIDTH,)), "t": Weight((3, WIDTH)),
    }  # fmt: skip
    used = {name for node in nodes for name in node.weights.values()}
    modulated = any("m" in node.inputs for node in nodes)
    inputs = (Value("x", ("T", WIDTH)), Value("m", (1, 3 * WIDTH)))[: 1 + modulated]
    kept = {name: weight for name, weight in weights.items() if name in used}
    return Graph("rows", inputs, (Value("out", ("T", WIDTH)),), nodes, kept)


@pytest.mark.parametrize("encoding", ["f32", "int8-g32"])
@pytest.mark.parametrize("case", CASES)
def test_work_before_a_product_is_done_on_the_way(case: str, encoding: str) -> None:
    nodes, floats, codes = CASES[case]
    graph = _graph(nodes, encoding)
    stored = tiny_weights(graph)
    for threads in (1, 2):
        session = CpuSession(graph, stored, threads=threads)
        for count in (1, 5, 40):
            rng = np.random.default_rng(count)
            given = {
                value.name: rng.standard_normal(
                    (count if value.name == "x" else 1, int(value.shape[1]))
                ).astype(np.float32)
                for value in graph.inputs
            }
            expected = ReferenceSession(graph, stored).run(given)["out"]
            exact = 2e-5 if encoding == "f32" else 1e-2
            assert_close(case, expected, session.run(given)["out"], rms=exact)
        program = list(session._programs.values())[-1]
        kernels = [step.kernel for step in program.lowering.steps]
        assert kernels == (floats if encoding == "f32" else codes)
        session.close()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_neighbours_change_no_bit_of_attention(threads: int) -> None:
    heads, size, rows = 3, 20, 100
    width = heads * size
    attrs = {"heads": heads, "head_dim": size, "scale": 0.2}
    node = Node("dot_attention", ("q", "k", "v"), "y", {"relative_bias": "r"}, attrs)
    inputs = (Value("q", ("T", width)), *(Value(name, ("M", width)) for name in "kv"))
    graph = Graph(
        "rows", inputs, (Value("y", ("T", width)),), (node,), {"r": Weight((8, heads))}
    )  # fmt: skip
    stored = tiny_weights(graph)
    rng = np.random.default_rng(3)
    given = {
        name: rng.standard_normal((count, width)).astype(np.float32)
        for name, count in (("q", rows), ("k", 600), ("v", 600))
    }
    alone, team = CpuSession(graph, stored, threads=1), CpuSession(graph, stored, threads=threads)
    whole = alone.run(given)["y"]
    np.testing.assert_array_equal(whole, team.run(given)["y"])
    for count in (1, 5, 25):  # the first rows of fewer
        part = team.run(given | {"q": given["q"][:count]})["y"]
        np.testing.assert_array_equal(whole[:count], part)
    alone.close()
    team.close()


def test_keys_and_values_that_several_nodes_read_are_packed_once() -> None:
    heads = {"heads": 3, "head_dim": 16, "scale": 0.25}
    nodes = (
        Node("dot_attention", ("x", "k", "v"), "a", {}, heads),
        Node("dot_attention", ("a", "k", "v"), "b", {}, heads),
        Node("dot_attention", ("b", "k", "v"), "y", {}, heads | {"heads": 1, "head_dim": 48}),
    )
    inputs = (Value("x", ("T", WIDTH)), *(Value(name, (77, WIDTH)) for name in "kv"))
    graph = Graph("rows", inputs, (Value("y", ("T", WIDTH)),), nodes, {})
    rng = np.random.default_rng(5)
    given = {
        name: rng.standard_normal((count, WIDTH)).astype(np.float32)
        for name, count in (("x", 30), ("k", 77), ("v", 77))
    }
    session = CpuSession(graph, {}, threads=2)
    expected = ReferenceSession(graph, {}).run(given)["y"]
    assert_close("shared keys", expected, session.run(given)["y"], rms=2e-5)
    program = list(session._programs.values())[-1]
    kernels = [step.kernel for step in program.lowering.steps]
    assert kernels == ["pack_keys", "dot_attention", "dot_attention", "pack_keys", "dot_attention"]
    session.close()
