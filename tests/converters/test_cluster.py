"""Workers of a real dask cluster: two processes on this machine, some of which are killed."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgert.converters import cluster as module
from edgert.converters.workers import open_workers

from edgert.errors import ConvertError, ResourceError

from ..conftest import ROOT
from . import jobs

pytest.importorskip("distributed", reason="the extra [cluster] is not installed")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.converters.dask_cluster"], cwd=ROOT,
        env=os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = process.stdout.readline().strip()
        assert found.startswith("tcp://")
        yield found
    finally:
        process.communicate(timeout=60)
        process.kill()


def test_a_cluster_gives_the_bits_of_one_process_in_the_same_order(address: str) -> None:
    assert next(jobs.layers(1)).weight.nbytes + next(jobs.layers(1)).gram.nbytes < (
        module.SCATTERED
    ), "these travel with the task; those of the test below are sent to their worker"
    with open_workers() as here, open_workers(cluster=address) as there:
        wanted = [pickle.dumps(found) for found in here.run(jobs.factor, jobs.layers(6))]
        assert [pickle.dumps(found) for found in there.run(jobs.factor, jobs.layers(6))] == wanted
        assert len(set(there.run(jobs.where, range(8)))) == 2
        assert next(there.run(jobs.blas_threads, [0]))[1] in (0, 1)


def test_a_cluster_takes_jobs_as_it_needs_them(address: str) -> None:
    taken: list[int] = []

    def work() -> Iterator[tuple[int, float]]:
        for x in range(60):
            taken.append(x)
            yield x, 0.0

    with open_workers(cluster=address) as crew:
        results = crew.run(jobs.slow_square, work())
        assert next(results) == 0
        assert len(taken) <= 8
        assert list(results) == [x * x for x in range(1, 60)]


def test_what_a_function_raises_on_a_cluster_comes_through(address: str) -> None:
    with open_workers(cluster=address) as crew:
        results = crew.run(jobs.refuse, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError, match="no 2") as info:
            next(results)
        assert "in refuse" in str(info.value.__cause__)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            next(crew.run(jobs.square, [lambda: 0]))


@pytest.mark.parametrize("size", [1 << 10, 2 << 20], ids=["small", "scattered"])
def test_a_worker_that_is_killed_mid_way(address: str, tmp_path: Path, size: int) -> None:
    inputs = [(tmp_path, x, np.zeros(size, np.uint8)) for x in range(9)]
    with open_workers(cluster=address) as crew:
        assert list(crew.run(jobs.die_once, inputs)) == [x * x for x in range(9)]
    assert len(list(tmp_path.glob("3.*"))) == 2


def test_a_job_that_kills_a_clusters_workers_is_named(address: str) -> None:
    with open_workers(cluster=address) as crew:
        with pytest.raises(ResourceError) as info:
            list(crew.run(jobs.die, range(3), names=["l0.q", "l0.down", "l0.up"]))
        assert "l0.down: the worker that computed it ended" in info.value.message
        assert list(crew.run(jobs.square, [2])) == [4]


SCRIPT = """
import sys
from edgert.converters.workers import open_workers
from tests.converters import jobs
with open_workers(cluster=sys.argv[1]) as crew:
    results = crew.run(jobs.slow_square, [(0, 0.0), (1, 8.0), (2, 8.0), (3, 8.0)])
    print(next(results), flush=True)
    next(results)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_does_not_wait_for_the_cluster(address: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, address], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - start < 6
        assert process.returncode == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
    finally:
        process.kill()


@pytest.mark.parametrize("listening", [False, True], ids=["closed", "silent"])
def test_nobody_there(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT", 1.5)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if listening:
            port.listen()
        address = f"tcp://127.0.0.1:{port.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ResourceError) as info, open_workers(cluster=address):
            pass
        assert time.monotonic() - start < 10
    assert f"the dask scheduler at {address} does not answer within 1.5 s" in info.value.message
    assert "`dask scheduler`" in info.value.hint


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(module, "CONNECT", 1.5)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(ResourceError, match="has no workers"),
        open_workers(cluster=empty.scheduler.address),
    ):
        pass


def test_no_address() -> None:
    with (
        pytest.raises(ConvertError, match="expected tcp://host:port"),
        open_workers(cluster="carrier-pigeon://here"),
    ):
        pass
