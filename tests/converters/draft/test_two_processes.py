"""A draft head trained by two processes of torchrun, stopped and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgert
from edgert.bundle import Bundle
from tests.closeness import assert_close
from tests.conftest import ROOT
from tests.tiny import tiny_bundle

pytest.importorskip("torch")

from edgert.converters.draft.saved import load_head

STEPS, STOP = 6, 3
# The command; told to stop, both ranks are stopped once the first one has kept so many steps.
RANK = f"""
import sys
import torch
torch.set_num_threads(1)
from edgert.cli import run
from edgert.converters.linearize import training

class Trainer(training.Trainer):
    def _resume(self):
        super()._resume()
        print("from step", self.steps)

    def keep(self, **options):
        super().keep(**options)
        self.ranks.wait()
        if stop and self.steps == {STOP}:
            sys.exit(9)

stop = sys.argv[1] == "stop"
training.EVERY = 0.0
from edgert.converters.draft import training as drafting
drafting.Trainer = Trainer
sys.exit(run(sys.argv[2:]))
"""


def ran(
    script: Path, target: Path, out: Path, how: str, *, count: int, micro: int
) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    asked = {
        "data": script.with_name("prompts.jsonl"), "tokens": STEPS * 512, "batch": 512,
        "micro": micro, "length": 64, "vocabulary": 120, "answer": 24, "threads": 1, "seed": 3,
        "device": "cpu",
    }  # fmt: skip
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *(launcher if count > 1 else []), str(script), how, "draft"]
    return subprocess.run(
        [*command, str(target), "-o", str(out), "--keep", *options],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_give_the_head_that_one_gives_and_go_on(tmp_path: Path) -> None:
    """One micro batch of each process makes a step, so that both sum the same rows."""
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    rows = [{"text": f"question {i} " + "abc" * (i % 5)} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    target = tiny_bundle(tmp_path / "t.edge", quant="int4", layers=3, context=256)
    alone, both = tmp_path / "alone.edge", tmp_path / "both.edge"
    done = ran(script, target, alone, "go", count=1, micro=512)
    assert done.returncode == 0, done.stderr
    stopped = ran(script, target, both, "stop", count=2, micro=256)
    assert stopped.returncode != 0
    assert not both.exists()
    (work,) = tmp_path.glob("both.edge.draft-work/*")
    kept = {path.name for path in work.iterdir()}
    assert "head.pt" in kept
    answers = {path: path.stat().st_mtime_ns for path in work.glob("answers-*.npz")}
    done = ran(script, target, both, "go", count=2, micro=256)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"from step {STOP}") == 2, done.stdout
    assert done.stdout.count("a draft head of") == 1, "the first process speaks, and writes"
    assert {path: path.stat().st_mtime_ns for path in work.glob("answers-*.npz")} == answers
    found = [load_head(next(path.glob("*"))) for path in tmp_path.glob("*.edge.draft-work")]
    assert [head.told["steps"] for head in found] == [STEPS, STEPS]
    assert found[0].ids.tolist() == found[1].ids.tolist()
    for name, expected in found[0].weights.items():
        assert_close(name, expected, found[1].weights[name], rms=1e-5)
    with Bundle.open(both, verify="full") as bundle:
        assert bundle.manifest.draft is not None
        assert bundle.manifest.draft.measured["guesses"] > 0
    assert {path.name for path in tmp_path.glob("both*")} == {"both.edge", "both.edge.draft-work"}
    with edgert.load(both, threads=1, draft="none") as model:
        plain = model.generate("one two", max_tokens=20)
        assert model.generate("one two", max_tokens=20, draft="head").token_ids == plain.token_ids
