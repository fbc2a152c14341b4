"""Streamed pieces together are the whole decode, whatever the ids, for every kind of decoder."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgert.text.tokenizer import TextStream, Tokenizer

WORDS = [
    "a",
    "▁b",
    "▁",
    "▁▁",
    "▁c▁",
    "é",
    "ß日",
    "\ufffd",
    "##x",
    "d</w>",
    " ",
    "x",
    ".",
    "▁.",
    "n't",
]
HEX = [f"<0x{n:02X}>" for n in (0x20, 0x41, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x8E, 0x89, 0xFF, 0xC3)]
SPECIAL = ["</s>", "<pad>"]
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def steps(*decoders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(decoders)}


DECODERS: dict[str, dict[str, Any] | None] = {
    "byte level": BYTES,
    "llama 2": steps(SPACES, FALLBACK, FUSE, STRIP),
    "gemma": steps(SPACES, FALLBACK, FUSE),
    "strip three": steps(SPACES, FALLBACK, FUSE, STRIP | {"start": 3}),
    "metaspace": METASPACE,
    "metaspace, bytes": steps(FALLBACK, METASPACE),
    "word piece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "suffix": {"type": "BPEDecoder", "suffix": "</w>"},
    "ctc": {
        "type": "CTC", "pad_token": "x", "word_delimiter_token": "▁", "cleanup": True,
    },
    "rewritten": steps(FUSE, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "-"}),
    "none": None,
}  # fmt: skip


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A vocabulary of words, bytes in both spellings and special tokens, with one decoder."""
    from tokenizers.pre_tokenizers import ByteLevel

    texts = [*SPECIAL, *WORDS, *HEX, *sorted(ByteLevel.alphabet())]
    vocab = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    added = [
        {
            "id": vocab[text], "content": text, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for text in SPECIAL
    ]  # fmt: skip
    raw = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": DECODERS[kind],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    }  # fmt: skip
    data = json.dumps(raw).encode()
    return Tokenizer(data, vocab_size=len(vocab), eos_token_ids=(0,))


def ids_of(kind: str, texts: list[str]) -> list[int]:
    return [token for text in texts if (token := tokenizer(kind).id_of(text)) is not None]


def streamed(kind: str, ids: list[int], before: list[int] | None = None) -> str:
    stream = tokenizer(kind).stream(before or ())
    return "".join([*map(stream.push, ids), stream.flush()])


SIZE = len(dict.fromkeys([*SPECIAL, *WORDS, *HEX])) + 200
RUNS = st.lists(
    st.one_of(
        st.integers(0, SIZE),
        st.integers(0, len(SPECIAL) + len(WORDS) + len(HEX) - 1),
        st.integers(len(SPECIAL) + len(WORDS), len(SPECIAL) + len(WORDS) + len(HEX) - 1),
    ),
    max_size=90,
)


@pytest.mark.parametrize("kind", DECODERS)
@given(ids=RUNS)
@settings(max_examples=150, deadline=None)
def test_pieces_are_the_whole_decode(kind: str, ids: list[int]) -> None:
    whole = tokenizer(kind).decode(ids)
    stream, shown = tokenizer(kind).stream(), ""
    for token in ids:
        shown += stream.push(token)
        assert whole.startswith(shown)  # nothing is ever taken back
    assert shown + stream.flush() == whole


@pytest.mark.parametrize("kind", DECODERS)
@given(ids=RUNS, cut=st.integers(0, 90))
@settings(max_examples=80, deadline=None)
def test_a_stream_goes_on_behind_other_ids(kind: str, ids: list[int], cut: int) -> None:
    front, whole = tokenizer(kind).decode(ids[:cut]), tokenizer(kind).decode(ids)
    if whole.startswith(front) and not front.endswith("\ufffd"):
        assert front + streamed(kind, ids[cut:], ids[:cut]) == whole


@given(data=st.binary(max_size=60))
@example(b"\xff\xfe\x80\x80\xf0\x9f" + "é".encode())
@settings(max_examples=300, deadline=None)
def test_any_bytes_of_a_byte_level_tokenizer(data: bytes) -> None:
    ids = ids_of("byte level", [BYTE_TEXT[byte] for byte in data])
    assert streamed("byte level", ids) == data.decode("utf-8", errors="replace")


def test_broken_bytes_and_then_a_whole_character() -> None:
    """Six broken bytes are six marks, not fewer, and do not swallow what follows."""
    data = b"\x80" * 6 + "é!".encode()
    ids = ids_of("byte level", [BYTE_TEXT[byte] for byte in data])
    stream = tokenizer("byte level").stream()
    pieces = [stream.push(token) for token in ids]
    assert pieces == ["", *["\ufffd"] * 5, "\ufffd", "é", "!"]


@pytest.mark.parametrize("kind", ["llama 2", "gemma", "metaspace, bytes"])
def test_a_run_of_bytes_is_shown_when_it_has_ended(kind: str) -> None:
    euro = ["<0xE2>", "<0x82>", "<0xAC>"]
    for run, text in ((euro, "€"), ([*euro, "<0xFF>"], "\ufffd" * 4), (euro[:2], "\ufffd" * 2)):
        stream = tokenizer(kind).stream()
        pieces = [stream.push(token) for token in ids_of(kind, ["a", *run, "x"])]
        assert pieces == ["a", *[""] * len(run), text + "x"]
        assert stream.flush() == ""


def test_special_tokens_do_not_end_a_run_of_bytes() -> None:
    ids = ids_of("gemma", ["<0xE2>", "<pad>", "<0x82>", "</s>", "<0xAC>", "<pad>", "x"])
    assert streamed("gemma", ids) == tokenizer("gemma").decode(ids) == "€x"


def test_what_is_decoded_again_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, longest = tokenizer("byte level"), 0
    real = kind.decode

    def decode(ids: list[int], **options: bool) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return real(ids, **options)

    monkeypatch.setattr(kind, "decode", decode)
    assert streamed("byte level", ids_of("byte level", ["a", "x"] * 500)) == "ax" * 500
    assert longest <= TextStream.WINDOW + 1


def _byte_text() -> dict[int, str]:
    """How a byte-level vocabulary spells each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


BYTE_TEXT = _byte_text()
