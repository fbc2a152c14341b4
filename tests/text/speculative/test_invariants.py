"""Section 10.1 of the specification: what must hold exactly, whatever is guessed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.session.base import Feed, Session
from edgert.session.sequence import CpuState
from edgert.text.generate import Run
from edgert.text.model import TextModel
from edgert.text.speculative.options import DraftOptions
from edgert.text.speculative.small import SmallProposer

from ...closeness import assert_close
from ...tiny import EOS
from .models import KINDS, NO_END, Mad, Scripted, sessions, text_model, unlike

SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "t0.3": {"temperature": 0.3, "seed": 11},
    "t1": {"temperature": 1.0, "seed": 12},
    "t1.5": {"temperature": 1.5, "seed": 13, "top_k": 30},
    "all": {
        "temperature": 0.9, "seed": 14, "top_k": 80, "top_p": 0.95, "min_p": 0.01,
        "repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1,
        "dry_multiplier": 0.5, "xtc_probability": 0.3, "xtc_threshold": 0.05, "typical_p": 0.97,
    },
}  # fmt: skip
PROMPT = "one two one two three. " * 3


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[TextModel]:
    with text_model(sessions(kernel_folder)[request.param]()) as model:
        model.name = request.param
        yield model
        gc.collect()
        assert_nothing_is_held(model.session)


@pytest.fixture(scope="module")
def small(model: TextModel, kernel_folder: Path) -> Iterator[TextModel]:
    """Another model of the same kind: its guesses are sometimes right."""
    make = sessions(kernel_folder)[model.name]
    with text_model(make(**unlike(model.session))) as small:
        yield small
        gc.collect()
        assert_nothing_is_held(small.session)


def assert_nothing_is_held(session: Session) -> None:
    pool, slots = session.pool, session.slots  # type: ignore[attr-defined]
    assert pool.indices.free == pool.pages
    assert slots.indices.free == slots.indices.count


def text(model: TextModel, count: int, **options: Any) -> tuple[int, ...]:
    return model.generate(PROMPT, max_tokens=count, **NO_END, **options).token_ids


# --- 10.1.1, 10.1.3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("gamma", [0, 1, 2, 5, 16])
def test_10_1_1_known_drafts_change_nothing(model: TextModel, gamma: int, sampler: str) -> None:
    count, options = 48, SAMPLERS[sampler]
    plain = text(model, count, **options)
    known = [*model.tokenize(PROMPT), *plain]
    for right in {-1, 0, gamma // 2}:
        proposer = Scripted(known, gamma, right)
        assert text(model, count, proposer=proposer, **options) == plain
    assert text(model, count, proposer=Mad(gamma), **options) == plain


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("source", ["ngram", "small", "both"])
def test_10_1_3_coupled_texts_are_the_plain_ones(
    model: TextModel, small: TextModel, source: str, adapt: bool, sampler: str
) -> None:
    count, options = 60, SAMPLERS[sampler]
    plain = text(model, count, **options)
    given = {"ngram": "ngram", "small": small, "both": ("ngram", small)}[source]
    draft = DraftOptions(given, max_tokens=5, adapt=adapt)
    got = model.generate(PROMPT, max_tokens=count, draft=draft, **NO_END, **options)
    assert got.token_ids == plain
    assert got.drafting is not None
    assert got.drafting.tokens == count - 1
    if source != "ngram" and not adapt:
        assert got.drafting.proposed > 20, "nothing was drafted"
    if source == "small" and not adapt:
        assert 0 < got.drafting.acceptance < 1, "all were right, or none: little is tested"


def test_10_1_3_a_context_that_is_shifted(model: TextModel, small: TextModel) -> None:
    options = {"max_tokens": 300, "context_shift": True, "temperature": 1.0, "seed": 3, **NO_END}
    prompt = "abcd efgh " * 95
    plain = model.generate(prompt, **options).token_ids
    for source in ("ngram", small):
        draft = DraftOptions(source, adapt=False)
        assert model.generate(prompt, draft=draft, **options).token_ids == plain


def test_10_1_1_several_lanes_at_once(model: TextModel, small: TextModel) -> None:
    asked = [
        {"prompt": f"{PROMPT}{i} {PROMPT[:i]}", "max_tokens": 24 + 3 * i, "seed": i,
         "temperature": 0.5 * (i % 3), **NO_END}
        for i in range(4)
    ]  # fmt: skip
    plain = [model.generate(**ask).token_ids for ask in asked]
    for source in ("ngram", small, ("ngram", small)):
        draft = DraftOptions(source, max_tokens=4, adapt=False)
        with ThreadPoolExecutor(len(asked)) as pool:
            jobs = [pool.submit(model.generate, draft=draft, **ask) for ask in asked]
            assert [job.result(120).token_ids for job in jobs] == plain


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_10_1_1_on_onnxruntime(tmp_path: Path, kernel_folder: Path) -> None:
    """Rows of onnxruntime may differ in their last bits from single ones: a text may part from the
    plain one only where two tokens were as near to each other as that."""
    from ...onnx_model import ort_session
    from ...tiny import tiny_graph, tiny_weights

    graph = tiny_graph(quant="f32", context=256)
    weights = tiny_weights(graph)
    with (
        text_model(ort_session(graph, weights, tmp_path)) as model,
        text_model(sessions(kernel_folder)["kv"](layers=1, ff=160)) as small,
    ):
        plain = model.generate(PROMPT, max_tokens=60, **NO_END).token_ids
        ids = [*model.tokenize(PROMPT), *plain]
        rows = np.sort(model.logits(ids), axis=1)
        for source in ("ngram", small):
            draft = DraftOptions(source, adapt=False)
            got = model.generate(PROMPT, max_tokens=60, draft=draft, **NO_END)
            assert got.drafting is not None
            assert got.drafting.drafted_steps > 5
            pairs = enumerate(zip(got.token_ids, plain, strict=True))
            apart = next((i for i, (a, b) in pairs if a != b), None)
            if apart is not None:
                row = rows[len(ids) - 60 + apart - 1]
                assert row[-1] - row[-2] < 1e-4


# --- 10.1.2 --------------------------------------------------------------------------------------


class Watcher(Scripted):
    """Compares the model's state after each cycle with one that was fed the same tokens singly."""

    run: Run

    def observe(self, proposed: int, accepted: int) -> None:
        super().observe(proposed, accepted)
        state = self.run.state
        assert isinstance(state, CpuState)
        assert_same_state(self.run.tokens[: state.length], state, self.session)

    session: Session


