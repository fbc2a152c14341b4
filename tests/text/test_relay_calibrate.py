"""Section 7.1 of the specification: which cues suit two models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.errors import ConvertError, RequestError
from edgert.text import relay_calibrate
from edgert.text.model import TextModel
from edgert.text.relay import RelayOptions
from edgert.text.relay_calibrate import (
    CalibrateOptions,
    Trace,
    _thinking,
    calibrate_relay,
    chats_to_lines,
    read_chats,
)
from edgert.text.relay_cues import CANDIDATES, CueScore
from edgert.text.relay_margins import Measured, margins, score, segments, select

from ..tiny import EOS
from .speculative.models import cpu_session, text_model, tokenizer, unlike

# --- margins and segments ------------------------------------------------------------------------


def test_margins_are_the_first_probability_less_the_second() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((50, 37)) * 4).astype(np.float32)
    law = np.exp(logits.astype(np.float64))
    law = np.sort(law / law.sum(1, keepdims=True), axis=1)
    np.testing.assert_allclose(margins(logits), law[:, -1] - law[:, -2], rtol=1e-6, atol=1e-9)
    huge = np.array([[3e38, -3e38, 0], [7, 7, -9], [1, 1, 1]], np.float32)
    assert margins(huge).tolist() == [1, 0, 0]
    assert margins(np.ones((2, 1), np.float32)).tolist() == [1, 1], "nothing is second"
    assert margins(np.zeros((0, 5), np.float32)).shape == (0,)


TOKENS = ["First", ",", " we", " add", ".", " Now", " it", " is", " 3", "."]
MARGINS = np.array([0.1, 0.2, 0.8, 0.6, 0.3, 0.1, 0.9, 0.7, 0.8, 0.3])


def test_10_5_ten_tokens_of_known_margins() -> None:
    cues = ("First,", "Now", "Thus", "add")
    found = segments(TOKENS, cues)
    assert found == {"First,": [range(2, 4)], "Now": [range(6, 9)], "Thus": [], "add": []}
    now, first = sorted(score([Measured(TOKENS, MARGINS)], cues), key=lambda one: -one.inside)
    assert (now.cue, now.segments, now.tokens, now.error) == ("Now", 1, 3, None)
    assert now.inside == pytest.approx(0.8)
    assert now.delta == pytest.approx(0.8 - 2.4 / 7)
    assert (first.cue, first.tokens) == ("First,", 2)
    assert first.delta == pytest.approx(0.7 - 3.4 / 8)


@pytest.mark.parametrize(
    ("pieces", "cue", "found"),
    [
        (["a", " Now"], "Now", []),  # nothing follows
        (["a", " Now", ". B"], "Now", []),
        (["a", " Now", "\n", " b"], "Now", []),
        (["a", " Know", " b"], "now", []),
        (["a", " Any", "way", " b"], "Any", [range(2, 4)]),  # as it is written, so at run time
        (["Now", " b", " Now", " c", "!"], "Now", [range(1, 4)]),  # within its own segment
        (["Now", " b", "?", " Now", " c"], "Now", [range(1, 2), range(4, 5)]),
        (["Now", " 3", ".", "14"], "Now", [range(1, 2)]),
        (["There", "fore", ",", " x"], "Therefore,", [range(3, 4)]),
        (["There", "fore", ",", " x"], "Therefore", [range(2, 4)]),
        (["So", " it", " is"], "So ", [range(2, 3)]),  # known to be a word by what follows
        (["So", ",", " it"], "So ", []),
        (["So", "me", " it"], "So ", []),
        (["So", "", " it", " is"], "So ", [range(3, 4)]),
        ([". Now", " it"], "Now", [range(1, 2)]),
    ],
)
def test_segments(pieces: list[str], cue: str, found: list[range]) -> None:
    assert segments(pieces, (cue,)) == {cue: found}


def test_a_cue_with_all_tokens_behind_it_tells_nothing() -> None:
    trace = Measured([" it", " is"], np.array([0.5, 0.6]))
    assert score([trace], ("Now",)) == []
    assert score([], CANDIDATES) == []


def test_the_error_is_that_of_whole_sentences() -> None:
    """Sentences that are all sure or all unsure tell as much as their number, not their tokens."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        sure = rng.random(20) < 0.5
        pieces, values = list[str](), list[float]()
        for one in sure:
            pieces += [" Now", *[" x"] * 6, ".", *[" y"] * 8]
            values += [0.5] + [float(one)] * 6 + [0.5] * 9
        found += score([Measured(pieces, np.array(values))], ("Now",))
    errors = np.array([one.error for one in found])
    spread = np.std([one.inside for one in found])
    assert 0.9 < errors.mean() / spread < 1.1
    assert spread > 2 * 0.5 / np.sqrt(120), "tokens on their own would promise far less"


