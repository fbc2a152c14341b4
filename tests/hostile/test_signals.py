"""H36: Ctrl-C and closed pipes, at every stage, in a process of its own.

130 for Ctrl-C, 141 for a reader that went away; partial text is kept, no traceback, no half file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import make_checkpoint

from ..cli.terminal import Terminal
from ..tiny import tiny_bundle

SECONDS = 60
ENDLESS = ("--temp", "0", "--logit-bias", "1=-100", "--device", "reference")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers are thousands of tokens long."""
    return tiny_bundle(tmp_path_factory.mktemp("signals") / "long.edge", quant="f32", context=8192)


@contextmanager
def started(*args: object, wrapper: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`edgert` in a new process; wrapper: Python that runs first there."""
    code = f"{wrapper}\nfrom edgert.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[bytes], count: int) -> bytes:
    """Exactly so many bytes of its output."""
    assert process.stdout is not None
    data = process.stdout.read(count)
    assert len(data) == count, process.communicate()
    return data


def interrupting(target: str) -> str:
    """Python that sends this process SIGINT when `target` (module:attribute.path) is called."""
    module, path = target.split(":")
    return (
        f"import os, signal\nfrom functools import reduce\nimport {module} as module\n"
        f"*way, name = {path.split('.')!r}\nholder = reduce(getattr, way, module)\n"
        "before = getattr(holder, name)\n"
        "def hit(*args, **options):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return before(*args, **options)\n"
        "setattr(holder, name, hit)\n"
    )


def test_h36_ctrl_c_in_an_answer_keeps_its_text(bundle: Path) -> None:
    with started("generate", bundle, "-p", "hello", *ENDLESS) as process:
        first = read(process, 20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert 20 < len(first + rest) < 8000
    assert errors == b""


def test_h36_ctrl_c_with_a_team_of_threads(bundle: Path) -> None:
    args = ("generate", bundle, "-p", "hello", *ENDLESS, "--device", "cpu", "-t", "2")
    with started(*args) as process:
        read(process, 20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in errors  # a notice that kernels are compiled may be there
    assert rest.endswith(b"\n")
    assert len(rest) < 8000


def test_h36_ctrl_c_in_an_answer_as_json(bundle: Path) -> None:
    wrapper = (
        "import os, signal, edgert.text.sampling as s\ncalls, before = [], s.Sampler.pick\n"
        "def pick(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return before(*args)\n"
        "s.Sampler.pick = pick"
    )
    with started("generate", bundle, "-p", "hi", "--json", *ENDLESS, wrapper=wrapper) as process:
        out, errors = process.communicate(timeout=SECONDS)
    found = json.loads(out)
    assert (process.returncode, errors) == (130, b"")
    assert found["finish_reason"] == "cancelled"
    assert 8 <= len(found["token_ids"]) <= 10


@pytest.mark.parametrize(
    "target", ["edgert.bundle:Bundle.open", "edgert.text.tokenizer:Tokenizer.from_bundle"]
)
def test_h36_ctrl_c_while_loading(bundle: Path, target: str) -> None:
    with started("generate", bundle, "-p", "a", *ENDLESS, wrapper=interrupting(target)) as process:
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, errors) == (130, b"", b"")


def test_h36_ctrl_c_while_reading_the_prompt(bundle: Path) -> None:
    wrapper = interrupting("edgert.session.reference:ReferenceSession.step")
    args = ("generate", bundle, "-p", "a" * 4000, *ENDLESS)
    with started(*args, wrapper=wrapper) as process:
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, errors) == (130, b"\n", b"")


def test_h36_a_second_ctrl_c_ends_it(bundle: Path) -> None:
    """Both arrive within one step: the first asks the answer to stop, the second insists."""
    wrapper = interrupting("edgert.session.reference:ReferenceSession.step").replace(
        "signal.SIGINT)", "signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    )
    with started("generate", bundle, "-p", "a", *ENDLESS, wrapper=wrapper) as process:
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, errors) == (130, b"", b"")


def test_h36_ctrl_c_while_converting_leaves_no_bundle(tmp_path: Path) -> None:
    source, out = make_checkpoint("tiny", tmp_path / "source"), tmp_path / "out.edge"
    wrapper = interrupting("edgert.converters.stages.weight_cache:WeightCache.deliver")
    words = ("convert", source, "-o", out, "--method", "rtn", "--no-golden")
    with started(*words, wrapper=wrapper) as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert not out.exists()
    assert not list(tmp_path.glob("*partial*"))
    with started(*words) as process:  # goes on, and is whole
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    with started("verify", out) as process:
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


@pytest.mark.parametrize("args", [("--help",), ("generate", "BUNDLE", "-p", "hello", *ENDLESS)])
def test_h36_a_reader_that_went_away(bundle: Path, args: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "edgert", *(str(bundle) if a == "BUNDLE" else a for a in args)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--help",), ">&-"),
        (("GENERATE",), ">&-"),
        (("GENERATE", "--json"), ">/dev/full"),
        (("GENERATE",), ">/dev/full"),
        (("GENERATE", "--json"), ">&- 2>&- <&-"),
    ],
)
def test_h36_a_standard_output_that_takes_nothing(
    bundle: Path, words: tuple[str, ...], where: str
) -> None:
    if "/dev/full" in where and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    generate = ("generate", str(bundle), "-p", "hello", "-n", "4", "--device", "reference")
    args = [part for word in words for part in (generate if word == "GENERATE" else (word,))]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {where}', "sh", sys.executable, "-m", "edgert", *args],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    message = b"No space left" if "full" in where else b"standard output is closed"
    assert done.stderr.count(message) == (0 if "2>&-" in where else 1)


def test_h36_a_terminal_that_changes_its_size(bundle: Path) -> None:
    with Terminal("chat", bundle, *ENDLESS) as terminal:
        terminal.wait_for("> ")
        terminal.write(b"hello\n")
        terminal.wait_for_more(100)
        terminal.resize(5, 11)
        terminal.wait_for_more(100)
        terminal.write(b"\x03")
        terminal.wait_for(" (stopped)\r\n")
        terminal.resize(50, 200)
        terminal.write(b"/stats\n")
        terminal.wait_for("cancelled")
        terminal.write(b"\x04")
        assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("generate", "BUNDLE", "-p", "hello", "-n", "4"), 0, b""),
        (("chat", "BUNDLE"), 2, b"standard input is closed"),
    ],
)
def test_h36_without_terminal_and_standard_input(
    bundle: Path, args: tuple[str, ...], code: int, said: bytes
) -> None:
    words = [str(bundle) if arg == "BUNDLE" else arg for arg in args]
    command = [sys.executable, "-m", "edgert", *words, "--device", "reference"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        capture_output=True, timeout=SECONDS, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.endswith(b"\n") == (code == 0)
