"""Numbers too small for full precision, in the thread that calls onnxruntime.

`session.set_denormal_as_zero=1` has them flushed to zero. onnxruntime switches that on in the
thread that opens the first session of a process, and leaves it on for whatever the thread computes
afterwards. Here it is on while such a session runs, and off again behind it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

OPTION = "session.set_denormal_as_zero"
_BYTES = 256  # more than a fenv_t anywhere
_flushing: Any = None  # the mode of a thread that flushes, once onnxruntime has made one


@contextlib.contextmanager
def opening(flush: bool) -> Iterator[None]:
    """Around the creation of a session. flush: whether `OPTION` is on."""
    global _flushing
    before = _mode()
    try:
        yield
    finally:
        if flush and _flushes():
            _flushing = _mode()
        _restore(before)


@contextlib.contextmanager
def running(flush: bool) -> Iterator[None]:
    """Around a run."""
    if not flush or _flushing is None:
        yield
        return
    before = _mode()
    _restore(_flushing)
    try:
        yield
    finally:
        _restore(before)


def _flushes() -> bool:
    """Whether this thread flushes small numbers to zero."""
    return bool((np.full(1, 1e-310) * np.ones(1))[0] == 0)


def _library() -> Any:
    """The C library with fegetenv and fesetenv, None where there is none."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # TypeError: Windows
        library = ctypes.CDLL(None)
        library.fegetenv, library.fesetenv  # noqa: B018 (raises where they are not)
        return library
    return None


_C = _library()


def _mode() -> Any:
    """The floating-point mode of this thread."""
    mode = ctypes.create_string_buffer(_BYTES)
    if _C is not None:
        _C.fegetenv(mode)
    return mode


def _restore(mode: Any) -> None:
    if _C is not None:
        _C.fesetenv(mode)
