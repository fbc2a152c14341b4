"""The benchmark of long texts: cells that stand, cells that would take too long, and its page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import long_context, long_context_page, machine
from benchmarks.llama_cache import repeated
from benchmarks.runners import LlamaRunner


def asked(work: Path, **changes: Any) -> argparse.Namespace:
    known = {
        "depths": [1024, 2048], "engines": list(long_context.ENGINES), "threads": 1, "rounds": 2,
        "prompts": 1, "cap": 30.0, "again": False, "llama": False, "work": work,
    }  # fmt: skip
    return argparse.Namespace(**known | changes)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "results" / "long_context.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr(long_context, "RESULTS", path)
    return path


def measured(results: Path) -> list[dict[str, Any]]:
    return [row for line in long_context_page.read(results) for row in line["rows"]]


def test_what_stands_is_not_measured_again(work: Path, results: Path) -> None:
    long_context.run("tiny", asked(work, engines=["softmax-f16", "2mamba"]), float("inf"))
    assert [(row["engine"], row["depth"]) for row in measured(results)] == [
        ("softmax-f16", 1024), ("2mamba", 1024), ("softmax-f16", 2048), ("2mamba", 2048),
    ]  # fmt: skip
    long_context.run("tiny", asked(work, depths=[2048, 4096]), float("inf"))
    assert [(row["engine"], row["depth"]) for row in measured(results)[4:]] == [
        ("softmax-int8", 2048), ("hybrid", 2048),
        ("softmax-f16", 4096), ("softmax-int8", 4096), ("2mamba", 4096), ("hybrid", 4096),
    ]  # fmt: skip
    rows = {(row["engine"], row["depth"]): row for row in measured(results)}
    assert all(row["decode_ms"] > 0 and row["prompt_ms"] > 0 for row in rows.values())
    assert rows["2mamba", 4096]["state_mb"] == rows["2mamba", 1024]["state_mb"]
    f16 = rows["softmax-f16", 4096]["state_mb"]
    assert f16 == pytest.approx(4 * rows["softmax-f16", 1024]["state_mb"], rel=0.05)
    assert f16 == pytest.approx(2 * 2 * 2 * 16 * 2 * 4096 / 1e6, rel=0.05)  # two layers, two heads
    assert 0.5 < rows["softmax-int8", 4096]["state_mb"] / f16 < 0.75
    before = results.read_bytes()
    long_context.run("tiny", asked(work, depths=[1024, 4096], engines=["2mamba"]), float("inf"))
    assert results.read_bytes() == before


def test_long_cells_and_late_depths_are_left_out_and_said(
    work: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = asked(work, engines=["softmax-f16"], depths=[1024], cap=1e-9)
    long_context.run("tiny", short, float("inf"))
    (row,) = measured(results)
    assert (row["bursts"], row["piece"], row["prompt_ms"]) == (2, 0, 0.0)
    assert row["left_s"] == pytest.approx(64 * row["decode_ms"] / 1e3, rel=1e-3)
    long_context.run("tiny", asked(work), float("-inf"))
    assert "tiny is left out" in capsys.readouterr().out
    assert len(measured(results)) == 1


def cells(growth: float) -> list[dict[str, Any]]:
    """Made-up results: softmax and llama.cpp lose by the depth, 2mamba by `growth` of it."""
    lines = []
    known = {"cpu": machine.cpu_model(), "cores": 2, "isa": "none", "llama": None}
    for depth in (1024, 4096, 16384, 65536):
        slow = {"softmax-f16": 1 + depth / 2048, "llama.cpp-f16": 3 + depth / 1024}
        each = slow | {"2mamba": 2 * (depth / 1024) ** growth}
        rows = [
            {"engine": name, "depth": depth, "threads": 1, "bursts": 2, "decode_ms": ms,
             "decode_best_ms": ms, "piece": 256, "prompt_ms": ms / 4, "left_s": 0.0,
             "state_mb": depth / 1e3 if name != "2mamba" else 2.0}
            for name, ms in each.items()
        ]  # fmt: skip
        lines.append({"shape": "135m", "time": "2026-11-29", "machine": known,
                      "run": {"noisy": False}, "rows": rows})  # fmt: skip
    return lines


@pytest.mark.parametrize(("growth", "verdict"), [(0.0, "held"), (0.2, "missed")])
def test_the_page_judges_the_goals(results: Path, growth: float, verdict: str) -> None:
    lines = cells(growth)
    lines[-1]["rows"][0] |= {"prompt_ms": 0.0, "left_s": 99.0}
    results.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    long_context_page.write_page(results)
    page = (results.parent.parent / "LONG_CONTEXT.md").read_text(encoding="utf-8")
    said = {line.split(" | ")[0].lstrip("| "): line for line in page.splitlines()}
    for figure in (
        "2mamba's speed at 64k over its own at 1k",
        "exponent of 2mamba's prompts, 4k to the longest",
    ):
        assert f"| {verdict} |" in said[figure]
    assert "| 4.50 | >= 2.5 | held |" in said["2mamba's speed over softmax f16, 16k"] or growth
    assert "| left out, 99 s |" in page
    for part in ("decode", "prompt"):
        picture = results.with_name(f"long_context_{part}.svg")
        assert picture.name in page
        lines_drawn = ElementTree.parse(picture).getroot().findall(".//{*}g[@stroke]")
        assert len(lines_drawn) == 3


def test_a_prompt_is_the_sum_of_its_pieces() -> None:
    rows = {("x", 1024): {"prompt_ms": 1.0}, ("x", 4096): {"prompt_ms": 3.0},
            ("x", 16384): {"prompt_ms": 3.0}, ("x", 65536): {"prompt_ms": 0.0}}  # fmt: skip
    prompts = long_context_page.whole_prompts(rows, "x")
    assert prompts == pytest.approx({1024: 1.024, 4096: 1.024 + 6.144, 16384: 7.168 + 36.864})
    assert long_context_page.growth({1024: 1.0}) is None
    assert long_context_page.growth({4096: 2.0, 16384: 32.0}) == pytest.approx(2.0)


@pytest.mark.parametrize("mark", [b"", b"mark\0\0\0\0"])
@pytest.mark.parametrize("transposed", [False, True])
def test_content_of_llama_is_repeated(mark: bytes, transposed: bool) -> None:
    def content(cells: int, times: int) -> bytes:
        head = np.array([1, cells * times], "<u4").tobytes()
        where = [(i, 1, 0) for i in range(cells * times)]
        found = mark + head + np.array(where, "<i4").tobytes()
        found += np.array([transposed, 2], "<u4").tobytes()
        for matrix in range(4):
            if transposed and matrix >= 2:
                found += np.array([8, 2, 3], "<u4").tobytes()
                for column in range(3):
                    found += bytes(range(column, column + 2 * cells)) * times
                continue
            size = 3 + matrix
            found += np.array([8], "<i4").tobytes() + np.array([size], "<u8").tobytes()
            found += bytes(range(matrix, matrix + cells * size)) * times
        return found

    short = np.frombuffer(content(5, 1), np.uint8)
    assert repeated(short, 3).tobytes() == content(5, 3)
    with pytest.raises(ValueError, match="the parts make"):
        repeated(np.append(short, np.uint8(0)), 3)
    two = np.frombuffer(b"mark\0\0\0\0\2\0\0\0" + content(5, 1)[len(mark) + 4 :], np.uint8)
    with pytest.raises(ValueError, match="2 streams"):
        repeated(two, 3)


@pytest.mark.parametrize("name", ["llama.cpp-f16", f"llama.cpp-f16{long_context_page.PLAIN}"])
def test_llama_stands_where_its_content_says(work: Path, name: str) -> None:
    """Content that is repeated once is what was there; more of it goes on at its end."""
    pytest.importorskip("llama_cpp")
    args = asked(work, engines=[])
    token = np.array([7], np.int32)
    with long_context.opened("tiny", [name], args) as (engine,):
        runner = engine.runner
        assert isinstance(runner, LlamaRunner)
        one = runner.step(token).copy()
        engine.go(long_context.START)
        assert np.array_equal(runner.step(token), one)
        engine.go(2048)
        assert runner.nbytes == pytest.approx(4 * len(engine.content), rel=0.01)
        assert np.isfinite(runner.step(token)).all()
