"""Every family against transformers: logits, chunked prefill, ragged batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import FAMILIES

from edgert.bundle import Bundle
from edgert.session import Feed, Session, SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import (
    CASES,
    expected_logits,
    make_model,
    prompt,
    write_checkpoint,
)

LENGTHS = (1, 63, 500)
RMS = 1e-4
# How far rows may depend on what else is in a step: not at all on the CPU session; NumPy's matrix
# products add up in another order for another number of rows.
ROWS = {"cpu": 0.0, "reference": 1e-5}


@dataclass
class Family:
    """A converted case: its bundle and what transformers answers, by prompt length."""

    case: str
    bundle: Bundle
    expected: dict[int, np.ndarray]


@pytest.fixture(scope="session", params=sorted(CASES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    case = request.param
    folder = tmp_path_factory.mktemp(case)
    model = write_checkpoint(case, folder / "checkpoint")
    convert(folder / "checkpoint", folder / "out.edge", quant="f32", golden=False, progress=False)
    expected = {n: expected_logits(model, prompt(n)) for n in LENGTHS}
    with Bundle.open(folder / "out.edge") as bundle:
        yield Family(case, bundle, expected)


@pytest.fixture(params=["reference", "cpu"])
def session(request: pytest.FixtureRequest, family: Family) -> Iterator[Session]:
    found = open_session(family.bundle, SessionOptions(request.param, threads=1))
    assert found.device == request.param, "the asked device was replaced by another"
    yield found
    found.close()


def run(session: Session, ids: np.ndarray, *, chunk: int = 0, expected: int = 0) -> np.ndarray:
    """Logits of all rows, fed in chunks (0: as large as the session takes)."""
    state = session.new_state(expected or len(ids))
    rows, size = [], chunk or session.max_rows
    for at in range(0, len(ids), size):
        piece = ids[at : at + size]
        rows += [session.step([Feed(state, piece, "all")])[0].logits]
        state.commit(len(piece))
    state.close()
    return np.concatenate(rows)


def test_every_family_has_a_case() -> None:
    import transformers

    kinds = {getattr(transformers, kind).model_type for kind, _ in CASES.values()}
    own = {"2mamba"}  # test_linear_families.py
    assert kinds == set(FAMILIES) - own


@pytest.mark.parametrize("length", LENGTHS)
def test_logits(family: Family, session: Session, length: int) -> None:
    got = run(session, prompt(length))
    assert_close(f"{family.case}, {length} tokens", family.expected[length], got, rms=RMS)


def test_chunks_equal_token_by_token(family: Family, session: Session) -> None:
    ids = prompt(130)
    single = run(session, ids, chunk=1)
    for chunk in (7, 64):
        got = run(session, ids, chunk=chunk)
        assert_close(f"{family.case}, chunks of {chunk}", single, got, rms=ROWS[session.device])


def test_ragged_batch_equals_each_alone(family: Family, session: Session) -> None:
    first, second = prompt(70, seed=1), prompt(45, seed=2)
    alone = [run(session, ids) for ids in (first, second)]
    states = [session.new_state(len(ids)) for ids in (first, second)]
    got: list[list[np.ndarray]] = [[], []]
    for cut in ((0, 31, 0, 2), (31, 32, 2, 40), (32, 70, 40, 45)):
        feeds = [
            Feed(states[0], first[cut[0] : cut[1]], "all"),
            Feed(states[1], second[cut[2] : cut[3]], "all"),
        ]
        for index, result in enumerate(session.step(feeds)):
            got[index].append(result.logits)
            states[index].commit(len(result.logits))
    for index, expected in enumerate(alone):
        joined = np.concatenate(got[index])
        assert_close(f"{family.case}, sequence {index}", expected, joined, rms=ROWS[session.device])


def test_models_are_not_degenerate() -> None:
    """A case whose logits hardly depend on the past would prove nothing."""
    model = make_model("llama")
    ids = prompt(63)
    other = ids.copy()
    other[0] = (ids[0] + 1) % 256 + 4
    a, b = expected_logits(model, ids)[-1], expected_logits(model, other)[-1]
    assert np.std(a) > 0.3
    assert np.sqrt(np.mean((a - b) ** 2)) > 1e-3 * np.std(a)
