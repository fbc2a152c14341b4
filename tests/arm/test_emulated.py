"""The aarch64 kernels under emulation, for who has made the folder of README.md."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = "EDGERT_ARM"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["i8mm", "dotprod", "portable"])
def test_kernels_on_an_emulated_board(name: str) -> None:
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip(f"{FOLDER} names no folder with an arm64 system, see tests/arm/README.md")
    script = Path(__file__).with_name("run.sh")
    done = subprocess.run([script, folder, name], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"aarch64, kernels for {name}\n")
    assert done.stdout.endswith("all checks passed\n")
