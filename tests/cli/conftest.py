"""Running the command line in this process."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgert.cli import run

from ..tiny import tiny_bundle


class Ran(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


Edgert = Callable[..., Ran]
KEPT = (
    "EDGERT_CACHE",
    "EDGERT_CONFIG",
    "EDGERT_ISA",
    "EDGERT_ISA_FORCE",
    "EDGERT_KERNEL_LIBRARY",
    "EDGERT_SHARED_DATA",
)


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags from variables of whoever runs the tests do not count."""
    for name in list(os.environ):
        if name.startswith("EDGERT_") and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, all float32, which any device computes nearly alike."""
    return tiny_bundle(tmp_path_factory.mktemp("cli") / "tiny.edge", quant="f32")


@pytest.fixture
def edgert(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Edgert:
    """edgert("verb", ..., stdin="text"): run it here, on NumPy unless a device is named."""

    def call(*args: object, stdin: str | bytes | None = None) -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr(stream, "isatty", lambda: stdin is None, raising=False)
        monkeypatch.setattr(sys, "stdin", stream)
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    return call
