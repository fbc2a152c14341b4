"""The CPU session's threads: cancelling, closing, interrupts, idleness, and steady memory."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgert.errors import EdgertError, RequestError, ResourceError
from edgert.roles import vocab_size
from edgert.session import team
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession

from ..tiny import tiny_graph, tiny_weights

F32 = NDArray[np.float32]
ROWS = 256
# Large enough that a full step takes a while: about 20 ms a core.
GRAPH = tiny_graph(quant="int4", context=512, width=128, heads=8, ff=256, layers=8)
WEIGHTS = tiny_weights(GRAPH)
TOKENS = np.random.default_rng(2).integers(0, vocab_size(GRAPH), ROWS).astype(np.int32)


@pytest.fixture(autouse=True)
def own_team(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of a test have a team of their own: models that other files' fixtures keep open in
    this process hold theirs."""
    monkeypatch.setattr(team, "_team", None)


@pytest.fixture(params=[1, 2, 3])
def session(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[CpuSession]:
    made = CpuSession(GRAPH, WEIGHTS, threads=request.param, cache=kernel_folder)
    yield made
    made.close()


def prefill(session: CpuSession) -> F32:
    """The last logits of a full step on a state of its own."""
    state = session.new_state()
    try:
        return session.step([Feed(state, TOKENS)])[0].logits
    finally:
        state.close()


def until_cancelled(session: CpuSession, work: Callable[[], object]) -> None:
    """Run `work` again and again while another thread cancels, until that is noticed."""
    done = threading.Event()

    def keep_cancelling() -> None:
        while not done.wait(0.002):
            session.cancel()

    other = threading.Thread(target=keep_cancelling)
    other.start()
    try:
        with pytest.raises(RequestError, match="cancelled") as caught:  # noqa: PT012
            for _ in range(1000):
                work()
        assert caught.value.code == "cancelled"
    finally:
        done.set()
        other.join()


def test_cancel_ends_a_step_and_only_that(session: CpuSession) -> None:
    expected = prefill(session)
    for _ in range(10):
        until_cancelled(session, lambda: prefill(session))
        assert np.array_equal(prefill(session), expected)
    assert session.pool.indices.free == session.pool.pages


def test_a_cancelled_step_leaves_the_state_as_it_was(session: CpuSession) -> None:
    state = session.new_state()
    session.step([Feed(state, TOKENS[:70], "none")])
    state.commit(70)
    pages = len(state.pages)
    expected = session.step([Feed(state, TOKENS[70:80], "all")])[0].logits
    state.rewind(70)

    def long_step() -> None:
        session.step([Feed(state, TOKENS[::-1], "none")])
        state.rewind(70)

    until_cancelled(session, long_step)
    assert (state.length, state.pending, len(state.pages)) == (70, 0, pages)
    assert np.array_equal(session.step([Feed(state, TOKENS[70:80], "all")])[0].logits, expected)


def test_cancelling_nothing_does_nothing(session: CpuSession) -> None:
    expected = prefill(session)
    session.cancel()
    assert np.array_equal(prefill(session), expected)


def test_two_threads_share_a_session(session: CpuSession) -> None:
    """Steps are taken one after the other."""
    expected, wrong = prefill(session), []

    def work() -> None:
        for _ in range(5):
            if not np.array_equal(prefill(session), expected):
                wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_close_waits_for_a_step_and_refuses_the_next(session: CpuSession) -> None:
    expected = prefill(session)
    results: list[object] = []

    def work() -> None:
        try:
            while True:
                results.append(np.array_equal(prefill(session), expected))
        except EdgertError as error:
            results.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(results) < 4:
        time.sleep(0.001)
    session.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert results.count("session-closed") == 3
    assert set(results) == {True, "session-closed"}


def test_a_closed_session_is_refused(session: CpuSession) -> None:
    state = session.new_state()
    workers = session._team._workers
    session.step([Feed(state, TOKENS[:5])])
    session.close()
    session.close()
    for use in (session.new_state, lambda: session.step([Feed(state, TOKENS[:1])])):
        with pytest.raises(RequestError) as caught:
            use()
        assert caught.value.code == "session-closed"
    assert not any(worker.is_alive() for worker in workers)
    state.close()


def test_a_state_closed_during_a_step_keeps_its_pages_until_the_end(session: CpuSession) -> None:
    """Kernels still write there: another sequence must not get them before."""
    state, seen = session.new_state(), list[int]()
    run = session.program().execute

    def closing(*, small: bool = False) -> None:
        state.close()
        seen.append(session.pool.pages - session.pool.indices.free)
        run(small=small)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.program(), "execute", closing)
        session.step([Feed(state, TOKENS[:100])])
    assert seen == [2]
    assert session.pool.indices.free == session.pool.pages
    for use in (lambda: state.commit(1), lambda: state.rewind(0)):
        with pytest.raises(RequestError) as caught:
            use()
        assert caught.value.code == "state-closed"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_a_step_is_opened(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C between telling the workers and taking part: nobody is left waiting, the next steps
    are right."""
    session = CpuSession(GRAPH, WEIGHTS, threads=3, cache=kernel_folder)
    expected, team = prefill(session), session._team
    for _ in range(20):

        def interrupted(*step: int, begin: Callable[..., None] = team.begin) -> None:
            if moment == "after":
                begin(*step)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(team, "begin", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prefill(session)
        assert np.array_equal(prefill(session), expected)
        state = session.new_state()
        for token in range(10):
            session.step([Feed(state, TOKENS[token : token + 1])])
            state.commit(1)
        state.close()
    session.close()
    assert not any(worker.is_alive() for worker in team._workers)


def test_a_thread_that_cannot_be_started(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "edgert-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResourceError, match="thread 3 of 3 could not be started") as caught:
            CpuSession(GRAPH, WEIGHTS, threads=3, cache=kernel_folder)
        assert caught.value.code == "threads-start"
    assert threading.active_count() == before, "a team that cannot work was left behind"
    session = CpuSession(GRAPH, WEIGHTS, threads=3, cache=kernel_folder)
    prefill(session)
    session.close()


def test_a_step_that_ends_while_another_counts_cores(kernel_folder: Path) -> None:
    """Cores are given back without the lock, so that an interrupt loses none."""
    session = CpuSession(GRAPH, WEIGHTS, threads=1, cache=kernel_folder)
    team = session._team

    class Ending(NamedTuple):
        workers: list[object]

        @property
        def threads(self) -> int:
            team._held.pop(-2, None)
            return 1

    try:
        team._held.update({-1: Ending([]), -2: Ending([])})
        assert team._idle_cores() == team.cores - 2
        assert team._idle_cores() == team.cores - 1
    finally:
        team._held.clear()
        session.close()


def test_sessions_share_one_team(kernel_folder: Path) -> None:
    """However many models are loaded, there are as many workers as the largest asks for."""
    before = threading.active_count()
    sessions = [CpuSession(GRAPH, WEIGHTS, threads=n, cache=kernel_folder) for n in (2, 3, 1, 3)]
    assert len({id(session._team) for session in sessions}) == 1
    assert threading.active_count() == before + 2
    expected = prefill(sessions[0])
    wrong: list[int] = []

    def work(session: CpuSession) -> None:
        for _ in range(10):
            if not np.array_equal(prefill(session), expected):
                wrong.append(session.threads)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong
    for session in sessions[:-1]:
        session.close()
    assert np.array_equal(prefill(sessions[-1]), expected), "the team ended with its first user"
    sessions[-1].close()
    assert threading.active_count() == before


def test_cancel_reaches_one_session_of_two(kernel_folder: Path) -> None:
    first, second = (CpuSession(GRAPH, WEIGHTS, threads=2, cache=kernel_folder) for _ in range(2))
    expected, results = prefill(second), list[bool]()
    other = threading.Thread(
        target=lambda: [results.append(np.array_equal(prefill(second), expected)) for _ in range(9)]
    )
    other.start()
    until_cancelled(first, lambda: prefill(first))
    other.join(timeout=60)
    assert results == [True] * 9
    first.close()
    second.close()


def test_an_idle_team_burns_no_cpu(session: CpuSession) -> None:
    state = session.new_state()
    for token in TOKENS[:20]:
        session.step([Feed(state, np.array([token]))])
        state.commit(1)
    time.sleep(0.2)  # workers look out for the next step for some milliseconds
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("session", [1, 2], indirect=True)
def test_nothing_is_kept_per_token(session: CpuSession) -> None:
    """Rejected drafts among the tokens, within one window of positions.

    What is kept for each token shows in every stretch of steps, so the median stretch is judged:
    one that a busy machine or the allocator made grow for its own reasons tells nothing. Stretches
    are long because the C heap grows by 132 kB at a time: 200 bytes kept for a token are found."""
    state, steps = session.new_state(), 1000

    def generate(count: int) -> None:
        for i in range(count):
            if state.length > 120:
                state.rewind(60)
            session.step([Feed(state, TOKENS[i % 200 : i % 200 + 1 + i % 4], "all")])
            state.commit(1)

    traced, rss = [], []
    tracemalloc.start()
    try:
        generate(steps)  # the free lists of Python and NumPy fill up
        for _ in range(6):
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
            rss.append(resident())
            generate(steps)
    finally:
        tracemalloc.stop()
    python, everything = np.diff(traced), np.diff(rss)
    told = f"in {steps} steps: {python} bytes of Python memory, {everything} of all memory"
    print(told)
    assert np.median(python) < steps * 24, told
    assert np.median(everything) < 64 << 10, told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_child_of_a_fork_in_the_middle_of_a_step_is_told_so(session: CpuSession) -> None:
    with session._lock:  # as a thread that steps holds it
        child = os.fork()
        if child == 0:
            code = 3
            try:
                session.step([Feed(session.new_state(), TOKENS[:1])])
            except RequestError as error:
                session.close()
                code = 0 if error.code == "fork" else 4
            finally:
                os._exit(code)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(prefill(session)) == 1


def test_an_interrupt_cannot_leave_the_queue_locked(
    session: CpuSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A condition is entered by Python code, in the middle of which an interrupt may come: its lock
    is then held for ever. So nobody enters it."""

    def enter(self: threading.Condition) -> bool:
        self.acquire()
        raise KeyboardInterrupt

    expected = prefill(session)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "__enter__", enter)
        np.testing.assert_array_equal(prefill(session), expected)
    found: list[F32] = []
    other = threading.Thread(target=lambda: found.append(prefill(session)), daemon=True)
    other.start()
    other.join(20)
    np.testing.assert_array_equal(found[0], expected)
