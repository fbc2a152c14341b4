"""The loop: drafts change nothing, chunks change nothing, stops stop, cancels cancel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.demo import demo_checkpoint
from edgert.errors import RequestError
from edgert.graph import Graph
from edgert.session.base import Feed, StepResult
from edgert.session.reference import ReferenceSession
from edgert.text.model import TextModel
from edgert.text.stopping import StopText
from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer
from tests.tiny import EOS, SPECIAL, TEMPLATE, VOCAB, tiny_graph, tiny_tokenizer, tiny_weights

GRAPH = tiny_graph(quant="f32", context=96)
WEIGHTS = tiny_weights(GRAPH)
NO_END = {"logit_bias": {EOS: -100.0}}


def make(**session: Any) -> TextModel:
    tokenizer = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    template = ChatTemplate(TEMPLATE, special, control=tokenizer.control)
    return TextModel(ReferenceSession(GRAPH, WEIGHTS, **session), tokenizer, template)


@pytest.fixture
def model() -> Iterator[TextModel]:
    with make() as model:
        yield model


class Script(ReferenceSession):
    """A session whose greedy answer is a given list of ids, whatever it is fed."""

    def __init__(self, prompt: int, answer: Sequence[int], graph: Graph = GRAPH) -> None:
        super().__init__(graph, WEIGHTS if graph is GRAPH else tiny_weights(graph))
        self.prompt, self.answer = prompt, answer

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        start, count = feeds[0].state.length, feeds[0].rows
        (result,) = super().step(feeds)
        rows = result.logits
        for row, position in zip(
            rows, range(start + count - len(rows), start + count), strict=True
        ):
            at = position + 1 - self.prompt
            row[:] = 0
            row[self.answer[at] if 0 <= at < len(self.answer) else EOS] = 9
        return [result]


def scripted(answer: str | bytes, **options: Any) -> TextModel:
    tokenizer = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))
    raw = answer.encode() if isinstance(answer, str) else answer
    return TextModel(Script(2, [byte_id(tokenizer, b) for b in raw]), tokenizer)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    from tokenizers import pre_tokenizers

    if byte < 128:
        return tokenizer.encode(chr(byte))[0]
    table = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    shown = [b for b in range(256) if 33 <= b < 127 or 161 <= b < 173 or 174 <= b < 256]
    rest = [b for b in range(256) if b not in shown]
    text = chr(byte) if byte in shown else chr(256 + rest.index(byte))
    return 4 + table[text]


class Oracle:
    def __init__(self, tokens: Sequence[int], wrong: int = 0) -> None:
        self.tokens, self.wrong, self.cycles = list(tokens), wrong, 0
        self.seen: list[tuple[int, int]] = []

    def propose(self, tokens: Sequence[int], limit: int) -> Sequence[int]:
        self.cycles += 1
        ahead = self.tokens[len(tokens) : len(tokens) + 4]
        if self.wrong:
            ahead = [(t + (i >= self.wrong - 1)) % VOCAB for i, t in enumerate(ahead)]
        return ahead

    def observe(self, proposed: int, accepted: int) -> None:
        self.seen.append((proposed, accepted))


SAMPLERS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.3, "seed": 6, "top_k": 30, "repeat_penalty": 1.2},
]


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_drafts_change_nothing(model: TextModel, options: dict[str, Any], wrong: int) -> None:
    prompt = model.tokenize("speculate")
    plain = model.generate(prompt, max_tokens=40, **NO_END, **options)
    drafter = Oracle([*prompt, *plain.token_ids], wrong)
    drafted = model.generate(prompt, max_tokens=40, proposer=drafter, **NO_END, **options)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    if wrong == 0:
        assert all(accepted == proposed for proposed, accepted in drafter.seen)
        assert drafter.cycles <= 9  # the first token comes without drafts, then five a cycle
    if wrong == 1:
        assert all(accepted == 0 for _, accepted in drafter.seen)


def test_random_and_mad_drafts_change_nothing(model: TextModel) -> None:
    class Mad(Oracle):
        def propose(self, tokens: Sequence[int], limit: int) -> Sequence[int]:
            return [[10**6], [-1], [EOS, EOS], [7] * 1000, []][len(tokens) % 5]

    plain = model.generate("abc", max_tokens=30, **NO_END)
    assert model.generate("abc", max_tokens=30, proposer=Mad([]), **NO_END) .token_ids == (
        plain.token_ids
    )  # fmt: skip


@pytest.mark.parametrize("max_rows", [1, 3, 7, 64])
def test_chunks_change_nothing(model: TextModel, max_rows: int) -> None:
    prompt = [int(t) for t in np.random.default_rng(0).integers(4, VOCAB, 50)]
    expected = model.generate(prompt, max_tokens=10, **NO_END)
    seen: list[tuple[int, int]] = []
    with make(max_rows=max_rows) as small:
        got = small.generate(prompt, max_tokens=10, progress=lambda *at: seen.append(at), **NO_END)
    assert got.token_ids == expected.token_ids
    assert [total for _, total in seen] == [50] * len(seen)
    assert len(seen) == (49 // max_rows)


def test_usage_and_timings(model: TextModel) -> None:
    got = model.generate("hello", max_tokens=6, **NO_END)
    assert (got.usage.prompt_tokens, got.usage.cached_tokens) == (5, 0)
    assert got.usage.completion_tokens == len(got.token_ids) == 6
    assert got.finish_reason == "length"
    t = got.timings
    assert 0 < t.prompt_s <= t.first_token_s
    assert t.generation_s > 0
    assert t.prompt_tps > 0
    assert t.generation_tps == pytest.approx(5 / t.generation_s)


def test_an_end_token_ends() -> None:
    with scripted("abc") as model:
        got = model.generate("hi")
        assert (got.text, got.finish_reason) == ("abc", "stop")
        assert got.token_ids[-1] == EOS
        assert model.generate("hi", max_tokens=2).finish_reason == "length"
        b = model.tokenize("b")
        got = model.generate("hi", stop_token_ids=b)
        assert (got.text, got.token_ids[1:]) == ("a", tuple(b))


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("world", "hello "),
        (("zzz", "o w"), "hell"),
        ("h", ""),
        ("lo world!", "hello world"),
        ("world!!", "hello world"),
        (("orl", "world"), "hello w"),  # "orl" is complete first
        ("ld", "hello wor"),
    ],
)
@pytest.mark.parametrize("drafts", [False, True])
def test_stop_strings_across_tokens(stop: Any, text: str, drafts: bool) -> None:
    with scripted("hello world") as model:
        ids = [*model.tokenize("hi"), *model.tokenize("hello world")]
        stream = model.stream("hi", stop=stop, proposer=Oracle(ids) if drafts else None)
        shown = ""
        for piece in stream:
            shown += piece
            assert text.startswith(shown)  # nothing of a stop string is ever shown
        assert stream.result.text == shown == text
        assert stream.result.finish_reason == "stop"


def test_pieces_never_split_characters() -> None:
    text = "aé日🎉👩‍👧z"
    with scripted(text) as model:
        pieces = list(model.stream("hi"))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_continuation_keeps_its_space_and_an_answer_begins_anew() -> None:
    """SentencePiece tokens hold the space in front of them, which decoding them alone drops."""
    raw = (demo_checkpoint() / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer(raw, vocab_size=512, eos_token_ids=(2,), bos_token_id=1, add_bos=True)
    ids, more = tokenizer.encode("Lily went", bos=True), tokenizer.encode("to the park")
    graph = tiny_graph(quant="f32", context=96, vocab=512)
    session = Script(len(ids), [*more, 2], graph)
    template = ChatTemplate("{{ messages[0].content }}")
    with TextModel(session, tokenizer, template) as model:
        assert model.generate("Lily went").text == " to the park"
        assert model.generate(ids).text == " to the park"
        assert next(model.stream("Lily went")).startswith(" ")
        session.prompt = len(ids) - 1  # the template writes no beginning token
        assert model.chat([{"role": "user", "content": "Lily went"}]).text == "to the park"


def test_broken_bytes_become_replacement_characters() -> None:
    with scripted(b"a\xff\xfeb\xe6\x97") as model:
        got = model.generate("hi")
    assert got.text.replace("\ufffd", "") == "ab"
    assert got.text.endswith("\ufffd")


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_stop_text_equals_searching_the_whole(text: str, stops: list[str]) -> None:
    finder = StopText(stops)
    shown = "".join(finder.push(c) for c in text)
    ends = [text.find(s) + len(s) for s in stops if s in text]
    assert finder.hit == bool(ends)
    if not ends:
        assert shown + finder.flush() == text
    else:
        first = text[: min(ends)]
        assert shown == first[: min(first.find(s) for s in stops if s in first)]


def test_leaving_a_stream_counts_as_cancelling(model: TextModel) -> None:
    with model.stream("abc", **NO_END) as stream:
        next(stream)
    assert stream.result.finish_reason == "cancelled"
    with pytest.raises(Exception, match="no result"):
        _ = model.stream("abc").result


def test_the_state_is_given_back_however_it_ends(model: TextModel) -> None:
    closed: list[int] = []
    make_state = model.session.new_state

    def watched(expected: int = 0) -> Any:
        state = make_state(expected)
        close = state.close
        state.close = lambda: (closed.append(1), close())[1]
        return state

    model.session.new_state = watched  # type: ignore[method-assign]
    model.generate("a", max_tokens=2)
    stream = model.stream("a")
    next(stream)
    stream.close()
    model.logits([1, 2])
    model.session.step = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        model.generate("a", max_tokens=2)
    assert len(closed) == 4


def test_logits_equal_a_step(model: TextModel) -> None:
    ids = model.tokenize("logits")
    state = model.session.new_state()
    expected = model.session.step([Feed(state, np.array(ids, np.int32), "all")])[0].logits
    got = model.logits(ids)
    assert got.shape == (6, VOCAB)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    with make(max_rows=4) as small:
        np.testing.assert_allclose(small.logits(ids), expected, rtol=1e-4, atol=1e-5)


def test_logits_take_ids_that_only_the_model_has() -> None:
    graph = tiny_graph(quant="f32", context=96, vocab=VOCAB + 30)
    tokenizer = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB + 30, eos_token_ids=(EOS,))
    with TextModel(ReferenceSession(graph, tiny_weights(graph)), tokenizer) as model:
        assert model.logits([VOCAB + 29, 1]).shape == (2, VOCAB + 30)
        with pytest.raises(RequestError, match=f"expected 0 to {VOCAB + 29}"):
            model.logits([VOCAB + 30])


def test_a_conversation_reuses_its_state(model: TextModel) -> None:
    chat = model.conversation(system="sys")
    for text in ("one", "two", "three"):
        got = chat.say(text, max_tokens=4, **NO_END)
        fresh = model.chat(chat.messages[:-1], max_tokens=4, **NO_END)
        assert got.token_ids == fresh.token_ids
        assert (got.usage.cached_tokens > 0) == (text != "one")
        assert chat.messages[-1] == got.message
    before = list(chat.messages)
    again = chat.messages[:-2]
    chat.undo()
    assert chat.messages == again
    redo = chat.say("three", max_tokens=4, **NO_END)
    assert chat.messages == before
    assert redo.usage.cached_tokens == redo.usage.prompt_tokens - 1
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "sys"}]
    with pytest.raises(Exception, match="no turn"):
        chat.undo()
    assert chat.say("one", max_tokens=4).usage.cached_tokens > 3


def test_a_cancelled_turn_keeps_what_was_said(model: TextModel) -> None:
    chat = model.conversation()
    with chat.stream("one", **NO_END) as stream:
        piece = next(stream)
    assert chat.messages[-1]["content"].startswith(piece)
    assert chat.say("two", max_tokens=3).usage.cached_tokens > 0


def test_two_prepared_turns_do_not_overtake(model: TextModel) -> None:
    chat = model.conversation()
    first, second = chat.stream("a", max_tokens=2), chat.stream("b", max_tokens=2)
    first.finish()
    with pytest.raises(Exception, match="went on since"):
        second.finish()


def test_a_bundle_from_disk_answers_the_same(model: TextModel, tmp_path: Path) -> None:
    import edgert
    from tests.tiny import tiny_bundle

    path = tiny_bundle(tmp_path / "t.edge", graph=GRAPH, weights=WEIGHTS)
    with edgert.load(path, device="reference") as loaded:
        got = loaded.chat([{"role": "user", "content": "hi"}], max_tokens=8)
        assert got.timings.load_s > 0
        assert loaded.context == 96
    expected = model.chat([{"role": "user", "content": "hi"}], max_tokens=8)
    assert got.token_ids == expected.token_ids
