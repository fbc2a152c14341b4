"""A new interpreter: for what a process can do once, or what ends it."""

from __future__ import annotations

import os
import subprocess
import sys

from .conftest import ROOT


def python(
    code: str, *args: str, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `code` with `args` as its command line, in the checkout; never raises for its status."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *args],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | (env or {}),
        timeout=timeout, check=False,
    )  # fmt: skip
