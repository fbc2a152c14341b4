"""Symbol names for the helpers that a factory makes in several versions.

Numba names a jitted function's symbol after its qualified name, its argument types and a number
counted up in the compiling process. The versions of a factory's inner function share the first
two, so two kernels compiled by two processes may hold one name for two different functions. A
third process that loads both from the cache keeps the first and calls it from both: wrong numbers,
silently. Therefore each version's qualified name says what it was made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any


def name_versions(kernel: Callable[..., Any]) -> None:
    """Give every jitted inner function that `kernel` reaches a qualified name of its own, the same
    in every process. Call it before `kernel` is compiled; a second call changes nothing."""
    for helper in helpers(kernel):
        if helper.__closure__:
            base = helper.__qualname__.partition("#")[0]
            helper.__qualname__ = f"{base}#{_digest(helper)}"


def helpers(function: Any, seen: set[int] | None = None) -> Iterator[FunctionType]:
    """The Python functions of all jitted functions that `function` may call, each once."""
    seen = set() if seen is None else seen
    for value in _referred(function):
        inner = getattr(value, "py_func", None)
        if isinstance(inner, FunctionType) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            yield from helpers(inner, seen)


def _referred(function: Any) -> Iterator[Any]:
    """Values of the names in a function's code: closure, globals, attributes of modules."""
    names = function.__code__.co_names
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    for name in names:
        value = function.__globals__.get(name)
        yield value
        if isinstance(value, ModuleType):
            yield from (getattr(value, each, None) for each in names)


def described(function: Callable[..., Any]) -> str:
    """A digest of a function's own code and of what its closure holds, the same in every
    process. What it calls is not in it."""
    code = function.__code__
    numbers = [each for each in code.co_consts if not isinstance(each, type(code))]
    cells = [_describe(cell.cell_contents) for cell in function.__closure__ or ()]
    text = repr((code.co_code, numbers, code.co_names, cells))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(function: FunctionType) -> str:
    return hashlib.sha256(_describe(function).encode()).hexdigest()[:12]


def _describe(value: Any) -> str:
    """What a closure holds, in words that do not change from process to process."""
    inner = getattr(value, "py_func", None) or getattr(value, "_defn", None)  # jitted, intrinsic
    if inner is not None:
        return _describe(inner)
    if isinstance(value, FunctionType):
        code = value.__code__
        cells = [_describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return f"{value.__module__}:{code.co_firstlineno}:{code.co_name}({', '.join(cells)})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_describe(each) for each in value)}]"
    text = repr(value)
    if " at 0x" in text:
        raise TypeError(f"a kernel's closure holds {text}, expected numbers, types or functions")
    return text
