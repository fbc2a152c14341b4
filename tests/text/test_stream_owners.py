"""Streams that change hands, end elsewhere, or whose event loop has other things to do."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import RequestError
from edgert.session.base import Feed, StepResult
from edgert.text.generate import AHEAD
from edgert.text.model import TextModel
from tests.text.test_engine import LONG, NO_END, make

SHORT = {"max_tokens": 100, **NO_END}


@pytest.fixture
def model(kernel_folder: Path) -> Iterator[TextModel]:
    with make(kernel_folder) as model:
        yield model
        gc.collect()
        assert not model.engine._open


class Gate:
    """Holds the steps of a thread that drives while it is shut; says whether one ever waited for
    more than a few seconds."""

    def __init__(self, model: TextModel) -> None:
        self.step, self.open, self.entered = (
            model.session.step,
            threading.Event(),
            threading.Event(),
        )
        self.late = False
        self.open.set()
        model.session.step = self  # type: ignore[method-assign, assignment]

    def __call__(self, feeds: Sequence[Feed]) -> list[StepResult]:
        if not self.open.is_set():
            self.entered.set()
            self.late |= not self.open.wait(5)
        return self.step(feeds)

    async def shut(self) -> None:
        """Until the loop opens it, which a loop that is blocked never does."""
        self.open.clear()
        while not self.entered.is_set():
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.05, self.open.set)


def others(model: TextModel) -> threading.Thread:
    thread = threading.Thread(target=lambda: model.generate("others", max_tokens=400, **NO_END))
    thread.start()
    return thread


# --- the event loop goes on ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aclose", "with", "task"])
def test_an_answer_with_unread_pieces_ends_and_the_event_loop_goes_on(
    model: TextModel, how: str
) -> None:
    gate = Gate(model)

    async def main() -> None:
        thread = others(model)
        async with model.astream("a", **LONG) as stream:
            await anext(stream)
            while len(stream._run.pieces) < 3:
                await asyncio.sleep(0.001)
            await gate.shut()
            if how == "aclose":
                await stream.aclose()
            if how == "task":
                await asyncio.gather(stream.aclose(), stream.aclose())
        assert stream.result.finish_reason == "cancelled"
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert not gate.late


def test_a_task_may_close_what_another_one_reads(model: TextModel) -> None:
    gate = Gate(model)

    async def main() -> None:
        thread, stream = others(model), model.astream("a", **LONG)

        async def read() -> str:
            return "".join([piece async for piece in stream])

        reader = asyncio.create_task(read())
        await gate.shut()
        await stream.aclose()
        assert await reader == stream.result.text
        assert stream.result.finish_reason == "cancelled"
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert not gate.late


def test_a_turn_after_a_cancelled_one_does_not_hold_the_event_loop(model: TextModel) -> None:
    gate, chat = Gate(model), model.conversation()

    async def main() -> None:
        thread = others(model)
        first = chat.astream("one", **LONG)
        await anext(first)
        await gate.shut()
        first.cancel()
        second, third = chat.astream("two", **SHORT), chat.astream("three", **SHORT)
        dropped = chat.astream("four", **SHORT)
        await dropped.aclose()
        assert not gate.open.is_set()
        answer = await second.finish()
        assert gate.open.is_set()
        assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
        assert chat.messages[1]["content"] == first.result.text
        assert answer.finish_reason == "length"
        fresh = model.chat(chat.messages[:3], **SHORT)
        assert fresh.token_ids == answer.token_ids
        with pytest.raises(RequestError) as caught:
            await third.finish()
        assert caught.value.code == "conversation-order"
        gate.entered.clear()
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert not gate.late


def test_a_paused_answer_ends_though_the_lock_was_taken_when_it_was_cancelled(
    model: TextModel,
) -> None:
    async def main() -> None:
        stream = model.astream("a", **LONG)
        await anext(stream)
        # One less than there is room for where the loop paused before the first piece was taken.
        while len(stream._run.pieces) < AHEAD - 1 or model.engine._thread is not None:
            await asyncio.sleep(0.001)
        with model.engine._lock:
            stream.cancel()
        assert not stream._run.done
        await asyncio.wait_for(stream.aclose(), 10)
        assert stream.result.finish_reason == "cancelled"

    asyncio.run(main())


# --- from a thread to asyncio --------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 5])
def test_a_stream_goes_on_as_an_async_one(model: TextModel, read: int) -> None:
    alone = model.generate("a", **SHORT)

    async def main() -> None:
        with model.stream("a", **SHORT) as stream:
            pieces = [next(stream) for _ in range(read)]
            moved = stream.to_async()
        for use in ("__next__", "finish", "to_async"):
            with pytest.raises(RequestError) as caught:
                getattr(stream, use)()
            assert caught.value.code == "stream-moved"
        del stream, caught
        gc.collect()
        pieces += [piece async for piece in moved]
        assert "".join(pieces) == alone.text
        assert moved.result.token_ids == alone.token_ids

    asyncio.run(main())


def test_a_stream_that_moved_can_still_be_cancelled(model: TextModel) -> None:
    stream = model.stream("a", **LONG)
    next(stream)
    moved = stream.to_async()
    stream.cancel()
    assert asyncio.run(moved.finish()).finish_reason == "cancelled"


def test_a_stream_that_another_thread_reads_does_not_move(model: TextModel) -> None:
    gate, stream = Gate(model), model.stream("a", **LONG)
    gate.open.clear()
    reader = threading.Thread(target=stream.finish)
    reader.start()
    gate.entered.wait(10)
    with pytest.raises(RequestError) as caught:
        stream.to_async()
    gate.open.set()
    reader.join(30)
    assert (caught.value.code, stream.result.finish_reason) == ("busy", "length")


# --- conversations -------------------------------------------------------------------------------


def test_a_turn_may_begin_while_its_conversation_is_saved(model: TextModel, tmp_path: Path) -> None:
    chat = model.conversation()
    chat.say("one", max_tokens=5, **NO_END)
    assert chat._memory._content is not None
    state = chat._memory._content[0]
    copy, answers = state.snapshot, list[Any]()

    def turn() -> None:
        answers.append(chat.say("two", max_tokens=5, **NO_END))

    thread = threading.Thread(target=turn)

    def slow() -> dict[str, Any]:
        thread.start()
        thread.join(0.1)
        return copy()

    state.snapshot = slow  # type: ignore[method-assign]
    chat.save(tmp_path / "chat.state")
    thread.join(30)
    del state.snapshot
    assert answers[0].usage.cached_tokens > 0
    assert chat._memory._content is not None
    held, fed = chat._memory._content
    assert (held, held.length) == (state, len(fed))
    assert len(fed) > answers[0].usage.prompt_tokens
    chat.close()
    with model.restore(tmp_path / "chat.state") as old:
        assert old.say("two", max_tokens=5, **NO_END).token_ids == answers[0].token_ids


def test_dropped_conversations_are_forgotten(model: TextModel) -> None:
    for _ in range(5):
        model.conversation().say("x", max_tokens=2, **NO_END)
    gc.collect()
    assert not model.engine._parked


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_by_a_stream_that_its_parent_reads(
    kernel_folder: Path,
) -> None:
    code = f"""
