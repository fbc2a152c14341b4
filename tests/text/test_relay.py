"""Section 10.5 of the specification: two models that take turns."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import RequestError
from edgert.evaluation.scoring import token_logprobs
from edgert.session.base import Feed, StepResult
from edgert.text import relay as module
from edgert.text.model import TextModel
from edgert.text.relay import CUES, Relay, RelayOptions, RelayRun, ends_with
from edgert.text.results import RelayStats
from edgert.text.speculative.options import DraftOptions

from .speculative.models import NO_END, sessions, text_model, tokenizer, unlike
from .speculative.test_invariants import KINDS, assert_nothing_is_held, assert_same_state
from .test_generate import Script

ANY: Any = "small.edge"  # a small model that the automaton itself does not look at


def turns(tokens: Sequence[str], **options: Any) -> str:
    """Who writes each token: L or S. The automaton alone."""
    relay = Relay(RelayOptions(ANY, **options))
    found = ""
    for token in tokens:
        found += relay.writer[0].upper()
        relay.wrote(token)
    return found


# --- the automaton -------------------------------------------------------------------------------


def test_10_5_a_cue_hands_over_and_a_sentence_s_end_hands_back() -> None:
    text = ["We", " have", " 3", ".", " Thus", " it", " is", " 4", ".", " And", " so", " on"]
    assert turns(text) == "LLLLLSSSSSLL", "the token behind the point shows that it was the end"
    assert turns(text, ends=()) == "LLLLLSSSSSSS"
    assert turns(text, cues=()) == "L" * 12


def test_10_5_a_cue_at_the_fourth_token_is_ignored_and_at_the_fifth_taken() -> None:
    for before, expected in ((3, "LLLLLL"), (4, "LLLLLS")):
        assert turns([*["x "] * before, "Now", " it", " is"][:6]) == expected


def test_10_5_a_cue_in_two_tokens() -> None:
    assert turns(["a", " b", " c", " d", " There", "fore", " it"]) == "LLLLLLS"
    assert turns(["a", " b", " c", " d", " Wait", ",", " it"]) == "LLLLLLS"


def test_a_cue_that_ends_in_a_space_is_known_by_the_token_behind_it() -> None:
    begun = ["a", " b", " c", " d"]
    for behind, expected in (
        ([" So", " it", " is"], "LLLLLLS"), ([" So", ",", " it"], "LLLLLLL"),
        ([" So", "me", " x"], "LLLLLLL"), ([" So ", "it", " is"], "LLLLLSS"),
    ):  # fmt: skip
        assert turns([*begun, *behind], cues=("So ",)) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cues": "Now"}, "relay cues is 'Now', expected a sequence of texts"),
        ({"cues": ("Now", "")}, "a cue of relay cues is ''"),
        ({"cues": (3,)}, "a cue of relay cues is '3'"),
        ({"cues": ("Now", "Now")}, "every cue once"),
        ({"least": -1}, "relay least is '-1', expected a whole number from 0 on"),
        ({"least": True}, "relay least is 'True'"),
        ({"budget": 0}, "relay budget is '0', expected a whole number from 1 on"),
        ({"close": ""}, "relay close is ''"),
        ({"ends": ("",)}, "relay ends is"),
        ({"guard": 0.5}, "relay guard is '0.5', expected a log-probability"),
        ({"guard": float("nan")}, "relay guard is 'nan'"),
        ({"answer": "both"}, "relay answer is 'both', expected 'large' or 'small'"),
        ({"start": None}, "relay start is 'None'"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        RelayOptions(ANY, **options)


@pytest.mark.parametrize(
    ("text", "cue", "found"),
    [
        ("we Know", "Now", False), ("Anyway", "Any", False), ("we Now", "Now", True),
        ("Now", "Now", True), ("(Now", "Now", True), ("know", "now", False),
        ("x_now", "now", False),
        ("So ", "So ", True), ("Also ", "So ", False), ("Now it", "Now", False), ("", "Now", False),
    ],
)  # fmt: skip
def test_10_5_cues_begin_words(text: str, cue: str, found: bool) -> None:
    assert ends_with(text, cue) is found


@pytest.mark.parametrize(
    ("sentence", "who"),
    [
        (
            [" it", " is", " 3", ".", "14", " here", ".", " So"],
            "SSSSSSSS",
        ),  # a decimal
        ([" wait", "..", ".", " and"], "SSSS"),
        ([" wait", "...", " and", " on"], "SSSL"),
        ([" one", ". Two", " then"], "SSL"),  # within a token
        ([" one", "\n\n", "then"], "SSL"),
        ([" one", "!", "\n", "then"], "SSSL"),
        ([" one", "?", ")", " then"], "SSSS"),
        ([" one", ".", "", " then", " x"], "SSSSL"),  # half a character shows nothing yet
    ],
)
def test_10_5_ends_of_sentences(sentence: list[str], who: str) -> None:
    assert turns(["a", " b", " c", " d", " Thus", *sentence])[5:] == who


def test_10_5_the_closing_tag_in_either_turn() -> None:
    open_ = ["a", " b", " c", " d"]
    assert turns([*open_, "</", "think>", " x", "."]) == "LLLLLLSS"
    assert turns([*open_, "</think>", " x"], answer="large") == "LLLLLL"
    inside = [*open_, " Thus", " x", "</think>", " y", ".", " Thus", " z"]
    assert turns(inside) == "LLLLL" + "S" * 6
    assert turns(inside, answer="large") == "LLLLLSSLLLL"
    relay = Relay(RelayOptions(ANY))
    for token in inside:
        relay.wrote(token)
    assert (relay.thinking, relay.written, relay.switches) == (False, {"large": 5, "small": 6}, 1)


def test_cues_are_kept_as_they_were_published() -> None:
    assert len(CUES) == len(set(CUES)) == 28


# --- two models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, kernel_folder: Path
) -> Iterator[tuple[TextModel, TextModel]]:
    make = sessions(kernel_folder)[request.param]
    with text_model(make()) as large, text_model(make(**unlike(large.session))) as small:
        large.name = request.param
        yield large, small
        gc.collect()
        assert_nothing_is_held(large.session)
        assert_nothing_is_held(small.session)


PROMPT = "one two one two three. " * 2
SAMPLERS: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3, "repeat_penalty": 1.1}]


def answer(model: TextModel, **options: Any) -> Any:
    return model.generate(PROMPT, **{"max_tokens": 60, **NO_END, **options})


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_10_5_without_cues_it_is_the_large_model(
    pair: tuple[TextModel, TextModel], sampler: dict[str, Any]
) -> None:
    large, small = pair
    relay = RelayOptions(small, cues=(), answer="large")
    assert answer(large, relay=relay, **sampler).token_ids == answer(large, **sampler).token_ids


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_10_5_begun_by_the_small_model_without_ends_it_is_the_small_one(
    pair: tuple[TextModel, TextModel], sampler: dict[str, Any]
) -> None:
    large, small = pair
    relay = RelayOptions(small, start="small", ends=())
    got = answer(large, relay=relay, **sampler)
    assert got.token_ids == answer(small, **sampler).token_ids
    assert got.finish_reason == "length"


class Often(Relay):
    """Changes turns by counting: five tokens of the large model, three of the small one."""

    def wrote(self, piece: str) -> bool:
        self.written[self.writer] += 1
        self._burst += 1
        if self._burst < (5 if self.writer == "large" else 3):
            return True
        return self._turn("small" if self.writer == "large" else "large")


@pytest.fixture
def turning(
    pair: tuple[TextModel, TextModel], monkeypatch: pytest.MonkeyPatch
) -> tuple[TextModel, TextModel]:
    """Both models, which take turns as `Often` says."""
    monkeypatch.setattr("edgert.text.model.Relay", Often)
    return pair


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_10_5_drafts_change_nothing(
    turning: tuple[TextModel, TextModel], sampler: dict[str, Any]
) -> None:
    large, small = turning
    relay = RelayOptions(small)
    plain = answer(large, relay=relay, **sampler).token_ids
    assert plain != answer(large, **sampler).token_ids
    for source in ("ngram", small, large):
        draft = DraftOptions(source, max_tokens=7, adapt=False)
        got = answer(large, relay=relay, draft=draft, **sampler)
        assert got.token_ids == plain, "a turn ends within a block of accepted tokens"
        assert source == "ngram" or got.drafting.proposed > 0


def test_10_5_after_every_switch_the_states_are_those_of_a_fresh_prefill(
    turning: tuple[TextModel, TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = turning
    seen = {"large": 0, "small": 0}
    take, write = RelayRun.take, RelayRun._write_small

    def taken(run: Any, feed: Feed, result: StepResult) -> None:
        take(run, feed, result)
        seen["large"] += 1
        assert_same_state(run.tokens[: run.state.length], run.state, large.session)

    def wrote(run: Any) -> None:
        write(run)
        seen["small"] += 1
        state = run._small.state
        assert_same_state(run.tokens[: state.length], state, small.session)

    monkeypatch.setattr(RelayRun, "take", taken)
    monkeypatch.setattr(RelayRun, "_write_small", wrote)
    answer(large, relay=RelayOptions(small), max_tokens=34)
    assert seen["small"] >= 4
    assert seen["large"] >= 16


def test_several_relays_and_others_at_once(
    turning: tuple[TextModel, TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = turning
    monkeypatch.setattr(module, "CHUNK", 2)
    asked: list[dict[str, Any]] = [
        {"relay": RelayOptions(small)},
        {},
        {"relay": RelayOptions(small)},
    ]
    asked = [ask | {"max_tokens": 40, "seed": i, "temperature": 0.8, **NO_END}
             for i, ask in enumerate(asked)]  # fmt: skip
    alone = [large.generate(PROMPT, **ask).token_ids for ask in asked]
    streams = [large.stream(PROMPT, **ask) for ask in asked]
    for stream in streams:
        next(stream)
    assert [stream.finish().token_ids for stream in reversed(streams)] == alone[::-1]
    stream = large.stream(PROMPT, **asked[0])
    next(stream)
    stream.close()


# --- a guard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_guard_that_lets_all_through_changes_nothing(
    turning: tuple[TextModel, TextModel], sampler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = turning
    plain = answer(large, relay=RelayOptions(small), **sampler)
    for span, draft in ((48, "none"), (2, "none"), (48, DraftOptions(small, adapt=False))):
        monkeypatch.setattr("edgert.text.relay_guard.SPAN", span)
        got = answer(large, relay=RelayOptions(small, guard=-1e9), draft=draft, **sampler)
        assert got.token_ids == plain.token_ids
        assert got.relay == plain.relay


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_what_a_guard_refuses_the_large_model_writes(
    turning: tuple[TextModel, TextModel], sampler: dict[str, Any]
) -> None:
    large, small = turning
    got = answer(large, relay=RelayOptions(small, guard=0.0), **sampler)
    assert got.token_ids == answer(large, **sampler).token_ids
    assert got.relay is not None
    assert (got.relay.small, got.relay.refused) == (0, 3 * (got.relay.switches // 2))
    assert got.relay.refused > 20


def test_a_guard_throws_away_what_the_large_model_finds_unlikely(
    turning: tuple[TextModel, TextModel],
) -> None:
    """Every part of three tokens against the large model's logits of the whole text."""
    large, small = turning
    prompt = large.tokenize(PROMPT)

    def picks(model: TextModel, tokens: list[int], count: int) -> list[int]:
        options: dict[str, Any] = {"max_tokens": count, **NO_END}
        return list(model.generate(tokens, **options).token_ids)

    def walk(guard: float) -> tuple[list[int], list[float], int]:
        """The text, means of all parts, and tokens that were refused."""
        tokens, means, refused = list(prompt), list[float](), 0
        while len(tokens) < len(prompt) + 40:
            tokens += picks(large, tokens, 5)
            part = picks(small, tokens, 3)
            rows = large.logits([*tokens, *part])[len(tokens) - 1 : -1]
            means.append(float(token_logprobs(rows, part)[0].mean()))
            tokens += part if means[-1] >= guard else []
            refused += 0 if means[-1] >= guard else 3
        return tokens[len(prompt) :], means, refused

    guards = [mean - 1e-4 for mean in walk(-1e9)[1]]
    walks = ((guard, *walk(guard)) for guard in guards)
    guard, expected, _, refused = next(w for w in walks if 0 < w[3] < 3 * len(w[2]))
    got = answer(large, relay=RelayOptions(small, guard=guard), max_tokens=len(expected) + 1)
    assert list(got.token_ids)[:-1] == expected
    assert got.relay is not None
    assert got.relay.refused == refused


