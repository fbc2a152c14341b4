"""Linear and dynamic rope where max_position_embeddings end, as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

from edgert.bundle import Bundle
from edgert.errors import RequestError
from edgert.session import Feed, Session, SessionOptions, open_session
from tests.closeness import assert_close, distance
from tests.converters.checkpoints import CONTEXT, expected_logits, prompt, write_checkpoint
from tests.converters.test_families import RMS, run


def opened(case: str, folder: Path) -> tuple[Any, Session]:
    """transformers' model and a session of the same weights."""
    model = write_checkpoint(case, folder / "checkpoint")
    convert(folder / "checkpoint", folder / "m.edge", quant="f32", golden=False, progress=False)
    with Bundle.open(folder / "m.edge") as bundle:
        return model, open_session(bundle, SessionOptions("cpu", threads=1))


def test_linear_turns_alike_at_any_position(tmp_path: Path) -> None:
    """Up to the scaled context and beyond, which nothing switches."""
    import torch

    model, session = opened("llama-linear", tmp_path)
    ids = prompt(40)
    for start in (CONTEXT - 20, CONTEXT, int(2.5 * CONTEXT) - 40, 10 * CONTEXT):
        at = np.arange(start, start + 40)
        with torch.no_grad():
            want = model(
                torch.from_numpy(ids.astype(np.int64))[None], use_cache=False,
                position_ids=torch.from_numpy(at)[None],
            ).logits[0].numpy()  # fmt: skip
        feed = Feed(session.new_state(), ids, "all", positions=at.astype(np.int32))
        assert_close(f"at {start}", want, session.step([feed])[0].logits, rms=RMS)
    session.close()


def test_dynamic_ends_where_its_frequencies_would_change(tmp_path: Path) -> None:
    """transformers turns every row anew with each token behind max_position_embeddings, so that a
    text fed at once and one fed token by token differ there; up to it both are as here."""
    model, session = opened("llama-dynamic", tmp_path)
    ids = prompt(CONTEXT + 1)
    got = run(session, ids[:CONTEXT], chunk=100)
    assert_close("whole context", expected_logits(model, ids[:CONTEXT]), got, rms=RMS)
    longer = expected_logits(model, ids)[:CONTEXT]
    assert distance(longer, got)[0] > 10 * RMS, "one token more changes all rows in transformers"
    assert session.context == CONTEXT
    state = session.new_state(CONTEXT)
    for half in np.split(ids[:CONTEXT], 2):
        session.step([Feed(state, half, "none")])
        state.commit(len(half))
    with pytest.raises(RequestError, match="512 tokens and 1 more do not fit") as caught:
        session.step([Feed(state, ids[CONTEXT:])])
    assert caught.value.code == "context"
    session.close()
