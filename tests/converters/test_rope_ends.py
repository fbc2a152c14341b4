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


def test_dynamic_grows_with_the_text(tmp_path: Path) -> None:
    """Behind max_position_embeddings a row turns as transformers has it of a text that comes token
    by token, whatever chunks it comes in here."""
    import torch

    model, session = opened("llama-dynamic", tmp_path)
    ids = prompt(CONTEXT + 60)
    with torch.no_grad():
        known = torch.from_numpy(ids.astype(np.int64))[None]
        out = model(known[:, :CONTEXT], use_cache=True)
        rows = [out.logits[0]]
        for at in range(CONTEXT, len(ids)):
            out = model(known[:, at : at + 1], past_key_values=out.past_key_values)
            rows.append(out.logits[0])
    expected = torch.cat(rows).numpy()
    for chunk in (100, 200):
        got = run(session, ids, chunk=chunk)
        assert_close(f"chunks of {chunk}", expected, got, rms=RMS)
    at_once = expected_logits(model, ids)
    assert distance(at_once, got)[0] > 10 * RMS, "a prompt at once turns by its whole length there"
    session.close()


def test_dynamic_ends_at_factor_times_its_context(tmp_path: Path) -> None:
    _, session = opened("llama-dynamic", tmp_path)
    assert session.context == 2 * CONTEXT
    state = session.new_state(2 * CONTEXT)
    for part in np.split(prompt(2 * CONTEXT), 4):
        session.step([Feed(state, part, "none")])
        state.commit(len(part))
    with pytest.raises(RequestError, match="1024 tokens and 1 more do not fit") as caught:
        session.step([Feed(state, prompt(1))])
    assert caught.value.code == "context"
    session.close()
