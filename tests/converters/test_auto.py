"""auto: candidates are made and measured, the best within the budget becomes the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from edgert.converters import auto, quality
from edgert.converters.pipeline import Pipeline
from edgert.converters.recipes import Asked, candidates
from edgert.converters.report import ConvertReport

from edgert.bundle import Bundle
from edgert.errors import ConvertError, ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.session import SessionOptions

from .wide import converted, wide_checkpoint

BUDGET = 0.36  # megabytes
TITLES = ["int8-g32 rtn", "int6-g64 gptq", "mixed", "COMPOT int8-g32", "COMPOT int4-g32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    out = tmp_path_factory.mktemp("made") / "m.edge"
    return converted(checkpoint, out, budget_mb=BUDGET, golden=True)


def few(*quants: str) -> Any:
    """Only these whole encodings are tried, to nearest."""
    found = [Asked(quant=quant, method="rtn") for quant in quants]
    return mock.patch.object(auto, "candidates", return_value=found)


def nats(**found: float) -> Any:
    """What is measured of bundles, by the encoding of their matrices."""

    def measure(session: Any, _: Any) -> float:
        kinds = {weight.encoding for weight in session.graph.weights.values()}
        return next(value for name, value in found.items() if name.replace("_", "-") in kinds)

    return mock.patch.object(quality, "nats_a_token", measure)


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def test_every_candidate_is_told_and_the_best_one_stays(made: ConvertReport) -> None:
    rows = made.candidates
    assert [row.name for row in rows] == TITLES
    assert all(row.nbytes <= BUDGET * 1e6 for row in rows)
    assert all(0 < row.bits_per_byte < 20 and row.tokens_per_second > 0 for row in rows)
    (chosen,) = [row for row in rows if row.chosen]
    assert chosen == min(rows, key=lambda row: (round(row.nats, 4), row.nbytes))
    assert chosen.nbytes == made.bundle_bytes
    lines = made.summary().splitlines()
    assert [line for line in lines if line.startswith(f"-> {chosen.name}")]
    assert sum("bits a byte" in line for line in lines) == len(TITLES)
    told = json.loads(json.dumps(made.to_dict()))["candidates"]
    assert [row["name"] for row in told] == TITLES


def test_the_output_is_a_bundle_like_any_other(made: ConvertReport) -> None:
    out = Path(made.path)
    report = verify_bundle(out, SessionOptions(device="cpu"), values=True)
    assert report.ok, report.problems()
    with Bundle.open(out, verify="full") as bundle:
        command = bundle.manifest.provenance.command
        assert bundle.manifest.golden
    assert command.startswith("edgert convert wide -o m.edge --quant ")
    assert beside(out) == ["m.edge"]


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        ({"int8_g32": 2.0, "int4_g32": 1.5}, "int4-g32"),
        ({"int8_g32": 1.5, "int4_g32": 2.0}, "int8-g32"),
        ({"int8_g32": 1.50001, "int4_g32": 1.50002}, "int4-g32"),  # equal: the smaller one
    ],
)
def test_the_fewest_nats_win(
    measured: dict[str, float], kept: str, checkpoint: Path, tmp_path: Path
) -> None:
    ordered = dict(sorted(measured.items()))  # int4 first: its bundles hold int8 ends
    with few("int8", "int4"), nats(**ordered):
        report = converted(checkpoint, tmp_path / "m.edge", budget_mb=BUDGET)
    assert report.quant == kept
    assert [row.name for row in report.candidates] == ["int8-g32 rtn", "int4-g32 rtn"]
    with Bundle.open(tmp_path / "m.edge", verify="full") as bundle:
        assert bundle.manifest.report["quant"] == kept


def test_what_is_larger_than_the_budget_is_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    with few("int8", "int4"), nats(int4_g32=2.0, int8_g32=1.0):
        report = converted(checkpoint, tmp_path / "m.edge", budget_mb=0.27)
    assert [row.name for row in report.candidates] == ["int4-g32 rtn"]
    assert report.bundle_bytes <= 270_000


def test_without_a_budget_it_is_what_the_usual_encoding_takes(
    checkpoint: Path, tmp_path: Path
) -> None:
    with few("int8", "int4", "int3"), nats(uint3_g64=3.0, int4_g32=2.0, int8_g32=1.0):
        report = converted(checkpoint, tmp_path / "m.edge", recipe="auto")
    assert report.quant == "int4-g32"
    assert [row.name for row in report.candidates] == ["int4-g32 rtn", "uint3-g64 rtn"]


def test_held_back_sequences_are_none_that_was_fitted_to(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def measure(_: Any, held: Any) -> float:
        seen.extend(ids.tobytes() for ids in held)
        return 1.0

    real, fitted = Pipeline.advance, list[bytes]()

    def advance(self: Pipeline, *args: Any) -> Any:
        text = self.options.plan.calibration
        assert text is not None
        found = text.token_sequences(self.reading.tokenizer, None, 8192)
        fitted.extend(ids.tobytes() for ids in found)
        return real(self, *args)

    with (
        mock.patch.object(
            auto, "candidates", lambda asked: [replace(asked, quant="int3", budget_mb=None)]
        ),
        mock.patch.object(quality, "nats_a_token", measure),
        mock.patch.object(Pipeline, "advance", advance),
    ):
        converted(checkpoint, tmp_path / "m.edge", budget_mb=BUDGET)
    assert seen
    assert fitted
    assert not set(seen) & set(fitted)


# What fails


def stops(error: BaseException) -> Callable[..., None]:
    """A second candidate that does not come to its end."""
    real, count = Pipeline.write, list[int]()

    def write(self: Pipeline, *args: Any) -> None:
        count.append(1)
        real(self, *args)
        if len(count) == 2:
            raise error

    return write


@pytest.mark.parametrize(
    ("error", "kind", "goes_on"),
    [
        (ConvertError("damaged", code="weight-values"), ConvertError, False),
        (KeyboardInterrupt(), KeyboardInterrupt, True),
        (MemoryError(), ResourceError, True),
    ],
)
def test_an_end_on_the_way_leaves_the_old_bundle_and_what_can_be_taken_over(
    error: BaseException,
    kind: type[BaseException],
    goes_on: bool,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "m.edge"
    converted(checkpoint, out, quant="f16", calibration=None)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with (
        few("int8", "int4"),
        mock.patch.object(Pipeline, "write", stops(error)),
        pytest.raises(kind),
    ):
        converted(checkpoint, out, budget_mb=BUDGET, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert beside(out) == ["m.edge", *["m.edge.candidates"] * goes_on]
    with few("int8", "int4"):
        converted(checkpoint, out, budget_mb=BUDGET, force=True)
    assert beside(out) == ["m.edge"]


def test_the_output_is_in_place_only_at_the_end(checkpoint: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "m.edge", list[bool]()
    measure = auto.of_bundle

    def looking(*args: Any) -> Any:
        seen.append((out / "manifest.json").exists())
        return measure(*args)

    with few("int8", "int4"), mock.patch.object(auto, "of_bundle", looking):
        converted(checkpoint, out, budget_mb=BUDGET)
    assert seen == [False, False]
    assert beside(out) == ["m.edge"]


def test_a_budget_that_nothing_fits_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"nothing fits 0\.0 MB: mixed: a budget of") as info:
        converted(checkpoint, tmp_path / "m.edge", budget_mb=0.01)
    assert info.value.code == "budget"
    assert info.value.hint
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with (
        few("int8"),
        mock.patch("edgert.converters.quality.np.log", lambda x: x * float("nan")),
        pytest.raises(ConvertError, match="not finite") as info,
    ):
        converted(checkpoint, tmp_path / "m.edge", budget_mb=BUDGET)
    assert info.value.code == "quality"
    assert not list(tmp_path.iterdir())


def test_whole_encodings_come_by_size_and_then_what_fills_the_budget() -> None:
    found = candidates(Asked("auto", budget_mb=9))
    assert [want.quant or want.recipe for want in found] == [
        "int8", "int6", "int5", "int4", "int3", "int2", "mixed", "compot-int8", "compot-int4"
    ]  # fmt: skip
    assert {want.budget_mb for want in found if want.recipe} == {9}
