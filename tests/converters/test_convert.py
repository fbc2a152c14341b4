"""The conversion pipeline: encodings, streaming, resuming, and never half a bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
import types
from collections import namedtuple
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from edgert.converters import pipeline
from edgert.converters.convert import convert
from edgert.converters.stages import quantize as stage
from edgert.converters.stages.weight_cache import WeightCache
from edgert.kernels.encodings import dequantize

from benchmarks import make_checkpoint as maker
from edgert.bundle import Bundle, BundleWriter
from edgert.errors import ConvertError, ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.session.options import SessionOptions
from tests.closeness import distance
from tests.conftest import ROOT
from tests.converters.faults import breaking, convert_tiny, count_steps

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maker.make_checkpoint("tiny", tmp_path_factory.mktemp("source") / "tiny", dtype="bf16")


@pytest.fixture
def old(checkpoint: Path, tmp_path: Path) -> Path:
    """An older bundle in the place of the new one."""
    return Path(convert_tiny(checkpoint, tmp_path / "m.edge", quant="f16").path)


def fingerprint(path: Path) -> str:
    with Bundle.open(path, verify="full") as bundle:
        return bundle.fingerprint


def weights(path: Path) -> bytes:
    return (path / "weights.safetensors").read_bytes()


def leftovers(folder: Path) -> list[str]:
    """Everything beside bundles."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".edge")


@pytest.mark.parametrize(
    ("quant", "matrices", "ends", "worst"),
    [
        ("f32", "f32", "f32", 0.0),
        ("f16", "f16", "f16", 3e-4),
        ("int8", "int8-g32", "int8-g32", 0.008),
        ("int4-g32", "int4-g32", "int8-g32", 0.1),
    ],
)
def test_encodings_and_errors(
    checkpoint: Path, tmp_path: Path, quant: str, matrices: str, ends: str, worst: float
) -> None:
    plain = convert_tiny(checkpoint, tmp_path / "plain.edge", quant="f32")
    report = convert_tiny(checkpoint, tmp_path / "m.edge", quant=quant)
    noted = {weight.name: weight for weight in report.weights}
    with Bundle.open(plain.path) as a, Bundle.open(report.path) as b:
        wanted, stored = a.weights(), b.weights()
        for name, weight in b.graph().weights.items():
            expected = "f32" if len(weight.shape) == 1 else ends if name == "embed" else matrices
            assert weight.encoding == expected, name
            if len(weight.shape) == 2:
                error = distance(wanted[name], dequantize(stored[name]))[0]
                assert error <= worst, name
                assert noted[name].error == pytest.approx(error, rel=1e-4, abs=1e-9), name
        assert b.manifest.report["quant"] == matrices


def test_embed_quant_is_its_own_choice(checkpoint: Path, tmp_path: Path) -> None:
    report = convert_tiny(checkpoint, tmp_path / "m.edge", quant="int4", embed_quant="f16")
    with Bundle.open(report.path) as bundle:
        assert bundle.graph().weights["embed"].encoding == "f16"
        assert bundle.graph().weights["layers.0.qkv"].encoding == "int4-g32"


def test_unknown_quant_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="'int7' is unknown, expected one of"):
        convert(checkpoint, tmp_path / "m.edge", quant="int7")


def test_golden_prompts_are_answered_by_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    report = convert_tiny(checkpoint, tmp_path / "m.edge", golden=True)
    with Bundle.open(report.path) as bundle:
        assert [len(g.output_ids) for g in bundle.manifest.golden] == [16, 16]
        assert len(set(bundle.manifest.golden[0].output_ids)) > 1, "degenerate logits"
    found = verify_bundle(report.path, SessionOptions(device="cpu"), values=True)
    assert found.ok, found.problems()
    assert report.golden == "cpu"


