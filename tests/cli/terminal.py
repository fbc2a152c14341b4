"""The command line in a process of its own, at a pseudo-terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable

SECONDS = 30.0
START = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # what is typed there reaches this process as signals
from edgert.cli import main
main()
"""


class Terminal:
    """with Terminal("chat", bundle) as terminal: ...; `seen` is all that was shown so far."""

    def __init__(self, *args: object, **environment: str) -> None:
        import pty

        self._master, slave = pty.openpty()
        command = [sys.executable, "-c", START, *map(str, args)]
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"TERM": "dumb"} | environment,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def write(self, data: bytes) -> None:
        """What a person types, who takes a moment to see the prompt: a signal that arrives between
        readline's prompt and its wait is seen at the next key only."""
        time.sleep(0.1)
        os.write(self._master, data)

    def wait_for(self, text: str) -> None:
        """Read until something new shows `text`."""
        self._read_until(lambda fresh: text in fresh, repr(text))

    def wait_for_more(self, count: int) -> None:
        """Read until so many new characters came."""
        self._read_until(lambda fresh: len(fresh) >= count, f"{count} characters")

    def _read_until(self, enough: Callable[[str], bool], what: str) -> None:
        fresh, end = "", time.monotonic() + SECONDS
        while not enough(fresh):
            piece = self._read(end - time.monotonic())
            fresh += piece
            self.seen += piece
            assert piece, f"waited for {what}, saw {self.seen[-2000:]!r}"

    def _read(self, seconds: float) -> str:
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        try:
            return os.read(self._master, 4096).decode(errors="replace") if ready else ""
        except OSError:  # the other end is gone
            return ""

    def resize(self, rows: int, columns: int) -> None:
        """Resize the window and signal its process."""
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def exit_code(self) -> int:
        return self._process.wait(SECONDS)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
