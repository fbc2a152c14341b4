"""Families with recurrent states: greedy text is the same on all executors, and with drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import ConvertError
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant

from ..onnx_model import emit_model, ort_session
from .families import RECURRENT, family_graph

PROMPT = np.random.default_rng(8).integers(0, 120, 70).astype(np.int32)
LENGTH = 64
Drafts = Callable[[list[int], int], list[int]]


def greedy(session: Session, drafts: Drafts | None = None) -> tuple[list[int], int]:
    """LENGTH tokens behind the prompt, and how many drafts were right."""
    state, text, right = session.new_state(), list[int](), 0
    session.step([Feed(state, PROMPT[:-1], "none")])
    state.commit(len(PROMPT) - 1)
    anchor = int(PROMPT[-1])
    while len(text) < LENGTH:
        guesses = drafts(text, LENGTH - len(text) - 1) if drafts else []
        feed = Feed(state, np.array([anchor, *guesses], np.int32), "all")
        picked = session.step([feed])[0].logits.argmax(axis=1).tolist()
        kept = 0
        while kept < len(guesses) and picked[kept] == guesses[kept]:
            kept += 1
        state.commit(1 + kept)
        text += picked[: 1 + kept]
        anchor, right = picked[kept], right + kept
    state.close()
    return text, right


@pytest.mark.parametrize("name", RECURRENT)
def test_greedy_text_is_the_same_everywhere(name: str, tmp_path: Path) -> None:
    graph, weights = family_graph(name)
    session = CpuSession(graph, weights, threads=2, kv_bits=32)
    expected, _ = greedy(session)
    assert len(set(expected)) > 4, "a text of few tokens proves little"
    rng = np.random.default_rng(1)

    def sometimes(text: list[int], room: int) -> list[int]:
        """The next tokens, of which one is wrong now and then."""
        guesses = expected[len(text) : len(text) + min(int(rng.integers(0, 7)), room)]
        if guesses and rng.random() < 0.7:
            guesses[int(rng.integers(len(guesses)))] = int(rng.integers(0, 120))
        return guesses

    drafted, right = greedy(session, sometimes)
    assert drafted == expected
    assert 10 < right < LENGTH
    session.close()
    for variant in (Variant(), Variant(standard=True)):
        ort = ort_session(graph, weights, tmp_path, variant)
        assert greedy(ort)[0] == expected, variant.suffix
        assert greedy(ort, sometimes)[0] == expected, variant.suffix
        ort.close()


def test_fixed_rows_are_no_more_than_a_chunk(tmp_path: Path) -> None:
    """Of recurrences; convolutions alone take any number."""
    graph, weights = family_graph("mamba2")
    with pytest.raises(ConvertError, match="65 rows of a graph with recurrent states, expected at"):
        emit_model(graph, weights, tmp_path, Variant(standard=True, rows=65, capacity=128))
    graph, weights = family_graph("lfm2")
    folder = tmp_path / "lfm2"
    folder.mkdir()
    emit_model(graph, weights, folder, Variant(standard=True, rows=65, capacity=128))
