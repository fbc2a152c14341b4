"""Many callers on one model: every answer is what it would have been alone, and belongs to nobody's
thread."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import RequestError
from edgert.session.base import Feed, StepResult
from edgert.session.cpu import CpuSession
from edgert.session.engine import PROMPT_ROWS, Engine
from edgert.session.plan import bytes_per_page
from edgert.text.generate import AHEAD, SINKS
from edgert.text.model import TextModel
from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer
from tests.tiny import EOS, SPECIAL, TEMPLATE, VOCAB, tiny_graph, tiny_tokenizer, tiny_weights

GRAPH = tiny_graph(quant="int4", context=512)
WEIGHTS = tiny_weights(GRAPH)
PAGE_BYTES = bytes_per_page(GRAPH, 16)
NO_END = {"logit_bias": {EOS: -100.0}}
PROMPTS = [f"{i} {'word ' * (7 * i % 23)}" for i in range(8)]
LONG = {"max_tokens": 300, **NO_END}


def make(folder: Path, threads: int = 1, **options: Any) -> TextModel:
    tokenizer = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    template = ChatTemplate(TEMPLATE, special, control=tokenizer.control)
    session = CpuSession(GRAPH, WEIGHTS, threads=threads, cache=folder, **options)
    return TextModel(session, tokenizer, template)


@pytest.fixture
def model(kernel_folder: Path) -> Iterator[TextModel]:
    with make(kernel_folder) as model:
        yield model
        gc.collect()
        pool = model.session.pool  # type: ignore[attr-defined]
        assert pool.indices.free == pool.pages, "a test kept pages"


class Recorder:
    """Stands in front of a session's step and keeps the rows of every feed."""

    def __init__(self, model: TextModel) -> None:
        self.model, self.turns = model, list[list[int]]()
        self.step, self.before = model.session.step, list[Callable[[], None]]()
        model.session.step = self  # type: ignore[method-assign, assignment]

    def __call__(self, feeds: Sequence[Feed]) -> list[StepResult]:
        self.turns.append([feed.rows for feed in feeds])
        while self.before:
            self.before.pop()()
        return self.step(feeds)


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [job.result(120) for job in [pool.submit(job) for job in jobs]]


# --- the same answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "top_k": 30, "repeat_penalty": 1.1}])
def test_eight_threads_get_what_each_gets_alone(
    kernel_folder: Path, threads: int, options: dict[str, Any]
) -> None:
    with make(kernel_folder, threads) as model:
        asked = [{"max_tokens": 40 + i, "seed": i, **options, **NO_END} for i in range(8)]
        alone = [model.generate(p, **o).token_ids for p, o in zip(PROMPTS, asked, strict=True)]
        seen = Recorder(model)
        seen.before.append(lambda: _until_all_are_here(model.engine, len(asked)))
        answers = together(
            [
                lambda p=p, o=o: model.generate(p, **o).token_ids
                for p, o in zip(PROMPTS, asked, strict=True)
            ]
        )
        assert answers == alone
        assert max(len(turn) for turn in seen.turns) > 2, "nothing was batched"


def _until_all_are_here(engine: Engine, count: int) -> None:
    """In the first step: on a busy machine it might be the last one of who came first."""
    end = time.monotonic() + 20
    while len(engine._queue) + len(engine._open) < count and time.monotonic() < end:
        time.sleep(0.001)


def test_conversations_scores_and_logits_share_the_loop(model: TextModel) -> None:
    from edgert.evaluation.scoring import Request, Scorer

    requests = [Request((1, 5, 9), (7, 9, i)) for i in range(2, 20)]
    ids = model.tokenize(PROMPTS[5])

    def talk() -> list[Any]:
        with model.conversation("be brief") as chat:
            return [chat.say(text, max_tokens=30, **NO_END).token_ids for text in ("one", "two")]

    jobs: list[Callable[[], Any]] = [
        talk,
        lambda: Scorer(model.session, model.engine).score(requests),
        lambda: model.logits(ids).tobytes(),
        lambda: model.generate(PROMPTS[3], **LONG).token_ids,
    ]
    alone = [job() for job in jobs]
    assert together([*jobs, *jobs]) == [*alone, *alone]


def test_a_long_prompt_delays_the_others_by_a_chunk_at_most(model: TextModel) -> None:
    seen, started = Recorder(model), threading.Event()

    def talk() -> tuple[int, ...]:
        stream = model.stream("a", **LONG)
        next(stream)
        started.set()
        return stream.finish().token_ids

    def ask() -> tuple[int, ...]:
        started.wait(60)
        return model.generate("x" * 500, max_tokens=4, **NO_END).token_ids

    together([talk, ask])
    mixed = [turn for turn in seen.turns if len(turn) == 2 and turn[1] > 1]
    assert len(mixed) > 3
    assert all(turn[0] == 1 and turn[1] <= PROMPT_ROWS for turn in mixed)


