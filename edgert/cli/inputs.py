"""Text from files and from standard input.

Text is UTF-8; a byte order mark at its beginning is no part of it. Of a text that is read whole,
one newline at the end is dropped, as llama.cpp does: `echo hi` asks what `-p hi` asks. No input is
read past `limits.PROMPT_BYTES`: a pipe or a device may never end.
"""

from __future__ import annotations

import codecs
import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from .. import limits
from ..errors import RequestError
from ..notices import NOTICE, notice

SILENT_S = 2.0  # after this long, a silent standard input is mentioned
TOO_LONG = "prompt-size"  # code of the error for an input that goes on past the limit
STDIN = "standard input"


def decoded(data: bytes, where: str) -> str:
    """UTF-8 without a byte order mark; RequestError for anything else."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "is UTF-16" if wide else f"byte {error.start} is not UTF-8"
        raise RequestError(
            f"{where}: {found}, expected UTF-8 text",
            code="prompt-encoding",
            hint="convert it, for example with iconv" + (" -f UTF-16 -t UTF-8" if wide else ""),
        ) from None


def without_newline(text: str) -> str:
    """The text without one newline at its end."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def is_piped() -> bool:
    """Whether standard input is open and no terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def read_stdin() -> str:
    """Standard input to its end. Says so where nothing comes for a while."""
    if sys.stdin is None:
        raise click.UsageError("standard input is closed, expected text there")
    if is_piped() and not _speaks_within(SILENT_S):
        notice(
            "waiting for standard input to end; `< /dev/null` where there is nothing to read",
            NOTICE,
        )
    return _whole(sys.stdin.buffer, STDIN)


def _whole(file: BinaryIO, where: str) -> str:
    """A file's text; RequestError for one that is longer than any prompt."""
    data = file.read(limits.PROMPT_BYTES + 1)
    if len(data) > limits.PROMPT_BYTES:
        raise too_long(where)
    return without_newline(decoded(data, where))


def too_long(where: str) -> RequestError:
    """The error for an input that was read up to the limit and has not ended."""
    return RequestError(
        f"{where} holds more than {limits.PROMPT_BYTES} bytes, expected at most so many: no "
        "context has room for more",
        code=TOO_LONG,
        hint="give a part of it, as with head -c 100000, if it ends at all",
    )


def piped_text() -> str:
    """What a pipe or a file at standard input holds, "" where there is neither."""
    if not is_piped():
        return ""
    try:
        sys.stdin.fileno()
    except (OSError, ValueError):  # a program that runs the command line in itself
        return _without_descriptor()
    return read_stdin()


def _without_descriptor() -> str:
    """A standard input that is a Python object, "" where that cannot be read."""
    try:
        return _whole(sys.stdin.buffer, STDIN)
    except (OSError, AttributeError):
        return ""


def read_file(path: str) -> str:
    """A file's text; - is standard input."""
    if path == "-":
        return read_stdin()
    with Path(path).open("rb") as file:
        return _whole(file, path)


def stdin_lines() -> Iterator[bytes]:
    """Lines of standard input, without their ends and without a byte order mark. RequestError for
    one that is longer than any prompt."""
    number, read = 0, sys.stdin.buffer.readline
    while line := read(limits.PROMPT_BYTES + 1):
        number += 1
        if len(line) > limits.PROMPT_BYTES:
            raise too_long(f"{STDIN}, line {number},")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def stdin_waits() -> bool:
    """Whether a pipe or a file stands at standard input with something unread in it. Never waits:
    a pipe whose writer has not begun counts as empty."""
    if not is_piped():
        return False
    try:
        fd = sys.stdin.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return os.lseek(fd, 0, os.SEEK_CUR) < os.fstat(fd).st_size
        if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            return False
    except (OSError, ValueError):
        return bool(_without_descriptor())
    return _speaks_within(0) and bool(os.read(fd, 1))


def _speaks_within(seconds: float) -> bool:
    """Whether standard input has bytes, or its end, within so many seconds; True where the system
    cannot say."""
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], seconds)[0])
    except (OSError, ValueError):
        return True
