"""What rows H09 and H10 ask beyond one bad file: hard links, races, skipped and known hashes."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest

from edgert.bundle import Bundle
from edgert.bundle import reader as bundle_module
from edgert.cli import run
from edgert.errors import BundleError
from edgert.storage import hash_cache
from tests.tiny import tiny_bundle, tiny_graph, tiny_weights

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and special files of POSIX")
WEIGHTS = "weights.safetensors"


def test_h09_a_hard_link_passes_and_is_never_written_through(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    os.link(path / WEIGHTS, tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with Bundle.open(path, verify="full") as bundle:
        assert not any(a.flags.writeable for a in bundle.weights()["embed"].tensors.values())
    tiny_bundle(path, seed=9)
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert (path / WEIGHTS).read_bytes() != before


def test_h09_a_hard_link_to_something_else_fails_by_its_hash(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    other = tiny_bundle(tmp_path / "b.edge", seed=1)
    (path / WEIGHTS).unlink()
    os.link(other / WEIGHTS, path / WEIGHTS)
    with pytest.raises(BundleError, match=r"weights\.safetensors: found SHA-256"):
        Bundle.open(path)


@pytest.mark.parametrize("verify", ["full", "skip"])
def test_h09_a_name_swapped_after_the_check(
    verify: bundle_module.Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are mapped are those that were checked, whatever the name means by then."""
    graph = tiny_graph(quant="f32")
    path = tiny_bundle(tmp_path / "a.edge", graph=graph, seed=1)
    evil = tiny_bundle(tmp_path / "b.edge", graph=graph, seed=2)
    real = Bundle._check_file

    def check_then_swap(self: Bundle, name: str, *rest: object) -> None:
        real(self, name, *rest)  # type: ignore[arg-type]
        if name == WEIGHTS:
            (path / WEIGHTS).unlink()
            (path / WEIGHTS).symlink_to(evil / WEIGHTS)

    monkeypatch.setattr(Bundle, "_check_file", check_then_swap)
    with Bundle.open(path, verify=verify) as bundle:
        assert np.array_equal(bundle.weights()["embed"], tiny_weights(graph, 1)["embed"])
    monkeypatch.undo()
    with pytest.raises(BundleError, match="is a symbolic link"):
        Bundle.open(path)


def test_h09_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    (path / WEIGHTS).unlink()
    monkeypatch.chdir(path)  # socket names are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(WEIGHTS)
        with pytest.raises(BundleError, match="is a socket or a device") as caught:
            Bundle.open(path)
    assert caught.value.code == "file-kind"


def test_h09_a_device(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    (path / WEIGHTS).unlink()
    try:
        os.mknod(path / WEIGHTS, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except OSError as error:
        pytest.skip(f"cannot make a device: {errno.errorcode.get(error.errno or 0)}")
    with pytest.raises(BundleError, match=r"is a character device|cannot be opened") as caught:
        Bundle.open(path)
    assert caught.value.code in ("file-kind", "file-open")


def test_h09_the_bundle_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "a.edge")
    (tmp_path / "link").symlink_to("a.edge")
    with Bundle.open(tmp_path / "link") as bundle:
        assert bundle.manifest.name == "tiny"


def flip(path: Path) -> None:
    """One bit, with the old times put back."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "chat_template.jinja"])
def test_h10_remembered_hashes_do_not_hide_a_change(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    path = tiny_bundle(tmp_path / "a.edge")
    Bundle.open(path).close()
    assert str(path) in (tmp_path / "cache" / "verified.json").read_text(encoding="utf-8")
    flip(path / name)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert caught.value.code == "file-hash"
    assert name in caught.value.message


def test_h10_skipping_warns_every_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    flip(path / WEIGHTS)
    with caplog.at_level(logging.WARNING, "edgert"):
        for count in (1, 2, 3):
            with Bundle.open(path, verify="skip") as bundle:
                assert bundle.read("tokenizer.json")
            assert len(caplog.records) == count
    assert "hashes are not verified; damaged files go unnoticed" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("verb", ["generate", "chat", "eval"])
def test_h10_skipping_on_the_command_line(
    verb: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    flip(path / WEIGHTS)
    (tmp_path / "text").write_text("text", encoding="utf-8")
    given = ["--text", str(tmp_path / "text")] if verb == "eval" else ["-p", "a", "-n", "2"]
    args = [verb, str(path), *given, "--device", "reference"]
    assert run(args) == 2
    with caplog.at_level(logging.WARNING, "edgert"):
        for count in (1, 2):
            assert run([*args, "--skip-verify"]) == 0
            warnings = [record for record in caplog.records if "not verified" in record.message]
            assert len(warnings) == count


def test_h10_the_warning_reaches_people(tmp_path: Path) -> None:
    """Without any logging set up, the warning of a skipped check stands on stderr."""
    import subprocess
    import sys

    path = tiny_bundle(tmp_path / "a.edge")
    code = "import sys; from edgert.bundle import Bundle; Bundle.open(sys.argv[1], verify='skip')"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "hashes are not verified" in done.stderr
