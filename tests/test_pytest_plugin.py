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


MARKS = """
import pathlib
import pytest

KEPT = dict(predict=True, device=pathlib.PurePath("steam-deck"), p90_token_ms=1000)
BROKEN = dict(predict=True, device="steam-deck", peak_mb=1)
OPEN = dict(predict=True, device="steam-deck", watts=3)

@pytest.mark.edgert_budget(**BROKEN)
@pytest.mark.edgert_budget(**KEPT)
def test_upper(): pass

@pytest.mark.edgert_budget(**KEPT)
@pytest.mark.edgert_budget(**BROKEN)
def test_lower(): pass

@pytest.mark.edgert_budget(undecided="fail", **OPEN)
@pytest.mark.edgert_budget(**KEPT)
def test_strict(): pass

@pytest.mark.edgert_budget(**OPEN)
@pytest.mark.edgert_budget(undecided="fail", **KEPT)
def test_strict_about_another(): pass

@pytest.mark.edgert_budget(**KEPT)
class TestAll:
    @pytest.mark.edgert_budget(**BROKEN)
    def test_it(self): pass

@pytest.mark.edgert_budget(**BROKEN)
class TestBoth:
    @pytest.mark.edgert_budget(**KEPT)
    def test_it(self): pass

@pytest.mark.edgert_budget(**BROKEN)
@pytest.mark.edgert_budget(**KEPT)
def test_report(edgert_budget):
    found = {v.name: v.outcome for v in edgert_budget.verdicts}
    assert found == {"p90_token_ms": "pass", "peak_mb": "fail"}
    assert edgert_budget.outcome == "fail"
"""


def test_every_mark_of_a_test_has_to_hold(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    (tmp_path / "test_app.py").write_text(MARKS, encoding="utf-8")
    out = tmp_path / "report.json"
    done = run(tmp_path, "-rA", f"--edgert-bundle={bundle}", f"--edgert-report={out}")
    failed = {
        line.split("::", 1)[1].split(" ")[0]
        for line in done.stdout.splitlines()
        if line.startswith("FAILED")
    }
    assert failed == {
        "test_upper", "test_lower", "test_strict", "TestAll::test_it", "TestBoth::test_it"
    }, done.stdout  # fmt: skip
    assert "1 passed, 1 skipped" in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))["reports"]
    assert [r["outcome"] for r in found if r["test"].endswith("test_upper")] == ["pass", "fail"]


ODD = [
    ('seconds="x"', "Expected `float`, got `str` - at `$.seconds`"),
    ("seconds=-1", "seconds is -1"),
    ("device=5", "Expected `str`, got `int` - at `$.device`"),
    ('threads="2"', "Expected `int | null`, got `str` - at `$.threads`"),
    ("threads=True", "got `bool` - at `$.threads`"),
    ("kv_bits=7", "kv_bits is 7, expected one of"),
    ("bundle=5", "bundle is 5, expected the path of one"),
    ('limit_memory="2 GiBs"', "limit_memory is '2 GiBs', expected bytes such as '512M' or '2G'"),
    ('predict=False, limit_memory="2G"', "nothing of the budget starts one"),
]


def test_keywords_of_another_kind_are_named(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    given = 'dict(predict=True, device="steam-deck", p50_token_ms=1000) | dict'
    text = "import pytest\n" + "".join(
        f"@pytest.mark.edgert_budget(**({given}({odd})))\ndef test_{at}(): pass\n"
        for at, (odd, _) in enumerate(ODD[:-1])
    )
    text += f"@pytest.mark.edgert_budget(p50_token_ms=1000, {ODD[-1][0]})\ndef test_it(): pass\n"
    (tmp_path / "test_app.py").write_text(text, encoding="utf-8")
    done = run(tmp_path, f"--edgert-bundle={bundle}")
    assert f"{len(ODD)} failed" in done.stdout
    for _, said in ODD:
        assert said in done.stdout
    assert "Traceback" not in done.stdout


def test_a_report_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text("def test_it(): pass\n", encoding="utf-8")
    for place in (tmp_path / "absent" / "report.json", tmp_path, ""):
        done = run(tmp_path, f"--edgert-report={place}")
        assert (done.returncode, "passed" in done.stdout) == (4, False)
        assert "could not be written" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_report_whose_folder_goes_away_ends_the_run_badly(tmp_path: Path) -> None:
    text = "import shutil\ndef test_it(): shutil.rmtree('there')\n"
    (tmp_path / "test_app.py").write_text(text, encoding="utf-8")
    (tmp_path / "there").mkdir()
    done = run(tmp_path, "--edgert-report=there/report.json")
    assert (done.returncode, "1 passed" in done.stdout) == (3, True)
    assert "report.json could not be written" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_collecting_leaves_the_last_report(tmp_path: Path) -> None:
    text = "import os\ndef test_it(): os.chdir('/')\n"
    (tmp_path / "test_app.py").write_text(text, encoding="utf-8")
    out = tmp_path / "report.json"
    out.write_text("the last one", encoding="utf-8")
    run(tmp_path, "--collect-only", "--edgert-report=report.json")
    assert out.read_text(encoding="utf-8") == "the last one"
    run(tmp_path, "--edgert-report=report.json")  # of the folder that it began in
    assert json.loads(out.read_text(encoding="utf-8")) == {"schema": 1, "reports": []}


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
