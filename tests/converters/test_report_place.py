"""Where a conversion's report may lie: what cannot be written there is told before the work."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.make_checkpoint import make_checkpoint
from edgert.errors import ConvertError

from .faults import convert_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")


def refused(source: Path, out: Path, report: Path) -> ConvertError:
    """The error of a conversion that must not begin."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(ConvertError) as info:
        convert_tiny(source, out, report=report)
    assert sorted(source.parent.rglob("*")) == before
    return info.value


@pytest.mark.parametrize(
    ("out", "report"), [("m.edge", "m.edge"), ("m.edge", "m.edge/report"), ("all/m.edge", "all")]
)
def test_a_report_and_its_bundle_do_not_lie_in_each_other(
    source: Path, tmp_path: Path, out: str, report: str
) -> None:
    error = refused(source, tmp_path / out, tmp_path / report)
    assert error.code == "report-place"


def test_links_are_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    error = refused(source, tmp_path / "here/m.edge", tmp_path / "link/m.edge/report")
    assert error.code == "report-place"


def test_a_folder_that_cannot_be_made_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert refused(source, tmp_path / "m.edge", tmp_path / "file/report").code == "write"
    with mock.patch.object(os, "access", return_value=False):
        assert refused(source, tmp_path / "m.edge", tmp_path / "sub/report").code == "write"
