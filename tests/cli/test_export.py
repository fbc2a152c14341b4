"""`edgert export`, and the devices it serves, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgert.cli import run

from ..tiny import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny.edge")


def test_export_then_generate(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["model.onnx"]
    assert (
        run(
            [
                "generate",
                str(bundle),
                "-p",
                "hi",
                "-n",
                "4",
                "--device",
                "cpu",
                "--temp",
                "0",
                "--json",
            ]
        )
        == 0
    )
    expected = json.loads(capsys.readouterr().out)["token_ids"]
    assert (
        run(
            [
                "generate",
                str(bundle),
                "-p",
                "hi",
                "-n",
                "4",
                "--device",
                "ort-cpu",
                "--temp",
                "0",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["token_ids"] == expected


def test_without_export_the_verb_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(bundle), "-p", "hi", "--device", "ort-cpu"]) == 2
    assert f"edgert export {bundle} --precision f32" in capsys.readouterr().err


def test_inspect_tells_the_placement(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["export", str(bundle)])
    capsys.readouterr()
    assert run(["inspect", str(bundle), "--device", "ort-cpu"]) == 0
    assert "CPUExecutionProvider: " in capsys.readouterr().out
    assert run(["inspect", str(bundle), "--device", "ort-cpu", "--json"]) == 0
    placed = json.loads(capsys.readouterr().out)["placement"]
    assert {node["provider"] for node in placed} == {"CPUExecutionProvider"}


def test_allow_cpu_nodes_needs_a_provider(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(bundle), "-p", "hi", "--allow-cpu-nodes"]) == 2
    assert "no meaning with --device cpu" in capsys.readouterr().err


def test_fixed_shapes_need_the_standard_dialect(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(bundle), "--rows", "8", "--capacity", "32"]) == 2
    assert "add --standard" in capsys.readouterr().err
    assert run(["export", str(bundle), "--rows", "8", "--capacity", "32", "--standard"]) == 0
    assert (bundle / "model.std.s8-p32.onnx").is_file()
