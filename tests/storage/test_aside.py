"""Files that are written aside, and what is never renamed over: links, pipes, stdout."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgert.errors import ResourceError
from edgert.storage.aside import check_target, replace_file, write_output
from edgert.text import saved

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and sockets of POSIX")


def test_a_new_file_and_an_old_one(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        check_target(tmp_path / "a")
        write_output(tmp_path / "a", data)
        assert (tmp_path / "a").read_bytes() == data
    assert os.listdir(tmp_path) == ["a"]


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    far = tmp_path / "far"
    far.mkdir()
    if there:
        (far / "file").write_bytes(b"old")
    link, second = tmp_path / "link", tmp_path / "second"
    link.symlink_to(far / "file")
    second.symlink_to("link")
    check_target(second)
    write_output(second, b"new")
    assert (link.is_symlink(), second.is_symlink()) == (True, True)
    assert (far / "file").read_bytes() == b"new"
    assert os.listdir(far) == ["file"]


@posix
def test_a_saved_conversation_is_written_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    saved.write(tmp_path / "link", {"a": 1}, {"bundle": "b"})
    assert (tmp_path / "link").is_symlink()
    assert saved.read(tmp_path / "file", {"bundle": "b"}) == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResourceError, match="no regular file"):
        saved.write(tmp_path / "pipe", {}, {})
    assert (tmp_path / "pipe").is_fifo()


@posix
def test_a_file_of_a_bundle_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    (tmp_path / "link").symlink_to("other")
    replace_file(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"another's"


@posix
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_to(tmp_path: Path, linked: bool) -> None:
    pipe, name = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        name.symlink_to(pipe)
    check_target(name)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_output(name, b"x" * 200_000)
    assert (pipe.is_fifo(), name.is_symlink()) == (True, linked)
    reader.join(10)
    assert got == [b"x" * 200_000]


@posix
def test_what_is_stdout_is_written_in_turn(tmp_path: Path) -> None:
    """A file opened twice would be written from its start twice."""
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from edgert.storage.aside import write_output\n"
        f"print('before'); write_output(Path({str(out)!r}), b'between\\n'); print('behind')"
    )
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.read_text() == "before\nbetween\nbehind\n"


@posix
def test_folders_sockets_and_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        try:
            bound.bind("socket")
        finally:
            os.chdir(here)
        for name in ("folder", "socket", "a"):
            for ask in (check_target, lambda path: write_output(path, b"x")):
                with pytest.raises(ResourceError, match=f"{name} could not be written"):
                    ask(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "folder", "socket"]
