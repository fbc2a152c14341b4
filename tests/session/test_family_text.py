"""Dense families: greedy text is the same on the CPU session and through onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert.session.cpu import CpuSession

from ..onnx_model import ort_session
from .families import DENSE, family_graph
from .test_recurrent_families import greedy


@pytest.mark.parametrize("name", DENSE)
def test_greedy_text_is_the_same_everywhere(name: str, tmp_path: Path) -> None:
    graph, weights = family_graph(name, tie_word_embeddings=False)  # a tied one repeats itself
    session, ort = CpuSession(graph, weights, kv_bits=32), ort_session(graph, weights, tmp_path)
    expected, _ = greedy(session)
    assert len(set(expected)) > 4, "a text of few tokens proves little"
    assert greedy(ort)[0] == expected
    session.close()
    ort.close()
