"""`edgert convert`: its flags, and what they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from edgert.converters.quantize.job import METHODS
from edgert.converters.report import ConvertReport

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.cli.convert import RECIPES, command, sequences_asked

from .conftest import Edgert


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("source") / "tiny")


def test_help_lists_every_flag_and_choice(edgert: Edgert) -> None:
    told = edgert("convert", "--help").out
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert any(f"{name} " in told or f"{name}\n" in told for name in parameter.opts), (
                parameter.opts
            )
    words = " ".join(told.split())
    for word in (*RECIPES, *METHODS, "quick (16)", "full (256)", "default gptq", "JSON lines"):
        assert word in words, word


def test_presets_and_numbers_of_sequences() -> None:
    assert [sequences_asked(word) for word in ("quick", "full", "1", "300")] == [16, 256, 1, 300]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sequences", "many"), "'many', expected a number, quick or full"),
        (("--sequences", "0"), "'0', expected a number"),
        (("--sequences", "-4"), "'-4', expected a number"),
        (("--sequences", "1e3"), "'1e3', expected a number"),
        (("--sequences", "²"), "expected a number"),
        (("--sequences", "9" * 9), "expected a number"),
        (("--recipe", "int5"), "'int5' is not one of"),
        (("--quant", "int7"), "'int7' is not one of"),
        (("--embed-quant", "mixed"), "'mixed' is not one of"),
        (("--method", "awq"), "'awq' is not one of"),
        (("--compot", "a lot"), "'a lot' is not a valid float"),
        (("--compot", "1.5"), "--compot 1.5, expected a ratio between 0 and 1"),
        (("--compot", "nan"), "--compot nan, expected a ratio"),
        (("--budget-mb", "some"), "'some' is not a valid float"),
        (("--budget-mb", "0"), "--budget-mb 0.0, expected a number of megabytes"),
        (("--budget-mb", "nan"), "--budget-mb nan, expected a number of megabytes"),
        (("--budget-mb", "inf", "--recipe", "auto"), "--budget-mb inf, expected"),
        (("--budget-mb", "9", "--quant", "int4"), "with nothing that it could change"),
        (("--compot", "0.2", "--budget-mb", "9"), "expected one of them"),
        (("--recipe", "mixed"), "expected --budget-mb"),
        (("--recipe", "auto", "--compot", "0.2"), "--recipe auto and --compot 0.2"),
        (("--method", "rtn", "--sequences", "full"), "method rtn that reads none"),
        (("--heal", "-1"), "-1 is not in the range x>=0"),
        (("--workers", "0"), "0 is not in the range x>=1"),
        (("--workers", "2", "--cluster", "tcp://localhost:1"), "expected one of them"),
        (("--calibration", "none.txt"), "'none.txt' does not exist"),
        (("--calibration", "."), "'.' is a directory"),
    ],
)
def test_what_a_flag_cannot_be_is_told(
    flags: tuple[str, ...], said: str, edgert: Edgert, checkpoint: Path, tmp_path: Path
) -> None:
    ran = edgert("convert", checkpoint, "-o", tmp_path / "m.edge", *flags)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def asked(edgert: Edgert, *flags: object) -> dict[str, Any]:
    """What `convert` is called with."""
    with mock.patch("edgert.converters.convert.convert", side_effect=KeyboardInterrupt) as called:
        edgert("convert", "source", "-o", "m.edge", *flags)
    return dict(called.call_args.kwargs)


def test_flags_are_the_arguments_of_python(edgert: Edgert, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words", encoding="utf-8")
    plain = asked(edgert)
    assert (plain["calibration"], plain["method"], plain["quant"], plain["workers"]) == (
        None, None, None, 1,
    )  # fmt: skip
    found = asked(
        edgert, "--recipe", "compot-int4", "--budget-mb", 9.5, "--heal", 1000, "--workers", 3,
        "--calibration", text, "--sequences", "full", "--report", tmp_path / "report",
    )  # fmt: skip
    assert (found["recipe"], found["budget_mb"], found["heal"]) == ("compot-int4", 9.5, 1000)
    assert (found["workers"], found["report"]) == (3, tmp_path / "report")
    assert (found["calibration"].text, found["calibration"].sequences) == ("some words", 256)
    assert asked(edgert, "--calibration", text)["calibration"].sequences == 16
    sample = asked(edgert, "--sequences", 40)["calibration"]
    assert (sample.name, sample.sequences) == ("the built-in sample", 40)
    assert asked(edgert, "--sequences", "quick")["calibration"] is None


def test_a_conversion_with_the_sample(edgert: Edgert, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.edge"
    ran = edgert("convert", checkpoint, "-o", out, "--recipe", "int3", "--sequences", 2,
                 "--no-golden", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["quant"] == "uint3-g64"
    assert ran.json["details"]["quantize"]["output_rms"]
    assert ran.json["candidates"] == []
    with Bundle.open(out) as bundle:
        told = bundle.manifest
    assert told.provenance.command == (
        "edgert convert tiny -o m.edge --quant uint3-g64 --embed-quant int8-g32 --method gptq "
        "--sequences 2"
    )
    assert told.report["calibration"]["sequences"] == 2
    assert json.loads(json.dumps(told.report))["method"] == "gptq"
    assert set(ran.json) >= set(ConvertReport.__struct_fields__)