def made(cue: str, segments: int, inside: float, delta: float, error: float | None) -> CueScore:
    return CueScore(cue, segments, 3 * segments, inside, delta, error)


def test_cues_are_kept_by_occurrence_and_margin() -> None:
    scores = [
        made("sure", 9, 0.7, 0.2, 0.05), made("surer", 9, 0.9, 0.4, 0.1),
        made("rare", 4, 0.9, 0.4, 0.1), made("loose", 9, 0.8, 0.3, 0.2),
        made("worse", 9, 0.3, -0.2, 0.01), made("once", 1, 0.95, 0.4, None),
    ]  # fmt: skip
    assert select(scores) == ("surer", "sure")
    assert select(scores, least=1) == ("rare", "surer", "sure")
    assert select(scores, least=1, errors=0) == ("once", "rare", "surer", "loose", "sure")
    assert select([]) == ()


def test_candidates_are_the_published_ones() -> None:
    assert len(CANDIDATES) == len(set(CANDIDATES)) == 91
    assert {"Therefore", "thus,", "So ", "so ", "double-check", "verify"} <= set(CANDIDATES)
    assert not {"So", "check,"} & set(CANDIDATES)
    assert RelayOptions("small.edge", cues=CANDIDATES).cues == CANDIDATES


# --- two models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(kernel_folder: Path) -> Iterator[tuple[TextModel, TextModel]]:
    with text_model(cpu_session(kernel_folder), name="large") as large:
        sizes = {**unlike(large.session), "context": 256}
        with text_model(cpu_session(kernel_folder, seed=1, **sizes), name="small") as small:
            yield large, small


def chat(answer: str, question: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TRACES = [
    chat("We try. Now it is so. Now it was. And Thus.</think> Now a word."),
    chat("Now we begin. Now?\n Now all ends"),
]


def test_margins_are_the_small_model_s_on_prompt_and_thinking(
    pair: tuple[TextModel, TextModel],
) -> None:
    large, small = pair
    options = CalibrateOptions(least=1, errors=0)
    told: list[tuple[str, int, int]] = []
    found = calibrate_relay(
        large, small, traces=TRACES, options=options, progress=lambda *said: told.append(said)
    )
    measured = []
    for messages in TRACES:
        thinking = messages[-1]["content"].partition("</think>")[0]
        prompt, ids = large.chat_ids(messages[:-1]), large.tokenize(thinking, bos=False)
        rows = small.logits([*prompt, *ids])[len(prompt) - 1 : -1]
        measured.append(Measured([small.detokenize([token]) for token in ids], margins(rows)))
    assert (found.large, found.small, found.traces) == ("large", "small", 2)
    assert found.tokens == sum(len(one.pieces) for one in measured)
    assert found.margin == np.concatenate([one.margins for one in measured]).mean()
    expected = score(measured, CANDIDATES)
    assert sorted(found.scores, key=str) == sorted(expected, key=str)
    (now,) = [one for one in found.scores if one.cue == "Now"]
    assert now.segments == 4, "what follows the thinking does not count, nor what ends at once"
    assert found.cues == select(expected, least=1, errors=0)
    assert told == [("traces measured", 1, 2), ("traces measured", 2, 2)]


def test_traces_that_are_made_are_the_large_model_s_answers(
    pair: tuple[TextModel, TextModel],
) -> None:
    large, small = pair
    problems = [[{"role": "user", "content": text}] for text in ("one", "two two", "three")]
    options = CalibrateOptions(repeats=2, max_tokens=24, temperature=1.5, seed=5)
    kept: list[Trace] = []
    told: list[tuple[str, int, int]] = []
    found = calibrate_relay(
        large, small, problems=problems, options=options, keep=kept.extend,
        progress=lambda *said: told.append(said),
    )  # fmt: skip
    sampling: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 20, "max_tokens": 24}
    expected = [
        [t for t in large.chat(one, seed=seed, **sampling).token_ids if t != EOS]
        for one in problems for seed in (5, 6)
    ]  # fmt: skip
    assert [list(trace.written) for trace in kept] == expected
    assert [trace.number for trace in kept] == [1, 2, 3, 4, 5, 6]
    assert (found.traces, len(told)) == (6, 12)
    again = calibrate_relay(large, small, problems=problems, options=options)
    assert again == found