# --- who stops what ------------------------------------------------------------------------------


def test_cancelling_before_the_first_piece(model: TextModel) -> None:
    stream = model.stream("abc", **LONG)
    stream.cancel()
    answer = stream.finish()
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("cancelled", 0)
    stream = model.stream("abc", **LONG)
    model.cancel()
    assert stream.finish().finish_reason == "cancelled"
    assert list(stream) == []


def test_the_latest_request_is_the_one_that_the_model_cancels(model: TextModel) -> None:
    alone = model.generate("Alice", **LONG).token_ids
    first = model.stream("Alice", **LONG)
    next(first)
    second = model.stream("Bob", **LONG)
    next(second)
    model.cancel()
    assert second.finish().finish_reason == "cancelled"
    assert first.finish().token_ids == alone
    model.cancel()  # nothing is left to stop
    assert model.generate("Alice", **LONG).token_ids == alone


def test_cancelling_one_disturbs_none(model: TextModel) -> None:
    alone = [model.generate(p, **LONG).token_ids for p in PROMPTS]
    streams = [model.stream(p, **LONG) for p in PROMPTS]
    for stream in streams:
        next(stream)
    for stream in streams[::2]:
        stream.cancel()
    answers = together([stream.finish for stream in streams])
    assert [a.finish_reason for a in answers] == ["cancelled", "length"] * 4
    assert [a.token_ids for a in answers[1::2]] == alone[1::2]


def test_closing_a_stream_that_another_thread_reads(model: TextModel) -> None:
    stream, read = model.stream("a", **LONG), list[str]()
    reader = threading.Thread(target=lambda: read.extend(stream))
    started = threading.Event()
    Recorder(model).before.append(started.set)
    reader.start()
    assert started.wait(60)
    stream.close()
    stream.close()
    reader.join(60)
    assert not reader.is_alive()
    assert stream.result.finish_reason == "cancelled"
    assert "".join(read) == stream.result.text


def test_a_stream_belongs_to_no_thread(model: TextModel) -> None:
    alone = [model.generate(p, max_tokens=24, **NO_END).text for p in PROMPTS]
    streams = [model.stream(p, max_tokens=24, **NO_END) for p in PROMPTS]
    texts = [""] * len(streams)
    with ThreadPoolExecutor(3) as pool:
        left = set(range(len(streams)))
        while left:
            hops = {i: pool.submit(next, streams[i], None) for i in left}
            for i, hop in hops.items():
                piece = hop.result(60)
                texts[i] += piece or ""
                if piece is None:
                    left.remove(i)
    assert texts == alone


def test_nobody_waits_for_a_slow_reader(model: TextModel) -> None:
    slow = model.stream("slow", **LONG)
    next(slow)
    other = model.generate("quick", max_tokens=200, **NO_END)
    assert other.finish_reason == "length"
    (lane,) = model.engine._open
    assert lane.paused  # as far ahead as it may be, and no further
    assert len(slow._run.pieces) == AHEAD
    assert slow.finish().usage.completion_tokens == 300


def test_a_reader_that_vanishes_ends_its_answer(model: TextModel) -> None:
    stream = model.stream("a", **LONG)
    next(stream)
    del stream
    gc.collect()
    assert not model.engine._open

    kept: list[BaseException] = []

    def handler() -> None:
        try:
            for _ in model.stream("b", **LONG):
                raise ValueError("the client went away")
        except ValueError as error:
            kept.append(error)  # and with it the stream

    thread = threading.Thread(target=handler)
    thread.start()
    thread.join(60)
    assert model.generate("c", max_tokens=3).usage.completion_tokens
    kept.clear()
    gc.collect()
    assert not model.engine._open


def test_callbacks_and_failures_are_the_lanes_own(model: TextModel) -> None:
    alone = model.generate("well", **LONG).token_ids
    well = model.stream("well", **LONG)
    next(well)
    prompt = "x" * 400

    def nested(done: int, total: int) -> None:
        model.generate("y", max_tokens=1)

    def broken(done: int, total: int) -> None:
        raise KeyError("mine")

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(RequestError) as caught:
        model.generate(prompt, progress=nested)
    assert caught.value.code == "busy"
    with pytest.raises(KeyError, match="mine"):
        model.generate(prompt, progress=broken)
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt, progress=interrupted)
    assert well.finish().token_ids == alone


