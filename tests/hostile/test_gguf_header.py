"""Rows H01 to H04 and H07 for GGUF: files that are none, lie about sizes, or overlap."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgert import limits
from edgert.errors import BundleError
from edgert.storage.gguf_header import read_gguf
from tests.gguf_bytes import ARRAY, TEXT, U32, Made, Tensor, Typed, small, text
from tests.hostile.box import peak_rss
from tests.hostile.fuzz_gguf import look
from tests.hostile.test_fuzz import fault

HUGE = (1 << 64) - 1
VECTOR = struct.pack("<5f", *range(5))


def keyed(key: str, value: object) -> Made:
    """The small file with one value exchanged."""
    made = small()
    return replace(made, keys={**made.keys, key: value})


def tensor(**changes: object) -> Made:
    """The small file with its second tensor changed."""
    made = small()
    first, second, third = made.tensors
    return replace(made, tensors=(first, second._replace(**changes), third))


def raw_key(kind: int, rest: bytes) -> Made:
    """The small file with one more key, of this type."""
    made = small()
    more = text("x") + struct.pack("<I", kind) + rest
    return replace(made, more_keys=more, counts=(None, len(made.keys) + 1))


ROWS: dict[str, tuple[Callable[[], bytes], str, tuple[str, ...]]] = {
    "H01-empty": (lambda: b"", "gguf-header", ("0 bytes", "at least 24")),
    "H01-seven-bytes": (lambda: b"GGUF\3\0\0", "gguf-header", ("7 bytes", "at least 24")),
    "H01-another-format": (
        lambda: b"PK\3\4" + bytes(99), "gguf-header", ("begins with b'PK", "expected b'GGUF'"),
    ),
    "H02-tensors-all-ones": (
        lambda: replace(small(), counts=(HUGE, None)).bytes(), "gguf-header",
        (f"{HUGE} tensors, expected at most",),
    ),
    "H02-keys-two-to-63": (
        lambda: replace(small(), counts=(None, 1 << 63)).bytes(), "gguf-header",
        (f"{1 << 63} keys, expected at most",),
    ),
    "H02-keys-over-the-limit": (
        lambda: replace(small(), counts=(None, 5000), tail=bytes(1 << 20)).bytes(), "gguf-header",
        ("5000 keys, expected at most 4096",),
    ),
    "H02-text-past-the-file": (
        lambda: raw_key(TEXT, struct.pack("<Q", 1 << 40)).bytes(), "gguf-header",
        ("'x' takes 1099511627776 bytes", "expected at most"),
    ),
    "H02-text-that-wraps": (
        lambda: raw_key(TEXT, struct.pack("<Q", HUGE - 7)).bytes(), "gguf-header",
        ("'x' takes", "expected at most"),
    ),
    "H02-array-that-wraps": (
        lambda: raw_key(ARRAY, struct.pack("<IQ", U32, 1 << 62)).bytes(), "gguf-header",
        ("4611686018427387904 entries of 'x'", "expected at most"),
    ),
    "H02-array-of-texts-past-the-file": (
        lambda: raw_key(ARRAY, struct.pack("<IQQ", TEXT, 3, HUGE)).bytes(), "gguf-header",
        ("entry 0 of 'x' has", "expected at most"),
    ),
    "H02-array-of-texts-that-ends": (
        lambda: raw_key(ARRAY, struct.pack("<IQ", TEXT, 40)).bytes()[:700], "gguf-header", (),
    ),
    "H02-array-in-array": (
        lambda: raw_key(ARRAY, struct.pack("<IQ", ARRAY, 1 << 20)).bytes(), "gguf-key",
        ("'x' is an array of type 9", "expected numbers or texts"),
    ),
    "H02-key-without-name": (
        lambda: replace(small(), more_keys=text("") + bytes(8), counts=(None, 13)).bytes(),
        "gguf-header", ("a key has 0 bytes, expected 1 to 512",),
    ),
    "H02-long-name": (
        lambda: tensor(name="n" * 600).bytes(), "gguf-header", ("has 600 bytes", "1 to 512"),
    ),
    "H03-truncated": (
        lambda: small().bytes()[:-200], "tensor-truncated",
        ("'token_embd.weight' ends at byte", "the file has", "bytes are missing"),
    ),
    "H03-truncated-header": (
        lambda: small().bytes()[:300], "gguf-header", ("expected at most", "the file has 300"),
    ),
    "H04-overlap": (
        lambda: tensor(offset=0).bytes(), "tensor-offsets",
        ("'blk.0.ffn_up.weight' overlaps tensor 'output_norm.weight'", "expected 32"),
    ),
    "H04-gap": (
        lambda: tensor(offset=64).bytes(), "tensor-offsets", ("leaves a gap after", "expected 32"),
    ),
    "H04-misaligned": (
        lambda: tensor(offset=33).bytes(), "tensor-offsets", ("byte 33", "a multiple of 32"),
    ),
    "H04-offset-that-wraps": (
        lambda: tensor(offset=HUGE - 31).bytes(), "tensor-offsets", ("leaves a gap",),
    ),
    "H04-trailing-bytes": (
        lambda: replace(small(), tail=bytes(64)).bytes(), "tensor-offsets", ("64 bytes follow",),
    ),
    "H04-size-overflow": (
        lambda: tensor(sizes=(1 << 30, 1 << 30, 1 << 30, 32)).bytes(), "tensor-truncated",
        ("'blk.0.ffn_up.weight' ends at byte",),
    ),
    "H04-size-two-to-31": (
        lambda: tensor(sizes=(1 << 31, 3)).bytes(), "tensor-shape", ("2147483648", "2147483647"),
    ),
    "H04-size-zero": (lambda: tensor(sizes=(0, 3)).bytes(), "tensor-shape", ("[0, 3]",)),
    "H04-rank-0": (
        lambda: tensor(rank=0).bytes(), "tensor-shape", ("rank 0, expected 1 to 4",),
    ),
    "H04-rank-two-to-31": (
        lambda: tensor(rank=1 << 31).bytes(), "tensor-shape", ("rank 2147483648",),
    ),
    "H04-half-a-block": (
        lambda: tensor(sizes=(48, 2)).bytes(), "tensor-shape", ("48", "multiple of 32", "Q4_0"),
    ),
    "H04-alignment-zero": (
        lambda: keyed("general.alignment", 0).bytes(), "gguf-key", ("alignment is 0", "power of"),
    ),
    "H04-alignment-33": (
        lambda: keyed("general.alignment", 33).bytes(), "gguf-key", ("is 33", "power of two"),
    ),
    "H04-alignment-huge": (
        lambda: keyed("general.alignment", 1 << 31).bytes(), "gguf-key", ("2147483648",),
    ),
    "H04-alignment-text": (
        lambda: keyed("general.alignment", "32").bytes(), "gguf-key", ("power of two",),
    ),
    "H07-duplicate-key": (
        lambda: replace(
            small(), more_keys=text("llama.block_count") + struct.pack("<II", U32, 9),
            counts=(None, 13),
        ).bytes(),
        "gguf-key", ("'llama.block_count' is there twice",),
    ),
    "H07-duplicate-tensor": (
        lambda: tensor(name="output_norm.weight").bytes(), "gguf-header", ("is there twice",),
    ),
    "H07-unknown-type": (
        lambda: tensor(kind=5).bytes(), "gguf-type", ("of type 5", "this edgert knows"),
    ),
    "H07-unknown-key-type": (
        lambda: raw_key(13, bytes(8)).bytes(), "gguf-key", ("of type 13, expected 0 to 12",),
    ),
    "H07-truth-value-of-two": (
        lambda: raw_key(7, b"\2").bytes(), "gguf-key", ("'x' is 2, expected true (1)",),
    ),
    "H07-version-1": (
        lambda: replace(small(), version=1).bytes(), "gguf-version", ("version 1", "[2, 3]"),
    ),
    "H07-version-4": (
        lambda: replace(small(), version=4).bytes(), "gguf-version", ("version 4", "[2, 3]"),
    ),
    "H07-big-endian": (
        lambda: replace(small(), version=3 << 24).bytes(), "gguf-version", ("big-endian",),
    ),
    "H07-name-not-utf8": (
        lambda: small().bytes().replace(b"output_norm", b"output\xff\xfe\xfd\xfc\xfb"),
        "gguf-header", ("not UTF-8",),
    ),
}  # fmt: skip


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small().bytes())
    header = read_gguf(path)
    assert {name: t.shape for name, t in header.tensors.items()} == {
        "output_norm.weight": (5,), "blk.0.ffn_up.weight": (3, 32), "token_embd.weight": (2, 256),
    }  # fmt: skip
    meta = header.metadata
    assert meta.text("general.architecture") == "llama"
    assert meta.texts("tokenizer.ggml.tokens") == ["<unk>", "<s>", "</s>", "\u2581a", "b"]
    types = meta.numbers("tokenizer.ggml.token_type")
    assert types is not None
    assert types.tolist() == [2, 3, 3, 1, 1]
    assert meta.flag("tokenizer.ggml.add_bos_token") is True
    assert (meta.whole("general.file_size"), meta.number("general.signed")) == (1 << 40, -5.0)
    assert meta.texts("general.nothing") == []
    assert (meta.text("no"), meta.whole("no"), meta.numbers("no")) == (None, None, None)


@pytest.mark.parametrize("name", list(ROWS))
def test_refused_with_reason(name: str, tmp_path: Path) -> None:
    made, code, says = ROWS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(made())
    before = peak_rss() if os.path.exists("/proc/self/status") else 0
    with pytest.raises(BundleError) as caught:
        read_gguf(path)
    assert caught.value.code == code, caught.value.message
    assert caught.value.hint
    for part in (str(path), *says):
        assert part in caught.value.message
    assert not before or peak_rss() - before < 10 << 20


def test_h02_a_header_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GGUF_HEADER_BYTES", 300)
    path = tmp_path / "m.gguf"
    path.write_bytes(small().bytes())
    with pytest.raises(BundleError, match="the limit is 300"):
        read_gguf(path)


@pytest.mark.parametrize("of", ["text", "whole", "number", "flag", "numbers", "texts"])
def test_h07_values_of_other_types_are_refused(of: str, tmp_path: Path) -> None:
    """Every getter, of every key that is of another type."""
    path = tmp_path / "m.gguf"
    path.write_bytes(small().bytes())
    meta = read_gguf(path).metadata
    found = {key: fault(partial(getattr(meta, of), key)) for key in meta}
    wrong = {key: error for key, error in found.items() if error is not None}
    assert 0 < len(wrong) < len(found)
    for key, error in wrong.items():
        assert key in error.message
        assert "expected" in error.message


def test_h07_texts_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(keyed("tokenizer.ggml.tokens", Typed(ARRAY, (TEXT, [b"\xff"]))).bytes())
    with pytest.raises(BundleError, match="expected UTF-8"):
        read_gguf(path).metadata.texts("tokenizer.ggml.tokens")


def test_many_damaged_files() -> None:
    """A few of what `python -m tests.hostile.fuzz_gguf` makes by the million."""
    assert look(3000, seed=1).files == 3000


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(Made({"general.architecture": "llama"}).header())
    assert not read_gguf(path).tensors
    path.write_bytes(Made({}, [Tensor("a", (5,), 0, VECTOR)]).bytes()[:-12])  # without padding
    assert read_gguf(path).tensors["a"].shape == (5,)
