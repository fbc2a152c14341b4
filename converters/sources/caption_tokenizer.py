"""The tokenizer of a text encoder as one tokenizer.json, from the files that pipelines carry.

Taken are tokenizer.json as it is; CLIP's vocab.json and merges.txt; and T5's spiece.model, a
SentencePiece Unigram model, read as protobuf by edgert itself. What the last two become is what
transformers makes of them.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ... import limits
from ...bundle.image_spec import CaptionSpec
from ...errors import ConvertError
from ...session import protobuf
from .files import json_object, read_file
from .hf_text import token_ids
from .special_tokens import text_of

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
ANY_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # all is in tokenizer.json
CLIP_TOKENS = {
    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"
}  # fmt: skip
CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
EXTRA_IDS = 100  # sentinels that T5's tokenizer appends
NORMAL, UNKNOWN, CONTROL, _USER, _UNUSED, BYTE = range(1, 7)  # SentencePiece's kinds of pieces
BLANK = "▁"


class Captions(NamedTuple):
    """The file and how it is used. texts: what was read, by file name, for hashes."""

    data: bytes
    spec: CaptionSpec
    texts: dict[str, bytes]


class Folder:
    """Text files of one tokenizer's folder; `texts` holds what was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, bytes] = {}

    def read(self, name: str, limit: int = limits.CONFIG_BYTES) -> bytes | None:
        data = read_file(self.path / name, limit)
        if data is not None:
            self.texts[name] = data
        return data

    def json(self, name: str, limit: int = limits.CONFIG_BYTES) -> dict[str, Any]:
        data = self.read(name, limit)
        return {} if data is None else json_object(data, self.path / name)


def captions(path: Path, kind: str, encoder: str, max_tokens: int, *, lower: bool) -> Captions:
    """The tokenizer in a folder. kind: its class; encoder: that of the text encoder, which says
    what stands around a caption; max_tokens: with that. ConvertError for classes that are not
    known, and for missing or damaged files."""
    folder = Folder(path)
    if kind in CLIP_TOKENIZERS:
        data = _json_file(folder, _clip_file)
    elif kind in T5_TOKENIZERS:
        data = _json_file(folder, _t5_file)
    elif kind in ANY_TOKENIZERS:
        data = _json_file(folder, _no_file)
    else:
        raise ConvertError(
            f"{path} is a tokenizer of the class {kind[:64]!r}, edgert knows "
            f"{sorted((*CLIP_TOKENIZERS, *T5_TOKENIZERS, *ANY_TOKENIZERS))}",
            code="tokenizer-class",
            hint="edgert does not guess how captions become tokens",
        )
    named = _named(folder)
    ids = token_ids(json_object(data, path / "tokenizer.json"))
    if encoder.startswith("CLIP"):  # filled up: it reads whatever stands there
        roles = ("bos_token", "eos_token", "pad_token")
        start, end, pad = (_id(folder, ids, named.get(r, CLIP_TOKENS[r])) for r in roles)
        spec = CaptionSpec(max_tokens, end, start, pad, lower)
    else:
        end = _id(folder, ids, named.get("eos_token", "</s>"))
        spec = CaptionSpec(max_tokens, end, lower=lower)
    return Captions(data, spec, folder.texts)


def _named(folder: Folder) -> dict[str, str]:
    """Special tokens by role, as the folder's files name them."""
    config, special = folder.json("tokenizer_config.json"), folder.json("special_tokens_map.json")
    roles = CLIP_TOKENS
    found = {role: text_of(config.get(role)) or text_of(special.get(role)) for role in roles}
    return {role: text for role, text in found.items() if text}


