"""Batches through onnxruntime: what each op of pictures emits with an axis for them in front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
