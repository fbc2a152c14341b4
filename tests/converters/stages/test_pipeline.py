"""Stages over parts: a source and stages of the tests' own go through the pipeline."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from edgert.converters import pipeline
from edgert.converters.convert import convert
from edgert.converters.pipeline import Options, Pipeline
from edgert.converters.recipes import Plan
from edgert.converters.report import ConvertReport
from edgert.converters.sources import base
from edgert.converters.stages.base import Context, PartInProgress, Stage
from edgert.converters.stages.emit import Emit
from edgert.converters.stages.quantize import Quantize
from edgert.converters.stages.verify import Verify
from edgert.converters.stages.weight_cache import WeightCache
from edgert.kernels.encodings import dequantize

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from tests.closeness import assert_close
from tests.conftest import ROOT
from tests.converters.stages.toy import Double, Scaled, Split, ToySource


class Broken(BaseException):
    """What the tests break a conversion with."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.edge"


def options(out: Path, quant: str = "f32") -> Options:
    plan = Plan(quant, quant, "rtn")
    return Options(out, "toy", plan, progress=False, golden=False, threads=2)


def run(
    out: Path, *stages: Stage, quant: str = "f32", after: Sequence[Stage] = ()
) -> ConvertReport:
    """The usual pipeline with other stages before and after the quantizer."""
    row = (*stages, Quantize(quant, quant), *after, Emit(), Verify(golden=False))
    return Pipeline(ToySource(), options(out, quant), row).run()


def interrupted(out: Path, last: str, *stages: Stage, quant: str = "f32") -> None:
    """A conversion that is stopped when weight `last` would be noted as done."""
    real = WeightCache.finish

    def finish(self: WeightCache, weight: str, note: dict[str, float]) -> None:
        if f"{self.folder.parent.name}/{self.folder.name}/{weight}" == last:
            raise Broken
        real(self, weight, note)

    with mock.patch.object(WeightCache, "finish", finish), pytest.raises(Broken):
        run(out, *stages, quant=quant)
    assert [p.name for p in out.parent.iterdir()] == ["m.edge.stage"]


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.suffix == ".safetensors"}


def test_both_parts_go_through_all_stages(out: Path) -> None:
    report, source = run(out, Split()), ToySource()
    assert list(report.stages) == ["read", "split", "quantize", "emit", "verify"]
    assert report.family == "toy"
    assert {w.name.partition("/")[0] for w in report.weights} == {"model", "draft"}
    with Bundle.open(out, verify="full") as bundle:
        assert list(bundle.manifest.parts) == ["model", "draft"]
        assert bundle.manifest.provenance.command.endswith(" --toy")
        assert bundle.manifest.report["stages"]["split"] == {
            "model": {"ranks": {"l0.down": 64, "l1.down": 64}},
            "draft": {"ranks": {"l0.down": 32}},
        }
        assert bundle.read("LICENSE") == b"free"
        for part in ("model", "draft"):
            weights = {k: np.array(v) for k, v in bundle.weights(part).items()}
            product = weights["l0.down.u"] @ weights["l0.down.v"]
            assert_close(part, source.tensors[f"{part}.l0.down"].values, product, rms=1e-6)
            assert np.array_equal(weights["norm"], source.tensors[f"{part}.norm"].values)


@pytest.mark.parametrize("quant", ["f32", "int4-g32"])
def test_a_stage_that_was_done_is_not_run_again(out: Path, quant: str) -> None:
    run(out.with_name("whole.edge"), Split(), quant=quant)
    whole = files(out.with_name("whole.edge"))
    folder = out.parent / "again"
    folder.mkdir()
    out, first, second = folder / "m.edge", Split(), Split()
    interrupted(out, "draft/quantize/l0.o", first, quant=quant)
    assert first.ran == ["model", "draft"]
    report = run(out, second, quant=quant)
    assert second.ran == []
    assert len([w for w in report.weights if w.name.startswith("model/")]) < report.resumed
    assert report.resumed < len(report.weights)
    assert files(out) == whole
    assert [p.name for p in folder.iterdir()] == ["m.edge"]


