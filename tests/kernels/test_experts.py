"""Experts on the CPU session: a row's bits are its own, only picked experts are read, and routers
that make no sense are still harmless."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.kernels import sparse
from edgert.kernels.encodings import ENCODINGS, quantize
from edgert.kernels.experts import picked
from edgert.kernels.gguf_blocks import FORMS
from edgert.kernels.quant import Matrix, Quantized
from edgert.kernels.states import KVState
from numpy.typing import NDArray

from edgert.errors import BundleError, DeviceError
from edgert.forecast.work import lowered, works
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from .test_catalogue import STORED
from .test_kept import random_rows

F32 = NDArray[np.float32]
WIDTH, INNER, COUNT, ACTIVE = 64, 48, 8, 3
SPARSE = ("sparse4-s40", "sparse8-s2", "sparse16-s2")  # the last two with indices


def stored(encoding: str, shape: tuple[int, int], rng: np.random.Generator) -> Matrix:
    """A random matrix. GGUF's blocks of any bytes, whose values are as large as the others'."""
    if encoding in FORMS:
        return random_rows(encoding, *shape, size=0.25)
    dense = (rng.standard_normal(shape) / 8).astype(np.float32)
    if form := sparse.parse(encoding):
        order = np.abs(dense).argsort(axis=1).argsort(axis=1)
        return sparse.quantize(dense, order >= shape[1] - form.count, form.bits)
    return quantize(dense, encoding)


def moe(encoding: str, *, residual: bool = False, **more: Any) -> tuple[Graph, dict[str, Matrix]]:
    """A graph of one `experts` node, maybe with a sum behind it, and random weights; rows are whole
    blocks of the encoding."""
    rng, width, inner = np.random.default_rng(5), WIDTH, INNER
    if ENCODINGS[encoding].whole > 1:
        width = inner = 256
    shapes = {"gate_up": (2 * COUNT * inner, width), "down": (COUNT * width, inner)}
    weights = {name: stored(encoding, shape, rng) for name, shape in shapes.items()}
    attrs = {"experts": COUNT, "active": ACTIVE, "act": "silu", **more}
    nodes = [Node("experts", ("x", "logits"), "e", {n: n for n in shapes}, attrs)]
    if residual:
        nodes.append(Node("add", ("x", "e"), "y"))
    graph = Graph(
        "moe", (Value("x", ("T", width)), Value("logits", ("T", COUNT))),
        (Value(nodes[-1].output, ("T", width)),), tuple(nodes),
        {name: Weight(shape, encoding) for name, shape in shapes.items()},
    )  # fmt: skip
    return graph, weights


def inputs(rows: int, width: int = WIDTH) -> dict[str, F32]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal((rows, columns)).astype(np.float32)
        for name, columns in (("x", width), ("logits", COUNT))
    }


def answers(graph: Graph, weights: dict[str, Matrix], given: dict[str, F32], threads: int) -> F32:
    session = CpuSession(graph, weights, threads=threads)
    out = session.run(given)[graph.outputs[0].name]
    session.close()
    return out


@pytest.mark.parametrize("encoding", [*STORED, *FORMS, *SPARSE])
def test_a_row_is_the_references_whatever_its_batch_and_threads(encoding: str) -> None:
    graph, weights = moe(encoding, residual=True)
    given = inputs(150, weights["down"].shape[0] // COUNT)
    whole = answers(graph, weights, given, 1)
    expected = ReferenceSession(graph, weights).run(given)["y"]
    assert_close(encoding, expected - given["x"], whole - given["x"], rms=2e-3)
    for threads in (2, 3):
        assert np.array_equal(whole, answers(graph, weights, given, threads))
    session = CpuSession(graph, weights, threads=1)
    for start, stop in ((0, 1), (7, 8), (10, 12), (20, 53), (3, 90)):
        part = session.run({name: x[start:stop] for name, x in given.items()})["y"]
        assert np.array_equal(whole[start:stop], part)
    order = np.random.default_rng(1).permutation(150)
    mixed = session.run({name: x[order] for name, x in given.items()})["y"]
    assert np.array_equal(whole[order], mixed)
    session.close()


@pytest.mark.parametrize("encoding", ["f32", "int4-g32"])
def test_rows_that_all_pick_the_same_experts(encoding: str) -> None:
    graph, weights = moe(encoding)
    given = inputs(100)
    given["logits"][:] = np.arange(COUNT, dtype=np.float32)
    expected = ReferenceSession(graph, weights).run(given)["e"]
    assert_close("one set of experts", expected, answers(graph, weights, given, 2), rms=2e-3)


@pytest.mark.parametrize("encoding", ["f32", "int8-g32"])
def test_only_picked_experts_are_read(encoding: str) -> None:
    """Weights of the others are NaN, which any arithmetic on them would spread."""
    graph, weights = moe(encoding)
    given = inputs(40)
    given["logits"][:, 4:] = -50.0  # never among the three of eight
    expected = answers(graph, weights, given, 1)
    for name, rows in (("gate_up", INNER), ("down", WIDTH)):
        held = weights[name]
        array = held.tensors["scales"] if isinstance(held, Quantized) else held
        for part in np.split(array, 2) if name == "gate_up" else [array]:
            part[4 * rows :] = np.nan
    assert np.array_equal(expected, answers(graph, weights, given, 2))
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_router_gone_wrong_reads_no_other_memory(value: float) -> None:
    """Its rows may be anything; the others are what they were."""
    graph, weights = moe("int4-g32")
    given = inputs(20)
    expected = answers(graph, weights, given, 1)
    given["logits"][3] = value
    given["logits"][11, ::2] = value
    got = answers(graph, weights, given, 1)
    sound = [row for row in range(20) if row not in (3, 11)]
    assert np.array_equal(expected[sound], got[sound])


def test_of_equal_logits_the_first_are_picked() -> None:
    attrs = {"experts": 6, "active": 2, "normalised": True, "scale": 1.0}
    chosen, shares = picked(np.zeros((1, 6), np.float32), attrs)
    assert chosen.tolist() == [[0, 1]]
    assert shares.tolist() == [[0.5, 0.5]]
    graph, weights = moe("f32")
    given = inputs(5)
    given["logits"][:] = 0.0
    expected = ReferenceSession(graph, weights).run(given)["e"]
    assert_close("equal logits", expected, answers(graph, weights, given, 1), rms=2e-5)


def test_encodings_without_products_are_refused_by_name() -> None:
    graph, weights = moe("int8-g32")
    wrong = Weight((COUNT * WIDTH, INNER), "uint8-g64")
    odd = graph.replace(weights={**graph.weights, "down": wrong})
    with pytest.raises(DeviceError, match=r"no kernels for \['uint8-g64'\] weights"):
        CpuSession(odd, weights, threads=1)


def test_shared_matrices_are_refused() -> None:
    """Another reader would take the paired order of gates and ups for its own."""
    graph, weights = moe("int8-g32")
    nodes = (*graph.nodes, Node("linear", ("x",), "other", {"weight": "gate_up"}))
    outputs = (*graph.outputs, Value("other", ("T", 2 * COUNT * INNER)))
    with pytest.raises(DeviceError, match="'gate_up' of experts is read by other nodes"):
        CpuSession(graph.replace(nodes=nodes, outputs=outputs), weights, threads=1)


def test_the_forecast_counts_picked_experts() -> None:
    graph, _ = moe("int4-g32")
    found = [work for work in works(lowered(graph)) if work.kernel == "int4"]
    assert len(found) == 2
    assert sum(work.ops for work in found) == 2 * 3 * WIDTH * INNER * ACTIVE
    padded = 2 * INNER * 64 + WIDTH * 64  # both depths take two blocks
    assert sum(work.nbytes for work in found) == padded * ACTIVE * 18 / 32


@pytest.mark.parametrize(
    ("attrs", "shapes", "says"),
    [
        ({"active": 9}, {}, "9 of 8 are active, expected 1 to 8"),
        ({"active": 0}, {}, "0 of 8 are active"),
        ({"experts": 0}, {}, "0 experts, expected 1 to 1024"),
        ({"experts": 1 << 40}, {}, "expected 1 to 1024"),
        ({"experts": 4}, {}, "with logits .*, expected a row of 4"),
        ({}, {"down": (7 * WIDTH, INNER)}, r"down \(448, 48\), expected \[8 \* 64, F\]"),
        ({}, {"gate_up": (2 * COUNT * INNER - 1, WIDTH)}, "gate_up .* and down .* for rows of 64"),
        ({}, {"gate_up": (2 * COUNT * 8, WIDTH), "down": (512, 8)}, "expected multiples of 16"),
        ({"act": "relu"}, {}, "act is 'relu', expected one of"),
        ({"scale": 0.0}, {}, "scale is 0.0"),
        ({"limit": -1.0}, {}, "limit is -1.0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    attrs: dict[str, Any], shapes: dict[str, tuple[int, int]], says: str
) -> None:
    graph, _ = moe("f32", **attrs)
    weights = {**graph.weights, **{name: Weight(shape) for name, shape in shapes.items()}}
    with pytest.raises(BundleError, match=says):
        Graph.from_json(graph.replace(weights=weights).to_json())


def test_biases_have_as_many_rows_as_their_matrices() -> None:
    graph, _ = moe("f32")
    node = graph.nodes[0]
    biased = Node(node.op, node.inputs, "e", {**node.weights, "down_bias": "b"}, node.attrs)
    weights = {**graph.weights, "b": Weight((WIDTH,))}
    with pytest.raises(BundleError, match="down_bias"):
        graph.replace(nodes=(biased,), weights=weights).shapes()


@pytest.mark.parametrize(
    ("op", "attrs", "widths", "says"),
    [
        ("latent_heads", {"heads": 0}, {}, "0 heads"),
        ("latent_heads", {"value": 9}, {}, "values of 9, expected at most the 8"),
        ("latent_heads", {}, {"kv": 23}, "kv rows of 23, expected 24"),
        ("latent_heads", {}, {"shared": 3}, "shared rows of 3, expected 2"),
        ("first_columns", {"keep": 6}, {}, "keep is 6, expected 1 to 5"),
        ("first_columns", {"size": 7}, {}, "rows of 15, expected a multiple of 7"),
    ],
)
def test_rows_of_latent_attention_that_do_not_fit_are_refused(
    op: str, attrs: dict[str, int], widths: dict[str, int], says: str
) -> None:
    known: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
        "latent_heads": (
            {"heads": 2, "shared": 2, "own": 6, "value": 6}, {"q": 16, "kv": 24, "shared": 2}
        ),
        "first_columns": ({"size": 5, "keep": 2}, {"x": 15}),
    }  # fmt: skip
    given, rows = known[op]
    inputs = tuple(Value(name, ("T", width)) for name, width in {**rows, **widths}.items())
    node = Node(op, tuple(rows), "y", {}, {**given, **attrs})
    graph = Graph("g", inputs, (Value("y", ("T", 48)),), (node,), {})
    with pytest.raises(BundleError, match=says):
        graph.shapes()


def test_heads_have_a_sink_each() -> None:
    attrs = {"heads": 2, "kv_heads": 1, "head_dim": 4, "scale": 0.5}
    node = Node("attention", ("x",), "y", {"sinks": "s"}, attrs, "kv")
    graph = Graph(
        "g", (Value("x", ("T", 16)),), (Value("y", ("T", 8)),), (node,), {"s": Weight((3,))},
        {"kv": KVState(1, 4)}, 64,
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"sinks \(3,\), 2 heads"):
        graph.shapes()
