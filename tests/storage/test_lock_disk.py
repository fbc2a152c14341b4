"""A lock on a disk that takes no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgert.storage.lock import FileLock


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            FileLock(tmp_path / "a.lock", "a")
    assert not list(tmp_path.iterdir())
    with FileLock(tmp_path / "a.lock", "a"):  # nobody holds it
        pass