def _json_file(folder: Folder, otherwise: Callable[[Folder], dict[str, Any]]) -> bytes:
    data = folder.read("tokenizer.json", limits.TOKENIZER_BYTES)
    if data is not None:
        return data
    return json.dumps(otherwise(folder), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _no_file(folder: Folder) -> dict[str, Any]:
    raise _missing(folder)


def _id(folder: Folder, ids: Mapping[str, int], text: str) -> int:
    if text in ids:
        return ids[text]
    raise ConvertError(
        f"{folder.path}: the token {text[:40]!r} is not among {len(ids)} tokens, expected it",
        code="tokenizer",
        hint="take the tokenizer files that belong to this model",
    )


def _missing(folder: Folder, otherwise: str = "") -> ConvertError:
    held = sorted(p.name for p in folder.path.iterdir()) if folder.path.is_dir() else []
    return ConvertError(
        f"{folder.path} holds {held[:8] or 'nothing'}, expected tokenizer.json"
        + (f" or {otherwise}" if otherwise else ""),
        code="tokenizer-missing",
        hint="download the pipeline's tokenizer folder whole",
    )


def _clip_file(folder: Folder) -> dict[str, Any]:
    """CLIP's byte-level BPE of lower-case words that end in </w>."""
    vocab = folder.json("vocab.json", limits.TOKENIZER_BYTES)
    merges = folder.read("merges.txt", limits.TOKENIZER_BYTES)
    if not vocab or merges is None:
        raise _missing(folder, "vocab.json and merges.txt")
    try:
        lines = merges.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _damaged(folder, f"merges.txt is no UTF-8: {error}") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise _damaged(folder, f"merges.txt has the line {' '.join(bad[0])[:60]!r}, expected two "
                       "tokens")  # fmt: skip
    start, end = (_id(folder, vocab, text) for text in ("<|startoftext|>", "<|endoftext|>"))
    words = {"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed",
             "invert": True}  # fmt: skip
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}  # fmt: skip
    return {
        "version": "1.0",
        "added_tokens": [
            _added(number, text, normalized=True)
            for text, number in (("<|startoftext|>", start), ("<|endoftext|>", end))
        ],
        "normalizer": {
            "type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "vocab": vocab, "merges": pairs,
        },
    }  # fmt: skip


def _added(number: int, text: str, *, normalized: bool = False) -> dict[str, Any]:
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": normalized, "special": True,
    }  # fmt: skip


def _damaged(folder: Folder, what: str) -> ConvertError:
    return ConvertError(
        f"{folder.path}: {what}", code="tokenizer", hint="download the tokenizer again"
    )


class Piece(NamedTuple):
    """A row of a SentencePiece vocabulary."""

    text: str
    score: float
    kind: int


def _t5_file(folder: Folder) -> dict[str, Any]:
    """T5's Unigram model, with the sentinels that its tokenizer appends."""
    data = folder.read("spiece.model", limits.TOKENIZER_BYTES)
    if data is None:
        raise _missing(folder, "spiece.model")
    try:
        pieces, charsmap = sentencepiece(data)
    except protobuf.WireError as error:
        raise _damaged(folder, f"spiece.model is no SentencePiece model: {error}") from None
    unknown = [number for number, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) != 1 or any(piece.kind == BYTE for piece in pieces):
        raise _damaged(
            folder, f"spiece.model has {len(unknown)} unknown pieces, or pieces of bytes, expected "
            "one unknown piece, as T5's have"
        )  # fmt: skip
    asked = folder.texts.get("tokenizer_config.json")
    config = json_object(asked, folder.path) if asked else {}
    extra = config.get("extra_ids", EXTRA_IDS)
    if type(extra) is not int or not 0 <= extra <= 10_000:
        raise _damaged(folder, f"extra_ids is {str(extra)[:40]}, expected 0 to 10000")
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(extra))]
    vocab = [[piece.text, piece.score] for piece in pieces]
    vocab += [[text, 0.0] for text in sentinels]
    control = [(n, p.text) for n, p in enumerate(pieces) if p.kind in (CONTROL, UNKNOWN)]
    control += [(len(pieces) + n, text) for n, text in enumerate(sentinels)]
    blank = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": True}
    words = [{"type": "WhitespaceSplit"}, blank]
    return {
        "version": "1.0",
        "added_tokens": [_added(number, text) for number, text in control],
        "normalizer": (
            {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None
        ),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": words},
        "post_processor": None,
        "decoder": blank,
        "model": {
            "type": "Unigram", "unk_id": unknown[0], "vocab": vocab, "byte_fallback": False
        },
    }  # fmt: skip


def sentencepiece(data: bytes) -> tuple[list[Piece], str]:
    """The pieces of a SentencePiece model, and its character map in base64. Raises
    protobuf.WireError for bytes that are none."""
    pieces, charsmap = list[Piece](), ""
    for number, value in protobuf.fields(memoryview(data)):
        if number == 1:
            pieces.append(_piece(protobuf.message(value)))
        elif number == 3:
            for inner, held in protobuf.fields(protobuf.message(value)):
                if inner == 2:
                    charsmap = base64.b64encode(protobuf.message(held)).decode("ascii")
    if not pieces:
        raise protobuf.WireError("it has no pieces")
    return pieces, charsmap


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in protobuf.fields(data):
        if number == 1:
            text = protobuf.text(value)
        elif number == 2:
            held = protobuf.message(value)
            if len(held) != 4:
                raise protobuf.WireError(f"a score has {len(held)} bytes, expected 4")
            (score,) = struct.unpack("<f", held)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)
