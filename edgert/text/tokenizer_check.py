"""Checks of a tokenizer.json before the Rust library reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .. import limits
from ..errors import BundleError
from .tokenizer_steps import check_steps, steps_of

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
MERGES = 8  # a token; SentencePiece vocabularies list about two ways to make each
PADDING = 0.10  # share of the logits that may belong to no token, beyond the first 1024


@dataclass(frozen=True)
class Vocabulary:
    """What is kept of a checked vocabulary; its tokens themselves the library holds.

    count: tokens. size: highest id + 1. holes: ids below it without a token. special: texts of
    special added tokens; added, added_ids: of all added ones; endings: of the end tokens.
    """

    count: int
    size: int
    holes: tuple[int, ...]
    special: tuple[str, ...]
    added: tuple[str, ...]
    added_ids: tuple[int, ...]
    endings: tuple[str, ...]


def check_tokenizer(
    data: bytes, width: int, eos_token_ids: Sequence[int], *, where: str
) -> Vocabulary:
    """The vocabulary of tokenizer.json `data` for logits of `width`; raises BundleError.

    Refused: other JSON, unknown model types, steps that lengthen texts too much, ids that repeat or
    leave [0, width), added tokens with other ids than the library gives them, enormous tokens, far
    more merges than tokens, a width that does not fit, end tokens that do not exist (generation
    could never stop). Ids may have holes. Merges of unknown tokens are left to the library, which
    refuses them.
    """
    raw = _parse(data, where)
    model = raw.get("model")
    if not isinstance(model, dict) or _kind(model) not in KINDS:
        found = model.get("type") if isinstance(model, dict) else model
        raise _fail(where, f"model type is {str(found)[:40]!r}, expected one of {KINDS}")
    check_steps(raw, where)
    base = _base(model, where)
    added = _added(raw, where)
    ids = _merged(base, added, where)
    _check_ids(ids, width, where)
    _check_numbering(base, added, where)
    _check_letters(raw, base, where)
    _check_merges(model, base, where)
    text_of = {token: text for text, token in ids.items()}
    size = max(text_of) + 1
    _check_width(size, width, where)
    holes = tuple(token for token in range(size) if token not in text_of)
    for token in eos_token_ids:
        if token not in text_of:
            raise _fail(where, f"end token {token} does not exist, tokens run from 0 to {size - 1}")
    special = tuple(entry["content"] for entry in added if entry.get("special"))
    texts = tuple(entry["content"] for entry in added)
    numbers = tuple(entry["id"] for entry in added)
    endings = tuple(text_of[token] for token in eos_token_ids)
    return Vocabulary(len(text_of), size, holes, special, texts, numbers, endings)


def without_added_tokens(data: bytes) -> bytes:
    """tokenizer.json without added tokens and what names them, nor padding and truncation:
    everything is plain text then, all of it."""
    raw = msgspec.json.decode(data)
    raw |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return msgspec.json.encode(raw)


def _fail(where: str, message: str) -> BundleError:
    return BundleError(
        f"{where}: {message}",
        code="tokenizer",
        hint="the tokenizer is damaged or belongs to another model; convert the model again",
    )


def _parse(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > limits.TOKENIZER_BYTES:
        raise _fail(where, f"{len(data)} bytes, the limit is {limits.TOKENIZER_BYTES}")
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _fail(where, f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _fail(where, f"JSON {type(raw).__name__}, expected an object")
    return raw


def _kind(model: Mapping[str, Any]) -> str:
    """The model's type; old files leave it out, BPE then has merges and Unigram a list."""
    named = model.get("type")
    if named is not None:
        return str(named)
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def _base(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model's own vocabulary: text -> id."""
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        texts = [row[0] if isinstance(row, list) and row else None for row in vocab]
        bad = [row for row in texts if not isinstance(row, str)]
        repeats = [] if bad else [text for text, n in Counter(texts).items() if n > 1]
        if bad or repeats:
            rows = (bad + repeats)[:4]
            raise _fail(where, f"vocabulary rows that are no texts or repeat: {rows}")
        return {str(text): token for token, text in enumerate(texts)}
    if vocab == {}:
        raise _fail(where, "model.vocab is empty, expected one token or more")
    if not isinstance(vocab, dict):
        raise _fail(where, f"model.vocab is a {type(vocab).__name__}, expected an object or a list")
    return vocab


def _added(raw: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    added = raw.get("added_tokens") or []
    ok = isinstance(added, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]
        for entry in added
    )
    if not ok:
        raise _fail(where, "added_tokens is no list of objects with non-empty `content`")
    return list(added)


def _merged(
    base: Mapping[str, Any], added: Iterable[Mapping[str, Any]], where: str
) -> dict[str, int]:
    """Base vocabulary and added tokens as text -> id; an added token may repeat a base one."""
    ids = dict(base)
    for entry in added:
        text, token = entry["content"], entry.get("id")
        if ids.setdefault(text, token) != token:
            raise _fail(where, f"token {text!r} has the ids {ids[text]} and {token}")
    return ids


def _check_numbering(
    base: Mapping[str, Any], added: Iterable[Mapping[str, Any]], where: str
) -> None:
    """Added tokens have the ids that the library will give them, which reads no others."""
    known = dict(base)
    for entry in added:
        text, token = entry["content"], entry["id"]
        given = known.setdefault(text, len(known))
        if given != token:
            raise _fail(
                where,
                f"added token {text[:40]!r} has id {token}, expected {given}: the tokenizers "
                "library numbers tokens that the vocabulary does not hold one after another",
            )


def _check_ids(ids: Mapping[str, Any], width: int, where: str) -> None:
    for text, token in ids.items():
        if len(text) > limits.TOKEN_CHARACTERS:
            raise _fail(
                where,
                f"token {text[:40]!r} has {len(text)} characters, the limit is "
                f"{limits.TOKEN_CHARACTERS}",
            )
        if type(token) is not int or not 0 <= token < width:
            raise _fail(
                where, f"token {text[:40]!r} has id {token!r}, the logits have 0 to {width - 1}"
            )
    repeats = [token for token, n in Counter(ids.values()).items() if n > 1]
    if repeats:
        texts = [text for text, token in ids.items() if token == repeats[0]]
        raise _fail(where, f"id {repeats[0]} belongs to {texts[:4]}, expected one token an id")


def _check_letters(raw: Mapping[str, Any], base: Mapping[str, Any], where: str) -> None:
    """A byte-level model without an unknown token loses every byte that it has no token for."""
    model = raw["model"]
    kinds = [step.get("type") for step in steps_of(raw.get("pre_tokenizer"))]
    if "ByteLevel" not in kinds or _kind(model) != "BPE" or model.get("unk_token") is not None:
        return
    lost = [letter for letter in map(chr, range(33, 127)) if letter not in base]
    if lost:
        raise _fail(
            where,
            f"bytes {lost[:8]} are missing from a vocabulary of {len(base)} tokens, expected all "
            "of ASCII: texts would lose them",
        )


def _check_merges(model: Mapping[str, Any], base: Mapping[str, Any], where: str) -> None:
    merges = model.get("merges")
    if merges is None:
        return
    if not isinstance(merges, list):
        raise _fail(where, f"model.merges is a {type(merges).__name__}, expected a list")
    if len(merges) > MERGES * len(base):
        raise _fail(
            where, f"{len(merges)} merges for {len(base)} tokens, expected at most {MERGES} a token"
        )
    if prefix := model.get("continuing_subword_prefix"):
        _check_prefix(prefix, merges, where)


def _check_prefix(prefix: Any, merges: Iterable[Any], where: str) -> None:
    """The library cuts as many bytes off the right side of every merge, whatever they are, and
    ends the process where that is half a character."""
    right = [_right(merge) for merge in merges]
    if not isinstance(prefix, str) or not prefix.isascii():
        raise _fail(
            where, f"continuing_subword_prefix is {str(prefix)[:40]!r}, expected ASCII text"
        )
    bad = [text for text in right if not text.startswith(prefix)]
    if bad:
        raise _fail(
            where,
            f"{len(bad)} merges, such as one with {bad[0][:40]!r}, have a right side that does "
            f"not begin with continuing_subword_prefix {prefix[:40]!r}",
        )


def _right(merge: Any) -> str:
    """The right side of a merge, "a b" or ["a", "b"]; "" where it has none."""
    if isinstance(merge, str):
        return merge.partition(" ")[2]
    return str(merge[-1]) if isinstance(merge, list) and merge else ""


def _check_width(size: int, width: int, where: str) -> None:
    """Logits may be padded, by little; a far wider head belongs to another tokenizer."""
    if width - size > 1024 + PADDING * width:
        raise _fail(where, f"{size} tokens for logits of width {width}, expected them closer")
