"""Size is a smell detector: files of at most 400 lines, functions of at most 60.

What is longer for a good reason is listed here with that reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

from .conftest import ROOT

FILE_LINES, FUNCTION_LINES = 400, 60
TEST_FILE_LINES = 700  # a test module is a list of cases, not a mechanism
FOLDERS = (
    "edgert",
    "kernels",
    "converters",
    "devices",
    "tests",
    "benchmarks",
    "recipes",
    "examples",
)
FILES: dict[str, str] = {}
FUNCTIONS: dict[str, str] = {
    "benchmarks/gguf_copy.py::write_gguf": "a line for each key and tensor of a foreign format",
}


def sources() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def long_functions(text: str) -> dict[str, int]:
    """Lines of each function that is over the budget."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found[node.name] = lines
    return found


def test_no_file_is_over_the_budget() -> None:
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources()
    }
    budget = lambda name: TEST_FILE_LINES if name.startswith("tests/") else FILE_LINES
    over = {name for name, lines in sizes.items() if lines > budget(name)}
    found = sorted(f"{name}: {sizes[name]} lines" for name in over - set(FILES))
    assert not found, "\n".join(found)
    assert not set(FILES) - over, "listed, but within the budget or gone"


def test_no_function_is_over_the_budget() -> None:
    over = {
        f"{path.relative_to(ROOT).as_posix()}::{name}": lines
        for path in sources()
        for name, lines in long_functions(path.read_text(encoding="utf-8")).items()
    }
    found = sorted(
        f"{name}: {lines} lines" for name, lines in over.items() if name not in FUNCTIONS
    )
    assert not found, "\n".join(found)
    assert not set(FUNCTIONS) - set(over), "listed, but within the budget or gone"


def test_the_budget_counts_lines() -> None:
    body = "\n".join(f"    x = {n}" for n in range(FUNCTION_LINES))
    assert long_functions(f"def f():\n{body}\n") == {"f": FUNCTION_LINES + 1}
