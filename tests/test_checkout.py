"""The checkout stays small: what git tracks, in bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

CHECKOUT_BYTES, FILE_BYTES = 26e6, 16e6
DRAWING, DRAWING_BYTES = "edgert/demo/edgert-draw.edge", 20e6  # besides: a model that ships


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every tracked file that stands in the working tree."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git to ask")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"git ls-files says: {done.stderr.decode(errors='replace').strip()}")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_the_checkout_is_small(tracked: list[Path]) -> None:
    ours = sum(path.stat().st_size for path in tracked if path.is_relative_to(ROOT / DRAWING))
    size = sum(path.stat().st_size for path in tracked) - ours
    print(f"{len(tracked)} files, {size / 1e6:.1f} MB and {ours / 1e6:.1f} MB")
    assert size < CHECKOUT_BYTES, f"{size} bytes, expected less than {CHECKOUT_BYTES:.0f}"
    assert 0 < ours < DRAWING_BYTES


def test_no_file_is_large(tracked: list[Path]) -> None:
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked}
    large = {name: size for name, size in sizes.items() if size > FILE_BYTES}
    assert not large, f"expected at most {FILE_BYTES:.0f} bytes each: {large}"
