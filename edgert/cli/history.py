"""Line editing in a chat, and its history, where Python has the readline module.

The history is a file in the cache folder, one JSON text a line, readable by its owner only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from ..notices import logger

FILE = "chat-history.jsonl"
ENTRIES = 1000
CHARACTERS = 8192  # longer messages are remembered for this chat only
_READ = ENTRIES * CHARACTERS  # bytes from the end of the file


class History:
    """What was typed, from earlier chats on. path: None remembers for this chat only."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._new = path, 0
        self._readline = _readline()
        self._entries = deque(_load(path) if path is not None else (), ENTRIES)
        for text in self._entries:
            self._recall(text)

    def add(self, text: str) -> None:
        """Remember a message; the same one twice in a row counts once. A file that cannot be
        written is left alone."""
        if not text.strip() or (self._entries and self._entries[-1] == text):
            return
        self._recall(text)
        self._entries.append(text)
        if self._path is None or len(text) > CHARACTERS:
            return
        self._new += 1
        try:
            if self._new % ENTRIES == 0:
                _rewrite(self._path, self._entries)
            else:
                _append(self._path, text)
        except OSError as error:
            logger.info("the chat's history is not kept: %s", error)
            self._path = None

    def _recall(self, text: str) -> None:
        if self._readline is not None:
            with suppress(ValueError, UnicodeError):  # no text of this locale
                self._readline.add_history(text)


def _readline() -> ModuleType | None:
    """The readline module, set to take a paste of several lines as one text."""
    try:
        import readline
    except ImportError:
        return None
    readline.set_auto_history(False)
    if "libedit" not in (readline.__doc__ or ""):
        if os.environ.get("TERM") != "dumb":  # which would show the marks
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind(r'"\e[200~": bracketed-paste-begin')
    return readline


def _load(path: Path) -> list[str]:
    """The newest entries of a file; lines that are none are skipped."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _READ))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            text = json.loads(line)
            if isinstance(text, str):
                found.append(text)
    if len(found) > ENTRIES:
        with suppress(OSError):
            _rewrite(path, deque(found, ENTRIES))
    return found[-ENTRIES:]


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(fd, 0o600)
        file.write(json.dumps(text).encode() + b"\n")


def _rewrite(path: Path, entries: deque[str]) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # made with mode 0600
    try:
        with os.fdopen(fd, "wb") as file:
            for text in entries:
                if len(text) <= CHARACTERS:
                    file.write(json.dumps(text).encode() + b"\n")
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
