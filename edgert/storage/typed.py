"""Reading msgspec types safely from several threads.

msgspec collects what it needs to know of a type when the type is first read, without a lock. A
second thread that meets the type half collected ends the process. Here that happens under one lock,
when a reader is made: make readers where modules are imported.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
_building = threading.Lock()


class Reader(Generic[T]):
    """Reads values of one type. Raises msgspec's own errors."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        with _building:
            self._decoder = msgspec.json.Decoder(kind)

    def decode(self, data: bytes) -> T:
        """The value of JSON bytes; msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
        return self._decoder.decode(data)

    def convert(self, value: Any) -> T:
        """The value of plain Python data; msgspec.ValidationError."""
        return msgspec.convert(value, self.kind)


def _forget() -> None:
    """In a forked child: the thread that holds the lock did not come along."""
    global _building
    _building = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
