"""Requests that begin alike compute and hold their beginning once, and nobody's text changes."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.session.base import Feed, Session
from edgert.session.pages import PAGE_TOKENS
from edgert.session.plan import bytes_per_page
from edgert.session.prefixes import WORTH, PrefixCache
from edgert.session.sequence import CpuState
from edgert.text.model import TextModel

from ..tiny import tiny_bundle, tiny_graph
from .speculative.models import (
    CONTEXT,
    NO_END,
    ToySession,
    cpu_session,
    sessions,
    text_model,
    unlike,
)

KINDS = ("kv", "kv8", "window", "tail", "whole")
SYSTEM = "You are a patient clerk. " * 14  # 350 tokens


def shared(session: Session) -> TextModel:
    """A model whose requests share their beginnings."""
    model = text_model(session)
    cache = session.prefix_cache()
    if isinstance(session, ToySession):
        cache = PrefixCache(session.pool, session.slots, 1 << 22)
    model.engine.prefixes = cache
    return model


def cache_of(model: TextModel) -> PrefixCache:
    assert model.engine.prefixes is not None
    return model.engine.prefixes


def assert_nothing_is_held(model: TextModel) -> None:
    """Once the tree is cleared every page and slot is free."""
    cache_of(model).clear()
    gc.collect()
    session: Any = model.session
    assert (cache_of(model).nbytes, cache_of(model).pages) == (0, 0)
    assert session.pool.indices.free == session.pool.pages
    assert session.slots.indices.free == session.slots.indices.count


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[TextModel]:
    with shared(sessions(kernel_folder)[request.param]()) as model:
        yield model
        assert_nothing_is_held(model)


def answer(model: TextModel, prompt: str | list[int], **options: Any) -> Any:
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "seed": 4, **NO_END, **options}
    return model.generate(prompt, **asked)


def test_a_known_beginning_is_not_computed_again(model: TextModel, kernel_folder: Path) -> None:
    recurrent = isinstance(model.session, ToySession)
    questions = ["What?", "Who is it?", "What?", "Wh"]
    plain = text_model(model.session)
    expected = [answer(plain, SYSTEM + question).token_ids for question in questions]
    got = [answer(model, SYSTEM + question) for question in questions]
    assert [g.token_ids for g in got] == expected
    cached = [g.usage.cached_tokens for g in got]
    assert cached[0] == 0
    least = len(SYSTEM) - 64 - model.session.max_rows if recurrent else len(SYSTEM)
    assert all(count >= least for count in cached[1:])
    assert cached[2] == len(SYSTEM) + 4, "the whole prompt but for its last token is known"


def test_an_answer_is_a_beginning_as_well(model: TextModel) -> None:
    first = answer(model, SYSTEM)
    text = [*model.tokenize(SYSTEM), *first.token_ids, 70, 71]
    again = answer(model, text)
    assert again.usage.cached_tokens >= len(text) - 3
    assert again.token_ids == answer(text_model(model.session), text).token_ids


def test_drafts_never_come_in(model: TextModel) -> None:
    prompt = SYSTEM + "abcabcabcabc"
    expected = answer(text_model(model.session), prompt, max_tokens=90)
    draft = edgert.DraftOptions("ngram", adapt=False)
    for _ in range(2):
        got = answer(model, prompt, max_tokens=90, draft=draft)
        assert got.token_ids == expected.token_ids
    text = [*model.tokenize(prompt), *got.token_ids]
    cache = cache_of(model)
    assert cache.known([*text, 5, 6, 7]) <= len(text)
    assert cache.known(text[:-1]) >= len(text) - 2 - 64 * isinstance(model.session, ToySession)


def test_eight_conversations_hold_the_system_prompt_once(kernel_folder: Path) -> None:
    with shared(cpu_session(kernel_folder)) as model:
        pool: Any = model.session.pool  # type: ignore[attr-defined]
        chats = [model.conversation(SYSTEM) for _ in range(8)]

        def first(i: int) -> Any:
            return chats[i].say(f"{i}?", max_tokens=4, seed=i, **NO_END)

        with ThreadPoolExecutor(8) as threads:  # all at once: nobody can wait for another's prompt
            list(threads.map(first, range(8)))
        whole = len(SYSTEM) // PAGE_TOKENS
        states = [chat._memory._content[0] for chat in chats if chat._memory._content]
        assert len(states) == 8
        for index in range(whole):
            assert len({state.pages[index] for state in states}) == 1  # type: ignore[attr-defined]
        assert pool.pages - pool.indices.free <= whole + 8 * 2 + 8
        for chat in chats:
            chat.close()
        assert_nothing_is_held(model)


def test_texts_of_one_state_are_not_changed_by_another(kernel_folder: Path) -> None:
    """A page that is partly known is copied by whoever goes on in it."""
    session = cpu_session(kernel_folder)
    with shared(session) as model:
        base = [4 + i % 200 for i in range(100)]  # ends within a page
        answer(model, base, max_tokens=2)
        others = [[*base, 9 + i] for i in range(5)]
        plain = text_model(session)
        expected = [answer(plain, text, max_tokens=40).token_ids for text in others]
        streams = [
            model.stream(text, max_tokens=40, temperature=1.0, seed=4, **NO_END) for text in others
        ]
        for stream in streams:
            next(stream)
        assert [stream.finish().token_ids for stream in streams] == expected
        assert_nothing_is_held(model)


def test_the_least_recently_used_ends_go_first(kernel_folder: Path) -> None:
    session = cpu_session(kernel_folder)
    size = session.pool.bytes_per_page
    cache = PrefixCache(session.pool, session.slots, 6 * size)

    def fed(text: list[int]) -> CpuState:
        state = session.new_state()
        for start in range(0, len(text), 64):
            piece = np.array(text[start : start + 64], np.int32)
            session.step([Feed(state, piece, "none")])
            state.commit(len(piece))
        return state

    texts = [[5] * 64 + [10 + i] * 128 for i in range(4)]
    for text in texts:
        state = fed(text)
        cache.keep(state, text)
        state.close()
        assert cache.nbytes <= cache.budget
    lengths = [cache.known(text) for text in texts]
    assert lengths[0] == 64, "the oldest ones went, the beginning that others use stayed"
    assert lengths[2:] == [192, 192]
    assert cache.pages == 6 or cache.pages == 5
    state = session.new_state()
    assert cache.resume(state, texts[3]) == 192
    before = session.pool.indices.free
    assert cache.free(100) >= 1
    assert session.pool.indices.free > before
    assert cache.known(texts[3]) == 192, "what a state holds too would free nothing"
    state.close()
    cache.clear()
    assert session.pool.indices.free == session.pool.pages
    session.close()


def test_a_full_pool_takes_unused_beginnings_back(kernel_folder: Path) -> None:
    page = bytes_per_page(tiny_graph(quant="int4", context=512), 16)
    session = cpu_session(kernel_folder, context=512, kv_memory=24 * page)
    with shared(session) as model:
        prompts = [f"{i}" + "abcdefgh " * 50 for i in range(40)]
        plain = text_model(session)
        expected = [answer(plain, prompt).token_ids for prompt in prompts]
        assert [answer(model, prompt).token_ids for prompt in prompts] == expected
        assert cache_of(model).nbytes <= cache_of(model).budget
        assert_nothing_is_held(model)


def test_taps_do_not_skip_what_they_must_see(kernel_folder: Path) -> None:
    from .speculative.test_parts import Head

    with shared(cpu_session(kernel_folder)) as model:
        for _ in range(2):
            head = Head([], 2)
            got = answer(model, SYSTEM, proposer=head)
            assert got.usage.cached_tokens == 0
            assert len(head.rows) >= len(SYSTEM)
        assert_nothing_is_held(model)


def test_nothing_is_kept_of_what_is_not_worth_it(kernel_folder: Path) -> None:
    with shared(cpu_session(kernel_folder)) as model:
        answer(model, "short")
        assert answer(model, "shorn").usage.cached_tokens == 0
        assert len("short") < WORTH
        assert_nothing_is_held(model)


def test_bundles_share_beginnings_by_default(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "t.edge", context=512)
    with edgert.load(path) as model:
        first = answer(model, SYSTEM)
        second = answer(model, SYSTEM)
        assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, len(SYSTEM) - 1)
        assert first.token_ids == second.token_ids


# --- a soak --------------------------------------------------------------------------------------


def soak(model: TextModel, count: int, seed: int, small: TextModel | None = None) -> None:
    """Random requests that begin alike, fork, stop early and run side by side, some with drafts of
    the text or of a small model; and conversations whose turns are taken back."""
    rng = random.Random(seed)
    stems = ["the quick brown fox " * n for n in (2, 5, 9, 14)] + [SYSTEM]
    drafts = ["none", "ngram"] if small is None else ["none", "ngram", small]
    asked: list[dict[str, Any]] = []
    for number in range(count):
        stem = rng.choice(stems)
        prompt = stem[: rng.randint(1, len(stem))] + rng.choice(["", "a", f"{number}", "xyz " * 5])
        asked.append(
            {"prompt": prompt, "max_tokens": rng.randint(1, 20), "seed": number % 7,
             "temperature": 1.0, "draft": rng.choice(drafts), **NO_END}
        )  # fmt: skip
    known: dict[str, tuple[int, ...]] = {}
    plain = text_model(model.session)
    for ask in asked:
        key = json.dumps([ask["prompt"], ask["seed"]])
        if len(known.get(key, ())) < ask["max_tokens"]:
            known[key] = plain.generate(**ask | {"draft": "none"}).token_ids
    talks = {number: talk(plain, stems[number % 5], "none") for number in range(10)}
    cut = [rng.random() < 0.2 for _ in asked]

    def job(number: int) -> None:
        ask = asked[number]
        if number % 8 == 0:
            same = number // 8 % 10
            assert talk(model, stems[same % 5], ask["draft"]) == talks[same]
        stream = model.stream(**ask)
        if cut[number]:
            next(stream, None)
            stream.close()
        got = stream.finish().token_ids
        expected = known[json.dumps([ask["prompt"], ask["seed"]])]
        assert got == expected[: len(got)]
        assert cut[number] or len(got) == ask["max_tokens"]

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(job, number) for number in range(count)]:
            done.result(600)
    cache = cache_of(model)
    assert cache.nbytes <= cache.budget


def talk(model: TextModel, system: str, draft: Any) -> list[tuple[int, ...]]:
    """Two turns, the second one taken back and put otherwise."""
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 1.0, "seed": 1, "draft": draft}
    said = []
    with model.conversation(system) as chat:
        for text in ("who?", "why not?", None, "why is it?"):
            if text is None:
                chat.undo()
            else:
                said.append(chat.say(text, **options, **NO_END).token_ids)
    return said


@pytest.mark.parametrize("kind", ["kv", "tail", "whole"])
@pytest.mark.parametrize(
    "count", [40, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_soak_leaves_nothing_behind(kind: str, count: int, kernel_folder: Path) -> None:
    if kind == "kv":  # a pool that runs dry, and a budget that is small
        graph_pages = 40
        page = bytes_per_page(tiny_graph(quant="int4", context=CONTEXT), 16)
        session: Any = cpu_session(kernel_folder, kv_memory=graph_pages * page)
    else:
        session = sessions(kernel_folder)[kind]()
    other = sessions(kernel_folder)[kind](**unlike(session))
    with shared(session) as model, shared(other) as small:
        cache_of(model).budget = min(cache_of(model).budget, 1 << 17)
        soak(model, count, 5, small)
        assert_nothing_is_held(model)
        assert_nothing_is_held(small)


@pytest.mark.slow
def test_the_second_request_starts_at_once(shared_data: Path, tmp_path: Path) -> None:
    """A system prompt of 1,500 tokens: at most 0.05 of the first time to the first token."""
    path = tiny_bundle(tmp_path / "t.edge", context=2048, layers=4, width=256, ff=768)
    prompt = [4 + (7 * i) % 250 for i in range(1500)]
    with edgert.load(path, threads=1) as model:
        answer(model, [9, 8, 7])
        spent = []
        for question in ([50, 60], [70, 80, 90]):
            start = time.process_time()
            stream = model.stream([*prompt, *question], max_tokens=4, **NO_END)
            next(stream)
            spent.append(time.process_time() - start)
            stream.finish()
    assert spent[1] <= 0.05 * spent[0]
