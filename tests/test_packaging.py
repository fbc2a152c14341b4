"""What a wheel would hold: every package folder, nothing under a bare name, and not too much."""

from __future__ import annotations

import importlib.util
import json
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
from .test_checkout import DRAWING_BYTES

PACKAGES = {"edgert": "edgert", "kernels": "edgert.kernels", "converters": "edgert.converters",
         "devices": "edgert.devices"}  # fmt: skip
WHEEL_BYTES = 35e6 + DRAWING_BYTES

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


def test_every_data_file_is_installed(project: Any) -> None:
    """What code reads at run time must be named in `package-data`, or only a checkout has it."""
    data, missing = project["tool"]["setuptools"]["package-data"], []
    for name, folder in folders().items():
        named = {path for pattern in data.get(name, ()) for path in folder.glob(pattern)}
        for path in folder.iterdir():
            kept = path.suffix in (".py", ".md", ".pyc") or path.name.startswith(".")
            if path.is_file() and not kept and path not in named:
                missing.append(path.relative_to(ROOT).as_posix())
    assert not missing


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


# --- setuptools' commands -------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`kernels/wheel.py` of a small checkout, whose build makes a manifest and nothing else."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path / "checkout" / "kernels"
    (folder / "cpu").mkdir(parents=True)
    for name in (
        "__init__.py", "build.py", "isa.py", "library.py", "wheel.py", "grid.py",
        "cpu/__init__.py", "cpu/entries.py",
    ):  # fmt: skip
        shutil.copy(ROOT / "kernels" / name, folder / name)
    spec: Any = importlib.util.spec_from_file_location("small_wheel", folder / "wheel.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)

    def build(folder: Path, families: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        made = {"sources": found.builder.sources_hash(), "families": families}
        (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")

    monkeypatch.setattr(found.builder, "build", build)
    monkeypatch.setattr(found.builder, "own_family", lambda: "linux-x86_64")
    monkeypatch.delenv("EDGERT_KERNELS", raising=False)
    monkeypatch.chdir(folder.parent)
    return found


def packed(wheel: Any, *, editable: bool = False) -> set[str]:
    """What the kernels' folder of a wheel would hold."""
    from setuptools import Distribution

    packages = ["edgert.kernels", "edgert.kernels.cpu"]
    about = {"packages": packages, "package_dir": {"edgert.kernels": "kernels"}}
    command = wheel.BuildPy(Distribution(about | {"script_name": "setup.py"}))
    command.build_lib, command.editable_mode = "build/lib", editable
    command.ensure_finalized()
    command.run()
    folder = wheel.HERE if editable else Path("build/lib/edgert/kernels")
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}


def test_a_second_wheel_holds_no_module_that_went_away(tree: Any) -> None:
    assert "grid.py" in packed(tree)
    (tree.HERE / "grid.py").unlink()
    second = packed(tree)
    assert "grid.py" not in second
    assert "built/manifest.json" in second


def test_a_wheel_without_some_kernel_sources_is_not_built(tree: Any) -> None:
    (tree.HERE / "gpu").mkdir()
    (tree.HERE / "gpu" / "__init__.py").touch()
    with pytest.raises(SystemExit, match=r"^error: .*are not those of .*among the packages"):
        packed(tree)


@pytest.mark.parametrize("error", ["BuildError", "OSError"])
def test_an_editable_installation_fails_where_the_kernels_do(
    tree: Any, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setuptools goes on after an Exception of this command, not after SystemExit."""

    def fail(*_: object) -> None:
        raise {"BuildError": tree.builder.BuildError, "OSError": OSError}[error]("no room")

    monkeypatch.setattr(tree.builder, "build", fail)
    with pytest.raises(SystemExit, match=r"not compiled: no room; EDGERT_KERNELS=none"):
        packed(tree, editable=True)


def test_an_editable_installation_builds_what_is_not_current(
    tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(tree.builder, "is_current", lambda *of: asked.append(of) or True)
    assert not {name for name in packed(tree, editable=True) if "manifest" in name}
    assert asked == [(tree.HERE / "built", ["linux-x86_64"])]


@pytest.mark.parametrize(
    ("said", "count"),
    [("host", 1), ("all", 5), ("none", None), ("", None), ("linux-x86_64 win32-x86_64", 2)],
)
def test_families(tree: Any, said: str, count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_KERNELS", said)
    found = tree.wanted()
    assert (None if found is None else len(found)) == count


@pytest.mark.parametrize("said", ["junk", "host none", "all linux-x86_64", "none linux-x86_64"])
def test_families_that_are_not_understood(
    tree: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGERT_KERNELS", said)
    with pytest.raises(SystemExit, match=r"^error: EDGERT_KERNELS: .*; or host, none, all$"):
        packed(tree)


@pytest.mark.parametrize("family", ["win32-aarch64", "freebsd14-x86_64"])
def test_a_machine_without_kernels_installs_without_them(
    tree: Any, family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tree.builder, "own_family", lambda: family)
    assert tree.wanted() is None
    assert not {name for name in packed(tree) if "manifest" in name}
    assert f"no kernels are compiled for {family}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_pip_says_why_an_editable_installation_failed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (*PACKAGES, "README.md", "LICENSE", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=lambda *_: {"built", "__pycache__"})
        else:
            shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    args = [*pip, "--target", str(tmp_path / "site"), "-e", str(tree)]
    env = os.environ | {"EDGERT_KERNELS": "junk"}
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: EDGERT_KERNELS: no kernels for 'junk'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    # Not only what is checked at once: here the folder of the libraries is a file.
    (tree / "kernels" / "built").write_text("", encoding="utf-8")
    env.pop("EDGERT_KERNELS")
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: the kernels were not compiled: " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_core_installs_no_training_library(project: Any) -> None:
    names = {text.split(">")[0].split("=")[0] for text in project["project"]["dependencies"]}
    assert not names & {"torch", "onnx", "transformers", "diffusers", "gguf"}


def test_versions_agree(project: Any) -> None:
    import edgert

    assert edgert.__version__ == project["project"]["version"]