# --- scripted texts ------------------------------------------------------------------------------


def scripted(text: str) -> TextModel:
    return text_model(Script(2, tokenizer().encode(text)))


def test_10_5_a_budget_that_is_used_up_closes_the_thinking() -> None:
    with scripted("x" * 60) as large, scripted("s" * 60) as small:
        relay = RelayOptions(small, budget=20, close="</t>")
        got = large.generate("hi", max_tokens=40, relay=relay)
        assert got.text == "x" * 20 + "\n</t>" + "s" * 15
        assert got.finish_reason == "length"
        relay = RelayOptions(small, budget=20, close="</t>", answer="large")
        assert large.generate("hi", max_tokens=40, relay=relay).text == (
            "x" * 20 + "\n</t>" + "x" * 15
        )


def test_10_5_cues_and_ends_through_the_whole_program() -> None:
    mine = "abcde Now LLLLLLLLLLLLLLL fgh</think>LLLLLLLLL"
    other = "......... is it. SSSSSSSSSSSSSSSSSSSS an answer"
    with scripted(mine) as large, scripted(other) as small:
        for draft in ("none", DraftOptions("ngram", adapt=False), DraftOptions(large, adapt=False)):
            got = large.generate("hi", max_tokens=46, relay=RelayOptions(small), draft=draft)
            assert got.text == "abcde Now" + " is it. " + mine[17:37] + other[37:46]
            assert got.relay == RelayStats(29, 16, 3), "what fills the room is nobody's"
            assert got.relay.large_share == 29 / 45


