"""Tokenizers: ids like transformers', text back in pieces, special text only when asked."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import RequestError
from edgert.text.tokenizer import Tokenizer
from tests.text.tokenizer_files import pair
from tests.tiny import BOS, EOS, SPECIAL, VOCAB, tiny_tokenizer

# Folder -> width of the logits that its model has, its end token.
FOLDERS = {
    "phi-2": (51200, 50256),
    "phi-3-mini": (32064, 32000),
    "falcon": (65024, 11),
    "roberta-base": (50265, 2),
    "t5-small": (32128, 1),
    "whisper.tiny": (51865, 50257),
    "clip": (49408, 49407),
}
TEXTS = [
    "Hello world",
    "  two  spaces\n\n\tand tabs ",
    "naïve café Straße — “quotes” … 日本語 русский 🎉👩‍👩‍👧 \u0301",
    "nul \x00 and control \x1b[0m",
    "for i in range(10):\n        print(i)\n",
    "1234567890 3.14159",
    "",
]


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))


def goes_on(tokenizer: Tokenizer, ids: list[int], cut: int) -> None:
    """A stream that goes on from ids[:cut] gives the rest of the whole text, spaces included."""
    before = tokenizer.decode(ids[:cut])
    if before.endswith("\ufffd"):
        return  # inside a character
    stream = tokenizer.stream(ids[:cut])
    rest = "".join([*map(stream.push, ids[cut:]), stream.flush()])
    assert before + rest == tokenizer.decode(ids)


@pytest.mark.parametrize("folder", FOLDERS)
def test_ids_are_the_librarys(folder: str, shared_data: Path) -> None:
    from tokenizers import Tokenizer as Rust

    path = shared_data / "tokenizers" / folder / "tokenizer.json.gz"
    raw = gzip.decompress(path.read_bytes())
    width, end = FOLDERS[folder]
    ours = Tokenizer(raw, vocab_size=width, eos_token_ids=(end,))
    theirs = Rust.from_str(raw.decode())
    theirs.no_truncation()
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected
        stream = ours.stream()
        pieces = [stream.push(token) for token in expected] + [stream.flush()]
        assert "".join(pieces) == ours.decode(expected) == theirs.decode(expected)
        for cut in range(1, len(expected)):
            goes_on(ours, expected, cut)
    with_bos = theirs.encode("word", add_special_tokens=True).ids
    got = ours.encode("word", bos=True)
    assert with_bos[: len(got)] == got  # what a post-processor appends is left out


def test_bos_comes_once(shared_data: Path, tiny: Tokenizer) -> None:
    options = {"vocab_size": VOCAB, "eos_token_ids": (EOS,), "bos_token_id": BOS}
    asked = Tokenizer(tiny_tokenizer().encode(), add_bos=True, **options)
    assert asked.encode("Once", bos=True) == [BOS, *tiny.encode("Once", bos=True)]
    assert asked.encode("Once") == tiny.encode("Once")
    # here the post-processor puts it there already
    raw = (shared_data / "lm-tinystories-656k" / "tokenizer.json").read_bytes()
    options = {"vocab_size": 2048, "eos_token_ids": (2,), "bos_token_id": 1}
    for add_bos in (False, True):
        stories = Tokenizer(raw, add_bos=add_bos, **options)
        assert stories.encode("Once", bos=True) == [1, *stories.encode("Once")]


def test_special_text_is_text_unless_asked(tiny: Tokenizer) -> None:
    text = f"a{SPECIAL[EOS]}b"
    assert EOS in tiny.encode(text, special=True)
    plain = tiny.encode(text)
    assert EOS not in plain
    assert tiny.decode(plain) == text
    assert tiny.decode([EOS, BOS]) == ""
    assert tiny.decode([EOS], special=True) == SPECIAL[EOS]


def test_plain_text_around_special_text_keeps_its_ids(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No prefix space appears after a token that was taken as text (SentencePiece kind)."""
    _, ours, _ = pair(shared_data, "phi-3-mini", tmp_path_factory.mktemp("t"))
    for text in ("Hi<|end|>there", "<s>", "x </s> y", "<|user|><|user|>", "<|assistant|>\n\nz"):
        ids = ours.encode(text)
        assert not {ours.id_of(t) for t in ours.control} & set(ids)
        assert ours.decode(ids) == text


@given(st.text(max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    tiny = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    stream = tiny.stream()
    shown = ""
    for token in ids:
        piece = stream.push(token)
        shown += piece
        assert text.startswith(shown)  # nothing is ever taken back
    assert shown + stream.flush() == text


@given(st.lists(st.integers(4, VOCAB - 1), max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_bytes_stream_without_end(ids: list[int]) -> None:
    tiny = Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))
    stream = tiny.stream()
    pieces = [stream.push(token) for token in ids]
    whole = "".join(pieces) + stream.flush()
    assert whole == tiny.decode(ids)


def test_ids_outside_are_refused(tiny: Tokenizer) -> None:
    for bad in (-1, VOCAB, 2**31):
        with pytest.raises(RequestError, match=f"token id {bad}, expected 0 to {VOCAB - 1}"):
            tiny.decode([5, bad])
