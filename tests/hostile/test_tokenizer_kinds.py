"""Any field of a tokenizer.json of a wrong kind: BundleError, or a tokenizer that works."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from edgert.errors import BundleError, RequestError
from edgert.text.tokenizer import Tokenizer

from ..tiny import tiny_tokenizer

WRONG = [None, True, 5, -1, 1.5, "x", "", [], {}, [1], ["a", 1], [[1]], {"a": None}, 2**70]


def added(number: int, content: str) -> dict[str, Any]:
    return {
        "id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": True,
        "normalized": False, "special": True,
    }  # fmt: skip


def whole(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"]
    )
    return {"version": "1.0", "added_tokens": [added(0, "<s>")], "model": model, **empty, **parts}


LLAMA = whole(
    {
        "type": "BPE", "dropout": None, "unk_token": "<s>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
        "ignore_merges": False, "vocab": {"<s>": 0, "a": 1, "\u2581": 2, "\u2581a": 3},
        "merges": [["\u2581", "a"]],
    },
    normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
    decoder={
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    post_processor={
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
)  # fmt: skip
UNIGRAM = whole(
    {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["<s>", 0.0], ["a", -1.5]]},
    pre_tokenizer={
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True,
    },
)  # fmt: skip
WORD_PIECE = whole(
    {
        "type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "a": 1, "##b": 2},
    },
    truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
    normalizer={
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True,
    },
    post_processor={"type": "BertProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0]},
)  # fmt: skip
KINDS = {
    "byte level": json.loads(tiny_tokenizer()), "llama": LLAMA, "unigram": UNIGRAM,
    "word piece": WORD_PIECE,
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every field; the first and the last of long lists and vocabularies."""
    yield path
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 15 else (keys[0], keys[-1]):
            yield from places(value[key], (*path, key))


def spoilt(raw: Any, path: tuple[Any, ...], wrong: Any) -> bytes:
    if not path:
        return json.dumps(wrong).encode()
    raw = copy.deepcopy(raw)
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = wrong
    return json.dumps(raw).encode()


def width(raw: dict[str, Any]) -> int:
    return max(len(raw["model"]["vocab"]), *(entry["id"] + 1 for entry in raw["added_tokens"]))


def use(data: bytes, size: int) -> str:
    """What making and using a tokenizer ends in: the code of an error of ours, or nothing."""
    try:
        tokenizer = Tokenizer(data, vocab_size=size, eos_token_ids=(0,))
        tokenizer.decode(tokenizer.encode("a b \u2581 <s> é"))
        tokenizer.encode("<s>a", special=True)
    except (BundleError, RequestError) as error:
        return error.code
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_a_wrong_kind(kind: str) -> None:
    raw = KINDS[kind]
    Tokenizer(json.dumps(raw).encode(), vocab_size=width(raw), eos_token_ids=(0,))
    for path in places(raw):
        for wrong in WRONG:
            ended = use(spoilt(raw, path, wrong), width(raw))
            assert ended in ("", "tokenizer", "tokenizer-failed"), (path, wrong, ended)


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("merges", 5, "model.merges is a int, expected a list"),
        ("merges", {"a": 1}, "model.merges is a dict, expected a list"),
        ("continuing_subword_prefix", "x", "right side that does not begin with"),
        ("continuing_subword_prefix", "\u2581", "expected ASCII text"),
        ("continuing_subword_prefix", ["x"], "expected ASCII text"),
    ],
)
def test_what_the_library_would_not_survive(field: str, wrong: Any, said: str) -> None:
    data = spoilt(LLAMA, ("model", field), wrong)
    with pytest.raises(BundleError, match=said):
        Tokenizer(data, vocab_size=width(LLAMA), eos_token_ids=(0,))


def test_a_prefix_that_merges_begin_with_is_taken() -> None:
    raw = copy.deepcopy(LLAMA)
    raw["model"] |= {
        "continuing_subword_prefix": "##", "vocab": {"<s>": 0, "a": 1, "##b": 2, "ab": 3},
        "merges": [["a", "##b"]],
    }  # fmt: skip
    raw["normalizer"] = None
    tokenizer = Tokenizer(json.dumps(raw).encode(), vocab_size=4, eos_token_ids=(0,))
    assert tokenizer.encode("ab") == [3]


@pytest.mark.parametrize("path", [("model", "unk_token"), ("added_tokens", 0, "content"), ("x",)])
def test_lone_surrogates(path: tuple[Any, ...]) -> None:
    data = spoilt(LLAMA, path, "\ud800")
    with pytest.raises(BundleError, match="not JSON"):
        Tokenizer(data, vocab_size=width(LLAMA), eos_token_ids=(0,))
