"""Tokenizers rebuilt from GGUF's metadata: ids equal the original tokenizer's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.sources.gguf_tokenizer import (
    CUTS,
    endings_of,
    tokenizer_of,
    vocabulary_of,
)
from tokenizers import Tokenizer

from edgert.errors import BundleError, ConvertError
from edgert.storage.gguf_header import read_gguf
from edgert.storage.gguf_values import Metadata
from tests.gguf_bytes import ARRAY, F32, I32, Made, Typed

TEXTS = [
    "Hello world", "  two  spaces\n\n\tand tabs ", "", " ", "\n \n\t", "I'M they'll DON'T we've",
    "naïve café Straße — “quotes” … 日本語 русский 🎉👩‍👩‍👧 \u0301", "nul \x00 and control \x1b[0m",
    "for i in range(10):\n        print(i)\n", "1234567890 3.14159 2026-11-29 x1y22z333",
    "\r\nCRLF\r\n", "ﬁ ℌ Ⅷ ½ ４２", "aaaa" * 40, "a\u00a0b\u2003c",
    "<|im_start|> is plain <s> text",
]  # fmt: skip
PRE = {"gpt2": "gpt-2", "phi-2": "phi-2", "falcon": "falcon", "qwen2": "qwen2"}


def metadata(folder: Path, keys: dict[str, Any]) -> Metadata:
    path = folder / "v.gguf"
    path.write_bytes(Made(keys).header())
    return read_gguf(path).metadata


def rebuilt(folder: Path, keys: dict[str, Any]) -> Tokenizer:
    meta = metadata(folder, keys)
    return Tokenizer.from_buffer(tokenizer_of(meta, vocabulary_of(meta)))


def of_json(raw: dict[str, Any]) -> dict[str, Any]:
    """Tokens and types as llama.cpp's script takes them from a tokenizer.json."""
    added = {e["id"]: e for e in raw["added_tokens"]}
    ids = {i: token for token, i in raw["model"]["vocab"].items()}
    ids |= {i: e["content"] for i, e in added.items()}
    kinds = {i: (3 if e["special"] else 4) for i, e in added.items()}
    types = [kinds.get(i, 1) for i in sorted(ids)]
    tokens = [ids[i] for i in sorted(ids)]
    assert sorted(ids) == list(range(len(ids)))
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed(ARRAY, (I32, types)),
    }


def original(data: Path, name: str) -> dict[str, Any]:
    """tokenizer.json of a folder of the shared data."""
    folder = data / "tokenizers" / name
    packed = folder / "tokenizer.json.gz"
    if packed.exists():
        found: dict[str, Any] = json.loads(gzip.decompress(packed.read_bytes()))
        return found
    vocab = json.loads(gzip.decompress((folder / "vocab.json.gz").read_bytes()))
    merges = gzip.decompress((folder / "merges.txt.gz").read_bytes()).decode().split("\n")
    nfc = {"normalizer": {"type": "NFC"}} if name == "qwen2" else {"normalizer": None}
    from tokenizers import Regex, decoders, models, pre_tokenizers

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name != "qwen2")
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated")] if name == "qwen2" else []
    pairs = [tuple(m.split(" ")) for m in merges if m and not m.startswith("#version")]
    made = Tokenizer(models.BPE(vocab, pairs))
    made.decoder = decoders.ByteLevel()
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, level])
    return {**json.loads(made.to_str()), **nfc}


@pytest.mark.parametrize("name", PRE)
def test_byte_level_ids_are_the_originals(name: str, shared_data: Path, tmp_path: Path) -> None:
    raw = original(shared_data, name)
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    keys = of_json(raw) | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": PRE[name],
        "tokenizer.ggml.merges": merges,
    }  # fmt: skip
    ours, theirs = rebuilt(tmp_path, keys), Tokenizer.from_str(json.dumps(raw))
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, repr(text)
        assert ours.decode(expected) == theirs.decode(expected)


