"""Healing with too little text is refused before anything is converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgert.converters.calibrate import Calibration

from benchmarks.make_checkpoint import make_checkpoint
from edgert.errors import ConvertError
from tests.converters.faults import convert_tiny

pytest.importorskip("torch")


def test_one_sequence_is_too_little_to_heal_with(tmp_path: Path) -> None:
    source = make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")
    (tmp_path / "out").mkdir()
    text = Calibration("One and two are three. " * 4, 1, 64, name="few.txt")
    with pytest.raises(ConvertError, match=r"1 sequences of 64 tokens from few\.txt"):
        convert_tiny(source, tmp_path / "out/m.edge", calibration=text, quant="int4", heal=64)
    assert not list((tmp_path / "out").iterdir())
