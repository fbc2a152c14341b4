"""Fixtures every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background, for children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["EDGERT_CONFIG"] = os.devnull  # not the file of whoever runs the tests


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models, tokenizers and texts; tests that need it skip without it."""
    path = Path(os.environ.get("EDGERT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return path


@pytest.fixture(scope="session")
def trained_checkpoint(shared_data: Path) -> Path:
    """A chat model of the demo's shape and tokenizer, in the Hugging Face layout."""
    path = shared_data / "lm-edgert-24m-think"
    if not (path / "model.safetensors").is_file():
        pytest.skip(f"no {path.name} in the shared data folder")
    return path


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled kernels for sessions of this run and for the processes they start."""
    return tmp_path_factory.mktemp("kernels")