def test_a_stop_string_and_an_end_token_in_the_small_model_s_turn() -> None:
    with scripted("abcde Now LLLLL") as large, scripted("......... is it") as small:
        got = large.generate("hi", relay=RelayOptions(small))
        assert (got.text, got.finish_reason) == ("abcde Now is it", "stop")
        got = large.generate("hi", relay=RelayOptions(small), stop="is")
        assert (got.text, got.finish_reason) == ("abcde Now ", "stop")


def test_what_a_relay_refuses(kernel_folder: Path) -> None:
    make = sessions(kernel_folder)["kv"]
    with text_model(make()) as large, text_model(make(layers=1, context=64)) as small:
        with pytest.raises(RequestError, match="a relay has no log"):
            answer(large, relay=RelayOptions(small), logprobs=1)
        for wrong in ("small.edge", 5, small):
            with pytest.raises(RequestError, match="expected an edgert"):
                answer(large, relay=wrong)
        assert len(answer(large, max_tokens=5).token_ids) == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ends": 5}, "relay ends is '5'"),
        ({"ends": None}, "relay ends is 'None'"),
        ({"guard": "x"}, "relay guard is 'x'"),
        ({"guard": True}, "relay guard is 'True'"),
        ({"small": 5}, "relay small is '5'"),
        ({"small": object()}, "expected a bundle's path or a loaded model that writes"),
    ],
)
def test_options_of_a_wrong_type_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        RelayOptions(**{"small": ANY, **options})


@pytest.mark.parametrize("guard", [None, -1e9])
def test_the_large_model_writes_what_the_small_one_s_context_does_not_hold(
    kernel_folder: Path, guard: float | None
) -> None:
    make = sessions(kernel_folder)["kv"]
    with text_model(make()) as large, text_model(make(layers=1, context=64)) as small:
        relay = RelayOptions(small, start="small", ends=(), guard=guard)
        options = {"temperature": 0.0, **NO_END}
        prompt = large.tokenize("hi")
        got = large.generate(prompt, max_tokens=90, relay=relay, **options).token_ids
        mine = 64 - len(prompt)
        first = small.generate(prompt, max_tokens=mine, draft="none", **options).token_ids
        assert got[:mine] == first
        rest = large.generate([*prompt, *first], max_tokens=90 - mine, draft="none", **options)
        assert got[mine:] == rest.token_ids
        assert_nothing_is_held(small.session)