def singly(session: Session, tokens: list[int]) -> Any:
    state = session.new_state()
    for token in tokens:
        session.step([Feed(state, np.array([token], np.int32))])
        state.commit(1)
    return state


def assert_same_state(tokens: list[int], state: CpuState, session: Session) -> None:
    state.up_to_date()
    fresh = singly(session, tokens)
    if state.slots:
        for name, parts in state.slots.content(state.slot, state.length).items():
            other = fresh.slots.content(fresh.slot, fresh.length)[name]
            for key in parts:
                assert np.array_equal(parts[key], other[key]), (name, key)
    probe = np.array([7, 8, 9], np.int32)
    rows = []
    for each in (state, fresh):
        fork = each.fork()
        rows.append(session.step([Feed(fork, probe, "all")])[0].logits)
        fork.discard()
        fork.close()
    assert np.array_equal(*rows)
    fresh.close()


@pytest.mark.parametrize("right", [-1, 0, 1, 3])
def test_10_1_2_states_after_every_cycle(model: TextModel, right: int) -> None:
    plain = text(model, 24)
    proposer = Watcher([*model.tokenize(PROMPT), *plain], 4, right)
    proposer.session = model.session
    run = model.run(
        model.tokenize(PROMPT), {"max_tokens": 24, **NO_END}, proposer=proposer, joined=True
    )
    proposer.run = run
    model.engine.submit(run)
    model.engine.wait(lambda: run.done)
    assert run.error is None
    assert run.result is not None
    assert run.result.token_ids == plain
    assert proposer.seen


@pytest.mark.parametrize("gamma", [1, 2, 5, 16])
def test_10_1_2_cycles_of_right_and_of_wrong_drafts(model: TextModel, gamma: int) -> None:
    count = 1 + 3 * (gamma + 1)  # the prompt's step gives the first
    plain = text(model, count)
    known = [*model.tokenize(PROMPT), *plain]
    for right, steps in ((-1, 3), (0, count - 1)):
        answer = model.generate(
            PROMPT, max_tokens=count, proposer=Scripted(known, gamma, right), **NO_END
        )
        assert answer.drafting is not None
        if model.name != "whole" or right < 0:  # else a rejected draft costs a step more
            assert answer.drafting.steps == steps
        assert answer.drafting.tau == pytest.approx((count - 1) / answer.drafting.steps)


