"""The quality tables: parts put together are the whole, and pages keep their own words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality_tables as tables

from .conftest import ROOT


def line(measure: str, part: int, engine: str = "int4", **values: Any) -> dict[str, Any]:
    place = {"model": "demo", "engine": engine, "measure": measure, "parts": 2, "part": part}
    return place | {"date": "2026-01-02"} | values


def test_accuracies_are_weighted_by_examples() -> None:
    lines = [
        line("piqa", 0, examples=30, acc=0.5, acc_norm=0.2),
        line("piqa", 1, examples=10, acc=0.9, acc_norm=0.6),
    ]
    cell = tables.joined(lines)["demo", "int4", "piqa"]
    hits = [1.0] * 24 + [0.0] * 16
    mean = sum(hits) / 40
    spread = math.sqrt(sum((x - mean) ** 2 for x in hits) / 39 / 40)
    assert cell["acc"] == pytest.approx(mean)
    assert cell["acc_stderr"] == pytest.approx(spread)
    assert cell["acc_norm"] == pytest.approx(0.3)
    assert (cell["examples"], cell["share"]) == (40, 1.0)


def test_bits_are_weighted_by_bytes_and_perplexities_in_the_logarithm() -> None:
    lines = [
        line("wikipedia_valid", 0, examples=1, bytes=100, value=1.0),
        line("wikipedia_valid", 1, examples=1, bytes=300, value=2.0),
        line("lambada", 0, examples=1, acc=0.0, perplexity=10.0),
        line("lambada", 1, examples=3, acc=0.0, perplexity=1000.0),
    ]
    cells = tables.joined(lines)
    assert cells["demo", "int4", "wikipedia_valid"]["value"] == pytest.approx(1.75)
    assert cells["demo", "int4", "lambada"]["perplexity"] == pytest.approx(10**2.5)


def test_a_part_says_that_it_is_one() -> None:
    lines = [line("blimp", 1, examples=100, acc=0.5)]
    table = tables.quality_table(tables.joined(lines))
    assert "| 50.00 ± 5.03 % (50% of it) |" in table
    assert tables.joined(lines, only=0) == {}


def test_verdicts_compare_engines_over_what_both_measured() -> None:
    lines = [
        line("blimp", 0, "f32", examples=100, acc=0.75),
        line("blimp", 0, "transformers", examples=100, acc=0.75),
        line("blimp", 1, "transformers", examples=100, acc=0.65),
    ]
    said = tables.verdicts(lines)
    assert "over 50% of it | 0.0e+00 apart | ≤ 0.001 | yes |" in said
    assert "| 70.00 ± 3.25 % | ≥ 72% | **no** |" in said
    lines[0]["acc"] = 0.752
    assert "| 2.0e-03 apart | ≤ 0.001 | **no** |" in tables.verdicts(lines)


def test_only_what_stands_between_the_marks_changes() -> None:
    text = "a <!-- x: begin --> old <!-- x: end --> b"
    assert tables.replaced(text, "x", "new") == "a <!-- x: begin -->\nnew\n<!-- x: end --> b"
    with pytest.raises(ValueError, match="y: begin"):
        tables.replaced(text, "y", "new")


def test_the_shipped_tables_are_those_of_the_kept_lines() -> None:
    """Nobody edited a number: `--write` would change nothing."""
    from benchmarks.quality_demo import RESULTS, read

    contents = tables.contents(list(read(RESULTS).values()))
    for path, sections in contents.items():
        text = path.read_text(encoding="utf-8")
        for name, content in sections.items():
            assert tables.replaced(text, name, content) == text, (path.name, name)
    assert (ROOT / "benchmarks" / "DEMO_QUALITY.md") in contents


def test_only_the_shipped_models_own_checkpoint_is_measured_as_the_demo(tmp_path: Path) -> None:
    from benchmarks.quality_demo import check_source

    with pytest.raises(SystemExit, match=r"no file, expected .* SHA-256 3c945cd05ff1"):
        check_source(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"says where it is"):
        check_source(tmp_path)


def answered(engine: str, measure: str, part: int, groups: dict[str, list[int]]) -> dict[str, Any]:
    right, asked = (sum(pair[i] for pair in groups.values()) for i in (0, 1))
    acc = right / asked
    return line(measure, part, engine, value=acc, acc=acc, examples=asked, groups=groups)


def test_answers_are_counted_over_parts_by_group() -> None:
    lines = [
        answered("int4", "recall_1900", 0, {"10% passkey": [2, 2], "90% name": [1, 2]}),
        answered("int4", "recall_1900", 1, {"10% name": [0, 1], "90% name": [1, 1]}),
        answered("int4", "problems", 0, {"age": [3, 4]}),
        answered("int4", "problems_direct", 0, {"age": [1, 4]}),
    ]
    cells = tables.joined(lines)
    assert "| 1,900 tokens | 2 of 3 | 2 of 3 |" in tables.depth_table(cells)
    kinds = tables.kinds_table(cells)
    assert "| age | 3 of 4 | 1 of 4 |" in kinds
    assert "| fact: name | 2 of 4 | – |" in kinds
    head, _, row = tables.answers_table(cells).splitlines()
    assert "word problems (4)" in head
    cells = "75.0% (50% of them) | 25.0% (50% of them) | – | – | 66.7% | –"
    assert f"| edgert int4 | {cells} |" in row


def test_the_demo_shows_what_both_engines_were_measured_on() -> None:
    both = [
        answered(engine, "recall_500", part, {"10% name": [right, 10]})
        for engine, part, right in (("f16", 0, 10), ("int4", 0, 9), ("int4", 1, 2))
    ]
    alone = answered("int4", "problems", 0, {"age": [3, 4]})
    (row,) = tables.shipped_quality([*both, alone])["rows"]
    assert (row["f16"], row["int4"], row["items"]) == (1.0, 0.9, "10 texts")


def test_the_shipped_quality_is_that_of_the_kept_lines() -> None:
    from benchmarks.quality_demo import RESULTS, read
    from edgert.demo import quality

    assert quality() == tables.shipped_quality(list(read(RESULTS).values()))


def test_items_are_asked_as_they_were_made() -> None:
    from benchmarks import quality_answers
    from recipes.demo_text.problems import is_right

    free = quality_answers.items(Path(), Path(), "problems")
    direct = quality_answers.items(Path(), Path(), "problems_direct")
    assert [item.question for item in free] == [item.question for item in direct]
    assert len(free) == quality_answers.PROBLEMS
    assert {item.begun for item in free} == {""}
    assert {item.begun for item in direct} == {quality_answers.CLOSED}
    assert not any(is_right("", item.value, item.choices) for item in free)
