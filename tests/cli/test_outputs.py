"""Files that verbs write: none that they read, and no two of one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Edgert

PLAN = ("plan", "--device", "laptop-avx2")
TEST = ("test", "no.edge", "--limit", "p90_token_ms=1e4")


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ((*PLAN, "--workload", "a.png", "--report", "a.png"), "--report"),
        ((*PLAN, "--fits", "a.png", "--picture", "./a.png"), "--picture"),
        ((*PLAN, "--models", "b.toml", "--models", "a.png", "--report", "a.png"), "--report"),
        (("plan", "--device", "a.png", "--report", "a.png"), "--report"),
        ((*PLAN, "--report", "new", "--picture", "new"), "--picture"),
        ((*TEST, "--budget", "b.toml", "--junit", "b.toml"), "--junit"),
        ((*TEST, "--baseline", "a.png", "--junit", "a.png"), "--junit"),
        ((*TEST, "--device", "a.png", "--junit", "a.png"), "--junit"),
        (("frontier", "fit", "a.png", "-o", "a.png"), "-o"),
        (("image", "-p", "a cat", "--init", "a.png", "-o", "a.png"), "-o"),
        (("image", "-p", "a cat", "--init", "a-2.png", "--batch", 2, "-o", "a.png"), "-o"),
    ],
)
def test_nothing_is_written_over_what_is_read(
    asked: tuple[Any, ...],
    flag: str,
    edgert: Edgert,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a-2.png"):
        Path(name).write_bytes(b"mine")
    Path("b.toml").write_text("p90_token_ms = 50\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ran = edgert(*asked)
    assert ran.code == 2
    assert f"{flag} '" in ran.err
    assert "would replace a file that" in ran.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
