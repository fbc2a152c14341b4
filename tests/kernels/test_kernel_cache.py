"""Compiled kernels on disk: used when whole, made again when anything in them changed."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgert.kernels.cpu import jit
from edgert.kernels.cpu.kernel_cache import SEAL_BYTES, STALE_SECONDS, KernelFile, has
from edgert.kernels.simd import ld_i64, st_i64
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature


def double(row: int, thread: int, threads: int) -> None:
    st_i64(row, 2 * ld_i64(row))


def triple(row: int, thread: int, threads: int) -> None:
    st_i64(row, 3 * ld_i64(row))


def compiled(folder: Path, function: Callable[..., None] = double, name: str = "kernel") -> Any:
    """A kernel as jit.py makes it."""
    signature = normalize_signature("void(int64, int64, int64)")
    made = CFunc(function, signature, {}, {"nopython": True})
    made._cache = KernelFile(folder, name, function)
    made.compile()
    return made


def answer(made: Any) -> int:
    import ctypes

    word = ctypes.c_int64(7)
    made.ctypes(ctypes.addressof(word), 0, 1)
    return word.value


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("warm")
    assert answer(compiled(folder)) == 14
    return only_file(folder).read_bytes()


def zeroed_page(data: bytearray) -> None:
    data[4096:8192] = bytes(4096)


def flipped_bit(at: float) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        data[int(at * (len(data) - 1))] ^= 16

    return damage


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def test_a_whole_file_is_used(tmp_path: Path) -> None:
    first = compiled(tmp_path)
    again = compiled(tmp_path)
    assert (first.cache_hits, again.cache_hits) == (0, 1)
    assert answer(first) == answer(again) == 14
    assert has(tmp_path, "kernel")
    assert not has(tmp_path, "kern")


@pytest.mark.parametrize(
    "damage",
    [
        zeroed_page, cut, bytearray.clear, flipped_bit(0), flipped_bit(SEAL_BYTES / 20_000),
        flipped_bit(0.5), flipped_bit(1.0), lambda data: data.extend(b"\0"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_again(
    tmp_path: Path, warm: bytes, damage: Callable[[bytearray], None]
) -> None:
    compiled(tmp_path)
    path, data = only_file(tmp_path), bytearray(warm)
    damage(data)
    assert data != warm
    path.write_bytes(data)
    made = compiled(tmp_path)
    assert (made.cache_hits, answer(made)) == (0, 14)
    assert compiled(tmp_path).cache_hits == 1
    assert only_file(tmp_path) == path


def test_the_file_of_another_kernel_is_not_used(tmp_path: Path) -> None:
    """Whole, but for other code: sealed with what it was made of."""
    compiled(tmp_path / "double")
    compiled(tmp_path / "triple", triple)
    path = only_file(tmp_path / "double")
    only_file(tmp_path / "triple").replace(path)
    assert answer(compiled(tmp_path / "double")) == 14


def test_two_functions_of_one_name_get_files_of_their_own(tmp_path: Path) -> None:
    assert [answer(compiled(tmp_path, f)) for f in (double, triple, double, triple)] == [
        14, 21, 14, 21,
    ]  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    assert answer(compiled(tmp_path)) == 14
    assert not list(tmp_path.iterdir())


def test_files_of_a_folder_that_can_only_be_read_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path)
    before = only_file(tmp_path).stat().st_mtime_ns
    real = open

    def read_only(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, mode, *args, **options)

    monkeypatch.setattr("builtins.open", read_only)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert compiled(tmp_path).cache_hits == 1
        assert answer(compiled(tmp_path, triple)) == 21
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert only_file(tmp_path).stat().st_mtime_ns == before


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".kernel-1.nbc.1-1", tmp_path / ".kernel-2.nbc.2-2"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - 2 * STALE_SECONDS
    os.utime(old, (past, past))
    compiled(tmp_path)
    assert not old.exists()
    assert young.exists()


def test_the_real_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through jit.py, a kernel and an entry."""
    monkeypatch.setattr(jit, "_compiled", {})
    for name in ("select", "begin"):
        assert not jit.is_cached(name, tmp_path)
        assert jit.address(name, tmp_path) > 0
        jit._compiled.clear()
        assert jit.is_cached(name, tmp_path)
        assert jit.compile_kernel(name, tmp_path).cache_hits == 1