def test_one_bad_feed_fails_alone(model: TextModel) -> None:
    step = model.session.step

    def picky(feeds: Sequence[Feed]) -> list[StepResult]:
        if any(feed.tokens is not None and 77 in feed.tokens for feed in feeds):
            raise RequestError("token 77", code="picky")
        return step(feeds)

    alone = model.generate("good", max_tokens=5, logit_bias={77: -100.0}).token_ids
    model.session.step = picky  # type: ignore[method-assign, assignment]
    good = model.stream("good", max_tokens=5, logit_bias={77: -100.0})
    bad = model.stream([5, 77, 6], max_tokens=5)
    model.engine.submit(bad._run)
    bad._submitted = True
    assert good.finish().token_ids == alone
    with pytest.raises(RequestError, match="token 77"):
        bad.finish()


def test_too_many_requests(kernel_folder: Path) -> None:
    with make(kernel_folder) as model:
        model.engine = Engine(model.session, lanes=1, waiting=2)
        streams = [model.stream("a", max_tokens=100, **NO_END) for _ in range(3)]
        next(streams[0])
        for stream in streams[1:]:
            stream._submit()
        with pytest.raises(RequestError) as caught:
            model.generate("b", max_tokens=1)
        assert caught.value.code == "queue-full"
        streams[1].close()
        assert model.generate("b", max_tokens=1).usage.completion_tokens == 1
        streams[2].close()


def test_closing_the_model_ends_everybody(kernel_folder: Path) -> None:
    model = make(kernel_folder)
    errors: list[str] = []

    def talk() -> None:
        try:
            model.generate("a", max_tokens=480, **NO_END)
        except RequestError as error:
            errors.append(error.code)

    started = threading.Event()
    Recorder(model).before.append(started.set)
    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(60)
    model.close()
    model.close()
    for thread in threads:
        thread.join(60)
    assert errors == ["closed"] * 4


def test_a_turn_may_follow_one_that_was_dropped(model: TextModel) -> None:
    chat = model.conversation()
    busy = threading.Thread(target=lambda: model.generate("other", **LONG))
    started = threading.Event()
    Recorder(model).before.append(started.set)
    busy.start()
    started.wait(60)
    for turn in range(4):
        stream = chat.stream(f"turn {turn}", max_tokens=20, **NO_END)
        next(stream)
        if turn % 2:
            stream.cancel()
        del stream
    assert chat.say("last", max_tokens=3, **NO_END).usage.completion_tokens == 3
    assert len(chat.messages) == 10
    chat.close()
    busy.join(60)


# --- asyncio -------------------------------------------------------------------------------------


def test_asyncio_clients_at_the_same_time(model: TextModel) -> None:
    alone = [model.generate(p, max_tokens=100, **NO_END).text for p in PROMPTS]

    async def client(prompt: str) -> str:
        return "".join([piece async for piece in model.astream(prompt, max_tokens=100, **NO_END)])

    async def everybody() -> list[str]:
        chat = model.conversation()
        said, *texts = await asyncio.gather(
            chat.asay("hello", max_tokens=5, **NO_END), *(client(p) for p in PROMPTS)
        )
        assert said.message == chat.messages[-1]
        answer = await model.achat([{"role": "user", "content": "x"}], max_tokens=3, **NO_END)
        assert answer.usage.completion_tokens == 3
        return texts

    assert asyncio.run(everybody()) == alone
    assert model.engine._thread is None or model.engine._thread.join(10) is None


def test_an_async_task_that_is_cancelled_ends_its_answer(model: TextModel) -> None:
    alone = model.generate("stays", max_tokens=100, **NO_END).token_ids

    async def both() -> tuple[int, ...]:
        goes = asyncio.create_task(model.agenerate("goes", **LONG))
        stays = asyncio.create_task(model.agenerate("stays", max_tokens=100, **NO_END))
        async with model.astream("read a piece", **LONG) as stream:
            await anext(stream)
        assert stream.result.finish_reason == "cancelled"
        goes.cancel()
        with pytest.raises(asyncio.CancelledError):
            await goes
        return (await stays).token_ids

    assert asyncio.run(both()) == alone
    assert not model.engine._open


# --- memory --------------------------------------------------------------------------------------


def test_idle_conversations_make_room_and_come_back(kernel_folder: Path) -> None:
    def talk(model: TextModel) -> list[Any]:
        chats = [model.conversation() for _ in range(5)]
        says = [(chat, f"{turn} {'word ' * 30}") for turn in range(2) for chat in chats]
        return [chat.say(text, max_tokens=20, **NO_END).token_ids for chat, text in says]

    with make(kernel_folder) as model:
        wanted = talk(model)
    with make(kernel_folder, kv_memory=9 * PAGE_BYTES) as model:
        assert model.context == 512
        assert talk(model) == wanted


