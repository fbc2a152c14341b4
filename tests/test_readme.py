"""The README says what is true: its commands exist, its code runs, its tables are generated."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from edgert.converters.families import FAMILIES

from edgert import cli
from edgert.cli.test import UNDECIDED

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def command_lines() -> list[str]:
    """Every command line of the README that calls edgert, one for each part of a pipe."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"[|]|&&", line)]
    return [part for part in parts if part.startswith("edgert ")]


def test_the_two_commands_stand_there_as_promised() -> None:
    firsts = [block.strip() for block in blocks("sh")[:2]]
    assert firsts == ["pip install . && edgert demo", 'pip install -e ".[test]" && pytest']


def test_ci_runs_the_second_command_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"command=\$\(sed -n '([^']+)'", script)
    assert found is not None
    done = subprocess.run(
        ["sed", "-n", found[1]], input=README, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == 'pip install -e ".[test]" && pytest'
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_command_lines_parse() -> None:
    lines = command_lines()
    assert len(lines) >= 5
    for line in lines:
        _, verb, *args = shlex.split(line)
        command = cli.cli.get_command(click.Context(cli.cli), verb)
        assert command is not None, line
        command.make_context(verb, args, obj=None)


def test_verbs_are_those_that_exist() -> None:
    listed = re.findall(r"^\| `edgert ([\w-]+)", README, flags=re.MULTILINE)
    assert sorted(listed) == sorted(cli.VERBS)


def test_exit_codes_are_those_of_the_code() -> None:
    listed = set(
        map(int, re.findall(r"(?<![\d.])(\d+) [^0-9]", README.split("Exit codes:")[1][:200]))
    )
    assert {0, 1, 2, UNDECIDED, cli.INTERRUPTED, cli.PIPE_CLOSED, cli.INTERNAL_ERROR} == listed


def test_generated_sections_are_up_to_date() -> None:
    from benchmarks.readme import filled, sections

    assert filled(README, sections()) == README, "run python -m benchmarks.readme"


def test_every_family_is_in_the_table() -> None:
    listed = re.findall(r"^\| (\w+) \|", README.split("families: ")[1], flags=re.MULTILINE)
    assert set(FAMILIES) == set(listed) - {"model_type"}


def test_the_support_table_says_what_the_tests_compare() -> None:
    from benchmarks.support import checkpoints, published

    table = README.split("families: begin")[1].split("families: end")[0]
    for kind in FAMILIES:
        (row,) = re.findall(rf"^\| {kind} \| .*$", table, flags=re.MULTILINE)
        assert "–" not in row.split(" | ")[-2], f"{kind}: compared with nothing"
        for name in published().get(kind, []):
            assert name in row
    assert sum(checkpoints().values()) > len(FAMILIES)
    assert re.search(r"against transformers \d+\.\d+\.\d+:", table)


def test_the_performance_table_shows_measurements() -> None:
    from benchmarks.readme import performance_table

    row = {"test": "pp512", "threads": 2, "tps_median": 1234.4, "p90_ms": 1.0, "read_share": None}
    line = {
        "model": "some",
        "machine": "a box",
        "date": "2026-01-01",
        "convert": {"bundle_bytes": 2e8, "seconds": 12.34, "peak_rss": 3e8},
        "bench": {
            "rows": [row, row | {"test": "tg128", "tps_median": 99.9, "read_share": 0.81}],
            "load_s": 0.5,
            "peak_rss_mb": 400.0,
        },
    }
    table = performance_table([line | {"date": "2025-01-01"}, line])
    assert (
        "| some | 200 MB | 12.3 s | 300 MB | 0.50 s | 400 MB | 2 | 1234 | 99.9 | 1.00 ms | 81% |"
        in (table)
    )
    assert table.count("| some |") == 1


def test_python_code_runs_as_written() -> None:
    (code,) = blocks("python")
    ast.parse(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "length 32" in done.stdout or "stop" in done.stdout


def test_the_licence_is_the_one_named(tmp_path: Path) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text.splitlines()[1]
    assert "Apache-2.0" in README
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^license = "Apache-2\.0( AND [\w.-]+)*"', project, re.MULTILINE)


def test_no_path_of_a_workplace_is_in_it() -> None:
    assert not re.search(r"(?<![.\w])/(work|root|home|tmp)/", README)


@pytest.mark.slow
def test_the_first_command_in_a_fresh_environment(tmp_path: Path) -> None:
    """pip install . && edgert demo, as a newcomer would."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    script = f'. "{tmp_path}/venv/bin/activate" && {blocks("sh")[0].strip()}'
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Tom has 8 apples." in done.stdout