def test_pieces_are_joined_as_phi_3s_tokenizer_does(shared_data: Path, tmp_path: Path) -> None:
    """The scores of its pieces are the order of its merges."""
    raw = original(shared_data, "phi-3-mini")
    ranks: dict[str, int] = {}
    for merge in raw["model"]["merges"]:
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), len(ranks))
    keys = of_json(raw)
    tokens = keys["tokenizer.ggml.tokens"]
    types = keys["tokenizer.ggml.token_type"].value[1]
    types = [6 if t.startswith("<0x") and len(t) == 6 else k
             for t, k in zip(tokens, types, strict=True)]  # fmt: skip
    keys |= {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.token_type": Typed(ARRAY, (I32, types)),
        "tokenizer.ggml.scores": Typed(ARRAY, (F32, [-float(ranks.get(t, 1e9)) for t in tokens])),
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    ours, theirs = rebuilt(tmp_path, keys), Tokenizer.from_str(json.dumps(raw))
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, repr(text)
        assert ours.decode(expected) == theirs.decode(expected)


def test_pieces_with_merges_are_joined_as_gemma_does(shared_data: Path, tmp_path: Path) -> None:
    """Phi-3's pieces and merges with the steps of Gemma's tokenizers."""
    raw = original(shared_data, "phi-3-mini")
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    keys = of_json(raw) | {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
           "invert": False}  # fmt: skip
    back = {**replaced, "pattern": {"String": "\u2581"}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    raw |= {
        "normalizer": replaced, "pre_tokenizer": cut, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
    }  # fmt: skip
    ours, theirs = rebuilt(tmp_path, keys), Tokenizer.from_str(json.dumps(raw))
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text).ids == [1, *expected], repr(text)
        assert ours.decode(expected) == theirs.decode(expected)


def pieces_of(data: bytes) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a SentencePiece model: field 1, with fields 1, 2 and 3."""
    import struct

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    pieces, scores, types, at = [], [], [], 0
    while at < len(data) and data[at] == 10:
        size, at = varint(at + 1)
        end, piece, score, kind = at + size, "", 0.0, 1
        while at < end:
            field = data[at]
            if field == 10:
                length, at = varint(at + 1)
                piece, at = data[at : at + length].decode(), at + length
            elif field == 21:
                (score,), at = struct.unpack_from("<f", data, at + 1), at + 5
            else:
                kind, at = varint(at + 1)
        pieces.append(piece)
        scores.append(score)
        types.append(kind)
    return pieces, scores, types


@pytest.mark.parametrize("name", ["mistral-v1", "mistral-v3"])
def test_pieces_are_joined_as_sentencepiece_does(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    file = shared_data / "tokenizers" / name / "tokenizer.model"
    pieces, scores, types = pieces_of(file.read_bytes())
    keys = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": Typed(ARRAY, (F32, scores)),
        "tokenizer.ggml.token_type": Typed(ARRAY, (I32, types)),
    }  # fmt: skip
    ours = rebuilt(tmp_path, keys)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert theirs.get_piece_size() == len(pieces)
    for text in TEXTS[:-1]:  # it does not look for control tokens
        if "\x00" in text or not text:
            continue
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), repr(text)
    assert ours.encode("a").ids[0] == 1


SMALL: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "</s>", "<|im_end|>", "<tool>", "[PAD7]"],
    "tokenizer.ggml.token_type": Typed(ARRAY, (I32, [1, 1, 1, 3, 3, 3, 4, 5])),
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 4, "tokenizer.ggml.padding_token_id": 0xFFFFFFFF,
}  # fmt: skip


def test_special_tokens_and_endings(tmp_path: Path) -> None:
    meta = metadata(tmp_path, SMALL | {"tokenizer.ggml.add_bos_token": True})
    vocab = vocabulary_of(meta)
    raw = json.loads(tokenizer_of(meta, vocab))
    assert {e["content"]: e["special"] for e in raw["added_tokens"]} == {
        "<s>": True, "</s>": True, "<|im_end|>": True, "<tool>": False,
    }  # fmt: skip
    assert "[PAD7]" not in raw["model"]["vocab"]
    assert endings_of(vocab) == [4, 5]
    assert vocab.ids["padding"] is None
    assert Tokenizer.from_str(json.dumps(raw)).encode("ab").ids == [3, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.pre": "no-such"}, "cuts texts by 'no-such'"),
        ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of kind 'rwkv', expected of the kinds"),
        ({"tokenizer.ggml.merges": ["ab"]}, r"has the merge \['ab'\]"),
        ({"tokenizer.ggml.tokens": ["a"] * 8}, "has the token 'a' twice"),
        ({"tokenizer.ggml.tokens": ["a"]}, "1 tokens and 8 token types"),
        ({"tokenizer.ggml.tokens": 5}, "expected an array of texts"),
        ({"tokenizer.ggml.model": "llama"}, "no scores"),
        ({"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.merges": ["ab"]}, "has the merge"),
        (
            {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.add_space_prefix": True},
            "says add_space_prefix, expected none",
        ),
        (
            {"tokenizer.ggml.model": "llama",
             "tokenizer.ggml.scores": Typed(ARRAY, (F32, [float("nan")] * 8))},
            "scores that are no numbers",
        ),
    ],
)  # fmt: skip
def test_h22_vocabularies_that_are_none(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    meta = metadata(tmp_path, SMALL | changes)
    with pytest.raises((ConvertError, BundleError), match=says):
        tokenizer_of(meta, vocabulary_of(meta))


def test_every_cut_is_a_tokenizer(tmp_path: Path) -> None:
    for name in CUTS:
        tokenizer = rebuilt(tmp_path, SMALL | {"tokenizer.ggml.pre": name})
        assert tokenizer.encode("ab", add_special_tokens=False).ids == [2]
