"""`convert` called with values of wrong types: errors of ours, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.make_checkpoint import make_checkpoint
from edgert.errors import ConvertError

from .faults import convert_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("source") / "tiny", dtype="f32")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget_mb": "3"}, "budget_mb is '3' of type str, expected a number of megabytes"),
        ({"budget_mb": [1]}, "budget_mb is .* of type list"),
        ({"budget_mb": True, "quant": "mixed"}, "budget_mb is 'True' of type bool"),
        ({"compot": "0.3"}, "compot is '0.3' of type str, expected a ratio"),
        ({"heal": "5"}, "heal is '5' of type str, expected a number of tokens"),
        ({"heal": 2.5}, "heal is '2.5' of type float"),
        ({"calibration": "text.txt"}, r"expected a Calibration: Calibration\.read\(path\)"),
        ({"threads": "2"}, "threads is '2' of type str"),
        ({"threads": 0}, "threads is 0, expected 1 to 256"),
        ({"threads": 10**12}, "threads is 1000000000000, expected 1 to 256"),
        ({"workers": 2.5}, "workers is '2.5' of type float"),
        ({"workers": 0}, "workers is 0, expected 1 to 1024"),
        ({"workers": 10**12}, "workers is 1000000000000, expected 1 to 1024"),
        ({"heal": 10**12}, "healing's tokens is 1000000000000, expected 1 to 68719476736"),
        ({"cluster": ""}, "the cluster is an empty text"),
        ({"name": ""}, "name is an empty text"),
        ({"cluster": 5}, "cluster is '5' of type int, expected an address"),
        ({"name": 5}, "name is '5' of type int, expected a text"),
        ({"report": 5}, "report is '5' of type int, expected a folder"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConvertError, match=said):
        convert_tiny(source, tmp_path / "m.edge", **options)
    assert not list(tmp_path.iterdir())


def test_a_budget_beyond_all_floats_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="expected a number of megabytes"):
        convert_tiny(source, tmp_path / "m.edge", quant="mixed", budget_mb=10**400)
