"""LongRoPE: the factors change at the true length, on every executor, as transformers generates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export

import edgert
from edgert.bundle import Bundle
from edgert.errors import RequestError
from edgert.session import Feed, Session, SessionOptions, State, open_session
from edgert.text.conversation import Conversation
from edgert.text.model import TextModel
from tests.closeness import assert_close
from tests.converters.checkpoints import VOCAB, make_model, prompt, write_checkpoint

SWITCH, TOKENS = 128, 260  # tokens of the short factors; ids that the tokenizer has
DEVICES = ("cpu", "reference", "ort-cpu")
PROMPTS = (120, 127, 128, 129, 140)
COUNT = 12


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_model("phi3-longrope")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longrope")
    write_checkpoint("phi3-longrope", folder / "checkpoint")
    out = folder / "m.edge"
    convert(folder / "checkpoint", out, quant="f32", golden=False, progress=False)
    export(out)
    return out


@pytest.fixture(scope="module", params=DEVICES)
def session(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Session]:
    with Bundle.open(bundle) as opened:
        found = open_session(opened, SessionOptions(request.param, threads=1))
        yield found
        found.close()


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[TextModel]:
    with edgert.load(bundle, device="cpu", threads=1) as found:
        found.tokenizer.eos_token_ids = ()
        yield found


@pytest.fixture(scope="module")
def answers(reference: Any) -> dict[int, list[int]]:
    """transformers' greedy answers by length of the prompt."""
    import torch

    out = {}
    for length in PROMPTS:
        ids = torch.from_numpy(prompt(length, seed=3).astype(np.int64))[None]
        out[length] = reference.generate(
            ids, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0,
            suppress_tokens=list(range(TOKENS, VOCAB)),
        )[0, length:].tolist()  # fmt: skip
    return out


def greedy(session: Session, state: Any, ids: Sequence[int], count: int = COUNT) -> list[int]:
    """Greedy ids behind `ids`, of which the state may hold a prefix."""
    made: list[int] = []
    tokens = list(ids)
    while len(made) < count:
        feed = Feed(state, np.array(tokens[state.length :], np.int32))
        made.append(int(session.step([feed])[0].logits[0, :TOKENS].argmax()))
        state.commit(feed.rows)
        tokens.append(made[-1])
    return made


@pytest.mark.parametrize("length", PROMPTS)
def test_answers_are_transformers(
    session: Session, answers: dict[int, list[int]], length: int
) -> None:
    for expected in (0, length):  # what the session is told only saves work
        state = session.new_state(expected)
        assert greedy(session, state, prompt(length, seed=3).tolist()) == answers[length]
        assert state.long_rope is (length + COUNT > SWITCH)
        state.close()


def test_answers_do_not_depend_on_max_tokens(
    model: TextModel, answers: dict[int, list[int]]
) -> None:
    for length in PROMPTS:
        for extra in (0, 200):
            found = model.generate(
                prompt(length, seed=3).tolist(), max_tokens=COUNT + extra, temperature=0
            )
            assert list(found.token_ids[:COUNT]) == answers[length], (length, extra)


def test_chunks_and_batches_change_nothing(session: Session) -> None:
    ids, other = prompt(150), prompt(60, seed=1)
    whole = session.new_state(len(ids))
    expected = session.step([Feed(whole, ids)])[0].logits
    state, short = session.new_state(), session.new_state()
    for start in range(0, len(ids), 30):
        feeds = [Feed(state, ids[start : start + 30])]
        if start < len(other):
            feeds.append(Feed(short, other[start : start + 30]))
        logits = [result.logits for result in session.step(feeds)]
        for feed in feeds:
            feed.state.commit(feed.rows)
        if start == 30:
            alone = session.new_state()
            want = session.step([Feed(alone, other)])[0].logits
            assert_close("a short neighbour", want, logits[1], rms=1e-5)
    assert_close("chunks", expected, logits[0], rms=1e-5)


def test_rows_of_one_feed_stand_on_their_own_side(session: Session) -> None:
    """Drafts across the switch: each row as if it had been fed alone."""
    ids = prompt(SWITCH + 6)
    single = session.new_state()
    rows = []
    for token in ids:
        rows.append(session.step([Feed(single, np.array([token], np.int32))])[0].logits[0])
        single.commit(1)
    state = session.new_state()
    start = SWITCH - 4
    session.step([Feed(state, ids[:start], "none")])
    state.commit(start)
    found = session.step([Feed(state, ids[start:], "all")])[0].logits
    assert_close("rows of drafts", np.stack(rows[start:]), found, rms=1e-5)
    state.commit(2)  # the others were wrong: the text is short again
    after = session.step([Feed(state, ids[start + 2 : start + 3])])[0].logits[0]
    assert_close("after wrong drafts", rows[start + 2], after, rms=1e-5)


def test_going_back_and_forking_keep_the_side(session: Session) -> None:
    ids = prompt(SWITCH + 10)
    state = session.new_state(len(ids))
    session.step([Feed(state, ids, "none")])
    state.commit(len(ids))
    fork = state.fork()
    assert fork.long_rope
    assert state.rewind(50) == 50
    fresh = session.new_state()
    rows = [session.step([Feed(one, ids[one.length : 60])])[0].logits for one in (fresh, state)]
    assert_close("short again", rows[0], rows[1], rms=1e-5)
    last = prompt(1, seed=9)
    want = greedy(session, session.new_state(), [*ids.tolist(), *last.tolist()], 3)
    assert greedy(session, fork, [*ids.tolist(), *last.tolist()], 3) == want


def test_snapshots_tell_their_factors_and_ids(session: Session) -> None:
    ids = prompt(SWITCH + 2)
    state = session.new_state(len(ids))
    session.step([Feed(state, ids, "none")])
    state.commit(len(ids))
    snapshot = state.snapshot()
    other = session.new_state()
    other.restore(snapshot)
    assert (other.long_rope, other.fed) == (True, ids.tolist())
    for key, value in (("long_rope", None), ("fed", None), ("fed", ids.astype(np.float32))):
        broken = {**snapshot, key: value}
        with pytest.raises(RequestError, match="the snapshot"):
            other.restore(broken)
    other.restore(snapshot)
    assert other.rewind(20) == 20
    assert greedy(session, other, ids[:30], 3) == greedy(session, session.new_state(), ids[:30], 3)


def test_a_text_of_embeddings_cannot_change_sides(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        session = open_session(opened, SessionOptions("cpu", threads=1))
        state, width = session.new_state(), session.checker.width
        rows = np.zeros((10, width), np.float32)
        session.step([Feed(state, embeddings=rows, logits="none")])
        state.commit(10)
        with pytest.raises(RequestError, match="passes 128 tokens") as info:
            session.step([Feed(state, prompt(130))])
        assert info.value.code == "long-rope"
        assert state.length == 10
        session.close()


def held(chat: Conversation) -> State:
    """The state that a conversation keeps between turns."""
    content = chat._memory._content
    assert content is not None
    return content[0]


def test_a_restored_conversation_knows_its_factors(model: TextModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    question = "What is it that makes long texts so very different from short ones? " * 2
    with model.conversation() as chat:
        chat.say(question, **options)
        assert held(chat).long_rope
        chat.save(tmp_path / "chat.state")
        with model.restore(tmp_path / "chat.state") as restored:
            assert held(restored).long_rope
            assert held(restored).length == held(chat).length
            answers = [one.say("And then?", **options) for one in (chat, restored)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].usage.cached_tokens > SWITCH
    # the first one's prompt is a known beginning by then
    assert answers[1].usage.cached_tokens == answers[1].usage.prompt_tokens - 1
