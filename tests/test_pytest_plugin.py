"""The pytest plugin: marked tests of an application, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT
from .tiny import tiny_bundle

TESTS = """
import pytest

GOOD = dict(predict=True, device="steam-deck", p90_token_ms=1000)

@pytest.mark.edgert_budget(**GOOD)
def test_kept(): pass

@pytest.mark.edgert_budget(predict=True, device="steam-deck", p90_token_ms=1e-6)
def test_broken(): pass

@pytest.mark.edgert_budget(predict=True, device="steam-deck", watts=3)
def test_undecided(): pass

@pytest.mark.edgert_budget(predict=True, device="steam-deck", watts=3, undecided="fail")
def test_undecided_strictly(): pass

@pytest.mark.edgert_budget(predict=True, device="steam-deck", p90_token_ms=1e-6)
def test_judges_itself(edgert_budget):
    assert edgert_budget.outcome == "fail"
    assert edgert_budget.verdicts[0].name == "p90_token_ms"

@pytest.mark.edgert_budget(predict=True, device="steam-dek", p90_token_ms=4)
def test_misspelt(): pass

def test_not_marked(edgert_budget): pass

def test_has_nothing_to_do_with_it(): pass
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """pytest on the tests in a folder, with no plugin but ours."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
               "edgert.pytest_plugin", *args]  # fmt: skip
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)


def test_marked_tests_pass_fail_and_are_skipped(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    (tmp_path / "test_app.py").write_text(TESTS, encoding="utf-8")
    out = tmp_path / "report.json"
    done = run(tmp_path, "--strict-markers", "-rA", f"--edgert-bundle={bundle}",
               f"--edgert-report={out}")  # fmt: skip
    lines = done.stdout.splitlines()
    outcomes = {
        line.split("::")[1].split()[0]: line.split()[0]
        for line in lines
        if line.startswith(("PASSED", "FAILED", "ERROR")) and "::" in line
    }
    assert outcomes == {
        "test_kept": "PASSED", "test_broken": "FAILED", "test_undecided_strictly": "FAILED",
        "test_judges_itself": "PASSED", "test_misspelt": "FAILED", "test_not_marked": "ERROR",
        "test_has_nothing_to_do_with_it": "PASSED",
    }, done.stdout  # fmt: skip
    assert "1 skipped" in lines[-1]
    assert "did you mean 'steam-deck'" in done.stdout
    assert "edgert budgets" in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))["reports"]
    assert [r["outcome"] for r in found] == ["pass", "fail", "undecided", "undecided", "fail"]
    assert found[0]["test"] == "test_app.py::test_kept"


def test_reports_of_many_processes_are_one(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    bundle = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS, encoding="utf-8")
    out = tmp_path / "report.json"
    chosen = ("-k", "kept or strictly", "-p", "xdist", "-n", "2", "--dist", "loadfile")
    done = run(tmp_path, *chosen, f"--edgert-bundle={bundle}", f"--edgert-report={out}")
    assert "2 failed, 2 passed" in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))["reports"]
    assert sorted((r["test"], r["outcome"]) for r in found) == [
        (f"test_{name}.py::test_{test}", outcome)
        for name in ("one", "two")
        for test, outcome in (("kept", "pass"), ("undecided_strictly", "undecided"))
    ]
    assert done.stdout.count("undecided test_") == 2  # in the section at the end


def test_a_bundle_that_nobody_names_is_an_error(tmp_path: Path) -> None:
    text = "import pytest\n@pytest.mark.edgert_budget(peak_mb=4)\ndef test_it(): pass\n"
    (tmp_path / "test_app.py").write_text(text, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "no bundle is named" in done.stdout


def test_nothing_is_imported_where_no_test_asks(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(
        "import sys\ndef test_it():\n"
        "    names = {n for n in sys.modules if n.startswith('edgert.')}\n"
        "    assert 'numpy' not in sys.modules\n"
        "    assert not names - {'edgert.pytest_plugin', 'edgert.errors', 'edgert.notices'}\n",
        encoding="utf-8",
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_entry_point_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"edgert": "edgert.pytest_plugin"}
