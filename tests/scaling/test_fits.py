"""Files of fits: what `edgert plan --fits` takes, and what it refuses."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgert import limits
from edgert.errors import RequestError
from edgert.scaling.fits import read_fit
from edgert.scaling.frontier import PRIOR

from ..cli.conftest import Edgert, edgert  # noqa: F401

FIT: dict[str, Any] = msgspec.to_builtins(PRIOR) | {"loss": 0.01, "kappa": 200.0, "count": 60}


def write(path: Path, **changes: Any) -> Path:
    fits = {"gpqa": FIT | changes, "musr": FIT | {"tau": 0.9}}
    path.write_text(json.dumps({"schema": 1, "fits": fits}), encoding="utf-8")
    return path


def test_the_first_fit_or_the_one_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "fits.json", draws=[FIT["theta"]] * 2)
    assert read_fit(path).tau == 0.98
    assert read_fit(path, "musr").tau == 0.9
    with pytest.raises(RequestError, match=r"no task 'maths' among \['gpqa', 'musr'\]"):
        read_fit(path, "maths")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"theta": [5, -7, 23.5, 0.2]}, "theta has y0 5, expected 0 to 1"),
        ({"theta": [0.1, -0.7, 23.5, 0.2]}, "theta has L -0.7"),
        ({"theta": [0.5, 0.7, 23.5, 0.2]}, "theta has L 0.7, expected 0 to 1 - y0"),
        ({"theta": [0.1, 0.7, 2.5, 0.2]}, r"theta has z\* 2.5"),
        ({"theta": [0.1, 0.7, 23.5, 1000]}, "theta has ln b 1000, expected -3 to 3.91"),
        ({"theta": [0.1, 0.7, 23.5, -1000]}, "theta has ln b -1000"),
        ({"draws": [[0.1, 0.7, 23.5, 0.2], [0.1, 7, 23.5, 0.2]]}, "a draw has L 7"),
        ({"theta": [0.1, 0.7]}, "length"),
        ({"z_unit": "1e21 flops"}, "z_unit is '1e21 flops', expected 'flops'"),
        ({"z_range": [26.0, 20.0]}, "z_range is 26 to 20"),
        ({"z_range": [-1e300, 1e300]}, "z_range is"),
        ({"tau": 0.0}, "tau is 0"),
        ({"shift": 3.0}, "shift is 3"),
        ({"kappa": -1.0}, "kappa is -1"),
        ({"penalty": 1e300}, "penalty is"),
        ({"count": -1}, "count is -1"),
        ({"colour": 1}, "unknown field `colour`"),
    ],
)
def test_a_fit_out_of_its_bounds_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as raised:
        read_fit(write(tmp_path / "fits.json", **changes))
    assert raised.value.code == "plan-frontier"


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[1]", b"{}", b'{"fits": {}}', b'{"fits": [1]}', b'{"fits": {"a": 1}}',
     b'{"fits": ' + b"[" * 100_000, b'{"schema": 2, "fits": {"a": {}}}'],
    ids=["empty", "no text", "list", "bare", "none", "no table", "number", "deep", "later"],
)  # fmt: skip
def test_bytes_that_are_no_fits(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fits.json"
    path.write_bytes(data)
    with pytest.raises(RequestError, match="expected fits of `edgert frontier fit -o`"):
        read_fit(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_an_endless_file_is_read_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TABLE_BYTES", 1 << 20)
    pipe, sent = tmp_path / "pipe", [0]
    os.mkfifo(pipe)

    def pour() -> None:
        with pipe.open("wb", buffering=0) as file:
            try:
                while sent[0] < 64 << 20:
                    sent[0] += file.write(b"0" * 4096)
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=pour, daemon=True)
    writer.start()
    with pytest.raises(RequestError, match="more than 1048576 bytes"):
        read_fit(pipe)
    writer.join(10)
    assert sent[0] < 4 << 20


def test_a_task_without_fits_is_refused(edgert: Edgert) -> None:  # noqa: F811
    ran = edgert("plan", "--device", "steam-deck", "--task", "gpqa")
    assert (ran.code, "expected --fits FILE" in ran.err) == (2, True)
