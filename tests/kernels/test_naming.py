"""Kernels compiled in different processes meet in one: no two functions may share a symbol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
from edgert.kernels.cpu import jit, naming

LISTED = """
from edgert.kernels.cpu import jit, naming
functions = {name: jit.function(name) for name in jit.names()}
for name, function in functions.items():
    print(name, *sorted(h.__qualname__ for h in naming.helpers(function)))
"""


def versions() -> dict[str, list[FunctionType]]:
    """What every kernel reaches, named as just before its compilation."""
    functions = {name: jit.function(name) for name in jit.names()}
    return {name: list(naming.helpers(function)) for name, function in functions.items()}


def test_no_two_helpers_share_a_name() -> None:
    reached = versions()
    assert len(reached["attend_int8"]) > 5
    named: dict[tuple[str, str], FunctionType] = {}
    for helpers in reached.values():
        for helper in helpers:
            key = (helper.__module__, helper.__qualname__)
            assert named.setdefault(key, helper) is helper, f"{key} names two functions"


def test_names_are_the_same_in_every_process() -> None:
    reached = versions()
    expected = [
        " ".join([name, *sorted(helper.__qualname__ for helper in reached[name])])
        for name in jit.names()
    ]
    shown = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True)
    assert shown.stdout.splitlines() == expected, shown.stderr


def test_a_closure_that_cannot_be_described_is_refused() -> None:
    def factory(held: Any) -> Callable[[], Any]:
        def inner() -> Any:
            return held

        return inner

    assert naming._describe(factory(1)) != naming._describe(factory(2))
    with pytest.raises(TypeError, match="a kernel's closure holds"):
        naming._describe(factory(object()))