def test_plain_conversion_needs_no_framework(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgert.converters.convert import convert\n"
        "convert(Path(sys.argv[1]), sys.argv[2], golden=False, progress=False)\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'transformers', 'numba', 'huggingface_hub',"
        " 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, checkpoint, tmp_path / "m.edge"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == "[]"


def test_a_hub_id_is_downloaded_by_the_hubs_client(checkpoint: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def snapshot_download(repo: str, **options: object) -> str:
        asked.append((repo, options))
        if repo == "org/gone":
            raise OSError("no such repository")
        return str(checkpoint)

    client = types.SimpleNamespace(snapshot_download=snapshot_download)
    with (
        mock.patch.dict(sys.modules, {"huggingface_hub": client}),
        mock.patch("edgert.converters.sources.hub.cache_only", return_value=""),
    ):
        report = convert_tiny("org/name@v1", tmp_path / "m.edge")  # type: ignore[arg-type]
        with pytest.raises(ConvertError, match="could not be downloaded: OSError: no such rep"):
            convert("org/gone", tmp_path / "n.edge", golden=False, progress=False)
    assert report.name == "name"
    with Bundle.open(tmp_path / "m.edge") as bundle:
        assert bundle.manifest.provenance.command.startswith("edgert convert org/name@v1 -o m.edge")
    assert asked[0][0] == "org/name"
    assert asked[0][1]["revision"] == "v1"
    patterns = asked[0][1]["allow_patterns"]
    assert "*.safetensors" in patterns  # type: ignore[operator]
    assert asked[0][1]["ignore_patterns"] == ["*/*", "consolidated*"]
    assert asked[1][1]["allow_patterns"] == ["additional_chat_templates/*.jinja"]
    assert not any(p.endswith((".bin", ".py", ".pt")) for p in patterns)  # type: ignore[attr-defined]


def test_provenance_names_sources_not_places(checkpoint: Path, tmp_path: Path) -> None:
    report = convert_tiny(checkpoint, tmp_path / "m.edge")
    with Bundle.open(report.path) as bundle:
        made = bundle.manifest.provenance
    assert set(made.sources) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert made.command == (
        "edgert convert tiny -o m.edge --quant int4-g32 --embed-quant int8-g32 --method rtn"
    )
    assert {"edgert", "numpy", "python"} <= set(made.versions)


@pytest.mark.parametrize(("dtype", "shards"), [("bf16", 3), ("f32", 1), ("f16", 2)])
def test_sources_of_all_types(checkpoint: Path, tmp_path: Path, dtype: str, shards: int) -> None:
    made = maker.make_checkpoint("tiny", tmp_path / "tiny", dtype=dtype, shards=shards)
    single = convert_tiny(checkpoint, tmp_path / "a.edge", quant="f32")
    other = convert_tiny(made, tmp_path / "b.edge", quant="f32")
    same = weights(Path(single.path)) == weights(Path(other.path))
    assert same == (dtype == "bf16")
    with Bundle.open(single.path) as a, Bundle.open(other.path) as b:
        for name, values in a.weights().items():
            assert distance(b.weights()[name], values)[0] < 3e-3, name


def test_a_folder_is_called_what_it_is_called(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "me@work" / "model@2"
    shutil.copytree(checkpoint, folder)
    for source, place in ((folder, tmp_path), (".", folder), ("..", folder / "sub")):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert convert_tiny(source, tmp_path / "m.edge").name == "model@2"  # type: ignore[arg-type]


def test_existing_output_needs_force(checkpoint: Path, old: Path) -> None:
    before = fingerprint(old)
    with pytest.raises(ConvertError, match=r"m\.edge exists"):
        convert(checkpoint, old, golden=False, progress=False)
    assert fingerprint(old) == before
    convert_tiny(checkpoint, old)
    assert fingerprint(old) != before
    assert leftovers(old.parent) == []


def test_two_conversions_cannot_race(checkpoint: Path, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "m.edge"), pytest.raises(ResourceError, match="in use by process"):
        convert_tiny(checkpoint, tmp_path / "m.edge")


def test_an_output_that_is_no_bundle_is_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.write_text("x")
    with pytest.raises(ConvertError, match="thesis is a file or a link, expected a bundle") as info:
        convert(tmp_path / "no checkpoint", out, progress=False, force=True)
    assert info.value.code == "output-foreign"


def test_an_error_leaves_no_new_folders(checkpoint: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ConvertError("failed")

    out = tmp_path / "no" / "such" / "m.edge"
    with (
        mock.patch.object(pipeline.Pipeline, "open_caches", fail),
        pytest.raises(ConvertError, match="failed"),
    ):
        convert(checkpoint, out, progress=False)
    assert not list(tmp_path.iterdir())


def test_disk_is_checked_before_the_start(checkpoint: Path, old: Path) -> None:
    before = fingerprint(old)
    with (
        mock.patch.object(shutil, "disk_usage", return_value=Usage(1 << 30, 1 << 30, 1000)),
        pytest.raises(ResourceError, match=r"1000 bytes free, the conversion needs \d{6,}") as info,
    ):
        convert_tiny(checkpoint, old)
    assert info.value.values["free"] == 1000
    assert info.value.values["needed"] > 100_000
    assert fingerprint(old) == before
    assert leftovers(old.parent) == []


def test_memory_is_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 1024, 8, 4, 512, 20_000, True, "llama")
    monkeypatch.setitem(maker.SHAPES, "wide", shape)
    made = maker.make_checkpoint("wide", tmp_path / "wide", dtype="f32")
    assert (made / "model.safetensors").stat().st_size > 80e6
    tracemalloc.start()
    convert_tiny(made, tmp_path / "m.edge", threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak / 1e6:.1f} MB")
    assert peak < 48e6, f"{peak / 1e6:.1f} MB"


class Broken(BaseException):
    """What the tests break a conversion with."""


def broken() -> None:
    raise Broken


def test_breaking_any_step_leaves_the_old_bundle_or_the_new(checkpoint: Path, old: Path) -> None:
    steps = count_steps(checkpoint, old)
    new = weights(old)
    assert {"write", "finish", "deliver", "fsync", "link", "_swap"} <= set(steps)
    # every step of the end, where files change places, and a sample of the many writes
    picked = sorted({*range(1, len(steps) + 1, 9), *range(len(steps) - 14, len(steps) + 1)})
    for number in picked:
        convert_tiny(checkpoint, old, quant="f16")
        before = fingerprint(old)
        with breaking(number, broken), pytest.raises(Broken):
            convert_tiny(checkpoint, old)
        label = f"step {number} ({steps[number - 1]})"
        assert fingerprint(old) == before or weights(old) == new, label
        assert not list(old.parent.glob("*.partial-*")), label
        convert_tiny(checkpoint, old)
        assert weights(old) == new, label
        assert leftovers(old.parent) == [], label


def test_sigkill_at_several_steps(checkpoint: Path, old: Path) -> None:
    steps, new = count_steps(checkpoint, old), weights(old)
    resumed = []
    ends = [steps.index("deliver") + 1, steps.index("link") + 2, len(steps)]
    for number in [1, len(steps) // 2, *ends]:
        convert_tiny(checkpoint, old, quant="f16")
        before = fingerprint(old)
        run = subprocess.run(
            [sys.executable, "-m", "tests.converters.faults", checkpoint, old, str(number)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == -9, run.stderr
        assert fingerprint(old) == before or weights(old) == new, number
        report = convert_tiny(checkpoint, old)
        resumed.append(report.resumed)
        assert weights(old) == new
        assert leftovers(old.parent) == []
    count = len(report.weights)
    assert resumed[0] == 0
    assert 0 < resumed[1] < count
    assert resumed[2:4] == [count, count]


def interrupted(checkpoint: Path, out: Path, weight: int) -> None:
    """A conversion that was stopped before weight number `weight` was noted as done."""
    seen: list[str] = []
    real = WeightCache.finish

    def finish(self: WeightCache, *args: object) -> None:
        if len(seen) == weight:
            raise Broken
        seen.append(str(args[0]))
        real(self, *args)  # type: ignore[arg-type]

    with mock.patch.object(WeightCache, "finish", finish), pytest.raises(Broken):
        convert_tiny(checkpoint, out)


def test_resume_takes_over_finished_weights(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert_tiny(checkpoint, tmp_path / "whole.edge")
    out = tmp_path / "m.edge"
    interrupted(checkpoint, out, 6)
    assert not out.exists()
    redone: list[str] = []
    real = stage.encode_weight

    def encode_weight(name: str, *args: object, **options: object) -> object:
        redone.append(name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    with mock.patch.object(stage, "encode_weight", encode_weight):
        report = convert_tiny(checkpoint, out)
    assert report.resumed == 6
    assert len(redone) == len(whole.weights) - 6
    assert weights(out) == weights(tmp_path / "whole.edge")
    assert report.weights == whole.weights
    assert leftovers(tmp_path) == []


def test_resume_believes_only_bytes_that_are_there(checkpoint: Path, tmp_path: Path) -> None:
    """Power loss: the journal reached the disk, some of the data did not, and a line is torn."""
    convert_tiny(checkpoint, tmp_path / "whole.edge")
    out = tmp_path / "m.edge"
    interrupted(checkpoint, out, 6)
    folder = tmp_path / "m.edge.stage" / "model" / "quantize"
    with open(folder / "weights.safetensors", "r+b") as file:
        file.seek(folder.joinpath("weights.safetensors").stat().st_size // 2)
        file.write(bytes(4096))
    with open(folder / "journal", "r+b") as file:
        file.truncate((folder / "journal").stat().st_size - 9)
    report = convert_tiny(checkpoint, out)
    assert report.resumed < 6
    assert weights(out) == weights(tmp_path / "whole.edge")


@pytest.mark.parametrize("options", [{"quant": "int8"}, {"resume": False}])
def test_other_options_start_again(
    checkpoint: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    interrupted(checkpoint, tmp_path / "m.edge", 6)
    assert convert_tiny(checkpoint, tmp_path / "m.edge", **options).resumed == 0


def test_another_version_starts_again(checkpoint: Path, tmp_path: Path) -> None:
    interrupted(checkpoint, tmp_path / "m.edge", 6)
    with mock.patch.object(pipeline, "own_version", return_value="another"):
        assert convert_tiny(checkpoint, tmp_path / "m.edge").resumed == 0


def test_another_checkpoint_starts_again(checkpoint: Path, tmp_path: Path) -> None:
    interrupted(checkpoint, tmp_path / "m.edge", 6)
    other = maker.make_checkpoint("tiny", tmp_path / "tiny", seed=1)
    assert convert_tiny(other, tmp_path / "m.edge").resumed == 0


def test_no_bar_where_nobody_looks(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert_tiny(checkpoint, tmp_path / "m.edge", progress=True)
    assert capfd.readouterr().err == ""


def test_summary_says_what_a_person_asks(checkpoint: Path, tmp_path: Path) -> None:
    report = convert_tiny(checkpoint, tmp_path / "m.edge")
    text = report.summary()
    assert "0.1 M parameters" in text
    assert "int4-g32: largest error of a weight" in text
    assert report.to_dict()["family"] == "llama"
    assert report.peak_rss > 10e6
    assert os.path.samefile(report.path, tmp_path / "m.edge")


def test_round_to_nearest_is_the_formula() -> None:
    from edgert.kernels.encodings import quantize

    rng = np.random.default_rng(0)
    w = rng.standard_normal((9, 64)).astype(np.float32)
    w[0, :32], w[1, :4] = 0, [1.0, -1.0, 0.5, 1.0]
    groups = w.reshape(9, 2, 32)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    for encoding, scale, low, high in (
        ("int4-g32", peak / -8.0, -8, 7),
        ("int8-g32", np.abs(peak) / 127.0, -127, 127),
    ):
        half = scale.astype(np.float16).astype(np.float32)
        safe = np.where(half == 0, 1, half)
        expected = np.clip(np.rint(groups * (np.float32(1) / safe)), low, high) * half
        assert np.array_equal(dequantize(quantize(w, encoding)), expected.reshape(9, 64))