def test_traces_come_back_from_a_file(pair: tuple[TextModel, TextModel], tmp_path: Path) -> None:
    large, small = pair
    path = tmp_path / "traces.JSONL"
    made = [Trace(c[:-1], (), large.tokenize(c[-1]["content"], bos=False), 1) for c in TRACES]
    path.write_text(chats_to_lines(large, made), encoding="utf-8")
    assert read_chats(path) == [tuple(one) for one in TRACES]
    found = calibrate_relay(large, small, traces=read_chats(path))
    assert found == calibrate_relay(large, small, traces=TRACES)


def test_files_of_problems(tmp_path: Path) -> None:
    path = tmp_path / "problems.txt"
    path.write_text("What is 1 + 1?\n\nAnd 2?\n", encoding="utf-8")
    assert [one[0]["content"] for one in read_chats(path)] == ["What is 1 + 1?", "And 2?"]
    path.with_suffix(".jsonl").write_text(json.dumps({"text": "a\nb"}), encoding="utf-8")
    assert read_chats(path.with_suffix(".jsonl")) == [({"role": "user", "content": "a\nb"},)]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConvertError, match="expected UTF-8"):
        read_chats(path)


def test_thinking_ends_in_front_of_its_mark(pair: tuple[TextModel, TextModel]) -> None:
    small = pair[1]
    ids = tokenizer().encode("ab </think> c")
    assert "".join(_thinking(small, ids, "</think>")) == "ab "
    assert "".join(_thinking(small, ids, "</t>")) == "ab </think> c"


def test_what_is_refused(pair: tuple[TextModel, TextModel], kernel_folder: Path) -> None:
    large, small = pair
    question = [{"role": "user", "content": "?"}]
    rows: list[tuple[dict[str, Any], str]] = [
        ({}, "0 traces and 0 problems, expected traces of the large model, or"),
        ({"traces": TRACES, "problems": [question]}, "2 traces and 1 problems"),
        ({"traces": [question]}, "trace 1 ends with {'role': 'user'"),
        ({"traces": [chat("x"), chat("")]}, "trace 2 ends with"),
        ({"traces": [chat("x")[1:]]}, "trace 1: no message is left to be answered"),
        ({"problems": [question, chat("x")]}, "problem 2: no message is left"),
        ({"problems": [[{"role": "user", "content": 5}]]}, "problem 1: "),
        ({"traces": [chat("x"), chat("y" * 300)]}, "trace 2 has 30[0-9] tokens, .* holds 256"),
        ({"traces": [chat("</think> so")]}, "1 traces have 0 tokens of thinking"),
    ]
    for given, said in rows:
        with pytest.raises(RequestError, match=said) as info:
            calibrate_relay(large, small, **given)
        assert info.value.hint
    with text_model(cpu_session(kernel_folder)) as other:
        swapped = tokenizer()
        swapped.piece_of = lambda i: str(i)  # type: ignore
        other.tokenizer = swapped
        with pytest.raises(RequestError, match="has another tokenizer") as info:
            calibrate_relay(large, other, traces=TRACES)
        assert info.value.hint == "take two models of the same family, with one tokenizer"


@pytest.mark.parametrize("content", ["It is 2.", None])
def test_answers_with_more_than_a_text_are_refused(
    content: str | None, pair: tuple[TextModel, TextModel]
) -> None:
    """Thinking apart from the content would be lost, and the answer be measured as thinking."""
    trace: list[dict[str, Any]] = [*chat("x")]
    trace[-1] |= {"content": content, "reasoning_content": "Now it is so."}
    with pytest.raises(RequestError, match="trace 2: its answer has 'reasoning_content', ") as info:
        calibrate_relay(*pair, traces=[chat("x"), trace])
    assert "in front of the answer" in info.value.hint
    nothing = [{**chat("x")[0], "name": None}, {**chat("x Now y")[1], "reasoning_content": None}]
    assert calibrate_relay(*pair, traces=[nothing]).traces == 1


def test_traces_without_an_end_of_thinking_are_told(
    pair: tuple[TextModel, TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(relay_calibrate, "notice", lambda text, level: told.append(text))
    calibrate_relay(*pair, traces=TRACES)
    assert told == [
        "1 of 2 traces have no '</think>' behind the thinking: their whole answers count as "
        "thinking"
    ]
    calibrate_relay(*pair, traces=TRACES[:1])
    assert len(told) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"least": 0}, "least is 0, expected 1 or more"),
        ({"errors": -1.0}, "errors is -1.0"),
        ({"errors": float("nan")}, "errors is nan"),
        ({"repeats": 0}, "repeats is 0"),
        ({"close": ""}, "close is ''"),
        ({"candidates": ("",)}, "a cue of candidates of relay cues is ''"),
    ],
)
def test_options_that_mean_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        CalibrateOptions(**given)
