"""Inputs that never end, that are no text, and values that are none: one line and a hint."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import edgert as edgert_package
from edgert import limits
from edgert.cli import VERBS, cli, run
from edgert.cli.lines import next_message
from edgert.cli.settings import Settings
from edgert.errors import BundleError, ConvertError, RequestError

from .conftest import Edgert

NUMPY = ("--device", "reference", "-n", "1")


class Endless(io.RawIOBase):
    """The same bytes again and again, behind those that come first."""

    def __init__(self, data: bytes, first: bytes) -> None:
        self.data, self.first, self.read_bytes = data, first, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.first or self.data * 100
        size = min(len(buffer), len(found))
        buffer[:size], self.first = found[:size], self.first[size:]
        self.read_bytes += size
        if self.read_bytes > 1 << 26:
            raise MemoryError("read without end")
        return size


Piped = Callable[..., tuple[int, str, str]]


@pytest.fixture
def piped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Piped:
    """piped(data, verb, ...): run it with a standard input that has no end."""

    def call(data: bytes, *args: object, first: bytes = b"") -> tuple[int, str, str]:
        stream = io.TextIOWrapper(io.BufferedReader(Endless(data, first)), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(limits, "PROMPT_BYTES", 10_000)
        capsys.readouterr()
        return run([str(arg) for arg in args]), *capsys.readouterr()

    return call


@pytest.mark.parametrize("data", [b"y\n", b"\0", b"abc", "é\n".encode()])
@pytest.mark.parametrize(
    "args",
    [
        ["generate"],
        ["generate", "-"],
        ["generate", "-p", "-"],
        ["generate", "-f", "-"],
        ["chat", "-p", "-"],
    ],
)
def test_standard_input_without_end_is_refused(
    piped: Piped, bundle: Path, data: bytes, args: list[str]
) -> None:
    code, out, err = piped(data, args[0], bundle, *args[1:], *NUMPY)
    assert (code, out) == (2, "")
    assert "error: standard input holds more than 10000 bytes, expected at most so many" in err
    assert "\n  hint: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("block", [False, True])
def test_a_turn_without_end_ends_the_chat(
    piped: Piped, bundle: Path, block: bool, flags: list[str]
) -> None:
    first, data = (b'"""', b"\nyy") if block else (b"", b"a")
    code, out, err = piped(data, "chat", bundle, *NUMPY, *flags, first=first)
    assert code == 2
    said = json.loads(out)["error"]["message"] if flags else err
    where = "a message of many lines" if block else "standard input, line 1,"
    assert f"{where} holds more than 10000 bytes" in said


def test_a_message_of_many_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROMPT_BYTES", 100)
    for line in ('"""', "a\\"):
        with pytest.raises(RequestError, match="more than 100 bytes"):
            next_message(lambda more, line=line: "b\\" if more else line, joined=True)
    lines = iter(["a\\", "b\\", "\ud800"])
    assert next_message(lambda more: next(lines), joined=True) == ("a\nb\n\ud800", True)


