"""Tokenizers of text encoders: those that are converted give the ids of the published ones."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.sources.caption_tokenizer import captions, sentencepiece
from tokenizers import Tokenizer

from edgert.bundle.image_spec import CaptionSpec
from edgert.errors import ConvertError
from edgert.session.protobuf import WireError
from tests.image.pipelines import t5_tokenizer, write_json

TEXTS = [
    "a photo of a cat", "A  red   fox,  jumping over 2 lazy dogs!", "café ünïcödé — “quotes”",
    "don't you'll we've", "  spaces \n and\ttabs ", "日本語 and emoji 🦊", "", "x" * 300,
]  # fmt: skip


def published(shared_data: Path, name: str) -> dict[str, Any]:
    path = shared_data / "tokenizers" / name / "tokenizer.json.gz"
    if not path.is_file():
        pytest.skip(f"no tokenizer {name} in the shared data folder")
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def same_ids(ours: bytes, theirs: dict[str, Any]) -> None:
    a, b = Tokenizer.from_str(ours.decode()), Tokenizer.from_str(json.dumps(theirs))
    for text in TEXTS:
        wanted = b.encode(text, add_special_tokens=False).ids
        assert a.encode(text, add_special_tokens=False).ids == wanted, text


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, out = len(data), b""
    while size >= 0x80:
        out, size = out + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + out + bytes([size]) + data


def spiece(pieces: list[tuple[str, float, int]], charsmap: bytes = b"") -> bytes:
    """A SentencePiece model."""
    rows = [
        field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind])
        for text, score, kind in pieces
    ]
    return b"".join(field(1, row) for row in rows) + field(3, field(2, charsmap))


def test_a_sentencepiece_model_becomes_the_published_t5_tokenizer(
    shared_data: Path, tmp_path: Path
) -> None:
    theirs = published(shared_data, "t5-small")
    kinds = {"<unk>": 2, "<pad>": 3, "</s>": 3}
    vocab = [row for row in theirs["model"]["vocab"] if not row[0].startswith("<extra_id_")]
    charsmap = base64.b64decode(theirs["normalizer"]["precompiled_charsmap"])
    pieces = [(text, score, kinds.get(text, 1)) for text, score in vocab]
    (tmp_path / "spiece.model").write_bytes(spiece(pieces, charsmap))
    found = captions(tmp_path, "T5Tokenizer", "T5EncoderModel", 300, lower=True)
    assert found.spec == CaptionSpec(300, 1, lower=True)
    same_ids(found.data, theirs)
    ours = json.loads(found.data)
    assert [text for text, _ in ours["model"]["vocab"]] == [t for t, _ in theirs["model"]["vocab"]]
    assert {e["content"]: e["id"] for e in ours["added_tokens"]} == {
        e["content"]: e["id"] for e in theirs["added_tokens"]
    }


def test_vocabulary_and_merges_become_the_published_clip_tokenizer(
    shared_data: Path, tmp_path: Path
) -> None:
    theirs = published(shared_data, "clip")
    write_json(tmp_path / "vocab.json", theirs["model"]["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in theirs["model"]["merges"]]
    lines = ["#version: 0.2", *merges, ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": "!"})
    found = captions(tmp_path, "CLIPTokenizer", "CLIPTextModel", 77, lower=False)
    assert found.spec == CaptionSpec(77, 49407, 49406, 0)
    same_ids(found.data, theirs)
    assert set(found.texts) == {"vocab.json", "merges.txt", "special_tokens_map.json"}


def test_a_tokenizer_file_is_taken_as_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", t5_tokenizer())
    for kind in ("T5Tokenizer", "PreTrainedTokenizerFast"):
        found = captions(tmp_path, kind, "T5EncoderModel", 120, lower=False)
        assert found.data == (tmp_path / "tokenizer.json").read_bytes()
        assert found.spec == CaptionSpec(120, 1)


@pytest.mark.parametrize(
    ("kind", "encoder", "message"),
    [
        ("T5Tokenizer", "T5EncoderModel", "expected tokenizer.json or spiece.model"),
        ("CLIPTokenizer", "CLIPTextModel", "expected tokenizer.json or vocab.json and merges.txt"),
        ("PreTrainedTokenizerFast", "T5EncoderModel", "expected tokenizer.json"),
        ("LlamaTokenizer", "T5EncoderModel", "class 'LlamaTokenizer', edgert knows"),
    ],
)
def test_missing_files_and_unknown_classes_are_named(
    tmp_path: Path, kind: str, encoder: str, message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        captions(tmp_path, kind, encoder, 77, lower=False)


def test_an_end_token_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", t5_tokenizer())
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(ConvertError, match="token '<end>' is not among 33 tokens"):
        captions(tmp_path, "T5Tokenizer", "T5EncoderModel", 77, lower=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "varint"),
        (b"\x0a\x05abc", "ends past its message"),
        (field(1, b"\x15\x00"), "ends past"),
        (field(1, field(2, b"ab")), "score has 2 bytes"),
        (field(1, b"\x08\x01"), "not text"),
        (field(1, field(1, b"\xff\xfe")), "not UTF-8"),
    ],
)
def test_damaged_sentencepiece_models_are_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(WireError, match=message):
        sentencepiece(data)
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(ConvertError, match=r"spiece\.model is no SentencePiece model"):
        captions(tmp_path, "T5Tokenizer", "T5EncoderModel", 77, lower=False)


def test_a_sentencepiece_model_of_bytes_is_refused(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("<0x00>", 0.0, 6), ("a", -1.0, 1)]
    (tmp_path / "spiece.model").write_bytes(spiece(pieces))
    with pytest.raises(ConvertError, match="expected one unknown piece, as T5's have"):
        captions(tmp_path, "T5Tokenizer", "T5EncoderModel", 77, lower=False)
