"""Tensor files: read by us and by `safetensors` alike, both ways; properties of the header."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgert import limits
from edgert.errors import BundleError, ResourceError
from edgert.storage import safetensors_writer as tensor_writer
from edgert.storage.safetensors import DTYPES, TensorFile, nbytes_of, read_header
from edgert.storage.safetensors_writer import TensorWriter, aligned_order

NAMES = st.text(
    st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")  # fmt: skip
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
FOREIGN = ("BF16", "F8_E4M3")  # NumPy has no such numbers
SPECS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=8)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def random_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, nbytes_of(dtype, shape), np.uint8)
    if dtype == "BOOL":
        raw &= 1
    return raw.view(DTYPES[dtype]).reshape(shape)


def write(path: Path, specs: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    arrays = {n: random_array(*spec, seed=i) for i, (n, spec) in enumerate(specs.items())}
    with TensorWriter(path, specs) as writer:
        for name in reversed(arrays):
            writer.write(name, arrays[name])
    return arrays


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@FAST
@given(specs=SPECS)
def test_what_we_write_safetensors_reads(specs: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    arrays = write(path, specs)
    plain = {name: array for name, array in arrays.items() if specs[name][0] not in FOREIGN}
    if len(plain) == len(arrays):  # the numpy side of safetensors lacks some types
        theirs = load_file(path)
        assert set(theirs) == set(arrays)
        assert all(same(theirs[name], array) for name, array in arrays.items())
    with TensorFile(path) as file:
        assert set(file.names()) == set(arrays) == set(file)
        assert len(file) == len(arrays)
        for name, array in arrays.items():
            assert same(file[name], array)
            assert file.info(name)[:2] == specs[name]
            assert not file[name].flags.writeable


@FAST
@given(specs=SPECS)
def test_what_safetensors_writes_we_read(specs: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    specs = {name: spec for name, spec in specs.items() if spec[0] not in FOREIGN}
    arrays = {n: random_array(*spec, seed=i) for i, (n, spec) in enumerate(specs.items())}
    save_file(arrays, path, metadata={"format": "np"})
    with TensorFile(path) as file:
        assert set(file) == set(arrays)
        assert all(same(file[name], array) for name, array in arrays.items())


def test_bfloat16_from_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"w": torch.tensor([1.0, -2.0]).bfloat16()}, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert file.info("w").dtype == "BF16"
        assert file["w"].dtype == np.uint16
        assert (file["w"].astype(np.uint32) << 16).view(np.float32).tolist() == [1.0, -2.0]


@FAST
@given(specs=SPECS, align=st.sampled_from([1, 8, 64, 4096]))
def test_header_round_trip(specs: Any, align: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    writer = TensorWriter(path, specs, align)
    for name, spec in specs.items():
        writer.write(name, random_array(*spec, seed=0))
    writer.close()
    header = read_header(path)
    assert header == writer.tensors
    assert path.stat().st_size == writer.nbytes
    data = writer.nbytes - sum(nbytes_of(*spec) for spec in specs.values())
    assert data % align == 0


@FAST
@given(
    offsets=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=1, max_size=4),
    size=st.integers(0, 64),
)
def test_random_offsets(offsets: Any, size: int, tmp_path_factory: Any) -> None:
    """A file opens exactly when its byte ranges cover the data in some order."""
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    entries = {
        f"t{i}": {"dtype": "U8", "shape": [max(0, b - a)], "data_offsets": [a, b]}
        for i, (a, b) in enumerate(offsets)
    }
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    at, sound = 0, all(a <= b for a, b in offsets)
    for a, b in sorted(offsets):
        sound, at = sound and a == at, b
    sound = sound and at == size
    if sound:
        assert {
            (i.begin - 8 - len(text), i.end - 8 - len(text)) for i in read_header(path).values()
        }
    else:
        with pytest.raises(BundleError):
            read_header(path)


def test_views_outlive_the_file(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.safetensors", {"w": ("F32", (1000,))})
    file = TensorFile(tmp_path / "a.safetensors")
    view = file["w"]
    file.close()
    file.close()
    assert same(view, arrays["w"])
    with pytest.raises(ValueError, match="is closed"):
        file["w"]


def test_reads_by_descriptor_and_keeps_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = write(path, {"w": ("I64", (3,))})
    fd = os.open(path, os.O_RDONLY)
    try:
        file = TensorFile(path, fd=fd)
        assert read_header(fd) == {"w": file.info("w")}
    finally:
        os.close(fd)
    assert same(file["w"], arrays["w"])


def test_no_descriptor_is_leaked(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts /proc/self/fd")
    write(tmp_path / "a", {"w": ("F32", (2,))})
    (tmp_path / "bad").write_bytes(b"no")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        TensorFile(tmp_path / "a").close()
        read_header(tmp_path / "a")
        with pytest.raises(BundleError):
            TensorFile(tmp_path / "bad")
        with pytest.raises(BundleError):
            read_header(tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "real", {"w": ("F32", (2,))})
    (tmp_path / "link").symlink_to("real")
    assert TensorFile(tmp_path / "link", follow=True).names() == ["w"]
    with pytest.raises(BundleError, match="is a symbolic link, expected a regular file"):
        TensorFile(tmp_path / "link")


def test_absent_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", {"w": ("F32", (2,))})
    with pytest.raises(BundleError, match="no tensor 'v' among its 1"):
        TensorFile(tmp_path / "a").info("v")


def test_pieces_and_order(tmp_path: Path) -> None:
    path, whole = tmp_path / "a", np.arange(12, dtype=np.float32).reshape(4, 3)
    with TensorWriter(path, {"a": ("F32", (4, 3)), "b": ("U8", (1,))}) as writer:
        writer.write("a", whole[:1])
        writer.write("b", np.array([9], np.uint8))
        writer.write("a", np.asfortranarray(whole[1:]))
    assert np.array_equal(TensorFile(path)["a"], whole)


def test_misuse_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = TensorWriter(path, {"a": ("F32", (2,)), "b": ("U8", (1,))})
    with pytest.raises(ValueError, match="'a' is F32, found an array of float64"):
        writer.write("a", np.zeros(2))
    with pytest.raises(ValueError, match="'a' has 8 bytes, found 12 more after 0"):
        writer.write("a", np.zeros(3, np.float32))
    writer.write("a", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"1 tensors are incomplete: \['b'\]"):
        writer.close()
    assert not path.exists()
    with pytest.raises(ValueError, match="is closed"):
        writer.write("b", np.zeros(1, np.uint8))


def test_an_error_removes_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TensorWriter(tmp_path / "a", {"a": ("U8", (1,))}) as writer:
        writer.write("b", np.zeros(1, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_file_is_never_written_into(tmp_path: Path) -> None:
    path = tmp_path / "a"
    arrays = write(path, {"w": ("F32", (64,))})
    view = TensorFile(path)["w"]
    write(path, {"w": ("F32", (1,))})
    assert same(view, arrays["w"])
    assert TensorFile(path)["w"].shape == (1,)


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(tensor_writer.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(ResourceError, match="needs 8096 bytes, the disk has 1000 free"):
        TensorWriter(tmp_path / "a", {"w": ("F32", (1000,))}, 4096)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write after the header fails; a short write before that is continued."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, data: memoryview) -> int:
            self.writes += 1
            if self.writes == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data[:5]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    path = tmp_path / "a"
    with (  # noqa: PT012
        pytest.raises(ResourceError, match=r"needs 128 bytes and the disk is full"),
        TensorWriter(path, {"w": ("F32", (16,))}, 8) as writer,
    ):
        writer._file = Full(writer._file)  # type: ignore[assignment]
        writer.write("w", np.arange(16, dtype=np.float32))
    assert not path.exists()


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", {name: ("U8", (1,)) for name in "abcd"})
    monkeypatch.setattr(limits, "TENSOR_COUNT", 3)
    with pytest.raises(BundleError, match="4 tensors, the limit is 3"):
        read_header(tmp_path / "a")


def test_metadata_is_written_for_others(tmp_path: Path) -> None:
    from safetensors import safe_open

    with TensorWriter(tmp_path / "a", {"w": ("U8", (1,))}, metadata={"format": "pt"}) as writer:
        writer.write("w", np.zeros(1, np.uint8))
    with safe_open(tmp_path / "a", "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert read_header(tmp_path / "a").keys() == {"w"}


def test_aligned_order_aligns(tmp_path: Path) -> None:
    specs = {"a": ("U8", (3,)), "b": ("F16", (1,)), "c": ("F32", (1,)), "d": ("F64", (1,))}
    with TensorWriter(tmp_path / "a", aligned_order(specs)) as writer:
        for name, spec in specs.items():
            writer.write(name, random_array(*spec, seed=0))
    for info in read_header(tmp_path / "a").values():
        assert info.begin % DTYPES[info.dtype].itemsize == 0


def test_nbytes() -> None:
    assert nbytes_of("F16", (3, 5)) == 30
    assert nbytes_of("I64", ()) == 8
