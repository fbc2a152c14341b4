"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgert
from tests.tiny import tiny_bundle

HEAVY = ("numba", "onnxruntime", "torch", "onnx", "transformers", "numpy", "jinja2", "tokenizers")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names() -> None:
    assert set(edgert.__all__) == {
        "AsyncStream", "BundleError", "Conversation", "ConvertError", "DeviceError",
        "DraftOptions", "DraftStats", "EdgertError",
        "Generation", "ImageModel", "ImageOptions", "Pictures", "RequestError", "ResourceError",
        "SamplingOptions", "SamplingParams", "Step", "Stream", "TextModel", "Timings",
        "TokenLogprob", "Usage", "__version__", "load",
    }  # fmt: skip
    assert len(edgert.__all__) < 25
    for name in edgert.__all__:
        assert getattr(edgert, name) is not None
    assert set(edgert.__all__) <= set(dir(edgert))
    with pytest.raises(AttributeError, match="nothing"):
        _ = edgert.nothing  # type: ignore[attr-defined]


def test_import_is_cheap() -> None:
    code = (
        "import time, sys; t = time.process_time(); import edgert; t = time.process_time() - t;"
        f"print(t, [m for m in {HEAVY} if m in sys.modules])"
    )
    seconds, modules = min(run(code).split(" ", 1) for _ in range(3))
    assert modules == "[]"
    assert float(seconds) < 0.25


def test_running_a_bundle_imports_no_trainer(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "t.edge")
    code = (
        f"import sys, edgert; m = edgert.load({str(path)!r}, device='reference');"
        "m.chat([{'role': 'user', 'content': 'x'}], max_tokens=2); m.close();"
        "print([m for m in ('torch', 'onnx', 'transformers', 'edgert.converters') "
        "if m in sys.modules])"
    )
    assert run(code) == "[]"
