"""Workers: order, laziness, equal bits, killed processes, Ctrl-C, and nothing left running."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from edgert.converters import blas
from edgert.converters.job_line import Line
from edgert.converters.workers import open_workers

from edgert.errors import ConvertError, EdgertError, ResourceError

from ..conftest import ROOT
from . import jobs

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def children() -> set[int]:
    """Workers of this process that run."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if "resource_tracker" not in "".join(p.cmdline())}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def counted(count: int, taken: list[int]) -> Iterator[int]:
    for x in range(count):
        taken.append(x)
        yield x


def test_in_this_process_it_is_lazy_and_starts_no_other() -> None:
    taken: list[int] = []
    with open_workers() as crew:
        results = crew.run(jobs.where, counted(9, taken))
        assert next(results) == os.getpid()
        assert taken == [0]
        assert list(results) == [os.getpid()] * 8
        unpicklable = crew.run(lambda x: x + 1, [1, 2])
        assert list(unpicklable) == [2, 3]


def test_results_come_in_the_order_of_jobs_and_jobs_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    with open_workers(2) as crew:
        work = ((x, 0.3 if x == 0 else 0.0) for x in counted(40, taken))
        results = crew.run(jobs.slow_square, work)
        assert next(results) == 0
        assert len(taken) <= 4
        assert list(results) == [x * x for x in range(1, 40)]
        assert list(crew.run(jobs.square, [])) == []
        here = set(crew.run(jobs.where, range(8)))
        assert os.getpid() not in here
        assert 1 <= len(here) <= 2


def test_several_processes_give_the_bits_of_one() -> None:
    """Whitening and COMPOT of matrices on which one and two BLAS threads do not agree."""
    found = {}
    for count in (1, 3):
        with open_workers(count) as crew:
            results = crew.run(jobs.factor, jobs.layers(4), names=(x.name for x in jobs.layers(4)))
            found[count] = [pickle.dumps(result) for result in results]
    assert found[1] == found[3]


@pytest.mark.skipif(not blas.settable(), reason="NumPy's BLAS is no OpenBLAS")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_job_has_the_threads_that_were_asked_for(threads: int) -> None:
    before = jobs.blas_threads(0)
    with open_workers(threads=threads) as here, open_workers(2, threads=threads) as there:
        assert next(here.run(jobs.blas_threads, [0]))[1] == threads
        assert next(there.run(jobs.blas_threads, [0])) == (str(threads), threads)
        assert jobs.blas_threads(0) == before


def test_where_blas_cannot_be_told_one_job_at_a_time_has_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas, "settable", lambda: False)
    with open_workers() as crew:
        (found,) = set(crew.run(jobs.where, range(3)))
    assert found != os.getpid()


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_function_raises_comes_through_in_its_place(count: int) -> None:
    with open_workers(count) as crew:
        results = crew.run(jobs.refuse, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError, match="no 2") as info:
            next(results)
        if count > 1:
            assert "in refuse" in str(info.value.__cause__)
        with pytest.raises(MemoryError):
            next(crew.run(jobs.memory, [0]))
        assert list(crew.run(jobs.square, [3, 4])) == [9, 16]


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_jobs_raise_comes_after_the_results_before_it(count: int) -> None:
    def work() -> Iterator[int]:
        yield 5
        raise ConvertError("layer 2 cannot be read")

    with open_workers(count) as crew:
        results = crew.run(jobs.square, work())
        assert next(results) == 25
        with pytest.raises(ConvertError, match="layer 2"):
            next(results)


def test_a_job_that_cannot_travel_is_an_error_and_costs_no_worker() -> None:
    with open_workers(2) as crew:
        results = crew.run(jobs.square, [3, lambda: 0, 4])
        assert next(results) == 9
        with pytest.raises((AttributeError, pickle.PicklingError)):
            next(results)
        assert next(crew.run(jobs.huge, [1])).nbytes == 3 << 20


