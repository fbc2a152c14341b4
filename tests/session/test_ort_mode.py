"""onnxruntime's flushing of small numbers ends where onnxruntime ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgert.converters.onnx_emit import export

from ..conftest import ROOT
from ..tiny import tiny_bundle

CODE = """
import numpy as np
from edgert.bundle import Bundle
from edgert.session import Feed, SessionOptions, open_session

flushed = []

def flushes():
    return float((np.full(1, 1e-310) * np.ones(1))[0]) == 0.0

class Watched:
    def __init__(self, runtime):
        self.runtime = runtime
    def run_with_iobinding(self, *args):
        flushed.append(flushes())
        self.runtime.run_with_iobinding(*args)
    def __getattr__(self, name):
        return getattr(self.runtime, name)

def answer(device):
    with Bundle.open(PATH) as bundle:
        session = open_session(bundle, SessionOptions(device=device))
        assert not flushes(), "left on by opening"
        session.model.runtime = Watched(session.model.runtime)
        session.step([Feed(session.new_state(), np.arange(4, 8, dtype=np.int32))])
        assert not flushes(), "left on by a run"
        session.close()

for device in ("ort-cpu:session.set_denormal_as_zero=1", "ort-cpu"):
    answer(device)
print(flushed)
"""


def test_small_numbers_are_flushed_while_onnxruntime_runs_and_no_longer(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "tiny.edge")
    export(path)
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("PATH", repr(str(path)))],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[True, False]\n"), done.stderr
