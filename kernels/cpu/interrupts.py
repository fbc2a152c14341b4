"""Ctrl-C while the compiler works: neither LLVM nor a cache file may be left half way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back() -> Iterator[None]:
    """SIGINT that arrives inside is handled on leaving, a second one at once. Only the main thread
    ever receives one."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    hits: list[tuple[int, Any]] = []

    def hold(*hit: Any) -> None:
        hits.append(hit)
        if len(hits) > 1:
            handler(*hits.pop())

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if hits:
            handler(*hits[0])
