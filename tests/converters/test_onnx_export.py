"""`export`: an .onnx beside the weights, without a second copy, and never a broken bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgert.converters import onnx_emit
from edgert.converters.onnx_emit import export
from edgert.kernels.quant import Quantized

from edgert.bundle import Bundle
from edgert.errors import ConvertError, ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.session.onnx_io import PLAIN, Variant
from edgert.session.options import SessionOptions
from edgert.storage.lock import FileLock

from ..tiny import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny.edge", quant="mixed")


def _digests(path: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def test_export_adds_a_file_and_nothing_else(bundle: Path) -> None:
    before = _digests(bundle)
    (made,) = export(bundle)
    after = _digests(bundle)
    assert made.name == "model.onnx"
    assert set(after) - set(before) == {"model.onnx"}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert verify_bundle(bundle, SessionOptions(device="ort-cpu")).ok
    assert [p.name for p in bundle.parent.iterdir() if "partial" in p.name] == []


def test_weights_are_bytes_of_the_bundles_own_file(bundle: Path) -> None:
    (made,) = export(bundle)
    assert made.stat().st_size < 20_000
    whole = onnx.load(made)  # resolves the external data
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    with Bundle.open(bundle) as opened:
        for name, weight in opened.weights().items():
            if name == "inv_freq":
                continue  # the session makes tables of it
            if isinstance(weight, Quantized):
                np.testing.assert_array_equal(tensors[f"{name}.q"], weight.q)
                np.testing.assert_array_equal(tensors[f"{name}.scales"], weight.scales)
            else:
                np.testing.assert_array_equal(tensors[name], weight)


def test_export_is_deterministic_and_repeatable(bundle: Path) -> None:
    export(bundle)
    first = _digests(bundle)
    export(bundle)
    assert _digests(bundle) == first


def test_unknown_manifest_fields_survive(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"x-note": "ü"}), encoding="utf-8")
    export(bundle)
    assert json.loads(path.read_text(encoding="utf-8"))["x-note"] == "ü"


def test_a_failure_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _digests(bundle)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("killed here")

    monkeypatch.setattr(onnx_emit, "emit", fails)
    with pytest.raises(RuntimeError, match="killed here"):
        export(bundle)
    assert _digests(bundle) == before
    assert verify_bundle(bundle).ok


def test_two_writers_do_not_race(bundle: Path) -> None:
    lock = FileLock(bundle.with_name(f"{bundle.name}.lock"), "the other writer")
    with pytest.raises(ResourceError, match="in use by process"):
        export(bundle)
    lock.close()
    export(bundle)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "f64"}, "'f64'"),
        ({"rows": 8, "capacity": 64}, "standard dialect"),
        ({"rows": 8, "capacity": 4, "standard": True}, "0 < rows <= capacity"),
        ({"capacity": 4, "standard": True}, "0 < rows <= capacity"),
    ],
)
def test_options_that_contradict(bundle: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        export(bundle, **options)  # type: ignore[arg-type]


def test_names_of_variants() -> None:
    for variant in (PLAIN, Variant(True), Variant(False, True), Variant(True, True, 8, 64)):
        assert Variant.of_file("model", f"model{variant.suffix}.onnx") == variant
    assert Variant.of_file("model", "draft.onnx") is None
    assert Variant.of_file("model", "model.onnx.bak") is None
