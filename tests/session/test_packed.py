"""Packed weights on disk: written once, read afterwards, replaced when they are not what their
name says, done without where nothing can be written."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels.quant import Quantized
from numpy.typing import NDArray

from edgert import system_memory
from edgert.session import memory, packed
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession

from ..tiny import tiny_graph, tiny_weights

KEY = "5eed" * 16
GRAPH = tiny_graph(quant="mixed")
WEIGHTS = tiny_weights(GRAPH)
TOKENS = np.arange(40, dtype=np.int32)
REAL_SHA256 = hashlib.sha256


def answer(folders: list[Path], cache: Path, key: str = KEY) -> NDArray[np.float32]:
    """Logits of a session whose packed weights may live in `folders`."""
    session = CpuSession(GRAPH, WEIGHTS, threads=1, cache=cache, packed_folders=folders, key=key)
    out = session.step([Feed(session.new_state(), TOKENS, "all")])[0].logits
    session.close()
    return out


@pytest.fixture
def expected(kernel_folder: Path) -> NDArray[np.float32]:
    return answer([], kernel_folder)


def only_file(folder: Path) -> Path:
    """The single file of a folder: nothing half-written lies about."""
    (path,) = folder.iterdir()
    return path


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("weights were packed again")

    monkeypatch.setattr(packed.pack, "pack", refuse)


def test_written_once_and_read_afterwards(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert np.array_equal(answer([tmp_path / "packed"], kernel_folder), expected)
    path = only_file(tmp_path / "packed")
    assert path.name.startswith(KEY[:24])
    before = path.stat()
    forbid_packing(monkeypatch)
    assert np.array_equal(answer([tmp_path / "none", tmp_path / "packed"], kernel_folder), expected)
    after = only_file(tmp_path / "packed").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (tmp_path / "none").exists()


def test_another_model_or_layout_gets_a_file_of_its_own(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    answer([tmp_path], kernel_folder)
    answer([tmp_path], kernel_folder, key="0" * 64)
    monkeypatch.setattr(packed.layout, "LAYOUT", "r16s-0")
    assert np.array_equal(answer([tmp_path], kernel_folder), expected)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    ["shorter", "longer", "empty", "foreign", "another name", "link", "zeros", "bit", "page"],
)
def test_a_file_that_is_not_the_packed_one_is_replaced(
    damage: str, tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32]
) -> None:
    folder = tmp_path / "packed"
    answer([folder], kernel_folder)
    path = only_file(folder)
    good = path.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(bytes(len(good)))
    if damage == "link":
        path.unlink()
        path.symlink_to(other)
    elif damage == "another name":
        answer([tmp_path / "else"], kernel_folder, key="0" * 64)
        path.write_bytes(only_file(tmp_path / "else").read_bytes())
    else:
        foreign = np.random.default_rng(0).bytes(len(good))
        path.write_bytes(
            {
                "shorter": good[:-1], "longer": good + b"\0", "empty": b"", "foreign": foreign,
                "zeros": bytes(len(good)), "page": good[:4096] + bytes(4096) + good[8192:],
                "bit": good[:5000] + bytes([good[5000] ^ 4]) + good[5001:],
            }[damage]
        )  # fmt: skip
    assert np.array_equal(answer([folder], kernel_folder), expected)
    path = only_file(folder)
    assert not path.is_symlink()
    assert path.read_bytes() == good
    assert other.read_bytes() == bytes(len(good))


def test_where_nothing_can_be_written(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")  # even root makes no folder under a file
    closed, second = tmp_path / "file" / "packed", tmp_path / "second"
    assert np.array_equal(answer([closed], kernel_folder), expected)
    assert np.array_equal(answer([closed, second], kernel_folder), expected)
    assert only_file(second).stat().st_size > 0


def test_a_folder_in_the_way(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32]
) -> None:
    answer([tmp_path], kernel_folder)
    path = only_file(tmp_path)
    path.unlink()
    path.mkdir()
    assert np.array_equal(answer([tmp_path], kernel_folder), expected)
    assert only_file(tmp_path).is_dir()


def test_the_content_is_hashed_once_per_change(
    tmp_path: Path, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
    answer([tmp_path / "packed"], kernel_folder)
    path = only_file(tmp_path / "packed")
    long_ago = path.stat().st_mtime - 100
    os.utime(path, (long_ago, long_ago))
    monkeypatch.setattr("edgert.storage.hash_cache.RACY_SECONDS", -1)
    answer([tmp_path / "packed"], kernel_folder)
    monkeypatch.setattr(packed.hashlib, "sha256", small_only)
    answer([tmp_path / "packed"], kernel_folder)


def small_only(data: bytes = b"") -> Any:
    assert len(data) < 10_000, "the content was hashed again"
    return REAL_SHA256(data)


def test_what_killed_writers_left_is_removed(tmp_path: Path, kernel_folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [tmp_path / f"{name}.packed.partial-{ended.pid}" for name in ("this", "other")]
    mine = tmp_path / f"x.packed.partial-{os.getpid()}"
    for file in (*left, mine):
        file.write_bytes(b"half")
    answer([tmp_path], kernel_folder)
    assert mine.exists()
    assert not [file for file in left if file.exists()]


def test_a_disk_that_fills_up(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed.os, "fsync", full)
    assert np.array_equal(answer([tmp_path], kernel_folder), expected)
    assert not list(tmp_path.iterdir())


def test_several_threads_write_at_once(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32]
) -> None:
    barrier, wrong = threading.Barrier(4), []

    def load() -> None:
        barrier.wait()
        if not np.array_equal(answer([tmp_path], kernel_folder), expected):
            wrong.append(1)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert only_file(tmp_path).suffix == ".packed"


def test_packed_weights_in_memory_hold_the_same_bytes(tmp_path: Path) -> None:
    paired = frozenset({"l0.gate_up", "l1.gate_up"})
    here = packed.in_memory(GRAPH, WEIGHTS, paired)
    there = packed.cached(GRAPH, WEIGHTS, paired, folders=[tmp_path], key=KEY)
    assert not there.data.flags.writeable
    for name, slot in here.slots.items():
        part = slice(slot.offset, slot.offset + slot.size)
        assert np.array_equal(here.data[part], there.data[part]), name
    assert any(isinstance(weight, Quantized) for weight in WEIGHTS.values())


def held_bytes(held: packed.PackedWeights, name: str) -> bytes:
    """What kernels read of a matrix."""
    return ctypes.string_at(held.address(name), held.slots[name].size)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says of large pages: that it offers them."""
    path = tmp_path / "offered"
    path.write_text("always [madvise] never\n", encoding="ascii")
    monkeypatch.setattr(memory, "LARGE_PAGES", path)
    monkeypatch.setattr(packed, "LARGE", 1)
    return path


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")
def test_what_every_step_reads_is_copied_into_large_pages(
    tmp_path: Path, kernel_folder: Path, expected: NDArray[np.float32], offered: Path
) -> None:
    here = packed.in_memory(GRAPH, WEIGHTS, frozenset())
    there = packed.cached(GRAPH, WEIGHTS, frozenset(), folders=[tmp_path / "w"], key=KEY)
    mapped = there.data.ctypes.data
    apart = [n for n in there.slots if not 0 <= there.address(n) - mapped < there.nbytes]
    looked_up = {n.weights["weight"] for n in GRAPH.nodes if n.op == "embed"}
    read = {w for n in GRAPH.nodes if n.op != "embed" for w in n.weights.values()}
    assert set(apart) == set(there.slots) - (looked_up - read)
    assert apart
    assert {n: held_bytes(here, n) for n in here.slots} == {
        n: held_bytes(there, n) for n in there.slots
    }
    assert np.array_equal(answer([tmp_path / "w"], kernel_folder), expected)


def test_weights_stay_mapped_where_memory_is_short(
    tmp_path: Path, offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def addresses() -> set[bool]:
        held = packed.cached(GRAPH, WEIGHTS, frozenset(), folders=[tmp_path / "w"], key=KEY)
        base = held.data.ctypes.data
        return {0 <= held.address(name) - base < held.nbytes for name in held.slots}

    monkeypatch.setattr(system_memory, "free", lambda: 1000)
    assert addresses() == {True}
    monkeypatch.setattr(system_memory, "free", lambda: 1 << 40)
    offered.write_text("always madvise [never]\n", encoding="ascii")
    assert addresses() == {True}
    offered.unlink()
    assert addresses() == {True}


def test_large_pages_are_zero_and_aligned(offered: Path) -> None:
    size = 3 * memory.LARGE_PAGE + 5000
    found = memory.in_large_pages(size)
    if found is None:
        assert not hasattr(mmap, "MADV_HUGEPAGE")
        return
    assert len(found) == size
    assert found.ctypes.data % memory.LARGE_PAGE == 0
    assert not found.any()
    assert found.flags.writeable
