"""Graphs whose sizes come from strangers and do not fit memory are refused before any is taken."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from edgert.converters import onnx_emit

from edgert import system_memory
from edgert.errors import BundleError, ConvertError, ResourceError
from edgert.graph import Graph, Node, Value
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import PLAIN
from edgert.session.reference import ReferenceSession

SIDE = 1 << 15


def _positions(height: int, width: int, channels: int) -> Graph:
    attrs = {"height": height, "width": width, "base": 16}
    shape = (height * width, channels)
    node = Node("add_grid_positions", ("x",), "y", {}, attrs)
    return Graph("grid", (Value("x", shape),), (Value("y", shape),), (node,), {})


def _timestep(size: int) -> Graph:
    node = Node("timestep", ("t",), "y", {}, {"dim": size})
    return Graph("time", (Value("t", ("T", 1)),), (Value("y", ("T", size)),), (node,), {})


def _attention(rows: int | str, heads: int, size: int) -> Graph:
    attrs = {"heads": heads, "head_dim": size, "scale": 1.0}
    node = Node("dot_attention", ("x", "x", "x"), "y", {}, attrs)
    shape = (rows, heads * size)
    return Graph("attention", (Value("x", shape),), (Value("y", shape),), (node,), {})


def _doubled(times: int) -> Graph:
    names = ["x", *(f"y{index}" for index in range(times))]
    nodes = [Node("concat", (a, a), b) for a, b in pairwise(names)]
    output = Value(names[-1], (1, 1 << times))
    return Graph("doubled", (Value("x", (1, 1)),), (output,), tuple(nodes), {})


ABSURD = {
    "a position table of a terabyte": _positions(SIDE, SIDE, 1 << 12),
    "one row of positions": _positions(1, 2, (1 << 31) - 4),
    "frequencies": _timestep((1 << 31) - 2),
    "rows of attention": _attention((1 << 31) - 1, 1 << 10, 1 << 10),
    "heads of attention": _attention((1 << 31) - 1, 1 << 20, 1),
    "rows that double": _doubled(30),
}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_memory, "free", lambda: 1 << 30)


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.usefixtures("little")
def test_a_value_larger_than_all_memory_is_refused_at_opening(name: str) -> None:
    graph = ABSURD[name]
    for session in (CpuSession, ReferenceSession):
        with pytest.raises(ResourceError, match=r"does not fit: its value '\w+' alone") as caught:
            session(graph, {})
        assert caught.value.code == "graph-memory"
        assert caught.value.hint


def test_a_value_that_no_memory_holds_is_no_graph() -> None:
    with pytest.raises(BundleError, match="concat makes rows of shape"):
        _doubled(31).shapes()


def test_a_run_that_does_not_fit_is_refused_and_the_session_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = _attention("T", 4, 16)
    session = CpuSession(graph, {}, threads=1)
    rows = np.ones((600, 64), np.float32)
    monkeypatch.setattr(system_memory, "free", lambda: 500_000)
    with pytest.raises(ResourceError, match="its values take") as caught:
        session.run({"x": rows})
    assert caught.value.values["needed"] > 500_000
    np.testing.assert_allclose(session.run({"x": rows[:100]})["y"], rows[:100])
    session.close()


def test_rows_that_only_just_fit_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are made for powers of two; where that is too many, for just the rows given."""
    graph, rows = _attention("T", 4, 16), np.ones((520, 64), np.float32)
    session = CpuSession(graph, {}, threads=1)
    monkeypatch.setattr(system_memory, "free", lambda: 750_000)
    np.testing.assert_allclose(session.run({"x": rows})["y"], rows)
    session.close()


def test_tables_that_an_onnx_model_cannot_hold_are_refused() -> None:
    graphs = ABSURD["frequencies"], ABSURD["one row of positions"], _positions(64, 1, 1 << 20)
    for graph in graphs:
        with pytest.raises(ConvertError, match="bytes of the ONNX model itself") as caught:
            onnx_emit.emit(graph, {}, PLAIN, location="weights.safetensors")
        assert caught.value.code == "onnx-size"


def test_scales_that_overflow_make_no_warning() -> None:
    attrs = {"height": 2, "width": 2, "base": 1 << 62, "interpolation": 1e-300}
    node = Node("add_grid_positions", ("x",), "y", {}, attrs)
    graph = Graph("grid", (Value("x", (4, 8)),), (Value("y", (4, 8)),), (node,), {})
    session = CpuSession(graph, {}, threads=1)
    assert session.run({"x": np.zeros((4, 8), np.float32)})["y"].shape == (4, 8)
    session.close()