# --- 10.1.4 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_10_1_4_commit_of_r_rows_equals_r_steps(model: TextModel, tokens: int) -> None:
    session, text = model.session, [4 + 3 * i % 200 for i in range(70)]
    base = session.new_state()
    session.step([Feed(base, np.array(text, np.int32)[:60], "none")])
    base.commit(60)
    before = base.snapshot()
    fed = np.array([9, *range(20, 19 + tokens)], np.int32)
    for kept in range(1, tokens + 1):
        fork = base.fork()
        session.step([Feed(fork, fed, "all")])
        fork.commit(kept)
        assert isinstance(fork, CpuState)
        assert_same_state([*text[:60], *fed[:kept].tolist()], fork, session)
        fork.close()
    session.step([Feed(base, fed, "all")])
    base.discard()
    assert isinstance(base, CpuState)
    assert_same_state(text[:60], base, session)
    assert_equal(base.snapshot().get("slots"), before.get("slots"))
    base.close()


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert np.array_equal(a, b)


# --- 10.1.5 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(7))
def test_10_1_5_the_end_at_each_place_of_a_block(model: TextModel, at: int) -> None:
    options = {"temperature": 1.0, "seed": 21}
    plain = text(model, 30, **options)
    known = [*model.tokenize(PROMPT), *plain]
    ends: list[dict[str, Any]] = [
        {"stop_token_ids": (plain[at],)},
        {"stop": model.detokenize(plain[at : at + 2]) or "?"},
        {"max_tokens": at + 1},
    ]
    for end in ends:
        asked: dict[str, Any] = {"max_tokens": 30, **NO_END, **options, **end}
        alone = model.generate(PROMPT, **asked)
        drafted = model.generate(PROMPT, proposer=Scripted(known, 6), **asked)
        assert drafted.token_ids == alone.token_ids
        assert (drafted.text, drafted.finish_reason) == (alone.text, alone.finish_reason)


def test_10_1_5_no_draft_past_an_end_token(model: TextModel) -> None:
    class Ending(Scripted):
        def propose(self, tokens: Any, limit: int) -> Any:
            return [EOS, 5, 6, 7]

    proposer = Ending([], 4)
    assert text(model, 12, proposer=proposer) == text(model, 12)
    assert {proposed for proposed, _ in proposer.seen} == {1}


def test_10_1_5_longer_drafts_than_there_is_room(model: TextModel) -> None:
    prompt = [5 + i % 200 for i in range(model.context - 10)]
    plain = model.generate(prompt, **NO_END)
    drafted = model.generate(prompt, proposer=Scripted([*prompt, *plain.token_ids], 16), **NO_END)
    assert drafted.token_ids == plain.token_ids
    assert (drafted.finish_reason, len(drafted.token_ids)) == ("length", 10)


# --- 10.1.6 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 2, 4, 5])
def test_10_1_6_the_small_model_keeps_what_became_text(small: TextModel, kept: int) -> None:
    """After 4 guesses of which `kept` - 1 stood: as many tokens as 1.1 says are still held."""
    maker = small.drafting.small(small)
    params = small.checked_params({}).resolved({})
    proposer = SmallProposer(maker, params, "coupled", None)
    tokens = small.tokenize(PROMPT)
    n = len(tokens)
    drafts = [proposer.propose(tokens, 4) for _ in range(2)]  # the first may only catch up
    draft = drafts[-1]
    assert len(draft.tokens) == 4
    other = 4 + (draft.tokens[min(kept, 4) - 1] - 3) % 200
    then = [*tokens, *draft.tokens[: kept - 1], 9 if kept == 5 else other]
    state = proposer.settle(then)
    fed = 0 if maker.one_way else 4  # of such states the guesses are made by a fork
    assert state.length == max(n - 1, min(n - 1 + fed, n + kept - 1))
    again, rows = singly(small.session, then[: state.length]), []
    for each in (state, again):  # guesses may have been folded: the same but for rounding
        rows.append(small.session.step([Feed(each, np.array([7, 8], np.int32), "all")])[0].logits)
        each.discard()
    assert_close("logits", *rows, rms=1e-5)
    again.close()
    proposer.close()
