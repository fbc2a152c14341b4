"""Names and openings: what is refused, and that nothing accepted leaves the folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgert.errors import BundleError
from edgert.storage.folder import Folder, check_name, check_names, open_regular, sha256_fd

PIECES = ["..", ".", "/", "\\", "a", "C:", "~", " ", "\0", "con", "é", "e\u0301", "x.txt", "%2e"]
PATHS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))


def refusal(name: str) -> BundleError | None:
    try:
        check_name(name)
    except BundleError as error:
        return error
    return None


@settings(max_examples=400, deadline=None)
@given(name=PATHS)
@example(name="draft/model.bin")
def test_no_accepted_name_escapes(name: str) -> None:
    error = refusal(name)
    if error is not None:
        assert error.code == "path"
        assert error.message.isprintable()
        return
    root = "/data/bundle"
    posix = PurePosixPath(os.path.normpath(f"{root}/{name}"))
    assert posix.is_relative_to(root)
    assert posix != PurePosixPath(root)
    windows = PureWindowsPath("D:\\bundle", name)
    assert windows.is_relative_to("D:\\bundle")
    assert ".." not in windows.parts
    assert not PureWindowsPath(name).drive


@pytest.mark.parametrize("name", ["a", "draft/model.bin", "a-b_c.d", ".hidden", "é", "a/b/c/d"])
def test_ordinary_names(name: str, tmp_path: Path) -> None:
    assert check_name(name) == name
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    folder = Folder(tmp_path)
    assert folder.path_of(name) == path
    assert folder.read(name, 7) == b"content"
    with pytest.raises(BundleError, match="7 bytes, the limit is 6"):
        folder.read(name, 6)
    folder.close()
    folder.close()


def test_names_that_may_be_the_same_file() -> None:
    check_names(["a", "b/a", "B2"], "here")
    for names in (["a", "A"], ["straße", "STRASSE"], ["x/a", "X/a"]):
        with pytest.raises(BundleError, match=r"here: .* may be the same file"):
            check_names(names, "here")
    with pytest.raises(BundleError, match=r"here: .* a file or a folder, not both"):
        check_names(["a/b/c", "a"], "here")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="is a file, expected a bundle directory"):
        Folder(tmp_path / "file")
    with pytest.raises(BundleError, match="is not there, expected a bundle directory") as caught:
        Folder(tmp_path / "absent.edge")
    assert "edgert convert" in caught.value.hint
    (tmp_path / "absent.edge.old-1234").mkdir()
    with pytest.raises(BundleError) as caught:
        Folder(tmp_path / "absent.edge")
    assert "absent.edge.old-1234; rename that back" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read all")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(BundleError, match="cannot be opened: Permission denied"):
        open_regular(path)


@pytest.mark.parametrize("name", ["\0eights.safetensors", "a\0", "\udcff\ud800"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no name of a file"):
        open_regular(tmp_path / name)


def test_hash_of_a_long_file(tmp_path: Path) -> None:
    import hashlib

    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    fd = open_regular(tmp_path / "a")
    try:
        assert sha256_fd(fd) == (hashlib.sha256(data).hexdigest(), len(data))
        assert sha256_fd(fd)[1] == len(data), "reads from the start again"
    finally:
        os.close(fd)
