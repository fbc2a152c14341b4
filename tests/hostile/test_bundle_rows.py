"""Rows H01-H05, H07-H10 and H12: each spoiled bundle, in this process and in a box of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgert.bundle import Bundle
from edgert.errors import BundleError
from edgert.evaluation.verify import verify_bundle
from edgert.session.options import SessionOptions
from tests.hostile.box import examine, snapshot
from tests.hostile.make_corpus import CORPUS, Mutation, make
from tests.tiny import tiny_bundle

GROWTH = 10 << 20  # bytes of peak memory that refusing a bundle may cost
SECONDS = 5.0

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and limits of POSIX")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that every mutation starts from."""
    return tiny_bundle(tmp_path_factory.mktemp("corpus") / "good.edge")


def test_the_good_bundle_is_good(good: Path) -> None:
    Bundle.open(good).close()
    report = verify_bundle(good, SessionOptions(device="reference"), values=True)
    assert report.ok, report.problems()


def test_every_row_is_covered() -> None:
    rows = {mutation.row for mutation in CORPUS}
    assert rows == {f"H{n:02d}" for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 12)}
    assert len({mutation.id for mutation in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("mutation", CORPUS, ids=lambda mutation: mutation.id)
def test_refused_with_reason(mutation: Mutation, good: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("mine", encoding="utf-8")
    bad = make(mutation, good, tmp_path / "bad.edge")
    before = snapshot(tmp_path)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bad)
    error = caught.value
    assert error.code == mutation.code, error.message
    for text in mutation.says:
        assert text in error.message
    assert error.hint, "an error names the next step"
    assert error.hint in str(error)
    assert error.exit_code == 2
    assert all(c.isprintable() for c in error.message)
    report = verify_bundle(bad)
    assert not report.ok
    assert mutation.code in {problem.code for problem in report.problems()}
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_refused_cheaply(good: Path, tmp_path: Path) -> None:
    """All of them in one process with a memory limit: nothing big, slow, hung or outside."""
    (tmp_path / "outside.txt").write_text("mine", encoding="utf-8")
    bad = {str(make(m, good, tmp_path / f"{m.id}.edge")): m for m in CORPUS}
    home = tmp_path.parent / f"{tmp_path.name}-home"
    home.mkdir()
    before = snapshot(tmp_path)
    lines = examine(good, map(Path, bad), home, timeout=120)
    assert len(lines) == 2 * len(bad)
    for line in lines:
        mutation = bad[line["path"]]
        assert line["code"] == mutation.code, line
        assert line["growth"] < GROWTH, line
        assert line["seconds"] < SECONDS, line
        foreign = [n for n in line["opened"] if not _allowed(n, line["path"], home)]
        assert not foreign, f"{mutation.id} opened {foreign}"
    assert snapshot(tmp_path) == before
    assert {path.name for path in home.rglob("*")} <= {"cache", "verified.json"}


def _allowed(name: str, bundle: str, home: Path) -> bool:
    """Files of the bundle (by leaf name, from the held folder, or by path) and the hash cache."""
    inside = name == bundle or os.path.normpath(name).startswith((f"{bundle}{os.sep}", str(home)))
    return inside or (os.sep not in name and name not in ("..", "."))


def test_the_box_notices(good: Path, tmp_path: Path) -> None:
    """The harness itself: a good bundle has no code, and its files are seen being opened."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    lines = examine(good, [good], tmp_path, timeout=60)
    assert [line["code"] for line in lines] == [None, None]
    assert "weights.safetensors" in lines[0]["opened"]
