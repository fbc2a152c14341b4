"""The kernels' shipped machine code: used where it fits, refused where anything is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels import isa, library
from edgert.kernels.cpu import code
from edgert.kernels.cpu.entries import ENTRIES

from ..conftest import ROOT
from ..fresh import python
from ..tiny import tiny_bundle

pytestmark = pytest.mark.skipif(
    not (library.FOLDER / library.MANIFEST).is_file(),
    reason="this checkout has no libraries: `python -m edgert.kernels.build` makes them",
)
COMPILED = {library.VARIABLE: "0"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the libraries, to be spoilt."""
    return Path(shutil.copytree(library.FOLDER, tmp_path / "built"))


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / library.MANIFEST).read_text(encoding="utf-8"))
    return found


def write(folder: Path, found: dict[str, Any]) -> None:
    (folder / library.MANIFEST).write_text(json.dumps(found), encoding="utf-8")


def entry_of(found: dict[str, Any], name: str = "") -> dict[str, Any]:
    entry: dict[str, Any] = found["libraries"][library.key_of(name or isa.chosen())]
    return entry


# --- what is there --------------------------------------------------------------------------------


def test_it_was_made_from_these_sources_and_serves() -> None:
    assert manifest(library.FOLDER)["sources"] == library.sources_hash()
    if os.environ.get(library.VARIABLE) == "0":
        pytest.skip(f"{library.VARIABLE} is 0")
    found = code.shipped()
    assert found is not None, code.refused()
    assert set(ENTRIES) < set(found.addresses)
    assert all(found.addresses.values())
    assert code.names() == sorted(set(found.addresses) - set(ENTRIES))


def test_it_holds_every_kernel() -> None:
    from edgert.kernels.cpu import jit, vm

    for entry in manifest(library.FOLDER)["libraries"].values():
        assert entry["kernels"] == sorted([*jit.names(), *vm.entries])


def test_every_instruction_set_of_this_machine_has_one() -> None:
    keys = {library.key_of(name) for name in isa.sets_of(isa.machine())}
    assert keys <= set(manifest(library.FOLDER)["libraries"])


