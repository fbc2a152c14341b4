"""Ctrl-C while kernels are compiled."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from edgert.kernels.cpu.interrupts import held_back

from ..fresh import python
from ..tiny import tiny_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def interrupted(done: list[bool], then: Callable[[], object]) -> None:
    with held_back():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(True)
        then()
        done.append(True)


@pytest.mark.parametrize(("then", "count"), [(list, 2), (lambda: 1 / 0, 1)])
def test_a_signal_is_handled_on_leaving(then: Callable[[], object], count: int) -> None:
    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done, then)
    assert len(done) == count
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_is_handled_at_once() -> None:
    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert done == [True]


def test_other_threads_and_ignored_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_inside_the_compiler(tmp_path: Path) -> None:
    """Python drops an interrupt inside a callback of LLVM and prints its traceback."""
    bundle, cache = tiny_bundle(tmp_path / "t.edge"), tmp_path / "cache"
    code = (
        "import os, signal\n"
        "from numba.core.codegen import CPUCodeLibrary as library\n"
        "before, hits = library._object_getbuffer_hook, []\n"
        "def hit(cls, module):\n"
        "    hits or os.kill(os.getpid(), signal.SIGINT)\n"
        "    hits.append(module)\n"
        "    return before(module)\n"
        "library._object_getbuffer_hook = classmethod(hit)\n"
        "from edgert.cli import main\nmain()\n"
    )
    args = ("generate", str(bundle), "-p", "a", "-n", "1", "-t", "1")
    env = {"EDGERT_CACHE": str(cache), "EDGERT_KERNEL_LIBRARY": "0"}
    done = python(code, *args, env=env)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in cache.rglob("*") if ".tmp." in path.name]


def test_a_suite_in_a_shells_background_hears_ctrl_c_all_the_same() -> None:
    """Such a shell starts its programs with SIGINT ignored."""
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "shown = 'import signal; print(signal.getsignal(signal.SIGINT).__name__)'\n"
        "subprocess.run([sys.executable, '-c', 'import tests.conftest\\n' + shown], check=True)\n"
    )
    done = python(code)
    assert done.stdout == "default_int_handler\n", done.stderr
