'''Messages from lines: one a line, or several lines between two """.'''

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import RequestError

QUOTES = '"""'


class Message(NamedTuple):
    """literal: of several lines, or quoted, and therefore never a command."""

    text: str
    literal: bool


def next_message(read: Callable[[bool], str], *, joined: bool = False) -> Message:
    """The next message.

    read(more): a line without its end, or a pasted text of several; `more` when it goes on what
    came before; EOFError at the end. joined: a line that ends with a backslash goes on, too.
    Raises EOFError, and RequestError for a block that does not end.
    """
    line = read(False)
    if line.lstrip().startswith(QUOTES):
        return Message(_block(line.lstrip()[len(QUOTES) :], read), True)
    literal = "\n" in line
    while joined and not literal and line.endswith("\\"):
        line = f"{line[:-1]}\n{read(True)}"
    return Message(line.strip(), "\n" in line.strip())


def _block(line: str, read: Callable[[bool], str]) -> str:
    lines = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        try:
            line = read(True)
        except EOFError:
            raise RequestError(
                f"the input ended inside {QUOTES}, expected {QUOTES} at the end of a line",
                code="chat-block",
                hint="close the block",
            ) from None
    lines.append(line.rstrip()[: -len(QUOTES)])
    return "\n".join(lines).strip("\n")