def test_an_answer_needs_neither_numba_nor_a_compiler_nor_a_cache(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    script = (
        f"import sys\nsys.modules['numba'] = sys.modules['llvmlite'] = None\nimport edgert\n"
        f"with edgert.load({str(bundle)!r}) as model:\n"
        f"    print(model.session.device, len(model.generate('hi', max_tokens=3).token_ids))\n"
    )
    done = python(script, env={"EDGERT_CACHE": str(tmp_path / "cache"), library.VARIABLE: ""})
    assert (done.stdout, done.stderr) == ("cpu 3\n", "")
    assert not list((tmp_path / "cache").glob("kernels-*"))


def logits(out: Path, name: str, env: dict[str, str]) -> np.ndarray[Any, Any]:
    args = [sys.executable, "-m", "tests.kernels.isa_logits", str(out), str(out.parent / "kernels")]
    env = os.environ | {isa.VARIABLE: name, library.VARIABLE: ""} | env
    done = subprocess.run(args, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: np.ndarray[Any, Any] = np.load(out)
    return found


def sets() -> list[object]:
    names = isa.supported()
    return [pytest.param(n, marks=[] if n == names[0] else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", sets())
def test_the_bits_are_those_of_the_compiler(name: str, tmp_path: Path) -> None:
    shipped = logits(tmp_path / "shipped.npy", name, {})
    assert not (tmp_path / "kernels").exists()
    compiled = logits(tmp_path / "compiled.npy", name, COMPILED)
    assert (tmp_path / "kernels").exists()
    assert np.array_equal(shipped, compiled)


# --- what is refused ------------------------------------------------------------------------------


def flipped(folder: Path) -> None:
    path = folder / entry_of(manifest(folder))["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / entry_of(manifest(folder))["file"]
    path.write_bytes(path.read_bytes()[:-1])


def gone(folder: Path) -> None:
    (folder / entry_of(manifest(folder))["file"]).unlink()


def of_other_sources(folder: Path) -> None:
    write(folder, manifest(folder) | {"sources": "0" * 64})


def of_another_schema(folder: Path) -> None:
    write(folder, manifest(folder) | {"schema": 2})


def of_another_instruction_set(folder: Path) -> None:
    """With a manifest that agrees: the library itself says what it is for."""
    found = manifest(folder)
    other = "portable" if isa.chosen() != "portable" else "avx2"
    entry_of(found).update(
        file=entry_of(found, other)["file"], sha256=entry_of(found, other)["sha256"]
    )
    write(folder, found)


def no_library(folder: Path) -> None:
    import hashlib

    found = manifest(folder)
    path = folder / entry_of(found)["file"]
    path.write_bytes(b"\x7fELF and nothing more")
    entry_of(found)["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write(folder, found)


def a_kernel_too_many(folder: Path) -> None:
    found = manifest(folder)
    entry_of(found)["kernels"].append("linear_int1")
    write(folder, found)


def half_a_manifest(folder: Path) -> None:
    path = folder / library.MANIFEST
    path.write_bytes(path.read_bytes()[:-40])


def entries_without_fields(folder: Path) -> None:
    found = manifest(folder)
    del entry_of(found)["sha256"]
    write(folder, found)


def a_folder_as_manifest(folder: Path) -> None:
    (folder / library.MANIFEST).unlink()
    (folder / library.MANIFEST).mkdir()


def a_file_as_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("", encoding="utf-8")


def an_endless_manifest(folder: Path) -> None:
    (folder / library.MANIFEST).unlink()
    (folder / library.MANIFEST).symlink_to("/dev/zero")


def an_endless_library(folder: Path) -> None:
    path = folder / entry_of(manifest(folder))["file"]
    path.unlink()
    path.symlink_to("/dev/zero")


def a_pipe_as_manifest(folder: Path) -> None:
    (folder / library.MANIFEST).unlink()
    os.mkfifo(folder / library.MANIFEST)


def a_pipe_as_library(folder: Path) -> None:
    path = folder / entry_of(manifest(folder))["file"]
    path.unlink()
    os.mkfifo(path)


def a_manifest_without_end(folder: Path) -> None:
    path = folder / library.MANIFEST
    path.write_bytes(path.read_bytes() + b" " * library.MOST_MANIFEST_BYTES)


def a_huge_library(folder: Path) -> None:
    os.truncate(folder / entry_of(manifest(folder))["file"], library.MOST_BYTES + 1)


REFUSED: dict[Callable[[Path], None], str] = {
    flipped: "is damaged: its SHA-256",
    cut: "is damaged: its SHA-256",
    gone: "cannot be read",
    of_other_sources: "was made from other kernel sources",
    of_another_schema: "expected schema 1",
    of_another_instruction_set: "was made for something else",
    no_library: "cannot be loaded",
    a_kernel_too_many: "lacks a symbol",
    half_a_manifest: "is damaged",
    entries_without_fields: "is damaged",
    a_folder_as_manifest: "manifest.json cannot be read",
    a_file_as_folder: "manifest.json cannot be read",
    a_manifest_without_end: "has more than",
    a_huge_library: "has more than",
}
if hasattr(os, "mkfifo"):
    REFUSED |= {
        an_endless_manifest: "is no regular file",
        an_endless_library: "is no regular file",
        a_pipe_as_manifest: "is no regular file",
        a_pipe_as_library: "is no regular file",
    }


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_refused(spoil: Callable[[Path], None], folder: Path) -> None:
    spoil(folder)
    with pytest.raises(library.LibraryError, match=REFUSED[spoil]):
        library.load(isa.chosen(), folder)


LIES: list[tuple[str, Any]] = [
    *(("schema", value) for value in (True, 1.0, "1", None, [1], 2)),
    *(("sources", value) for value in (None, 5, {}, "", "0" * 63, "0" * 64 + "\n")),
    *(("libraries", value) for value in (None, [], 5, "")),
    *(("sha256", value) for value in (None, 5, {}, "", "g" * 64)),
    *(("file", value) for value in (None, 5, "", ".", "..", "a\0b", "\ud800", "a/b", "a\\b")),
    *(("file", value) for value in ("../../else.so", "/lib/else.so", "C:else.dll", "a" * 999)),
    *(("kernels", value) for value in (None, 5, "lead", {}, [], ["lead"], [5], [None])),
    *(("kernels", [*ENTRIES, value]) for value in ("a-b", "a\0", "", "\ud800", "identity", "ü")),
    ("entry", None),
    ("entry", []),
]


@pytest.mark.parametrize(("key", "value"), LIES, ids=str)
def test_a_manifest_that_lies_is_refused(key: str, value: Any, folder: Path) -> None:
    found = manifest(folder)
    if key == "entry":
        found["libraries"][library.key_of(isa.chosen())] = value
    else:
        (found if key in found else entry_of(found))[key] = value
    write(folder, found)
    with pytest.raises(library.LibraryError, match=r"is damaged|expected schema 1"):
        library.load(isa.chosen(), folder)


@pytest.mark.parametrize("begin", [b"", b'{"schema":1,"more":', b'{"schema":'])
def test_a_manifest_that_nests_without_end_is_refused(begin: bytes, folder: Path) -> None:
    (folder / library.MANIFEST).write_bytes(begin + b"[" * 200_000)
    with pytest.raises(library.LibraryError, match="is damaged"):
        library.load(isa.chosen(), folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_what_editors_leave_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    (tmp_path / "linked.py").symlink_to("a.py")
    monkeypatch.setattr(library, "HERE", tmp_path)
    digest = library.sources_hash.__wrapped__
    before = digest()
    (tmp_path / ".#a.py").symlink_to("someone@host.123")
    (tmp_path / "broken.py").symlink_to("nothing")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    assert digest() == before
    (tmp_path / "b.py").write_text("1", encoding="utf-8")
    assert digest() != before


def test_sources_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgert.kernels.cpu import jit

    from edgert.session import kernel_cache

    monkeypatch.setattr(library, "HERE", tmp_path / "gone")
    monkeypatch.setattr(library, "sources_hash", library.sources_hash.__wrapped__)
    monkeypatch.setattr(code, "_shipped", None)
    monkeypatch.setattr(code, "_looked", True)
    with pytest.raises(library.LibraryError, match="the kernel sources cannot be read"):
        jit.sources_hash()
    assert kernel_cache() is None


# --- looking it up --------------------------------------------------------------------------------


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not looked yet."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    for name, value in (("_looked", False), ("_shipped", None), ("_refused", "")):
        monkeypatch.setattr(code, name, value)


@pytest.mark.usefixtures("unseen")
def test_a_lookup_that_was_interrupted_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(library, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            code.shipped()
    assert code.shipped() is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_loads() -> None:
    script = (
        "import os, threading\n"
        "from edgert.kernels import library\n"
        "from edgert.kernels.cpu import code\n"
        "load, inside, go_on = library.load, threading.Event(), threading.Event()\n"
        "def slow(name):\n"
        "    inside.set()\n"
        "    go_on.wait()\n"
        "    return load(name)\n"
        "library.load = slow\n"
        "thread = threading.Thread(target=code.shipped)\n"
        "thread.start()\n"
        "inside.wait()\n"
        "child = os.fork()\n"
        "go_on.set()\n"
        "if child == 0:\n"
        "    os._exit(0 if code.shipped() else 3)\n"
        "thread.join()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), code.shipped() is not None)\n"
    )
    done = python(script, env={library.VARIABLE: ""}, timeout=60)
    assert (done.stdout, done.returncode) == ("0 True\n", 0), done.stderr


@pytest.mark.usefixtures("unseen")
def test_a_kernel_that_the_library_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is compiled, or an error that names it."""
    whole = code.shipped()
    assert whole is not None
    fewer = {name: at for name, at in whole.addresses.items() if name != "select"}
    monkeypatch.setattr(code, "_shipped", whole._replace(addresses=fewer))
    assert code.address("select") != 0
    with pytest.raises(code.NoCodeError, match="there is no kernel 'linear_int1'"):
        code.address("linear_int1")
    monkeypatch.setattr(code, "no_compiler", lambda: "numba is not installed")
    for ask in (code.address, code.is_ready):
        with pytest.raises(code.NoCodeError, match="has no kernel 'select', and numba is not"):
            ask("select")
    assert code.is_ready("lead")


def test_what_to_do_about_a_refused_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.remedy().startswith("`python -m edgert.kernels.build`")
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert library.remedy().startswith("install edgert again")


def test_a_machine_without_a_library_has_none(folder: Path, tmp_path: Path) -> None:
    assert library.load("sve2", folder) is None
    assert library.load(isa.chosen(), tmp_path / "nowhere") is None


@pytest.mark.parametrize("numba", [True, False])
def test_a_refused_library_is_told_and_replaced(
    numba: bool, folder: Path, tmp_path: Path, kernel_folder: Path
) -> None:
    flipped(folder)
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    hidden = "" if numba else "import sys\nsys.modules['numba'] = sys.modules['llvmlite'] = None\n"
    script = (
        f"{hidden}from pathlib import Path\nfrom edgert.kernels import library\n"
        f"library.load.__defaults__ = (Path({str(folder)!r}),)\nimport edgert\n"
        f"with edgert.load({str(bundle)!r}) as model:\n"
        f"    print(model.session.device, len(model.generate('hi', max_tokens=3).token_ids))\n"
    )
    done = python(script, env={"EDGERT_CACHE": str(kernel_folder), library.VARIABLE: ""})
    assert done.stdout == f"{'cpu' if numba else 'reference'} 3\n", done.stderr
    assert "the shipped kernels are not used" in done.stderr
    assert ("pip install" in done.stderr) is not numba
