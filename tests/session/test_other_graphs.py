"""One session runs several graphs over its weights: cuts, and graphs of other sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Session
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

NODES = (
    Node("linear", ("x",), "wide", {"weight": "up"}),
    Node("glu", ("wide",), "gated", attrs={"act": "silu"}),
    Node("linear", ("gated",), "narrow", {"weight": "down"}),
    Node("rms_norm", ("narrow",), "y", {"weight": "scale"}, {"eps": 1e-6}),
)
WEIGHTS = {"up": Weight((64, 32)), "down": Weight((32, 32)), "scale": Weight((32,))}


def graph_of(rows: int | str = "N") -> Graph:
    return Graph("toy", (Value("x", (rows, 32)),), (Value("y", (rows, 32)),), NODES, WEIGHTS)


@pytest.fixture(params=["reference", "cpu"])
def session(request: Any) -> Iterator[Session]:
    rng = np.random.default_rng(5)
    values = {n: rng.standard_normal(w.shape).astype(np.float32) for n, w in WEIGHTS.items()}
    make = {"reference": ReferenceSession, "cpu": lambda g, w: CpuSession(g, w, threads=2)}
    made = make[request.param](graph_of(), values)
    yield made
    made.close()


def x_of(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)


def test_cuts_one_after_the_other_are_the_whole(session: Session) -> None:
    whole = session.run({"x": x_of(5)})["y"]
    first = session.graph.cut(["x"], ["narrow"])
    second = session.graph.cut(["narrow"], ["y"])
    for _ in range(2):
        between = session.run({"x": x_of(5)}, first)
        assert list(between) == ["narrow"]
        assert np.array_equal(session.run(between, second)["y"], whole)


def test_a_graph_of_another_size_runs_on_the_same_weights(session: Session) -> None:
    fixed = graph_of(7)
    assert np.array_equal(session.run({"x": x_of(7)}, fixed)["y"], session.run({"x": x_of(7)})["y"])
    with pytest.raises(RequestError, match=r"expected f32 \[7, 32\]"):
        session.run({"x": x_of(6)}, fixed)


def test_many_graphs_in_turn_stay_right(session: Session) -> None:
    expected = {rows: session.run({"x": x_of(rows)})["y"] for rows in range(1, 12)}
    for rows, wanted in expected.items():  # more than a session keeps programs for
        assert np.array_equal(session.run({"x": x_of(rows)}, graph_of(rows))["y"], wanted)


def test_foreign_weights_are_refused() -> None:
    rng = np.random.default_rng(5)
    values = {n: rng.standard_normal(w.shape).astype(np.float32) for n, w in WEIGHTS.items()}
    session = CpuSession(graph_of(), values, threads=1)
    other = graph_of().replace(weights={**WEIGHTS, "down": Weight((32, 32), "f16")})
    with pytest.raises(RequestError, match="down"):
        session.run({"x": x_of(3)}, other)
    session.close()
