"""Conversions on disks that are full or closed, killed and cut off: rows H18 and H19."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export
from edgert.converters.stages.weight_cache import WeightCache

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.errors import ConvertError, ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.session import SessionOptions, memory
from tests.conftest import ROOT
from tests.converters.faults import breaking, convert_tiny, count_steps


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.edge"


@pytest.fixture
def old(good: Path, out: Path) -> Path:
    return Path(convert_tiny(good, out, quant="f16").path)


def state(path: Path) -> str:
    with Bundle.open(path, verify="full") as bundle:
        return bundle.fingerprint


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_h18_disk_full_while_writing(good: Path, old: Path, share: float) -> None:
    before, real, written = state(old), WeightCache.write, 0
    whole = convert_tiny(good, old.with_name("whole.edge"))
    room = int(share * sum(weight.nbytes for weight in whole.weights))
    shutil.rmtree(whole.path)

    def write(self: WeightCache, name: str, array: np.ndarray) -> None:
        nonlocal written
        written += array.nbytes
        if written > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, name, array)

    with mock.patch.object(WeightCache, "write", write), pytest.raises(ResourceError) as info:
        convert_tiny(good, old)
    assert info.value.code == "disk-full"
    assert info.value.values["needed"] > 100_000
    assert str(info.value.values["free"]) in info.value.message
    assert state(old) == before
    assert sorted(p.name for p in old.parent.iterdir()) == ["m.edge"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("last", ["_swap", "fsync", "link", "write_bytes"])
def test_h18_disk_fails_at_the_end(good: Path, old: Path, last: str, code: int) -> None:
    steps = count_steps(good, old)
    convert_tiny(good, old, quant="f16")
    before = state(old)
    number = steps.index(last) + 1

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    if last == "link":  # file systems without links are no failure
        with breaking(number, fail):
            convert_tiny(good, old)
        assert state(old) != before
        return
    with breaking(number, fail), pytest.raises(ResourceError) as info:
        convert_tiny(good, old)
    full = code in (errno.ENOSPC, errno.EDQUOT)
    assert info.value.code == ("disk-full" if full else "write")
    assert state(old) == before
    left = ["m.edge"] if full else ["m.edge", "m.edge.stage"]
    assert sorted(p.name for p in old.parent.iterdir()) == left


def test_h18_read_only_target(good: Path, out: Path) -> None:
    refusal = PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(out.parent))
    with (
        mock.patch("edgert.bundle.writer.FileLock", side_effect=refusal),
        pytest.raises(ResourceError, match="could not be written: Read-only file system") as info,
    ):
        convert_tiny(good, out)
    assert info.value.code == "write"
    assert list(out.parent.iterdir()) == []


def test_h18_target_that_is_no_bundle(good: Path, out: Path) -> None:
    out.mkdir()
    (out / "letters.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ConvertError, match="is a folder without"):
        convert(good, out, golden=False, progress=False, force=True)
    assert (out / "letters.txt").read_text("utf-8") == "keep me"


# H19: kill and power loss


def test_h19_killed_conversion_is_finished_by_the_next(good: Path, out: Path) -> None:
    steps = count_steps(good, out)
    new = (out / "weights.safetensors").read_bytes()
    shutil.rmtree(out)
    number = len(steps) // 3
    run = subprocess.run(
        [sys.executable, "-m", "tests.converters.faults", good, out, str(number)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not out.exists()
    assert convert_tiny(good, out).resumed > 0
    assert (out / "weights.safetensors").read_bytes() == new


def test_h19_power_loss_drops_unsynced_writes(good: Path, out: Path, tmp_path: Path) -> None:
    """Only what was synced survives: every later write to the stage's data is lost."""
    convert_tiny(good, tmp_path / "whole.edge")
    steps = count_steps(good, out)
    shutil.rmtree(out)

    class Dead(BaseException):
        pass

    def die() -> None:
        raise Dead

    with breaking(steps.index("deliver") + 1, die), pytest.raises(Dead):
        convert_tiny(good, out)
    data = out.parent / "m.edge.stage" / "model" / "quantize" / "weights.safetensors"
    size = data.stat().st_size
    with open(data, "r+b") as file:
        file.truncate(4096)
        file.truncate(size)
    report = convert_tiny(good, out)
    assert report.resumed < len(report.weights) / 2
    whole = (tmp_path / "whole.edge" / "weights.safetensors").read_bytes()
    assert (out / "weights.safetensors").read_bytes() == whole


def test_h18_disk_fails_at_the_first_byte(good: Path, out: Path) -> None:
    """Nothing is left that the next run could take over, so nothing is left."""
    with (
        mock.patch.object(WeightCache, "write", side_effect=OSError(errno.EIO, "I/O error")),
        pytest.raises(ResourceError, match="I/O error"),
    ):
        convert_tiny(good, out)
    assert list(out.parent.iterdir()) == []


def test_h18_disk_full_while_the_bundle_is_written(good: Path, out: Path) -> None:
    """Behind the stage that fills the cache, where another writer says that the disk is full."""
    full = ResourceError("the disk is full", code="disk-full")
    with (
        mock.patch("edgert.converters.stages.emit.TensorWriter", side_effect=full),
        mock.patch("edgert.converters.stages.emit.cache_of", return_value=None),
        pytest.raises(ResourceError) as info,
    ):
        convert_tiny(good, out)
    assert info.value.code == "disk-full"
    assert info.value.values["needed"] > 100_000
    assert list(out.parent.iterdir()) == []


def test_golden_answers_need_no_memory_for_the_whole_context(good: Path, out: Path) -> None:
    config = json.loads((good / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = 1 << 20
    (good / "config.json").write_text(json.dumps(config), encoding="utf-8")
    real = memory.reserve

    def reserve(size: int) -> np.ndarray:
        if size > 64 << 20:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(size)

    with mock.patch("edgert.session.pages.reserve", reserve):
        report = convert_tiny(good, out, golden=True)
        assert report.golden == "cpu"
        checked = verify_bundle(report.path, SessionOptions("cpu"))
    assert checked.ok, checked.problems()
    assert sum(check.subject.startswith("golden") for check in checked.checks) == 2
    with Bundle.open(report.path) as bundle:
        assert bundle.graph().context == 1 << 20


# export


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, r"model\.onnx needs \d{4,} bytes, the disk has \d+ free"),
     (errno.EROFS, "could not be written: Read-only file system")],
)  # fmt: skip
def test_export_to_a_disk_that_fails(old: Path, code: int, said: str) -> None:
    before, files = state(old), sorted(path.name for path in old.iterdir())
    with (
        mock.patch("os.fsync", side_effect=OSError(code, os.strerror(code))),
        pytest.raises(ResourceError, match=said) as info,
    ):
        export(old)
    assert info.value.code == ("disk-full" if code == errno.ENOSPC else "write")
    assert (state(old), sorted(path.name for path in old.iterdir())) == (before, files)
    assert [path.name for path in old.parent.iterdir()] == ["m.edge"]


def test_export_removes_what_killed_ones_left(old: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = [old / f"{name}.partial-{ended.pid}" for name in ("model.onnx", "draft.f16.onnx")]
    alive = old / f"model.onnx.partial-{os.getppid()}"
    for path in (*gone, alive):
        path.write_bytes(b"half")
    export(old)
    assert alive.exists()
    assert not [path for path in gone if path.exists()]