@POSIX
def test_a_killed_worker_costs_one_job_once(tmp_path: Path) -> None:
    inputs = [(tmp_path, x, np.zeros(1 << 20, np.uint8)) for x in range(8)]
    with open_workers(2) as crew:
        assert list(crew.run(jobs.die_once, inputs)) == [x * x for x in range(8)]
    tries = [len(list(tmp_path.glob(f"{x}.*"))) for x in range(8)]
    assert tries == [1, 1, 1, 2, 1, 1, 1, 1]


@POSIX
def test_a_job_that_kills_its_workers_is_named() -> None:
    with open_workers(2) as crew:
        results = crew.run(jobs.die, range(3), names=["l0.q", "l0.down", "l0.up"])
        assert next(results) == 0
        with pytest.raises(ResourceError) as info:
            next(results)
        assert list(crew.run(jobs.square, [2])) == [4]
    assert "l0.down: the worker that computed it ended 3 times, the last time by SIGKILL" in (
        info.value.message
    )
    assert "fewer workers" in info.value.hint
    with open_workers(2) as crew, pytest.raises(ResourceError, match=r"job 0.*with exit code 7"):
        list(crew.run(jobs.exits, range(1)))


@POSIX
def test_a_worker_that_dies_while_much_is_sent_leaves_nobody_waiting() -> None:
    """Its pipe holds a few kilobytes; the job has 64 MB."""
    with open_workers(2) as crew:
        assert len(set(crew.run(jobs.where, range(2)))) >= 1
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        big = np.zeros(64 << 20, np.uint8)
        assert next(crew.run(jobs.where, [big])) in children()


def test_results_that_nobody_takes_end_their_workers_at_once() -> None:
    with open_workers(2) as crew:
        results = crew.run(jobs.slow_square, ((x, 0.0 if x < 2 else 60.0) for x in range(9)))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="at work"):
            next(crew.run(jobs.square, [1]))
        start = time.monotonic()
        results.close()  # type: ignore[attr-defined]
        assert list(crew.run(jobs.square, [7])) == [49]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_numbers_out_of_range(count: int) -> None:
    with pytest.raises(ConvertError, match="expected 1 to 1024"), open_workers(count):
        pass
    with pytest.raises(ConvertError, match="threads of workers"), open_workers(2, threads=count):
        pass
    with pytest.raises(ConvertError, match="one of them"), open_workers(2, "tcp://127.0.0.1:1"):
        pass


SCRIPT = """
from edgert.converters.workers import open_workers
from tests.converters import jobs
if __name__ == "__main__":
    with open_workers(2) as crew:
        for pid in crew.run(jobs.where, range(2)):
            print(pid, flush=True)
        for _ in crew.run(jobs.slow_square, [(x, 300.0) for x in range(4)]):
            pass
"""


def ended_by(number: int, tmp_path: Path, *, group: bool) -> tuple[int, str]:
    """Exit code and errors of a script with two busy workers, after a signal; all must end."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(path)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != int(process.stdout.readline())
        deadline = time.monotonic() + 60
        while len(family := psutil.Process(process.pid).children(recursive=True)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        (os.killpg if group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=20)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        return process.returncode, errors
    finally:
        process.kill()


@POSIX
@pytest.mark.parametrize("group", [True, False], ids=["terminal", "process"])
def test_ctrl_c_ends_all_at_once(tmp_path: Path, group: bool) -> None:
    code, errors = ended_by(signal.SIGINT, tmp_path, group=group)
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1, "the workers say nothing"
    assert errors.rstrip().endswith("KeyboardInterrupt")


@POSIX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path, number: int) -> None:
    code, _ = ended_by(number, tmp_path, group=False)
    assert code == -number


def test_a_cluster_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgert.extras.find_spec", lambda name: None)
    with pytest.raises(EdgertError) as info, open_workers(cluster="tcp://127.0.0.1:1"):
        pass
    assert "needs the package distributed" in info.value.message
    assert "edgert[cluster]" in info.value.hint


def test_a_line_gives_a_job_three_tries() -> None:
    line = Line([1], ["a"], ahead=1)
    for _ in range(3):
        job = line.next()
        assert job is not None
        line.killed(job, "by SIGKILL")
    with pytest.raises(ResourceError, match="3 times"):
        next(line.ready())
