'''Messages from lines: one a line, or several lines between two """.'''

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .. import limits
from ..errors import RequestError
from .inputs import too_long

QUOTES = '"""'


class Message(NamedTuple):
    """literal: of several lines, or quoted, and therefore never a command."""

    text: str
    literal: bool


def next_message(read: Callable[[bool], str], *, joined: bool = False) -> Message:
    """The next message.

    read(more): a line without its end, or a pasted text of several; `more` when it goes on what
    came before; EOFError at the end. joined: a line that ends with a backslash goes on, too.
    Raises EOFError, and RequestError for a block that does not end or is longer than any prompt.
    """
    line = read(False)
    if line.lstrip().startswith(QUOTES):
        return Message(_block(line.lstrip()[len(QUOTES) :], read), True)
    literal = "\n" in line
    if literal or not joined:
        return Message(line.strip(), "\n" in line.strip())
    text = _Text()
    while line.endswith("\\"):
        text.add(line[:-1])
        line = read(True)
    text.add(line)
    return Message(str(text).strip(), "\n" in str(text).strip())


class _Text:
    """Lines as one text; RequestError where they are more than any prompt."""

    def __init__(self) -> None:
        self._data = bytearray()  # a list of as many short lines would take many times as much

    def add(self, line: str) -> None:
        self._data += line.encode("utf-8", "surrogatepass") + b"\n"
        if len(self._data) > limits.PROMPT_BYTES:
            raise too_long("a message of many lines")

    def __str__(self) -> str:
        return self._data[:-1].decode("utf-8", "surrogatepass")


def _block(line: str, read: Callable[[bool], str]) -> str:
    text = _Text()
    while not line.rstrip().endswith(QUOTES):
        text.add(line)
        try:
            line = read(True)
        except EOFError:
            raise RequestError(
                f"the input ended inside {QUOTES}, expected {QUOTES} at the end of a line",
                code="chat-block",
                hint="close the block",
            ) from None
    text.add(line.rstrip()[: -len(QUOTES)])
    return str(text).strip("\n")