def test_input_of_just_the_limit_is_read(
    edgert: Edgert, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROMPT_BYTES", 3)
    file = tmp_path / "text"
    for data, code in ((b"abc", 0), (b"abcd", 2), ("éa".encode(), 0), ("ééé".encode(), 2)):
        file.write_bytes(data)
        ran = edgert("generate", bundle, "-f", file, *NUMPY)
        assert ran.code == edgert("generate", bundle, *NUMPY, stdin=data).code == code
        assert (f"error: {file} holds more than 3 bytes" in ran.err) == (code == 2)


@pytest.mark.skipif(sys.platform == "win32", reason="a device of POSIX")
def test_a_device_without_end_is_no_prompt(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgert", "generate", str(bundle), "-f", "/dev/zero"]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert b"error: /dev/zero holds more than 67108864 bytes" in ran.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--temp", "abc"], "--temperature: 'abc' is not a valid float"),
        (["--threads", "0"], "--threads: 0 is not in the range x>=1"),
        (["--ctx-size", "1.5"], "--ctx-size: '1.5' is not a valid integer"),
        (["--kv-memory", "x"], "--kv-memory: found 'x', expected bytes such as 512M or 2G"),
        (["--logit-bias", "a"], "--logit-bias: found 'a', expected ID=BIAS such as 17=-2.5"),
        (["--log", "loud"], "--log: 'loud' is not one of"),
        (["--stats=yes"], "'--stats' does not take a value"),
        (["--temp"], "'--temp' requires an argument"),
    ],
)
def test_wrong_values_are_one_line_and_a_hint(
    edgert: Edgert, bundle: Path, args: list[str], said: str
) -> None:
    ran = edgert("generate", bundle, "-p", "a", *args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert said in ran.err.splitlines()[0]
    assert ran.err.splitlines()[1].startswith("  hint: edgert ")
    assert len(ran.err.splitlines()) == 2
    found = edgert("generate", bundle, "-p", "a", "--json", *args)
    assert (found.code, found.json["error"]["code"]) == (2, "usage")
    assert said in found.json["error"]["message"]


@pytest.mark.parametrize("args", [["-p", "caf\udce9"], ["-p", "a", "--stop", "caf\udce9"]])
def test_bytes_that_are_no_text_are_explained_for_a_terminal(
    edgert: Edgert, bundle: Path, args: list[str]
) -> None:
    for verb in ("generate", "chat"):
        ran = edgert(verb, bundle, *args, *NUMPY)
        assert ran.code == 2
        assert "iconv" in ran.err
        assert "errors=" not in ran.err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_file_or_folder_is_an_empty_text(verb: str) -> None:
    """Of any flag or argument, wherever it comes from: it would be the current folder."""
    command = cli.get_command(click.Context(cli, obj=Settings()), verb)
    assert command is not None
    for param in (p for p in command.params if isinstance(p.type, click.Path)):
        with pytest.raises(click.BadParameter, match="an empty path, expected a name"):
            param.type_cast_value(click.Context(command), [""] if param.multiple else "")


def test_an_empty_folder_of_prompts_is_not_this_one(
    edgert: Edgert, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text("prompt_cache = ''", encoding="utf-8")
    asked = ("generate", bundle, "-p", "a", "--device", "cpu", "-n", 1)
    ran = edgert(*asked, "--prompt-cache", "")
    assert (ran.code, "--prompt-cache: an empty path, expected a name" in ran.err) == (2, True)
    ran = edgert("generate", bundle, "-p", "a", *NUMPY, "--draft", "")
    assert (ran.code, "draft is '', expected 'ngram'" in ran.err) == (2, True)
    monkeypatch.setenv("EDGERT_CONFIG", str(config))
    ran = edgert(*asked)
    assert (ran.code, f"(from {config})" in ran.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    with pytest.raises(BundleError, match="an empty path, expected a bundle directory"):
        edgert_package.load("")


def test_an_empty_output_does_not_replace_this_folder(
    edgert: Edgert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgert.converters.convert import convert

    monkeypatch.chdir(tmp_path)
    assert edgert("convert", tmp_path, "-o", "", "--force").code == 2
    assert edgert("convert", "", "-o", "x").code == 2
    with pytest.raises(ConvertError, match="the output is an empty path"):
        convert(tmp_path, "", force=True)
    with pytest.raises(ConvertError, match="the source is an empty path"):
        convert("", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "args", "said"),
    [("plan", ("--device", "steam-deck", "--token", "1", "--ratio", "nan"), "--ratio: nan is no"),
     ("plan", ("--device", "steam-deck", "--token", "1", "--risk", "nan"), "--risk: nan is no"),
     ("test", ("x", "--limit", "load_s=1", "--seconds", "nan"), "--seconds: nan is no number"),
     ("test", ("x", "--limit", "load_s=1", "--threads", 10**12), "threads is 1000000000000, exp"),
     ("image", ("-p", "a", "--batch", 10**12), "--batch: 1000000000000 is not in the range"),
     ("bench", ("-r", 10**12), "--repetitions: 1000000000000 is not in the range 1<=x<=1000")],
)  # fmt: skip
def test_numbers_that_no_work_can_be_done_for(
    edgert: Edgert, verb: str, args: tuple[object, ...], said: str
) -> None:
    ran = edgert(verb, *args)
    assert (ran.code, said in ran.err) == (2, True)
