"""The HTML report: what it holds, that it is whole, and that strangers' names stay text."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from edgert.converters.report_page import MARK, write_report

from benchmarks.make_checkpoint import make_checkpoint
from edgert.errors import ConvertError, ResourceError

from .faults import convert_tiny

LAYERS = [
    {
        "name": f"layers.{i}.{part}", "m": 64, "n": 128, "k": 32, "s": 16 - i, "form": "mask",
        "ratio": 0.2 + 0.01 * i, "error": 0.05 + 0.01 * i,
    }
    for i in range(4)
    for part in ("qkv", "down")
]  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "name": "little",
    "source": "org/little",
    "command": "edgert convert org/little -o little.edge",
    "seconds": 12.34,
    "stages": {"read": 1.0, "compot": 10.5},
    "peak_rss": 512_000_000,
    "source_bytes": 48_000_000,
    "bundle_bytes": 9_500_000,
    "weights": [
        {
            "name": "embed", "shape": (512, 64), "encoding": "int8-g32", "nbytes": 34816,
            "error": 0.01,
        },
        {"name": "norm", "shape": (64,), "encoding": "f32", "nbytes": 256, "error": 0.0},
    ],
    "bytes_by_part": {"embedding": 3_000_000, "attention": 2_000_000, "mlp": 4_500_000},
    "layers": LAYERS,
    "perplexity": {"before": 12.5, "after": 13.25, "tokens": 4096, "text": "wikitext2"},
    "candidates": [
        {"name": "int4", "nbytes": 12e6, "bits_per_byte": 1.1, "tokens_per_second": 50.0},
        {
            "name": "compot", "nbytes": 9.5e6, "bits_per_byte": 1.12, "tokens_per_second": 61.5,
            "chosen": True,
        },
        {"name": "int2", "nbytes": 7e6, "bits_per_byte": 1.6, "tokens_per_second": None},
    ],
}  # fmt: skip
HOSTILE = "</td><script>alert(1)</script>\"' onerror=x $\\frac{1 {{ 7*7 }} \u202egnp.\x1b[31m\udcff"


class Page(HTMLParser):
    """Tags, text and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.pictures: list[bytes] = []
        self.links: list[str] = []
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "srcset", "href"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data

    def pngs(self) -> list[bytes]:
        """Its pictures; nothing else may be fetched."""
        start = "data:image/png;base64,"
        assert all(link.startswith(start) for link in self.links)
        found = [base64.b64decode(link.removeprefix(start)) for link in self.links]
        assert all(png.startswith(b"\x89PNG") for png in found)
        return found


def matplotlib_is_here() -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")


def test_all_of_it(tmp_path: Path) -> None:
    matplotlib_is_here()
    path = write_report(tmp_path / "made" / "report", EVERYTHING)
    assert path == tmp_path / "made" / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    page = Page(path)
    assert len(page.pngs()) == 8  # four pictures, for light and dark pages
    for text in (
        "little", "converted from org/little", "edgert convert org/little", "12.3 s", "512.00 MB",
        "9.50 MB", "stage compot", "perplexity before on wikitext2, 4096 tokens", "12.500",
        "13.250", "Error of each matrix", "Allocation", "Bytes by part", "Quality against bytes",
        "layers.3.down", "512 × 64", "int8-g32", "61.5", "8.00%",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.raw.count('<tr class="chosen">') == 1
    assert page.tags.count("table") == 3
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in page.raw


@pytest.mark.parametrize("key", ["name", "stages", "weights", "layers", "candidates", "none"])
def test_each_key_is_optional(key: str, tmp_path: Path) -> None:
    matplotlib_is_here()
    data = {} if key == "none" else {key: EVERYTHING[key]}
    page = Page(write_report(tmp_path / "report", data))
    page.pngs()
    assert page.text.strip()


def test_a_real_conversion(tmp_path: Path) -> None:
    matplotlib_is_here()
    source = make_checkpoint("tiny", tmp_path / "tiny")
    report = convert_tiny(source, tmp_path / "m.edge", quant="int4")
    page = Page(write_report(tmp_path / "report", report.to_dict()))
    assert "layers.1.down" in page.text
    assert "stage quantize" in page.text
    assert len(page.pngs()) == 2


def test_names_of_strangers_stay_text(tmp_path: Path) -> None:
    matplotlib_is_here()

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {HOSTILE if k in ("read", "mlp") else k: spoiled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoiled(v) for v in value]
        return HOSTILE if isinstance(value, str) else value

    page = Page(write_report(tmp_path / "report", spoiled(EVERYTHING)))
    assert "script" not in page.tags
    assert len(page.pngs()) == 8
    assert "</td><script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not re.search("[\x1b\u202e\ud800-\udfff]", page.raw)


def test_many_matrices_and_numbers_that_are_none(tmp_path: Path) -> None:
    matplotlib_is_here()
    layers = [{**LAYERS[0], "name": f"layers.{i}", "error": i / 1000} for i in range(300)]
    layers[7]["error"] = layers[8]["ratio"] = float("nan")
    layers[9]["error"] = None
    data = {"layers": layers, "seconds": float("inf"), "perplexity": {"before": float("nan")}}
    page = Page(write_report(tmp_path / "report", data))
    assert len(page.pngs()) == 4
    assert "layers.299" in page.text


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    matplotlib_is_here()
    target = tmp_path / "report"
    target.mkdir()
    write_report(target, {"name": "first"})
    (target / "notes.txt").write_text("mine")
    path = write_report(target, {"name": "second"})
    assert "second" in path.read_text(encoding="utf-8")
    assert (target / "notes.txt").read_text() == "mine"
    with (
        mock.patch("os.replace", side_effect=PermissionError(13, "Permission denied")),
        pytest.raises(ResourceError),
    ):
        write_report(target, {"name": "third"})
    assert "second" in path.read_text(encoding="utf-8")
    assert sorted(p.name for p in target.iterdir()) == ["index.html", "notes.txt"]
    path.write_text("<html>my own page</html>", encoding="utf-8")
    with pytest.raises(ConvertError, match="is no edgert report"):
        write_report(target, {})
    (tmp_path / "file").write_text(MARK)
    with pytest.raises(ConvertError, match="is no edgert report"):
        write_report(tmp_path / "file", {})


def test_it_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgert.extras.find_spec", lambda name: None)
    with pytest.raises(ConvertError) as info:
        write_report(tmp_path / "report", EVERYTHING)
    assert "an HTML report needs the package matplotlib" in info.value.message
    assert "edgert[report]" in info.value.hint
    assert not (tmp_path / "report").exists()
