"""Gram matrices collected by running the model: against the reference session's own inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.converters import calibrate
from edgert.converters.stages.base import PartInProgress

from edgert.errors import ConvertError
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..tiny import tiny_graph, tiny_weights

GRAPH = tiny_graph(quant="f32", window=20)
WEIGHTS = tiny_weights(GRAPH)
VALUES = list(calibrate.inputs_of(GRAPH).values())


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 260, n).astype(np.int32) for n in (100, 1, 37)]


def expected(value: str) -> np.ndarray:
    """X^T X in float64, every sequence fed in one step."""
    session, total = ReferenceSession(GRAPH, WEIGHTS), 0.0
    for ids in sequences():
        (result,) = session.step([Feed(session.new_state(), ids, "none", taps=(value,))])
        x = result.taps[value].astype(np.float64)
        total = total + x.T @ x
    return np.asarray(total)


def test_which_products_and_what_they_read() -> None:
    inputs = calibrate.inputs_of(GRAPH)
    assert sorted(inputs) == sorted(
        f"l{i}.{name}" for i in range(2) for name in ("qkv", "o", "gate_up", "down")
    )
    assert len(set(inputs.values())) == 8  # the tied head, of selected rows, is none of them


@pytest.mark.parametrize("memory", [1, 12 * 64 * 64 * 3, 1 << 30])
def test_collected_in_chunks_and_passes(memory: int, kernel_folder: Path) -> None:
    session = CpuSession(GRAPH, WEIGHTS, threads=2, max_rows=32, cache=kernel_folder)
    found = calibrate.collect(session, sequences(), VALUES, memory=memory)
    session.close()
    assert list(found) == VALUES
    for value, gram in found.items():
        assert (gram.rows, gram.dropped) == (138, 0)
        wanted = expected(value)
        assert np.abs(gram.matrix - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_part_runs_on_its_weights_as_floats() -> None:
    class Reader:
        encoding = "f32"

        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape = array, array.shape

        def spans(self) -> list[tuple[int, int]]:
            n = len(self.array)
            return [(0, n // 2), (n // 2, n)]

        def rows(self, start: int, stop: int) -> np.ndarray:
            return np.asarray(self.array[start:stop])

    huge = {**WEIGHTS, "l0.o": np.asarray(WEIGHTS["l0.o"]) * 1e6}
    readers = {name: Reader(np.asarray(array)) for name, array in huge.items()}
    part = PartInProgress("model", "text", GRAPH, readers)  # type: ignore[arg-type]
    with calibrate.running(part, threads=1) as session:
        stored = {name: w.encoding for name, w in session.graph.weights.items()}
        calibrate.collect(session, sequences()[1:], VALUES[:2])
    assert stored["l0.o"] == "f32"
    assert stored["l1.o"] == "f16"
    assert stored["norm"] == "f32"


def test_pieces_of_a_text() -> None:
    pieces = calibrate.sequences_of(range(1000), 64, 5)
    assert [len(piece) for piece in pieces] == [64] * 5
    starts = [int(piece[0]) for piece in pieces]
    assert starts == sorted(set(starts))
    assert all(start % 64 == 0 for start in starts)
    assert all(np.array_equal(p, np.arange(p[0], p[0] + 64)) for p in pieces)
    assert len(calibrate.sequences_of(range(1000), 64, 99)) == 15
    again = calibrate.sequences_of(range(1000), 64, 5)
    assert all(np.array_equal(a, b) for a, b in zip(pieces, again, strict=True))


@pytest.mark.parametrize(
    ("tokens", "length", "count"), [(63, 64, 1), (0, 1, 1), (10, 0, 1), (9, 3, 0)]
)
def test_too_little_text(tokens: int, length: int, count: int) -> None:
    with pytest.raises(ConvertError, match="calibration text"):
        calibrate.sequences_of(range(tokens), length, count)