import asyncio, os, signal, threading, edgert
from pathlib import Path
from tests.text.test_engine import make
options = dict(max_tokens=400, logit_bias={{1: -100.0}})
model = make(Path({str(kernel_folder)!r}))
step, entered, go = model.session.step, threading.Event(), threading.Event()
def slow(feeds): entered.set(); go.wait(); return step(feeds)
model.session.step = slow
stream, other, chat = model.stream("a", **options), model.astream("b"), model.conversation()
thread = threading.Thread(target=stream.finish); thread.start(); entered.wait()
with chat._memory._lock, model.engine._lock: child = os.fork()
if child == 0:
    signal.alarm(30)
    model.engine._lock.acquire(); chat._memory._lock.acquire()  # as if another thread had had them
    uses = [lambda: next(stream), stream.finish, stream.to_async,
            lambda: asyncio.run(anext(other)), lambda: asyncio.run(other.finish())]
    for use in uses:
        try: use()
        except edgert.RequestError as error: print(error.code, flush=True)
    stream.cancel(); stream.close(); stream.close(); asyncio.run(other.aclose()); chat.close()
    print(chat.nbytes, flush=True)
    os._exit(0)
print("child", os.waitpid(child, 0)[1], flush=True)
go.set(); thread.join(); model.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.split() == ["fork"] * 5 + ["0", "child", "0"], done.stderr