def test_answers_that_do_not_fit_together_take_turns(kernel_folder: Path) -> None:
    with make(kernel_folder) as model:
        wanted = [model.generate(p, **LONG).token_ids for p in PROMPTS]
    with make(kernel_folder, kv_memory=9 * PAGE_BYTES) as model:
        answers = together([lambda p=p: model.generate(p, **LONG).token_ids for p in PROMPTS])
        assert answers == wanted
        pool = model.session.pool  # type: ignore[attr-defined]
        assert pool.indices.free == pool.pages


def test_a_context_that_does_not_fit_is_shortened(
    kernel_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make(kernel_folder, kv_memory=3 * PAGE_BYTES + 7) as model:
        assert model.context == 192
        assert "a context of 512 tokens needs" in caplog.text
        assert model.generate("a", **NO_END).usage.completion_tokens == 191


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_full_context_moves_on(kernel_folder: Path, temperature: float) -> None:
    asked = {"max_tokens": 700, "temperature": temperature, "seed": 4, **NO_END}
    with make(kernel_folder, context=128) as model:
        with pytest.raises(RequestError, match="the context holds 128"):
            model.generate("sink", **asked)
        stream = model.stream("sink", context_shift=True, **asked)
        answer = stream.finish()
        assert answer.usage.completion_tokens == 700
        run = stream._run
        assert len(run.sequence) <= 128
        assert run.sequence[:SINKS] == run.tokens[:SINKS]
        assert run.sequence[SINKS:] == run.tokens[-len(run.sequence) + SINKS :]
        fresh = model.generate(run.sequence[:100], max_tokens=5, **NO_END)
        assert fresh.usage.completion_tokens == 5
        again = together([lambda: model.generate("sink", context_shift=True, **asked)] * 3)
        assert {a.token_ids for a in again} == {answer.token_ids}


def test_an_endless_chat_leaves_out_its_oldest_turns(kernel_folder: Path) -> None:
    with make(kernel_folder, context=128) as model:
        chat = model.conversation("be brief", context_shift=True)
        for turn in range(12):
            answer = chat.say(f"turn {turn}", max_tokens=10, **NO_END)
            assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 128
        assert len(chat.messages) == 25
        assert chat.messages[0]["content"] == "be brief"
        assert chat._left_out > 0
        shown = [chat.messages[0], *chat.messages[1 + chat._left_out : -1]]
        fresh = model.chat(shown, max_tokens=10, **NO_END)
        assert fresh.token_ids == answer.token_ids


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_and_may_load(tmp_path: Path, kernel_folder: Path) -> None:
    from tests.tiny import tiny_bundle

    path = tiny_bundle(tmp_path / "t.edge", graph=GRAPH, weights=WEIGHTS)
    code = f"""
import os, threading, edgert
options = dict(max_tokens=400, logit_bias={{1: -100.0}})
model = edgert.load({str(path)!r}, threads=2)
go = threading.Event()
def talk():
    for piece in model.stream("a", **options): go.set()
thread = threading.Thread(target=talk); thread.start(); go.wait()
child = os.fork()
if child == 0:
    for use in (lambda: model.generate("b"), lambda: model.conversation().say("c")):
        try: use()
        except edgert.RequestError as error: print(error.code, flush=True)
    model.close()
    with edgert.load({str(path)!r}, threads=1) as other:
        print(other.generate("b", max_tokens=3, logit_bias={{1: -100.0}}).usage.completion_tokens)
    os.sys.stdout.flush(); os._exit(0)
print("child", os.waitpid(child, 0)[1], flush=True)
thread.join(); model.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "EDGERT_CACHE": str(kernel_folder)},
    )  # fmt: skip
    assert done.stdout.split() == ["fork", "fork", "3", "child", "0"], done.stderr


def test_the_interpreter_ends_while_async_answers_run(tmp_path: Path, kernel_folder: Path) -> None:
    from tests.tiny import tiny_bundle

    path = tiny_bundle(tmp_path / "t.edge", graph=GRAPH, weights=WEIGHTS)
    code = f"""
import asyncio, edgert
model = edgert.load({str(path)!r}, threads=2)
async def main():
    stream = model.astream("a", max_tokens=480, logit_bias={{1: -100.0}})
    print(len(await anext(stream)) >= 0)
    globals()["kept"] = stream
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "EDGERT_CACHE": str(kernel_folder)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stderr
    assert "Traceback" not in done.stderr
