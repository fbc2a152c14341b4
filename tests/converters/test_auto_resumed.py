"""`--recipe auto` that was stopped goes on with the candidates that it had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from edgert.converters import auto
from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.pipeline import Pipeline

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.errors import ConvertError, ResourceError

TEXT = Calibration(
    " ".join(f"{i} times {j} is {i * j}." for i in range(9) for j in range(9)), 2, 64
)
OPTIONS: dict[str, Any] = {"progress": False, "golden": False, "calibration": TEXT}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.edge"


def stopped(source: Path, out: Path, after: int, error: BaseException, **options: Any) -> None:
    """A run that ends with an error when so many candidates are made and the next is measured."""
    measure, calls = auto.of_bundle, []

    def fails(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise error
        return measure(*args)

    with mock.patch.object(auto, "of_bundle", fails), pytest.raises(type(error)):
        convert(source, out, recipe="auto", **OPTIONS, **options)


def made(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result, and the names of the bundles that were made for it."""
    whole, names = Pipeline.run, list[str]()

    def counted(self: Pipeline) -> Any:
        names.append(self.options.out.name)
        return whole(self)

    with mock.patch.object(Pipeline, "run", counted):
        return run(), names


def contents(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def again(source: Path, out: Path, **options: Any) -> tuple[Any, list[str]]:
    return made(lambda: convert(source, out, recipe="auto", **OPTIONS, **options))


def test_what_was_made_is_taken_over_with_the_same_result(source: Path, out: Path) -> None:
    whole, names = again(source, out)
    first = contents(out)
    stopped(source, out, 2, KeyboardInterrupt(), force=True)
    assert contents(out) == first  # the old one stays
    assert left(out) == ["m.edge.candidates"]
    report, rest = again(source, out, force=True)
    assert rest == names[2:]
    assert left(out) == []
    Bundle.open(out, verify="full").close()
    assert [(c.name, c.nbytes, c.nats) for c in report.candidates] == [
        (c.name, c.nbytes, c.nats) for c in whole.candidates
    ]
    assert contents(out).keys() == first.keys()
    assert contents(out)["weights.safetensors"] == first["weights.safetensors"]


@pytest.mark.parametrize("file", ["0.edge/weights.safetensors", "0.json"])
def test_a_damaged_candidate_is_made_again(source: Path, out: Path, file: str) -> None:
    stopped(source, out, 2, KeyboardInterrupt())
    path = out.parent / "m.edge.candidates" / file
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    report, names = again(source, out)
    assert names[0] == "0.edge"
    assert "1.edge" not in names
    assert len(report.candidates) == len({c.name for c in report.candidates})


@pytest.mark.parametrize(
    "options", [{"name": "other"}, {"budget_mb": 0.5}, {"embed_quant": "int4"}, {"resume": False}]
)
def test_other_options_begin_anew(source: Path, out: Path, options: dict[str, Any]) -> None:
    stopped(source, out, 2, KeyboardInterrupt())
    _, names = again(source, out, **options)
    assert names[0] == "0.edge"
    assert left(out) == []


def test_another_conversion_to_the_same_output_removes_candidates(source: Path, out: Path) -> None:
    stopped(source, out, 1, KeyboardInterrupt())
    convert(source, out, quant="int8", progress=False)
    assert left(out) == []


@pytest.mark.parametrize(
    "error",
    [
        ConvertError("not finite", code="quality"),
        ResourceError("full", code="disk-full"),
    ],
)
def test_a_failure_that_stays_leaves_nothing(source: Path, out: Path, error: Exception) -> None:
    stopped(source, out, 1, error)
    assert left(out) == []


def test_stopped_before_the_first_leaves_nothing(source: Path, out: Path) -> None:
    with mock.patch.object(Pipeline, "run", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, recipe="auto", **OPTIONS)
    assert left(out) == []
