"""`.ci/run`: what it runs, in which order, and with which exit status it ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

TOOLS = ("pip", "ruff", "python", "pytest")
MAKER = """#!/bin/sh
# Stands for `python -m venv DIR`: a folder of tools that say what they were asked.
mkdir -p "$3/bin"
for tool in {tools}; do cp "{tool}" "$3/bin/$tool"; done
"""
TOOL = """#!/bin/sh
name=$(basename "$0")
echo "ran $name $*"
test "$name" != pytest || echo "==== 3 passed in 0.1s ===="
case " $FAILING " in *" $name "*) exit 3;; esac
"""


def ci(folder: Path, failing: str) -> subprocess.CompletedProcess[str]:
    """Run it with tools of ours, of which `failing` end with status 3."""
    tool, maker = folder / "tool", folder / "maker"
    tool.write_text(TOOL, encoding="utf-8")
    maker.write_text(MAKER.format(tools=" ".join(TOOLS), tool=tool), encoding="utf-8")
    for script in (tool, maker):
        script.chmod(0o755)
    env = os.environ | {"PYTHON": str(maker), "FAILING": failing}
    command = [str(ROOT / ".ci" / "run")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("failing", "status", "told"),
    [
        ("", 0, "none"),
        ("ruff", 1, "[ruff check .] [ruff format --check .]"),
        ("python", 1, "[.ci/types]"),
        ("pytest", 3, "none"),
        ("ruff pytest", 3, "[ruff check .] [ruff format --check .]"),
    ],
)
def test_every_check_runs_and_counts(tmp_path: Path, failing: str, status: int, told: str) -> None:
    done = ci(tmp_path, failing)
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert [line.split()[1] for line in ran] == [
        "pip", "ruff", "ruff", "python", "pip", "pytest",
    ]  # fmt: skip
    assert ran[3].startswith("ran python -m mypy ")
    assert done.returncode == status
    last = done.stdout.splitlines()[-3:]
    assert last == [f"checks that failed: {told}", "pytest said:", "==== 3 passed in 0.1s ===="]


def test_an_environment_that_cannot_be_made_ends_it(tmp_path: Path) -> None:
    done = ci(tmp_path, "pip")
    assert done.returncode == 3
    assert "ran pytest" not in done.stdout
