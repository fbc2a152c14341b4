"""Writing bundles: the old one stands until the new one is read back; nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgert.bundle import Bundle, BundleWriter
from edgert.errors import BundleError, ConvertError, EdgertError, ResourceError
from edgert.storage import replace as exchange
from edgert.storage.lock import FileLock
from tests.hostile.box import snapshot
from tests.tiny import tiny_bundle, tiny_graph, tiny_manifest, tiny_tokenizer, write_weights
from tests.tiny import tiny_weights as weights_of

ROOT = Path(__file__).resolve().parents[2]


def fill(writer: BundleWriter, seed: int = 0) -> None:
    graph = tiny_graph()
    writer.file("model.graph.json").write_bytes(graph.to_json())
    write_weights(writer.file("weights.safetensors"), graph, weights_of(graph, seed))
    writer.file("tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")


def fingerprint(path: Path) -> str:
    with Bundle.open(path, verify="full") as bundle:
        return bundle.fingerprint


def test_replaces_a_bundle(tmp_path: Path) -> None:
    out = tiny_bundle(tmp_path / "a.edge", seed=1)
    old = fingerprint(out)
    tiny_bundle(out, seed=2)
    assert fingerprint(out) != old
    assert os.listdir(tmp_path) == ["a.edge"], "no lock, no partial, no old one"


def test_replaces_without_an_atomic_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_swap", lambda a, b: False)
    test_replaces_a_bundle(tmp_path)


def test_readers_keep_the_bundle_they_opened(tmp_path: Path) -> None:
    out = tiny_bundle(tmp_path / "a.edge", seed=1, quant="f32")
    with Bundle.open(out) as bundle:
        before = bundle.weights()["embed"].copy()
        tiny_bundle(out, seed=2, quant="f32")
        assert (bundle.weights()["embed"] == before).all()
        with pytest.raises(BundleError, match="no such file"):
            bundle.read("tokenizer.json")  # never the new bundle's file


def test_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    out = tiny_bundle(tmp_path / "a.edge", seed=1)
    before = snapshot(tmp_path)
    manifest = tiny_manifest(tiny_graph(), template=None)
    with BundleWriter(out) as writer:
        fill(writer)
        writer.file("weights.safetensors").write_bytes(b"")
        with pytest.raises(BundleError, match="0 bytes, expected at least 10"):
            writer.finish(manifest)
    assert snapshot(tmp_path) == before
    with BundleWriter(out) as writer:
        fill(writer)
        with pytest.raises(BundleError, match=r"uses .*chat_template\.jinja.*does not list"):
            writer.finish(manifest.replace(text=tiny_manifest(tiny_graph()).text))
    with BundleWriter(out) as writer:
        fill(writer)  # and the caller stops here
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("exchangeable", [True, False])
@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_failing_rename_keeps_a_bundle(
    call: int, exchangeable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Nth rename of a write fails: either the old bundle stands or the new one does."""
    out = tiny_bundle(tmp_path / "a.edge", seed=1)
    old, calls = fingerprint(out), 0
    if not exchangeable:
        monkeypatch.setattr(exchange, "_swap", lambda a, b: False)
    real = os.rename

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(exchange.os, "rename", failing)
    try:
        tiny_bundle(out, seed=2)
        finished = True
    except OSError:
        finished = False
    monkeypatch.undo()
    assert finished == (exchangeable or call >= 2)
    assert (fingerprint(out) == old) == (not finished)
    assert os.listdir(tmp_path) == ["a.edge"]


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edgert.storage import folder as files, replace as exchange
from tests.tiny import tiny_bundle
if sys.argv[3] == "aside":
    exchange._swap = lambda a, b: False
real, left = os.rename, int(sys.argv[4])
def rename(source, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    real(source, target)
os.rename = rename
if sys.argv[3] == "swap":
    exchange.replace_folder.__globals__["_swap"] = lambda a, b: os._exit(9)
tiny_bundle(Path(sys.argv[1]), seed=2)
os._exit(7)
"""


@pytest.mark.parametrize(("how", "renames"), [("swap", 9), ("aside", 0), ("aside", 1)])
def test_killed_at_the_end(how: str, renames: int, tmp_path: Path) -> None:
    """A writer that dies around its renames: the next one restores and tidies."""
    out = tiny_bundle(tmp_path / "a.edge", seed=1)
    old = fingerprint(out)
    command = [sys.executable, "-c", KILLED, str(out), str(ROOT), how, str(renames)]
    assert subprocess.run(command, check=False).returncode == 9
    assert any(".partial-" in name for name in os.listdir(tmp_path))
    if how == "aside" and renames == 1:
        with pytest.raises(BundleError) as caught:
            Bundle.open(out)
        assert "an interrupted convert left it at" in caught.value.hint
    else:
        assert fingerprint(out) == old
    with BundleWriter(out):
        assert fingerprint(out) == old, "brought back before anything is written"
    assert os.listdir(tmp_path) == ["a.edge"]


def test_two_writers(tmp_path: Path) -> None:
    out = tmp_path / "a.edge"
    with BundleWriter(out) as writer:
        with pytest.raises(ResourceError, match=f"in use by process {os.getpid()}") as caught:
            BundleWriter(out)
        assert caught.value.code == "locked"
        fill(writer)
        writer.finish(tiny_manifest(tiny_graph(), template=None))
    BundleWriter(out).abort()
    assert os.listdir(tmp_path) == ["a.edge"]


def test_a_lock_of_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgert.storage.lock import FileLock; "
        "FileLock(Path(sys.argv[1]), 'x'); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.lock")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match=f"in use by process {holder.pid}"):
            FileLock(tmp_path / "a.lock", "the thing")
        holder.kill()
    FileLock(tmp_path / "a.lock", "the thing").close()
    assert not (tmp_path / "a.lock").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_never_replaces_what_is_no_bundle(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    if kind == "file":
        out.write_bytes(b"mine")
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_bytes(b"mine")
    else:
        out.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path)
    with pytest.raises(ConvertError, match="expected a bundle to replace or nothing"):
        BundleWriter(out)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.edge").mkdir()
    assert Bundle.open(tiny_bundle(tmp_path / "a.edge")).manifest.name == "tiny"


def test_links_are_not_written(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a.edge") as writer:
        fill(writer)
        writer.file("extra").symlink_to(tmp_path)
        with pytest.raises(BundleError, match="is a link or a special file"):
            writer.finish(tiny_manifest(tiny_graph(), template=None))


def test_names_are_checked(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a.edge") as writer, pytest.raises(EdgertError, match=r"'\.\./x'"):
        writer.file("../x")


def test_preview_for_golden_answers(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a.edge") as writer:
        fill(writer)
        manifest = tiny_manifest(tiny_graph(), template=None)
        with writer.preview(manifest) as bundle:
            assert bundle.graph() == tiny_graph()
        writer.file("draft/extra.bin").write_bytes(b"more")
        out = writer.finish(manifest.replace(name="final"))
    with Bundle.open(out) as bundle:
        assert bundle.manifest.name == "final"
        assert bundle.read("draft/extra.bin") == b"more"


def test_glob_characters_in_the_name(tmp_path: Path) -> None:
    (tmp_path / "ab.edge.partial-1").mkdir()
    tiny_bundle(tmp_path / "a[b]*.edge")
    assert sorted(os.listdir(tmp_path)) == ["a[b]*.edge", "ab.edge.partial-1"]
