"""The stage `compot`: products become two, stored for good, within a ratio or a budget."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from edgert.converters.compress.budget import Dims
from edgert.converters.compress.job import Factored, FactorJob, factor_matrix
from edgert.converters.onnx_emit import export
from edgert.converters.report import ConvertReport
from edgert.converters.sources.base import open_source
from edgert.converters.stages import compot
from edgert.converters.stages.compot import Compot, Factoring, factored, spectrum_of, targets_of
from edgert.converters.stages.quantize import encoded
from edgert.converters.stages.read import read
from edgert.converters.weights import stored_nbytes, whole

import edgert.notices
from benchmarks.make_checkpoint import make_checkpoint
from edgert import system_memory
from edgert.bundle import Bundle
from edgert.errors import ConvertError, ResourceError

from ...closeness import assert_close, distance
from ..wide import CALIBRATION, FACTORED, converted, encodings, logits, weights, wide_checkpoint

SUMS = 1e-5  # the same formula, summed in another order
CODES = 5e-2  # activations rounded otherwise, or not, in products one after another


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def four(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    """--recipe compot-int4."""
    out = tmp_path_factory.mktemp("four") / "m.edge"
    return converted(checkpoint, out, recipe="compot-int4")


def test_products_are_two_and_small_matrices_stay_one(four: ConvertReport) -> None:
    with Bundle.open(four.path, verify="full") as bundle:
        graph, told = bundle.graph(), bundle.manifest.report["stages"]["compot"]["model"]
    for name in FACTORED:
        a, s = (
            next(node for node in graph.nodes if node.weights.get("weight") == f"{name}.{factor}")
            for factor in "as"
        )
        assert (a.op, s.op) == ("linear", "linear")
        assert s.inputs == (a.output,)
        assert name not in graph.weights
    rows = {row["name"]: row for row in told["layers"]}
    assert set(rows) == set(FACTORED)
    assert "layers.0.down" in graph.weights
    assert told["ratio"] == 0.2
    assert four.details["compot"]["layers"] == told["layers"]
    for name, row in rows.items():
        a, s = graph.weights[f"{name}.a"], graph.weights[f"{name}.s"]
        assert a.shape == (row["k"], row["m"])
        assert s.shape == (row["n"], row["k"])
        assert 0 < row["exact"] < 1
        assert 0 < row["error"] < 1


def test_factors_are_stored_once_and_for_good(four: ConvertReport) -> None:
    found = encodings(Path(four.path))
    for name in FACTORED:
        assert found[f"{name}.a"] == "int4-g32"
        assert found[f"{name}.s"].startswith("sparse6-s")
    assert found["layers.1.down"] == "int4-g32"
    assert found["embed"] == "int8-g32"
    errors = {weight.name: weight.error for weight in four.weights}
    assert 0.03 < errors["layers.0.o.a"] < 0.2
    assert 0 < errors["layers.0.o.s"] < 0.05
    assert "COMPOT: 6 of 6 matrices factored, ratio 0.20" in four.summary()


def test_every_executor_computes_the_same(four: ConvertReport) -> None:
    out = Path(four.path)
    export(out)
    expected = logits(out)
    found = logits(out, "cpu", threads=2, kv_bits=32)
    rows = [distance(*pair)[0] for pair in zip(expected, found, strict=True)]
    assert min(rows) <= SUMS  # until an activation lies between two codes, which later rows read
    assert_close("cpu", expected, found, rms=CODES)
    assert_close("ort-cpu", expected, logits(out, "ort-cpu", threads=2), rms=CODES)


def test_less_removed_is_nearer_to_the_original(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "f32.edge", quant="f32", calibration=None)
    wanted, lost = logits(tmp_path / "f32.edge"), {}
    for ratio in (0.02, 0.5):
        out = tmp_path / f"{ratio}.edge"
        converted(checkpoint, out, compot=ratio, quant="f16")
        lost[ratio] = distance(wanted, logits(out))[0]
    print(lost)
    assert lost[0.02] < 0.15
    assert 3 * lost[0.02] < lost[0.5]


def test_a_run_that_stops_goes_on_with_the_same_bytes(
    checkpoint: Path, tmp_path: Path, four: ConvertReport
) -> None:
    done: list[str] = []

    def stops(job: FactorJob) -> Factored:
        if job.name == "layers.1.o":
            raise KeyboardInterrupt
        done.append(job.name)
        return factor_matrix(job)

    out = tmp_path / "m.edge"
    with mock.patch.object(compot, "factor_matrix", stops), pytest.raises(KeyboardInterrupt):
        converted(checkpoint, out, recipe="compot-int4")
    assert not out.exists()
    assert len(done) == 4
    with mock.patch.object(compot, "factor_matrix", wraps=factor_matrix) as again:
        report = converted(checkpoint, out, recipe="compot-int4")
    assert {call.args[0].name for call in again.call_args_list} == set(FACTORED) - set(done)
    assert report.resumed == 2 * len(done)
    assert weights(out) == weights(Path(four.path))
    assert [path.name for path in tmp_path.iterdir()] == ["m.edge"]


def test_several_workers_give_the_bytes_of_one(
    checkpoint: Path, tmp_path: Path, four: ConvertReport
) -> None:
    converted(checkpoint, tmp_path / "m.edge", recipe="compot-int4", workers=2)
    assert weights(tmp_path / "m.edge") == weights(Path(four.path))


def test_a_form_without_zeros_is_stored_as_a_matrix(checkpoint: Path, tmp_path: Path) -> None:
    def lowrank(self: Compot, spectra: dict[str, compot.Spectrum], ratio: float) -> dict[str, Dims]:
        return {name: Dims(each.m, each.n, "lowrank", 48, 48) for name, each in spectra.items()}

    with mock.patch.object(Compot, "sizes", lowrank):
        converted(checkpoint, tmp_path / "m.edge", recipe="compot-int8")
    found = encodings(tmp_path / "m.edge")
    assert {found[f"{name}.{factor}"] for name in FACTORED for factor in "as"} == {"int8-g32"}
    assert logits(tmp_path / "m.edge").std() > 0


# Budgets


def test_a_bundle_keeps_its_budget(checkpoint: Path, tmp_path: Path) -> None:
    plain = converted(checkpoint, tmp_path / "m.edge", quant="int8", calibration=None)
    budget = 0.95 * plain.bundle_bytes / 1e6 + 0.07  # what is besides the weights is guessed
    report = converted(
        checkpoint, tmp_path / "m.edge", recipe="compot-int8", budget_mb=budget, force=True
    )
    assert report.bundle_bytes <= budget * 1e6
    assert 0 < report.details["compot"]["ratio"] < 0.9


def test_the_smallest_ratio_that_fits_is_taken(checkpoint: Path) -> None:
    with open_source(checkpoint) as source:
        (part,) = read(source).parts
        rest = partial(encoded, quant="int4-g32", embed_quant="int8-g32")
        spectra = {
            name: spectrum_of((name, whole(part.weights[name]).T))
            for name in targets_of(part.graph)
        }
    asked = Factoring(0.0, "int4-g32", 6)

    def nbytes(ratio: float) -> int:
        sizes = Compot(asked, CALIBRATION, rest).sizes(spectra, ratio)
        graph, pairs = factored(part.graph, sizes, asked)
        kept = {name: graph.weights[name] for pair in pairs.values() for name in pair}
        return stored_nbytes({**rest(graph).weights, **kept})

    for ratio in (0.1, 0.33, 0.8):
        stage = Compot(replace(asked, budget=nbytes(ratio)), CALIBRATION, rest)
        found = stage.ratio_within(part.graph, spectra)
        assert nbytes(found) <= nbytes(ratio) < nbytes(round(found - 0.01, 2))


def refused(checkpoint: Path, out: Path, **options: object) -> str:
    """The message about a budget that cannot be kept; nothing was written."""
    with pytest.raises(ConvertError) as info:
        converted(checkpoint, out, recipe="compot-int4", **options)
    assert info.value.code == "budget"
    assert info.value.hint
    assert not list(out.parent.iterdir())
    return info.value.message


def test_a_budget_that_nothing_keeps_is_an_error_before_anything_is_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "m.edge"
    assert "tokenizer and graph take" in refused(checkpoint, out, budget_mb=0.01)
    with mock.patch.object(compot, "factor_matrix") as work:
        assert "bytes at a ratio of 0.9" in refused(checkpoint, out, budget_mb=0.16)
    assert not work.called


def test_without_matrices_to_factor_it_says_so_and_keeps_the_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")
    edgert.notices._shown.clear()
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.WARNING, "edgert"):
        message = refused(small, tmp_path / "out" / "m.edge", budget_mb=0.13)
        assert message.startswith("the weights in int4-g32 take ")
        report = converted(small, tmp_path / "m.edge", recipe="compot-int4")
    assert "no matrix of part 'model' has 128 rows and columns" in caplog.text
    assert {w.encoding for w in report.weights} == {"f32", "int4-g32", "int8-g32"}


def test_too_little_memory_is_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    with (
        mock.patch.object(system_memory, "free", return_value=50_000_000),
        mock.patch.object(compot, "spectrum_of") as work,
        pytest.raises(ResourceError, match=r"calibrating takes about 0\.07 GB") as info,
    ):
        converted(checkpoint, tmp_path / "m.edge", recipe="compot-int4")
    assert info.value.code == "memory"
    assert not work.called
    assert not list(tmp_path.iterdir())


def test_memory_that_ends_names_the_matrix(checkpoint: Path, tmp_path: Path) -> None:
    with (
        mock.patch("edgert.converters.compress.job.whiten", side_effect=MemoryError),
        pytest.raises(ResourceError, match=r"weight 'layers\.0\.qkv': out of memory"),
    ):
        converted(checkpoint, tmp_path / "m.edge", recipe="compot-int4")
