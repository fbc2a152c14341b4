"""What a wheel would hold: every package folder, nothing under a bare name, and not too much."""

from __future__ import annotations

import importlib.util
import os
import re
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


# What a plain installation brings; the next test has nothing else.
INSTALLED = ("numpy", "tokenizers", "safetensors", "jinja2", "markupsafe", "click", "msgspec",
             "tqdm", "platformdirs", "psutil")  # fmt: skip
OFFLINE = """
import sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit("NETWORK")
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, with kernels for this machine."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("ziglang", reason="links the kernels: `pip install ziglang`")
    folder = tmp_path_factory.mktemp("wheel")
    tree, out = folder / "tree", folder / "out"
    tree.mkdir()
    for name in (*PACKAGES, "README.md", "LICENSE", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=lambda *_: {"built", "__pycache__"})
        else:
            shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    (made,) = out.glob("edgert-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_itself(wheel: Path) -> None:
    """What it is called, how large it is, what it holds."""
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    assert wheel.stat().st_size < WHEEL_BYTES
    assert re.fullmatch(r"edgert-[0-9.]+-py3-none-\w+\.whl", wheel.name)
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert "edgert/demo/edgert-demo.edge/README.md" in names
    assert "edgert/demo/stories260k/README.md" in names
    assert "edgert/kernels/built/manifest.json" in names
    assert {f"{name.replace('.', '/')}/py.typed" for name in PACKAGES.values()} <= set(names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"edgert"}


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Nothing but its dependencies, no compiler, no network, no cache: the chat model answers."""
    site, cache = tmp_path / "site", tmp_path / "cache"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    for name in INSTALLED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        folder = Path(str(spec.origin)).parent
        for each in folder.parent.glob(f"{name}*"):  # numpy.libs too
            if each.is_dir() and not each.name.endswith("-info"):
                (site / each.name).symlink_to(each)
    (site / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    env = {
        **os.environ, "PYTHONPATH": str(site), "EDGERT_CACHE": str(cache), "PATH": "/nonexistent",
        "EDGERT_KERNEL_LIBRARY": "",
    }  # fmt: skip
    # -S: no site-packages. PYTHONPATH is all there is beside the standard library.
    python = [sys.executable, "-S"]

    def run(code: str) -> subprocess.CompletedProcess[str]:
        code = f"import sitecustomize\n{code}"
        return subprocess.run(
            [*python, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
        )

    found = run("import edgert, importlib.util as u; print(edgert.__file__, u.find_spec('numba'))")
    assert found.stdout == f"{site / 'edgert' / '__init__.py'} None\n", found.stderr
    asked = "import sys; sys.argv = ['edgert', 'generate', '-p', 'Once upon a time', '-n', '8']\n"
    done = run(f"{asked}from edgert.cli import main; main()")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) >= 4
    assert not list(cache.glob("kernels-*"))


def test_the_core_installs_no_training_library(project: Any) -> None:
    names = {text.split(">")[0].split("=")[0] for text in project["project"]["dependencies"]}
    assert not names & {"torch", "onnx", "transformers", "diffusers", "gguf"}


def test_versions_agree(project: Any) -> None:
    import edgert

    assert edgert.__version__ == project["project"]["version"]
