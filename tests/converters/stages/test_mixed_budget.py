"""A budget that no mixed encodings fit says what they take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from edgert.converters.calibrate import Calibration

from benchmarks.make_checkpoint import make_checkpoint
from edgert.errors import ConvertError
from tests.converters.faults import convert_tiny

WORDS = " ".join(f"{i} times {j} is {i * j}." for i in range(9) for j in range(9))


def test_the_least_bytes_and_the_budget_are_told(tmp_path: Path) -> None:
    source = make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")
    out, text = tmp_path / "m.edge", Calibration(WORDS, 2, 64)
    with pytest.raises(ConvertError, match="mixed encodings take") as info:
        convert_tiny(source, out, recipe="mixed", budget_mb=0.1, calibration=text)
    least, budget = map(int, re.findall(r"-?\d+", info.value.message))
    assert 0 < budget < least
    enough = (100_000 - budget + least) / 1e6
    report = convert_tiny(source, out, recipe="mixed", budget_mb=enough, calibration=text)
    assert report.bundle_bytes <= enough * 1e6
