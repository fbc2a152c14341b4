"""What a conversion measures, it measures with the threads that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from edgert.converters import quality, running
from edgert.converters.calibrate import Calibration

from benchmarks.make_checkpoint import make_checkpoint
from tests.converters.faults import convert_tiny

WORDS = " ".join(f"{i} times {j} is {i * j}." for i in range(9) for j in range(9))


@pytest.mark.parametrize("report", [False, True])
def test_measuring_takes_the_threads_that_were_given(tmp_path: Path, report: bool) -> None:
    source, seen = make_checkpoint("tiny", tmp_path / "tiny", dtype="f32"), list[Any]()
    options: dict[str, Any] = {"report": tmp_path / "report", "quant": "int4"}
    opened, cpu = quality.open_session, running.CpuSession

    def open_session(bundle: Any, given: Any) -> Any:
        seen.append(given.threads)
        return opened(bundle, given)

    def session(*args: Any, **given: Any) -> Any:
        seen.append(given["threads"])
        return cpu(*args, **given)

    with (
        mock.patch.object(quality, "open_session", open_session),
        mock.patch.object(running, "CpuSession", session),
    ):
        convert_tiny(
            source, tmp_path / "m.edge", threads=2, calibration=Calibration(WORDS, 2, 64),
            **(options if report else {"recipe": "auto"}),
        )  # fmt: skip
    assert len(seen) >= 2
    assert set(seen) == {2}
