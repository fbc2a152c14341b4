"""Batches through onnxruntime: what each op of pictures emits with an axis for them in front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgert.graph import Graph, Node, Value, Weight
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import ort_session
from .test_catalogue import CASES, CODES, EXACT, HALF, ROWS, Case, arrays_of, build

BATCH = 3
VARIANTS = {
    "plain": (Variant(batch=True), CODES), "half": (Variant(half=True, batch=True), HALF),
    "standard": (Variant(standard=True, batch=True), CODES),
    "fused": (Variant(batch=True, fused=True), CODES),
    "fused-alone": (Variant(fused=True), CODES),
}  # fmt: skip
MOST = 5  # cases of an op, its smallest
OURS = [
    case
    for op in ROWS
    for case in sorted(CASES[op], key=lambda case: case.rows * case.width)[:MOST]
]


def test_captions_of_a_batch_are_of_different_lengths(tmp_path: Path) -> None:
    case = next(
        case for case in CASES["dot_attention"] if "M" in case.sizes and case.sizes["M"] > 8
    )
    graph, weights = build(case)
    arrays, lengths = _inputs(case), (case.sizes["M"], 1, 5)
    for variant in (Variant(batch=True), Variant(standard=True, batch=True)):
        session = ort_session(graph, weights, tmp_path, variant)
        (found,) = session.run_batch(arrays, lengths={"M": lengths}).values()
        session.close()
        for index, keys in enumerate(lengths):
            one = {name: array[index] for name, array in arrays.items()}
            one |= {name: one[name][:keys] for name in ("k", "v")}
            (want,) = ReferenceSession(graph, weights).run(one).values()
            assert_close(f"{keys} keys", want, found[index], rms=EXACT)


def _block() -> Graph:
    """A UNet's: convolutions with what stands between them, and a product that reads rows."""
    grid = {"height": 6, "width": 4}
    conv = {**grid, "kernel": 3, "stride": 1, "pad_before": 1, "pad_after": 1}
    nodes = (
        Node("conv2d", ("x",), "a", {"weight": "w0", "bias": "b0"}, conv),
        Node("group_norm", ("a",), "b", {"weight": "g0", "bias": "b0"}, {"groups": 4, "eps": 1e-5}),
        Node("activation", ("b",), "c", {}, {"act": "silu"}),
        Node("conv2d", ("c",), "d", {"weight": "w1"}, conv),
        Node("add_row", ("d", "t"), "e", {}, {}),
        Node("add", ("a", "e"), "f", {}, {}),
        Node("linear", ("f",), "rows", {"weight": "w2"}, {}),
        Node("add", ("f", "rows"), "g", {}, {}),
        Node("concat", ("f", "a"), "h", {}, {}),
        Node("upsample", ("h",), "i", {}, {**grid, "factor": 2}),
        Node(
            "conv2d", ("i",), "out", {"weight": "w3"},
            {**conv, "height": 12, "width": 8, "stride": 2},
        ),
    )  # fmt: skip
    shapes = {
        "w0": (16, 72), "w1": (16, 144), "w2": (16, 16), "w3": (8, 288), "b0": (16,), "g0": (16,),
    }  # fmt: skip
    weights = {name: Weight(shape, "f32") for name, shape in shapes.items()}
    inputs = (Value("x", (24, 8)), Value("t", (1, 16)))
    outputs = (Value("out", (24, 8)), Value("g", (24, 16)), Value("c", (24, 16)))
    return Graph("block", inputs, outputs, nodes, weights)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_grids_stay_grids_between_convolutions(half: bool, batch: bool, tmp_path: Path) -> None:
    graph, rng = _block(), np.random.default_rng(2)
    weights = {
        name: (0.2 * rng.standard_normal(w.shape)).astype(np.float32)
        for name, w in graph.weights.items()
    }
    arrays = {
        value.name: rng.standard_normal((BATCH, *map(int, value.shape))).astype(np.float32)
        for value in graph.inputs
    }
    session = ort_session(graph, weights, tmp_path, Variant(half, batch=batch, fused=True))
    model = onnx.load(next(tmp_path.glob("*.onnx")), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    # of the kernels 3, of x 1, and rows of f, of the outputs out and c
    assert kinds.count("Transpose") == 3 + 1 + 3
    each = [{name: array[index] for name, array in arrays.items()} for index in range(BATCH)]
    found = session.run_batch(arrays) if batch else {
        name: np.stack([session.run(one)[name] for one in each]) for name in ("out", "g", "c")
    }  # fmt: skip
    session.close()
    reference = ReferenceSession(graph, weights)
    for index, one in enumerate(each):
        for name, want in reference.run(one).items():
            assert_close(name, want, found[name][index], rms=HALF if half else EXACT)


def _inputs(case: Case) -> dict[str, np.ndarray]:
    graph, _ = build(case)
    one = arrays_of(case, graph)
    return {
        name: np.stack([np.roll(array, index, axis=0) * (1 + index % 2) for index in range(BATCH)])
        if array.dtype == np.float32
        else np.stack([array] * BATCH)
        for name, array in one.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", OURS, ids=lambda case: case.name)
def test_a_batch_is_what_each_alone_is(case: Case, variant: str, tmp_path: Path) -> None:
    how, limit = VARIANTS[variant]
    graph, weights = build(case)
    arrays = _inputs(case)
    session = ort_session(graph, weights, tmp_path, how)
    name = graph.outputs[0].name
    each = [{key: array[index] for key, array in arrays.items()} for index in range(BATCH)]
    if how.batch:
        found = session.run_batch(arrays)[name]
    else:
        found = np.stack([session.run(one)[name] for one in each])
    session.close()
    reference = ReferenceSession(graph, weights)
    for index, one in enumerate(each):
        assert_close(f"picture {index}", reference.run(one)[name], found[index], rms=limit)
