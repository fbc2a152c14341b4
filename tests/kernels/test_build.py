"""Kernels are compiled ahead of time: what a build takes, what it leaves, how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from edgert.kernels import build, isa, library

from ..conftest import ROOT

BUILD = [sys.executable, "-m", "edgert.kernels.build"]
OWN = build.own_family()
pytestmark = pytest.mark.skipif(OWN not in build.FAMILIES, reason=f"no kernels for {OWN}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled: a library is its own name."""

    def made_up(target: build.Target, work: Path, made: Path, children: Any) -> dict[str, Any]:
        path = made / f"{target.key}{build.SUFFIXES[target.system]}"
        path.write_text(target.key, encoding="utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"file": path.name, "bytes": 1, "sha256": digest, "kernels": []}

    monkeypatch.setattr(build, "_library", made_up)
    monkeypatch.setattr(build, "_version", lambda name: "1")


def failed(*args: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What a build that must fail says, in one line."""
    done = subprocess.run(
        [*BUILD, *map(str, args)], capture_output=True, text=True, check=False, cwd=cwd,
        env=os.environ | (env or {}),
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / build.MANIFEST).read_text(encoding="utf-8"))
    return found


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--for", "linux-riscv64"], "no kernels for 'linux-riscv64', expected some of"),
        (["--for", "all", "linux-x86_64"], "'all' stands alone, found 'all linux-x86_64'"),
        (["--for", "linux-x86_64", "--isa", "sse2"], "no instruction set 'sse2', expected some of"),
        (["--for", "linux-x86_64", "--isa", "avx2", "sse9"], "no instruction set 'sse9'"),
    ],
)
def test_unknown_targets_are_refused(args: list[str], said: str, tmp_path: Path) -> None:
    assert said in failed(*args, "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_family_named_twice_is_one(quick: None, tmp_path: Path) -> None:
    made = build.build(tmp_path / "out", [OWN, OWN], tell=False)
    assert len(set(made)) == len(made) == len(isa.sets_of(isa.machine()))


# --- where it goes --------------------------------------------------------------------------------


def test_a_former_build_is_replaced(quick: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build.build(out, ["linux-aarch64"], tell=False)
    build.build(out, ["linux-x86_64"], tell=False)
    assert set(manifest(out)["libraries"]) == {t.key for t in build.targets(["linux-x86_64"])}
    assert len(list(out.iterdir())) == 1 + len(manifest(out)["libraries"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("former", [True, False])
def test_a_folder_with_other_files_is_refused(quick: None, former: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if former:
        build.build(out, tell=False)
    else:
        out.mkdir()
        (out / build.MANIFEST).write_text('{"name": "somebody else\'s"}', encoding="utf-8")
    (out / "thesis.tex").write_text("years", encoding="utf-8")
    before = sorted(out.iterdir())
    with pytest.raises(build.BuildError, match=r"holds '.*name another folder"):
        build.build(out, tell=False)
    assert sorted(out.iterdir()) == before


def test_a_file_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("kept", encoding="utf-8")
    began = time.monotonic()
    assert "is no folder" in failed("-o", out)
    assert time.monotonic() - began < 10
    assert str(out) in failed("-o", out / "below")
    assert out.read_text(encoding="utf-8") == "kept"


def test_a_folder_that_cannot_be_written_is_one_line(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> str:
        raise OSError(30, "Read-only file system", str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    monkeypatch.setattr(sys, "argv", ["build", "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^error: .*Read-only file system"):
        build.main()


def test_builds_that_end_together_both_succeed(quick: None, tmp_path: Path) -> None:
    wrong: list[BaseException] = []

    def again() -> None:
        try:
            for _ in range(20):
                with build._apart(tmp_path / "out") as (_, made):
                    (made / "linux-x86_64-avx2.so").write_bytes(b"")
                    (made / build.MANIFEST).write_text(
                        '{"schema": 1, "sources": "", "made_with": {}, "libraries": {}}'
                    )
        except BaseException as error:
            wrong.append(error)

    build.build(tmp_path / "out", tell=False)
    threads = [threading.Thread(target=again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_build_left_goes_away(quick: None, tmp_path: Path) -> None:
    names = (f".out-old{build.MARK}", f".out-new{build.MARK}", ".out-mine")
    old, new, mine = (tmp_path / name for name in names)
    for each in (old, new, mine):
        each.mkdir()
    for each in (old, mine):
        os.utime(each, (0, 0))
    build.build(tmp_path / "out", tell=False)
    assert sorted(tmp_path.iterdir()) == sorted([new, mine, tmp_path / "out"])


def test_git_ignores_what_a_killed_build_left() -> None:
    assert "kernels/.built-*" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


# --- what is current ------------------------------------------------------------------------------


def damaged(out: Path) -> None:
    next(path for path in out.iterdir() if path.suffix != ".json").write_bytes(b"damaged")


def without_a_manifest(out: Path) -> None:
    (out / build.MANIFEST).unlink()


def with_a_list_for_a_manifest(out: Path) -> None:
    (out / build.MANIFEST).write_text("[]", encoding="utf-8")


def with_one_missing(out: Path) -> None:
    found = manifest(out)
    found["libraries"].popitem()
    (out / build.MANIFEST).write_text(json.dumps(found), encoding="utf-8")


def of_other_sources(out: Path) -> None:
    text = json.dumps(manifest(out) | {"sources": "0" * 64})
    (out / build.MANIFEST).write_text(text, encoding="utf-8")


SPOILS = [
    damaged, without_a_manifest, with_a_list_for_a_manifest, with_one_missing, of_other_sources,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_broken_build_is_not_current(spoil: Any, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build.build(out, tell=False)
    assert build.is_current(out)
    assert not build.is_current(out, ["all"])
    spoil(out)
    assert not build.is_current(out)


# --- the user's settings --------------------------------------------------------------------------

SETTINGS = {
    "PYTHONOPTIMIZE": "2",
    "PYTHONIOENCODING": "utf-16",
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "NUMBA_OPT": "0",
}


def test_no_variable_reaches_the_compiling_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = build.sources_hash()
    assert said == library.sources_hash()
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert build.sources_hash() == said
    assert not {*SETTINGS} & {*build._environment()}
    monkeypatch.delenv("PYTHONINSPECT")
    monkeypatch.delenv("PYTHONWARNINGS")
    done = subprocess.run([*BUILD, "--help"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_processes_run_in_the_folder_for_work(tmp_path: Path) -> None:
    """Numba would read `.numba_config.yaml` from the user's."""
    (tmp_path / "where.py").write_text("import os\nprint(os.getcwd())", encoding="utf-8")
    sys.path.append(str(tmp_path))
    try:
        with build._children(tmp_path) as children:
            assert children.run("where", "", "where").strip() == str(tmp_path.resolve())
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    """Wherever and however the package lies, and whatever the user has set."""
    pytest.importorskip("ziglang")
    copy = shutil.copytree(ROOT / "kernels", tmp_path / "elsewhere", ignore=lambda *_: {"built"})
    (tmp_path / ".numba_config.yaml").write_text("opt: 0\n", encoding="utf-8")
    settings = {k: v for k, v in SETTINGS.items() if k not in ("PYTHONINSPECT", "PYTHONWARNINGS")}
    script = [sys.executable, str(copy / "build.py")]
    none: dict[str, str] = {}
    for out, start, env in (("a", BUILD, none), ("b", script, settings)):
        args = [*start, "--for", "linux-x86_64", "--isa", "avx2", "-o", out]
        subprocess.run(args, check=True, cwd=tmp_path, env=os.environ | env)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in "ab")
    assert len(a) == 2
    assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("family", ["linux-aarch64", "darwin-aarch64", "win32-x86_64"])
def test_any_machine_builds_for_all(family: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    subprocess.run([*BUILD, "--for", family, "-o", tmp_path / "out"], check=True)
    system, machine = family.split("-")
    begins = {"linux": b"\x7fELF", "darwin": b"\xcf\xfa\xed\xfe", "win32": b"MZ"}[system]
    found = manifest(tmp_path / "out")["libraries"]
    assert set(found) == {library.key_of(n, system, machine) for n in isa.sets_of(machine)}
    for entry in found.values():
        assert (tmp_path / "out" / entry["file"]).read_bytes().startswith(begins)


# --- endings --------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def started(out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A build at work, and the processes that compile."""
    pytest.importorskip("ziglang")
    psutil = pytest.importorskip("psutil")
    process = subprocess.Popen([*BUILD, "-o", out], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = psutil.Process(process.pid).children()
        compiling = []
        for each in found:
            with suppress(psutil.NoSuchProcess):  # one that has just ended
                compiling += [each.pid] * ("kernels.aot" in each.cmdline())
        if compiling:
            return process, compiling
        time.sleep(0.05)
    process.kill()
    pytest.fail("nothing was compiled within 30 s")


def ended(pids: list[int]) -> bool:
    import psutil

    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and not zombie(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def zombie(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_leaves_what_was_there(number: int, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build.build(out, tell=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process, compiling = started(out)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said == "interrupted, nothing was changed\n"
    assert ended(compiling)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@posix
def test_compiling_processes_end_with_a_build_that_is_killed(tmp_path: Path) -> None:
    process, compiling = started(tmp_path / "out")
    process.kill()
    process.communicate(timeout=30)
    assert ended(compiling)


@posix
def test_ctrl_c_during_the_imports_has_no_traceback(tmp_path: Path) -> None:
    """By the script's name: `python -m` imports the package before the script can say a word."""
    pytest.importorskip("ziglang", reason="without it a build ends before the signal comes")
    script, out = str(Path(build.__file__)), str(tmp_path / "out")
    code = (
        f"import runpy, sys\nprint(flush=True)\nsys.argv = ['build', '-o', {out!r}]\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    args = [sys.executable, "-c", code]
    for delay in (0.05, 0.1, 0.2, 0.3):
        with subprocess.Popen(
            args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)[1]
        assert process.returncode in (130, -signal.SIGINT)
        assert "Traceback" not in said
