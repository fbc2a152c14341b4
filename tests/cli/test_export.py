"""`edgert export`, and the devices it serves, through the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from edgert.converters.onnx_emit import export

from edgert.cli import run
from edgert.errors import ConvertError

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


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_a_package_that_is_missing_is_named_before_anything_is_done(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    found = importlib.util.find_spec
    hide = lambda name, package=None: None if name == "onnx" else found(name, package)
    monkeypatch.setattr("edgert.extras.find_spec", hide)
    out = ["-o", f"{bundle}.new", "--onnx", "f32"]
    args = {"export": [verb, str(bundle)], "convert": [verb, str(bundle), *out]}
    before = sorted(path.name for path in bundle.parent.iterdir())
    assert run(args[verb]) == 2
    said = capsys.readouterr().err
    assert "needs the package onnx, which is not installed" in said
    assert 'hint: pip install onnx, or pip install "edgert[export]"' in said
    assert sorted(path.name for path in bundle.parent.iterdir()) == before
    with pytest.raises(ConvertError, match="needs the package onnx"):
        export(bundle)


def test_any_package_that_is_missing_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: object, **options: object) -> None:
        import surely_not_installed.part  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr("edgert.evaluation.verify.verify_bundle", absent)
    assert run(["verify", str(bundle), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["code"], found["hint"]) == (
        "missing-package",
        "pip install surely_not_installed",
    )
