"""What a wheel would hold: every package folder, nothing under a bare name, and not too much."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

PACKAGES = {"edgert": "edgert", "kernels": "edgert.kernels", "converters": "edgert.converters",
         "devices": "edgert.devices"}  # fmt: skip
WHEEL_BYTES = 35e6

tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else None


@pytest.fixture(scope="module")
def project() -> Any:
    if tomllib is None:
        pytest.skip("tomllib came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> dict[str, Path]:
    """Import name -> folder, of every folder that holds Python files."""
    found = {}
    for folder, name in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.parent.relative_to(ROOT / folder).parts
            found[".".join([name, *parts])] = path.parent
    return found


def test_every_package_is_listed(project: Any) -> None:
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders())


def test_nothing_is_installed_under_a_bare_name(project: Any) -> None:
    assert {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]} == {"edgert"}
    mapped = project["tool"]["setuptools"]["package-dir"]
    assert mapped == {name: folder for folder, name in PACKAGES.items() if folder != "edgert"}


def test_every_room_says_that_it_is_typed(project: Any) -> None:
    """PEP 561: without the marker in the wheel a type checker takes all of it for Any."""
    data = project["tool"]["setuptools"]["package-data"]
    for room, name in PACKAGES.items():
        assert "py.typed" in data[name]
        assert (ROOT / room / "py.typed").is_file()


def test_a_wheel_stays_small() -> None:
    """Unpacked, so an upper bound: sources and the demo's files."""
    files = {path for folder in folders().values() for path in folder.glob("*.py")}
    files |= {path for path in (ROOT / "edgert" / "demo").rglob("*") if path.is_file()}
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e6:.1f} MB")
    assert size < WHEEL_BYTES


@pytest.mark.slow
def test_the_wheel_itself(tmp_path: Path) -> None:
    """Built, measured, unpacked elsewhere: the chat model answers and brings its card."""
    pytest.importorskip("setuptools", minversion="77")
    tree, out, site = tmp_path / "tree", tmp_path / "out", tmp_path / "site"
    for folder in (*PACKAGES, "README.md", "LICENSE", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / folder).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / folder, tree / folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    (wheel,) = out.glob("edgert-*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    assert wheel.stat().st_size < WHEEL_BYTES
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packed.extractall(site)
    assert "edgert/demo/edgert-demo.edge/README.md" in names
    assert "edgert/demo/stories260k/README.md" in names
    assert {f"{name.replace('.', '/')}/py.typed" for name in PACKAGES.values()} <= set(names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"edgert"}
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = "import edgert, sys; sys.stderr.write(edgert.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert str(site) in found.stderr
    asked = [sys.executable, "-m", "edgert", "generate", "-p", "Once upon a time", "-n", "8"]
    done = subprocess.run(asked, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 4


def test_the_core_installs_no_training_library(project: Any) -> None:
    names = {text.split(">")[0].split("=")[0] for text in project["project"]["dependencies"]}
    assert not names & {"torch", "onnx", "transformers", "diffusers", "gguf"}


def test_versions_agree(project: Any) -> None:
    import edgert

    assert edgert.__version__ == project["project"]["version"]
