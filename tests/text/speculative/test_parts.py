"""The parts one by one: the index, the controller, costs, small models, taps, options, counters."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgert
from edgert import notices
from edgert.errors import BundleError, RequestError, ResourceError
from edgert.session.costs import AGE, REFRESH, SAMPLES, StepCosts
from edgert.text.model import TextModel
from edgert.text.sampling import process
from edgert.text.speculative.controller import GAIN, PROBES, REST, Controller, Past
from edgert.text.speculative.ngram import COMPARED, SHORTEST, NGramProposer
from edgert.text.speculative.options import DraftOptions
from edgert.text.speculative.proposer import Draft

from ...tiny import VOCAB, tiny_bundle
from .models import NO_END, Scripted, cpu_session, sessions, text_model, tokenizer

PROMPT = "one two one two three. " * 2


@pytest.fixture(scope="module")
def model(kernel_folder: Path) -> Iterator[TextModel]:
    with text_model(cpu_session(kernel_folder)) as model:
        yield model


@pytest.fixture(scope="module")
def small(kernel_folder: Path) -> Iterator[TextModel]:
    with text_model(cpu_session(kernel_folder, layers=1, ff=160)) as small:
        yield small


# --- the text itself -----------------------------------------------------------------------------


def longest_match(tokens: Sequence[int], limit: int) -> list[int]:
    """The same by looking at every place."""
    end, found = len(tokens), (0, 0)
    for place in range(1, end):
        length = 0
        while length < min(place, COMPARED) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        found = max(found, (length, place))
    length, place = found
    if length < SHORTEST:
        return []
    count = min(limit, length + 1)
    return [tokens[place + i % (end - place)] for i in range(count)]


@given(st.lists(st.integers(0, 2), max_size=16), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_the_longest_latest_match_is_continued(tokens: list[int], limit: int) -> None:
    proposer = NGramProposer()
    for count in range(len(tokens) + 1):  # grown token by token, as a text is
        got = list(proposer.propose(tokens[:count], limit).tokens)
        assert got == longest_match(tokens[:count], limit)
    assert list(NGramProposer().propose(tokens, limit).tokens) == got


def test_another_text_is_indexed_anew() -> None:
    proposer = NGramProposer()
    assert proposer.propose([1, 2, 3, 1, 2], 4).tokens == [3, 1, 2]
    assert proposer.propose([4, 2, 9, 7, 4, 2], 4).tokens == [9, 7, 4]
    assert proposer.propose([4, 2], 4).tokens == ()
    assert proposer.propose([], 4).tokens == ()


def test_lengths_and_keys_follow_the_match() -> None:
    text = [9, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    for length, key in ((2, "ngram-2"), (3, "ngram-3"), (5, "ngram-4"), (8, "ngram-8")):
        draft = NGramProposer().propose([*text, 0, *text[:length]], 16)
        assert (len(draft.tokens), draft.key) == (length + 1, key)
    assert NGramProposer(4).propose([1, 2, 3, 5, 1, 2, 3], 8).tokens == ()


def written(proposer: NGramProposer, tokens: list[int], count: int) -> Draft:
    """The next guesses of a text that grew as an answer does, after what became of the last."""
    draft, done = Draft(), count
    while done <= len(tokens):
        draft = proposer.propose(tokens[:done], 4)
        pairs = zip(draft.tokens, tokens[done:], strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if done == len(tokens):
            break
        if draft.tokens:
            proposer.observe(len(draft.tokens), right)
        done = min(len(tokens), done + right + 1)
    return draft


SOURCE = list(range(10, 30))


def test_behind_a_token_that_was_exchanged_the_source_goes_on() -> None:
    text = [*SOURCE, 0, 10, 11, 12, 13, 14, 99]  # where the source has 15
    draft = written(NGramProposer(), text, 23)
    assert (list(draft.tokens), draft.key) == ([16, 17, 18, 19], "ngram-0")


@pytest.mark.parametrize("put", [[99, 98], [99, 98, 97, 96]])
def test_behind_tokens_that_were_put_in_the_source_is_found_again(put: list[int]) -> None:
    text = [*SOURCE, 0, 10, 11, 12, 13, 14, *put, 16]
    draft = written(NGramProposer(), text, 23)
    assert (list(draft.tokens), draft.key) == ([17, 18, 19, 20], "ngram-1")
    assert written(NGramProposer(), text[:-1], 23).tokens == ()  # nothing to go by yet


def test_far_from_the_source_nothing_is_guessed() -> None:
    text = [*SOURCE, 0, 10, 11, 12, 13, 14, *range(50, 60), 16]
    assert written(NGramProposer(), text, 23).tokens == ()
    other = NGramProposer()
    written(other, [*SOURCE, 0, 10, 11, 12, 13, 14, 99], 23)
    assert other.propose([7, 8, 9, 7], 4).tokens == ()  # another text has another source


def test_the_index_stays_small() -> None:
    proposer = NGramProposer()
    for count in range(0, 4000, 7):
        proposer.propose([5] * count, 4)
    assert sum(map(len, proposer._places.values())) < 100


# --- lengths -------------------------------------------------------------------------------------


def costs(slope: float, fixed: int = 1) -> StepCosts:
    found = StepCosts()
    for rows in range(1, 18):
        for _ in range(3):
            found.note(rows, 1, 0.01 * (1 + slope * (rows - fixed)))
    return found


def settled(controller: Controller, alpha: float, cycles: int = 600, cost: float = 0.0) -> int:
    """The length that a controller comes to, for guesses that are right with `alpha`."""
    rng = np.random.default_rng(1)
    chosen = Counter[int]()
    for cycle in range(cycles):
        if cost:
            controller.spent("draft", cost)
        length = controller.length("draft", cycle)
        if cycle > cycles // 2:
            chosen[length] += 1
        if length:
            right = int(np.cumprod(rng.random(length) < alpha).sum())
            controller.observe("draft", length, right)
    return chosen.most_common(1)[0][0]


@pytest.mark.parametrize(
    ("slope", "c", "alpha", "low", "high"),
    [  # the optimal lengths by acceptance and cost
        (0.02, 0.05, 0.7, 3, 8), (0.1, 0.0, 0.8, 4, 8), (0.1, 0.05, 0.9, 6, 10),
        (0.2, 0.05, 0.6, 1, 4), (0.2, 0.2, 0.8, 1, 4), (0.35, 0.05, 0.7, 1, 3),
        (0.35, 0.2, 0.5, 0, 0), (0.6, 0.0, 0.3, 0, 0),
    ],
)  # fmt: skip
def test_lengths_come_to_what_pays(
    slope: float, c: float, alpha: float, low: int, high: int
) -> None:
    controller = Controller(costs(slope), 16)
    assert low <= settled(controller, alpha, cost=0.01 * c) <= high


def test_nothing_is_guessed_before_plain_steps_were_timed() -> None:
    fresh = StepCosts()
    controller = Controller(fresh, 8)
    for written in range(SAMPLES):
        assert controller.length("draft", written) == 0
        fresh.note(1, 1, 0.01)
    assert controller.length("draft", SAMPLES) > 0


def test_wrong_guesses_rest_and_are_tried_again() -> None:
    controller = Controller(costs(0.2), 8)
    spent = 0
    while controller.length("draft", 0):
        controller.observe("draft", controller.length("draft", 0), 0)
        spent += 1
    assert spent < 12, "too slow to see that nothing is right"
    written, rests = 0, list[int]()
    for _ in range(3):
        begun = written
        while not controller.length("draft", written):
            written += 1
        rests.append(written - begun)
        for _ in range(PROBES):
            assert controller.length("draft", written) == 2
            controller.observe("draft", 2, 0)
    first, second, third = rests
    assert first < REST, "what hardly pays is soon tried again"
    assert REST < second < third, "what does not pay at all rests longer each time"
    while not controller.length("draft", written):
        written += 1
    controller.observe("draft", 2, 2)
    controller.observe("draft", 2, 2)
    assert controller.length("draft", written) > 0
    assert controller.best(controller.of("draft"))[1] > GAIN
    assert controller.length("other", 0) > 0, "keys are apart"


def test_one_wrong_draft_says_little_of_a_head() -> None:
    """Nor do its first guesses, of which the memory is cold, say what guesses cost."""
    controller = Controller(costs(0.1), 7)
    controller.spent("head", 0.007)
    controller.observe("head", controller.length("head", 0), 0)
    assert controller.length("head", 4) > 0
    for _ in range(8):
        controller.observe("head", 1, 0)
    assert controller.length("head", 20) == 0
    draft = Controller(costs(0.1), 7)
    for _ in range(SAMPLES):
        draft.spent("draft", 0.004)
    draft.observe("draft", 3, 0)
    assert draft.length("draft", 4) == 0


def test_what_a_heads_guesses_cost_is_known_to_the_next_request() -> None:
    known, past = costs(0.1), Past()
    for _ in range(SAMPLES):
        Controller(known, 7, past=past).spent("head", 0.009)
    after = Controller(known, 7, past=past)
    assert after.length("head", 0) == 0, "nine tenths of a step are too much"
    assert after.length("draft", 0) > 0
    assert Controller(known, 7, past=Past()).length("head", 0) > 0, "another kind of request"


def test_what_became_of_a_heads_guesses_is_believed_by_the_next_request() -> None:
    known, past = costs(0.2), Past(0.7)
    for _ in range(12):
        first = Controller(known, 7, past=past)
        for _ in range(20):
            first.observe("head", 2, 0)
            first.spent("head", 0.002)
    assert Controller(known, 7, past=past).length("head", 0) == 0
    assert Controller(known, 7, past=Past(0.7)).length("head", 0) > 0


def test_speed_is_tokens_in_the_time_of_a_plain_step() -> None:
    """Two tokens in a step of 1.2 and a guess of a tenth."""
    controller = Controller(costs(0.2), 8)
    guess = controller.of("draft")
    guess.accepted = [1.0] * len(guess.accepted)
    for _ in range(SAMPLES):
        controller.spent("draft", 0.001)
    assert controller.speed(guess, 1) == pytest.approx(2 / 1.3)


def test_steps_that_are_computed_again_pay_less() -> None:
    plain, redo = (Controller(costs(0.15), 8, redo=redo) for redo in (False, True))
    assert redo.speed(redo.of("draft"), 4) < plain.speed(plain.of("draft"), 4)


def test_what_pays_one_request_need_not_pay_several() -> None:
    """Of one sequence a row more costs a tenth, of four it costs as much as the first one."""
    known = costs(0.1)
    controller = Controller(known, 4)
    for _ in range(40):
        controller.observe("draft", max(1, controller.length("draft", 0)), 1)
    assert controller.length("draft", 0) > 0
    for rows in (4, 8, 12, 16, 20):
        noted(known, rows, 0.01 * rows, SAMPLES, lanes=4)
    assert controller.length("draft", 1) == 0
    assert controller.length("draft", 2) == 0, "it rests"
    noted(known, 1, 0.01, 1)
    assert controller.length("draft", 3) > 0, "alone again, it pays at once"


def test_the_guesses_of_all_lanes_take_the_time_of_each() -> None:
    speeds = {}
    for lanes in (1, 4):
        known = StepCosts()
        for rows in range(lanes, 5 * lanes, lanes):
            noted(known, rows, 0.01, SAMPLES, lanes=lanes)  # further rows cost nothing
        controller = Controller(known, 3)
        for _ in range(SAMPLES):
            controller.spent("draft", 0.002)
        guess = controller.of("draft")
        guess.accepted = [0.5] * len(guess.accepted)
        speeds[lanes] = controller.speed(guess, 1)
    assert speeds == pytest.approx({1: 1.5 / 1.2, 4: 1.5 / 1.8})


def test_an_unlikely_next_guess_is_not_made() -> None:
    controller = Controller(costs(0.2), 8)
    controller.spent("draft", 0.001)
    assert controller.worth("draft", 1, 0.9)
    assert not controller.worth("draft", 1, 0.1)


def noted(found: StepCosts, rows: int, seconds: float, times: int, lanes: int = 1) -> None:
    for _ in range(times):
        found.note(rows, lanes, seconds)


def test_costs_between_and_past_what_was_measured() -> None:
    found = StepCosts()
    assert (found.seconds(3), found.ratios(4)[0]) == (0.0, 1.0)
    for rows, seconds in ((1, 1.0), (5, 2.0)):
        noted(found, rows, seconds, SAMPLES)
    assert found.seconds(3) == pytest.approx(1.5)
    assert found.seconds(9) > 2.0
    assert found.ratios(5)[4] == pytest.approx(2.0)
    noted(found, 4, 1.8, SAMPLES, lanes=4)
    assert found.seconds(4) == 1.8, "steps of several sequences are apart"
    assert found.ratios(2)[1] == pytest.approx(found.seconds(8) / found.seconds(4))


def test_a_busy_machine_does_not_spoil_costs() -> None:
    found = StepCosts()
    noted(found, 1, 1.0, SAMPLES)
    noted(found, 4, 9.0, 1)  # the first of its kind was unlucky
    assert found.seconds(4) < 2.0, "one step is not enough to know"
    noted(found, 4, 1.3, SAMPLES - 1)
    assert found.seconds(4) == 1.3
    noted(found, 4, 50.0, 1)
    assert found.seconds(4) < 1.4
    noted(found, 4, 1.0, 8)
    assert found.seconds(4) == pytest.approx(1.0, abs=0.05)
    noted(found, 8, 40.0, SAMPLES)
    assert found.seconds(8) == 40.0
    noted(found, 1, 1.0, AGE + REFRESH)
    assert found.seconds(8) < 4.0, "what was measured once must not stay true for ever"


# --- counters ------------------------------------------------------------------------------------


def test_what_drafts_did_is_counted(model: TextModel) -> None:
    plain = model.generate(PROMPT, max_tokens=41, **NO_END).token_ids
    known = [*model.tokenize(PROMPT), *plain]
    assert model.generate(PROMPT, max_tokens=3, **NO_END).drafting is None
    answer = model.generate(PROMPT, max_tokens=41, proposer=Scripted(known, 4, 2), **NO_END)
    stats = answer.drafting
    assert stats is not None
    assert (stats.tokens, stats.steps) == (40, 14)
    assert (stats.drafted_steps, stats.proposed) == (13, 51)  # the last step has no room for any
    assert (stats.reached, stats.right) == ((13, 13, 13), (13, 13, 0))
    assert stats.accepted == sum(stats.right)
    assert stats.acceptance == stats.accepted / sum(stats.reached)
    assert stats.tau == 40 / 14


def test_drafts_that_are_never_right_are_told_of(
    model: TextModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_shown", set())
    plain = model.generate(PROMPT, max_tokens=80, **NO_END).token_ids
    known = [*model.tokenize(PROMPT), *plain]
    with caplog.at_level(logging.WARNING, "edgert"):
        model.generate(PROMPT, max_tokens=80, proposer=Scripted(known, 3, 1), **NO_END)
        assert not caplog.messages
        model.generate(PROMPT, max_tokens=80, proposer=Scripted(known, 3, 0), **NO_END)
    assert [m for m in caplog.messages if m.startswith("none of 64 drafted tokens was right")]


# --- overhead ------------------------------------------------------------------------------------


def calls(model: TextModel, count: int, **options: Any) -> Counter[str]:
    """Python functions of this package that an answer of `count` tokens calls, by file."""
    found: Counter[str] = Counter()

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and "edgert" in frame.f_code.co_filename:
            found["/".join(Path(frame.f_code.co_filename).parts[-2:])] += 1

    stream = model.stream("abcdefg", max_tokens=count, **NO_END, **options)
    sys.setprofile(profile)
    try:
        stream.finish()
    finally:
        sys.setprofile(None)
    return found


def test_without_drafts_nothing_of_this_runs(kernel_folder: Path) -> None:
    with text_model(cpu_session(kernel_folder)) as model:
        for draft in ("none", "ngram"):
            calls(model, 20, draft=draft)  # what is done once
        few, many = (calls(model, count) for count in (20, 60))
        assert not [name for name in many if "speculative" in name or name.endswith("costs.py")]
        each = (sum(many.values()) - sum(few.values())) / 40
        drafted = [calls(model, count, draft="ngram") for count in (20, 60)]
        more = (sum(drafted[1].values()) - sum(drafted[0].values())) / 40 - each
        assert more < 12, "calls a token that looking for guesses costs"


# --- small models --------------------------------------------------------------------------------


def test_a_model_that_guesses_itself_is_always_right(model: TextModel) -> None:
    for options in ({}, {"temperature": 1.2, "seed": 4}):
        draft = DraftOptions(model, max_tokens=3, adapt=False)
        got = model.generate(PROMPT, max_tokens=41, draft=draft, **NO_END, **options)
        assert got.drafting is not None
        assert got.drafting.acceptance == 1.0
        assert got.drafting.steps <= 11  # the first of them may only catch up


def test_rejection_is_greedy_where_the_model_is(model: TextModel, small: TextModel) -> None:
    plain = model.generate(PROMPT, max_tokens=60, **NO_END).token_ids
    for source in ("ngram", small, ("ngram", small)):
        draft = DraftOptions(source, verify="rejection", adapt=False)
        assert model.generate(PROMPT, max_tokens=60, draft=draft, **NO_END).token_ids == plain


def test_rejection_through_the_whole_program_has_the_law(
    model: TextModel, small: TextModel
) -> None:
    """The second token, given the likeliest first one: it is drafted, then drawn or rejected."""
    options: dict[str, Any] = {"temperature": 1.3, "top_k": 6, "repeat_penalty": 1.3, **NO_END}
    prompt = model.tokenize("zx")
    draft = DraftOptions(small, max_tokens=2, verify="rejection", adapt=False)
    made: list[tuple[int, ...]] = []
    accepted = 0
    for seed in range(500):
        got = model.generate(prompt, max_tokens=4, seed=seed, draft=draft, **options)
        made.append(got.token_ids)
        accepted += got.drafting.accepted if got.drafting else 0
    assert 30 < accepted < 900, "all or none stood: nothing is tested"
    first, count = Counter(tokens[0] for tokens in made).most_common(1)[0]
    row = model.logits([*prompt, first])[-1]
    params = model.checked_params(options).resolved({})
    ids, probs = process(row, params, [*prompt, first], allowed=VOCAB)
    seen = Counter(tokens[1] for tokens in made if tokens[0] == first)
    assert set(seen) <= set(ids.tolist())
    shares = np.array([seen[int(token)] / count for token in ids])
    assert 0.5 * np.abs(shares - probs).sum() < 1.5 * np.sqrt(len(ids) / count)


def test_rejection_of_a_seed_is_the_same_twice(model: TextModel, small: TextModel) -> None:
    draft = DraftOptions(small, max_tokens=3, verify="rejection", adapt=False)
    options: dict[str, Any] = {"temperature": 1.2, "seed": 8, "max_tokens": 40, **NO_END}
    texts = [model.generate(PROMPT, draft=draft, **options).token_ids for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_small_model_without_memory_only_stops_guessing(
    model: TextModel, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model.generate(PROMPT, max_tokens=30, **NO_END).token_ids
    with text_model(cpu_session(kernel_folder, layers=1)) as small:
        pool = small.session.pool  # type: ignore[attr-defined]

        def full(count: int) -> list[int]:
            raise ResourceError("no page is free", code="kv-pages")

        monkeypatch.setattr(pool, "take", full)
        got = model.generate(PROMPT, max_tokens=30, draft=small, **NO_END)
    assert got.token_ids == plain
    assert got.drafting is not None
    assert got.drafting.proposed == 0


def test_guesses_that_are_never_worth_checking_end(model: TextModel, kernel_folder: Path) -> None:
    """A small model that is sure of nothing costs a step each time, and gives no guess."""
    options: dict[str, Any] = {"max_tokens": 120, "temperature": 1.0, "seed": 1, **NO_END}
    with text_model(cpu_session(kernel_folder, layers=1, seed=9)) as unsure:
        steps: list[int] = []
        step = unsure.session.step
        unsure.session.step = lambda feeds: (steps.append(1), step(feeds))[1]  # type: ignore
        got = model.generate(PROMPT, draft=unsure, **options)
    assert got.token_ids == model.generate(PROMPT, **options).token_ids
    assert len(steps) < 40


def test_a_small_context_ends_the_guesses(model: TextModel, kernel_folder: Path) -> None:
    plain = model.generate("ab", max_tokens=100, **NO_END).token_ids
    with text_model(cpu_session(kernel_folder, layers=1, context=64)) as small:
        draft = DraftOptions(small, adapt=False)
        got = model.generate("ab", max_tokens=100, draft=draft, **NO_END)
    assert got.token_ids == plain
    assert got.drafting is not None
    assert 0 < got.drafting.drafted_steps < 80


def test_common_steps_of_several_requests(model: TextModel, small: TextModel) -> None:
    steps: list[int] = []
    step = small.session.step
    small.session.step = lambda feeds: (steps.append(len(feeds)), step(feeds))[1]  # type: ignore
    try:
        draft = DraftOptions(small, max_tokens=3, adapt=False)
        streams = [
            model.stream(PROMPT + "x" * i, max_tokens=30, draft=draft, **NO_END) for i in range(3)
        ]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.finish()
    finally:
        del small.session.step
    assert Counter(steps)[3] > 5, "nobody guessed together"


# --- taps ----------------------------------------------------------------------------------------


class Head(Scripted):
    """Reads the rows that the last layer makes, as a draft head would."""

    taps = ("x2",)

    def __init__(self, text: Sequence[int], gamma: int, right: int = -1) -> None:
        super().__init__(text, gamma, right)
        self.rows: list[NDArray[np.float32]] = []
        self.behind: list[int] = []

    def see(self, start: int, rows: Mapping[str, NDArray[np.float32]]) -> None:
        assert start == len(self.rows)
        self.rows.extend(rows["x2"])

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        self.behind.append(len(tokens) - len(self.rows))
        return super().propose(tokens, limit)


@pytest.mark.parametrize("right", [-1, 0, 2])
def test_a_proposer_sees_the_rows_of_every_committed_token(model: TextModel, right: int) -> None:
    prompt = [4 + i % 250 for i in range(300)]
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 2, **NO_END}
    plain = model.generate(prompt, **options).token_ids
    text = [*prompt, *plain]
    head = Head(text, 4, right)
    assert model.generate(prompt, proposer=head, **options).token_ids == plain
    assert set(head.behind) == {1}, "only the anchor's row is missing when it is asked"
    from edgert.session.base import Feed

    state, rows = model.session.new_state(), []
    for token in text[: len(head.rows)]:
        (result,) = model.session.step([Feed(state, np.array([token], np.int32), taps=("x2",))])
        rows.append(result.taps["x2"][0])
        state.commit(1)
    state.close()
    assert np.array_equal(np.array(rows), np.array(head.rows))


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "draft max_tokens is '0', expected 1 to 16"),
        ({"max_tokens": 17}, "expected 1 to 16"),
        ({"max_tokens": True}, "expected 1 to 16"),
        ({"max_tokens": "8"}, "expected 1 to 16"),
        ({"verify": "typical"}, "draft verify is 'typical', expected 'coupled' or 'rejection'"),
        ({"adapt": 1}, "draft adapt is '1', expected True or False"),
        ({"source": 5}, "draft is '5', expected 'ngram', 'head', 'none', 'auto', a bundle's path"),
        ({"source": SimpleNamespace(session=None)}, "or a loaded model that writes"),
        ({"source": ("none", "ngram")}, "expected 'none' or 'auto' alone"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        DraftOptions(**options)
    assert caught.value.values["field"] == "draft"


def test_a_request_s_draft(model: TextModel, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected None beside a proposer of your own"):
        model.generate("a", draft="ngram", proposer=Scripted([], 2))
    with pytest.raises(RequestError, match="was made by hand"):
        model.generate("a", draft=tmp_path / "nothing.edge")
    assert model.generate("a", max_tokens=3, draft="none").drafting is None
    with model.conversation() as chat:
        assert chat.say("hi", max_tokens=5, draft="ngram", **NO_END).drafting is not None


def test_a_small_model_must_share_the_tokenizer(model: TextModel, kernel_folder: Path) -> None:
    with text_model(cpu_session(kernel_folder, layers=1)) as small:
        small.name = "small"
        swapped = tokenizer()
        pieces = {9: "other", 10: "pieces"}
        swapped.piece_of = lambda i: pieces.get(i, model.tokenizer.piece_of(i))  # type: ignore
        small.tokenizer = swapped
        with pytest.raises(RequestError, match="small has another tokenizer: 2 tokens that diff"):
            model.generate("a", draft=small)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_bundles_draft_by_default_where_it_is_quicker(tmp_path: Path, device: str) -> None:
    path = tiny_bundle(tmp_path / "t.edge")
    small = tiny_bundle(tmp_path / "s.edge", layers=1)
    with edgert.load(path, device=device) as model:
        made = model.generate("abababab", max_tokens=8, **NO_END)
        assert (made.drafting is not None) == (device == "cpu")
        drafted = model.generate("abababab", max_tokens=8, draft=small, **NO_END)
        assert drafted.token_ids == made.token_ids
    with edgert.load(path, device=device, draft=["ngram", small]) as model:
        assert model.generate("abababab", max_tokens=8, **NO_END).token_ids == made.token_ids
    with edgert.load(path, device=device, draft="none") as model:
        assert model.generate("abababab", max_tokens=8, **NO_END).drafting is None
    for wrong in (tmp_path / "nothing.edge", tmp_path):
        with pytest.raises(BundleError):
            edgert.load(path, device=device, draft=wrong)


def test_every_kind_closes_what_it_opened(kernel_folder: Path) -> None:
    for make in sessions(kernel_folder).values():
        session = make()
        with text_model(session) as model:
            stream = model.stream(PROMPT, max_tokens=50, draft=model, **NO_END)
            next(stream)
            stream.close()
            del stream
        slots, pool = session.slots, session.pool  # type: ignore[attr-defined]
        assert slots.indices.free == slots.indices.count
        assert pool.indices.free == pool.pages