def test_a_killed_conversion_goes_on(out: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.converters.stages import test_pipeline as t\n"
        "real = t.WeightCache.finish\n"
        "def finish(self, weight, note):\n"
        "    if self.folder.name == 'quantize' and weight == 'l1.qkv': os.kill(os.getpid(), 9)\n"
        "    real(self, weight, note)\n"
        "t.WeightCache.finish = finish\n"
        "t.run(Path(sys.argv[1]), t.Split())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, out], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    stage = Split()
    assert run(out, stage).resumed > 4
    assert stage.ran == []
    assert [p.name for p in out.parent.iterdir()] == ["m.edge"]


def test_a_stage_that_was_stopped_takes_over_what_it_had(out: Path) -> None:
    interrupted(out, "model/split/l1.down.u", Split())
    stage = Split()
    run(out, stage)
    assert stage.ran == ["model", "draft"]
    assert stage.factored == ["l1.down", "l0.down"], "the last one is the draft's"


def test_another_later_stage_does_not_cost_the_earlier_one(out: Path) -> None:
    interrupted(out, "draft/quantize/norm", Split(), quant="int8-g32")
    stage = Split()
    report = run(out, stage, quant="int4-g32")
    assert stage.ran == []
    assert {w.encoding for w in report.weights} == {"f32", "int4-g32"}


def test_another_earlier_stage_costs_the_later_ones(out: Path) -> None:
    interrupted(out, "draft/quantize/norm", Split())
    stage = Split(balance=1.0)
    assert run(out, stage).resumed == 0
    assert stage.ran == ["model", "draft"]


def test_a_stage_that_is_left_out_leaves_nothing(out: Path) -> None:
    interrupted(out, "draft/quantize/norm", Split())
    assert run(out).resumed == 0
    assert [p.name for p in out.parent.iterdir()] == ["m.edge"]


def test_damaged_results_are_made_again(out: Path) -> None:
    interrupted(out, "draft/quantize/norm", Split())
    folder = out.parent / "m.edge.stage" / "model" / "split"
    data = folder / "weights.safetensors"
    data.write_bytes(data.read_bytes()[:-8] + bytes(8))
    (folder.parents[1] / "draft" / "split" / "result").write_bytes(b'{"graph":')
    stage = Split()
    run(out, stage)
    assert stage.ran == ["model", "draft"]
    assert stage.factored == ["l1.down"], "what lay before the damage is good"


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_stage_may_change_how_weights_are_read(out: Path, place: str) -> None:
    rows = ([Double()], []) if place == "before" else ([], [Double()])
    run(out, *rows[0], after=rows[1], quant="int8-g32")
    plain = out.with_name("plain.edge")
    run(plain, quant="int8-g32")
    with Bundle.open(out) as found, Bundle.open(plain) as expected:
        for part in ("model", "draft"):
            wanted = expected.weights(part)
            for name, values in found.weights(part).items():
                factor = 2 if name == "norm" else 1
                assert np.array_equal(dequantize(values), factor * dequantize(wanted[name])), name


class Failing(Split):
    """Fails after its work, on the second part."""

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        after = super().run(part, context)
        if part.name == "draft":
            raise ZeroDivisionError("the draft has no rank")
        return after


class Foreign(Split):
    """Returns a weight that is neither in its cache nor its input's."""

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        after = super().run(part, context)
        return after.replace(weights={**after.weights, "norm": Scaled(part.weights["norm"])})


class Unfinished(Split):
    """Loses a weight."""

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        after = super().run(part, context)
        return after.replace(weights={k: v for k, v in after.weights.items() if k != "norm"})


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (Failing(), ZeroDivisionError, "no rank"),
        (Foreign(), ValueError, r"'split': weights \['norm'\] are not in its cache"),
        (Unfinished(), ValueError, "'split': weights are not those of the graph"),
    ],
)
def test_a_stage_that_fails_leaves_the_old_bundle(
    out: Path, stage: Stage, error: type[Exception], message: str
) -> None:
    run(out, quant="int8-g32")
    before = files(out)
    with pytest.raises(error, match=message):
        run(out, stage)
    assert files(out) == before
    assert sorted(p.name for p in out.parent.iterdir()) == ["m.edge", "m.edge.stage"]
    run(out, Split())
    assert sorted(p.name for p in out.parent.iterdir()) == ["m.edge"]


def test_one_error_lists_the_faults_of_all_parts(out: Path) -> None:
    source = ToySource()
    source.faults.append("a file is torn")
    del source.tensors["draft.norm"]
    source.tensors["ghost"] = source.tensors["model.norm"]
    with pytest.raises(ConvertError) as info:
        Pipeline(source, options(out)).run()
    for fault in (
        "3 faults",
        "a file is torn",
        "tensor 'draft.norm' [32] is missing",
        "tensor 'ghost' [64] is unexpected",
    ):
        assert fault in info.value.message
    assert list(out.parent.iterdir()) == []


def test_values_that_are_no_numbers_name_their_tensor(out: Path) -> None:
    source = ToySource()
    source.tensors["draft.l0.o"].values[1, 2] = np.nan
    with pytest.raises(ConvertError, match=r"tensor 'draft\.l0\.o' holds 1 NaN") as info:
        Pipeline(source, options(out)).run()
    assert info.value.code == "weight-values"


def test_a_source_without_text_is_refused_before_the_work(out: Path) -> None:
    with pytest.raises(ConvertError, match=r"toy\.toy has no text part") as info:
        Pipeline(ToySource(texts=False), options(out)).run()
    assert info.value.code == "source-parts"
    assert list(out.parent.iterdir()) == []


def test_the_source_that_recognises_a_path_is_opened(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SOURCES", ("tests.converters.stages.toy", *base.SOURCES))
    report = convert("some.toy", out, method="rtn", golden=False, progress=False)
    assert (report.name, report.family) == ("some", "toy")
    with pytest.raises(ConvertError, match="no such directory"):
        convert("some.other", out, golden=False, progress=False, force=True)


def test_stages_of_a_plain_conversion(out: Path) -> None:
    names = [stage.name for stage in pipeline.stages_for(options(out))]
    assert names == ["quantize", "emit", "verify"]
