"""Completion in shells: what edgert answers to their scripts, and bash's script itself."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgert.cli import VERBS
from edgert.cli.completion import SHELLS

from .conftest import Edgert

MAIN = (sys.executable, "-c", "from edgert.cli import main; main()")


def asked(shell: str, *words: str) -> list[str]:
    """Values that edgert offers for the last of the words."""
    if shell == "fish":
        line = {"COMP_WORDS": shlex.join(words[:-1]) + " " + words[-1], "COMP_CWORD": words[-1]}
    else:
        line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    env = os.environ | line | {"_EDGERT_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(MAIN, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    if shell == "zsh":  # type, value, help, on a line each
        return lines[1::3]
    return [line.split(",", 1)[1].split("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_offered(shell: str) -> None:
    assert asked(shell, "edgert", "") == list(VERBS)
    assert asked(shell, "edgert", "ch") == ["chat"]
    assert asked(shell, "edgert", "chat", "--ctx") == ["--ctx-size"]
    assert asked(shell, "edgert", "chat", "--kv-bits", "") == ["4", "8", "16", "32"]
    assert asked(shell, "edgert", "completion", "z") == ["zsh"]
    assert "chat" in asked(shell, "edgert", "nonsense", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_the_variable(edgert: Edgert, shell: str) -> None:
    ran = edgert("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert f"_EDGERT_COMPLETE={shell}_complete" in ran.out


def test_a_shell_that_is_not_known(edgert: Edgert) -> None:
    ran = edgert("completion", "csh")
    assert (ran.code, "'csh' is not one of" in ran.err) == (2, True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash(edgert: Edgert, tmp_path: Path) -> None:
    program = tmp_path / "edgert"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(MAIN)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (
        f"{edgert('completion', 'bash').out}\n"
        f"COMP_WORDS=({program} generate --max) COMP_CWORD=2\n"
        f'_edgert_completion {program}\necho "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--max-tokens"], done.stderr
