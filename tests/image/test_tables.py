"""Tables on disk: what is written reads back, and what a stranger sends does no harm."""

from __future__ import annotations

import io
import logging
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import limits, notices
from edgert.errors import BundleError
from edgert.image.tables import COLUMNS, SensitivityTable, TableInfo

INFO = TableInfo(
    model="ab" * 32, quantisation="int8", prediction="epsilon", scheduler="ddim", steps=4,
    latent=(4, 8, 8), samples=16,
)  # fmt: skip


def columns(**changed: Any) -> dict[str, Any]:
    given = {name: np.linspace(1, 2, 4) for name in COLUMNS}
    return given | {"t": np.array([900.0, 600.0, 300.0, 0.0])} | changed


def table(**changed: Any) -> SensitivityTable:
    return SensitivityTable(info=INFO, **columns(**changed))


def npz(**members: Any) -> bytes:
    meta = np.frombuffer(msgspec.json.encode(INFO), np.uint8)
    file = io.BytesIO()
    given = {"meta": meta, **columns(), **members}
    np.savez(file, **{name: value for name, value in given.items() if value is not None})
    return file.getvalue()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)
    return file.getvalue()


def npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def test_a_table_reads_back_and_numpy_reads_it_too(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    table(gammas=np.array([1.0, 0.9, 0.8, 0.7])).save(path)
    again = SensitivityTable.load(path)
    assert again.info == INFO
    np.testing.assert_array_equal(again.t, [900, 600, 300, 0])
    assert again.gammas is not None
    assert again.polynomial is None
    with np.load(path, allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["alpha_x"], again.alpha_x)
    assert list(tmp_path.iterdir()) == [path]


class Bomb:
    """Unpickling this would be noticed."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a table was unpickled",))


HUGE = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999,), }\n")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "no sound .npz"),
    "text": (lambda: b"<html>" * 100, "no sound .npz"),
    "cut": (lambda: npz()[:-30], "no sound .npz"),
    "flipped": (lambda: npz()[:60] + b"\xff" + npz()[61:], "cache table"),
    "too large": (lambda: b"\0" * (limits.CACHE_TABLE_BYTES + 1), "expected a small file"),
    "bomb": (lambda: archive(("t.npy", b"\0" * (8 << 20))), "inflates to more than the limit"),
    "huge shape": (lambda: archive(("t.npy", HUGE)), "t.npy has 0 bytes, expected 7999999992"),
    "pickle": (lambda: npz(t=np.array([Bomb()] * 4, object)), "t.npy is no one-dim"),
    "pickle bare": (lambda: archive(("t.npy", pickle.dumps(Bomb()))), "t.npy is no one-dim"),
    "deep header": (lambda: archive(("t.npy", npy(b"(" * 60_000))), "t.npy is no one-dim"),
    "other name": (lambda: npz(surprise=np.ones(4)), "it holds 'surprise.npy'"),
    "path": (lambda: archive(("../t.npy", HUGE)), "it holds '../t.npy'"),
    "twice": (lambda: archive(("t.npy", npz()[:0] or _good("t")), ("t.npy", _good("t"))), "again"),
    "lzma": (lambda: archive(("t.npy", HUGE), method=zipfile.ZIP_LZMA), "cache table"),
    "no column": (lambda: npz(alpha_x=None), "there is no alpha_x.npy"),
    "no metadata": (lambda: npz(meta=None), "there is no meta.npy"),
    "two axes": (lambda: npz(alpha_x=np.ones((2, 2))), "alpha_x.npy is no one-dim"),
    "float32": (lambda: npz(alpha_x=np.ones(4, np.float32)), "array of float64"),
    "big-endian": (lambda: npz(alpha_x=np.ones(4, ">f8")), "array of float64"),
    "too short": (lambda: npz(alpha_x=np.ones(3)), r"alpha_x has shape \(3,\) of float64"),
    "no steps": (lambda: npz(**{name: np.ones(0) for name in COLUMNS}), "it has 0 steps"),
    "NaN": (lambda: npz(alpha_x=np.array([1, np.nan, 1, 1])), "1 of 4 values of alpha_x"),
    "infinite": (lambda: npz(std_t=np.full(4, np.inf)), "4 of 4 values of std_t"),
    "negative": (lambda: npz(alpha_t_rms=-np.ones(4)), "alpha_t_rms has values down to -1"),
    "empty row": (
        lambda: npz(alpha_x=np.array([1, 0, 1, 1.0]), alpha_t_rms=np.array([1, 0, 1, 1.0])),
        "row 1 of 4 has no sensitivity",
    ),
    "not JSON": (lambda: npz(meta=np.frombuffer(b"{'a'", np.uint8)), "not JSON"),
    "other JSON": (lambda: npz(meta=np.frombuffer(b"[]", np.uint8)), "metadata is unsound"),
    "deep JSON": (lambda: npz(meta=np.frombuffer(b"[" * 100_000, np.uint8)), "not JSON"),
    "newer": (
        lambda: npz(meta=np.frombuffer(
            msgspec.json.encode(msgspec.structs.replace(INFO, version=2)), np.uint8)),
        "it has version 2, expected 1",
    ),
}  # fmt: skip


def _good(name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(npz())) as made:
        return made.read(f"{name}.npy")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_from_a_stranger_is_refused(name: str) -> None:
    make, words = HOSTILE[name]
    data = make()
    tracemalloc.start()
    with pytest.raises(BundleError, match=words) as caught:
        SensitivityTable.from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "cache-table"
    assert peak < 32 << 20


def test_any_flipped_byte_is_a_table_or_an_error() -> None:
    good, numbers, codes = npz(), np.random.default_rng(0), list[str]()
    for at in numbers.integers(0, len(good), 400).tolist():
        data = bytearray(good)
        data[at] ^= 1 << int(numbers.integers(8))
        try:
            SensitivityTable.from_bytes(bytes(data))
        except BundleError as error:
            codes.append(error.code)
    assert set(codes) == {"cache-table"}
    assert len(codes) > 300


def test_an_old_table_stays_when_the_new_one_is_unsound(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    table().save(path)
    before = path.read_bytes()
    with pytest.raises(BundleError):
        table(alpha_x=np.full(4, np.nan)).save(path)
    assert path.read_bytes() == before
    with pytest.raises(BundleError, match="could not be read"):
        SensitivityTable.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("field", ["model", "quantisation", "prediction"])
def test_a_table_of_another_model_is_an_error(field: str) -> None:
    other = msgspec.structs.replace(INFO, **{field: "other"})
    with pytest.raises(BundleError, match=f"of {field} .* expected 'other'") as caught:
        table().check(other)
    assert caught.value.code == "cache-table-mismatch"


def test_a_table_of_another_schedule_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    notices._shown.clear()
    table().check(INFO)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "edgert"):
        table().check(msgspec.structs.replace(INFO, steps=20, shift=3.0, scheduler="dpm++"))
    assert len(caplog.records) == 3
    assert "calibrated with steps 4, this run has 20" in caplog.text
