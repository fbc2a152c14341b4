"""Calibration on chats: what JSON lines may hold, and messages that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.calibrate import Calibration, chats_of

from edgert.errors import ConvertError
from edgert.text.tokenizer import Tokenizer
from tests.tiny import EOS, VOCAB, tiny_tokenizer

WORDS = "Once upon a time there was a little girl. " * 8


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))


def ids(tokenizer: Tokenizer, messages: Any) -> list[int]:
    return Calibration("", 1, 8, ((*messages,),), "chats.jsonl").ids(tokenizer, None)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_only_where_json_lines_do(mark: str, end: str) -> None:
    line = json.dumps({"text": f"one{mark}two"}, ensure_ascii=False)
    (first,), (second,) = chats_of(line + end + line + end, "chats.jsonl")
    assert first == second == {"role": "user", "content": f"one{mark}two"}


def test_capitals_in_the_name_are_the_same_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "CHATS.JSONL"
    file.write_text(json.dumps({"text": WORDS}) + "\n", encoding="utf-8")
    assert Calibration.read(file).chats


def test_without_a_template_parts_are_their_texts(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    plain = ids(tokenizer, [{"role": "user", "content": "good day"}])
    assert ids(tokenizer, [{"role": "user", "content": parts}]) == plain
    assert tokenizer.decode(plain) == "user: good day\n\n"


def test_without_a_template_a_message_may_say_nothing(tokenizer: Tokenizer) -> None:
    for message in ({"role": "user"}, {"role": "user", "content": None}):
        assert tokenizer.decode(ids(tokenizer, [message])) == "user: \n\n"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": "hi"}, "an object with a text `role`"),
        ({"role": 3, "content": "hi"}, "an object with a text `role`"),
        ({"role": "user", "content": 5}, "content of type int"),
        ({"role": "user", "content": [{"type": "image"}]}, "message 0 has parts that are no text"),
        ({"role": "user", "content": {"a": 1}}, "message 0 has parts that are no text"),
    ],
)
def test_without_a_template_messages_that_are_none_are_refused(
    tokenizer: Tokenizer, message: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConvertError) as info:
        ids(tokenizer, [message])
    assert info.value.message.startswith("chats.jsonl, chat 1: ")
    assert said in info.value.message
    assert "template says" not in info.value.hint


def test_too_little_text_names_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("short", encoding="utf-8")
    with pytest.raises(ConvertError, match=r"short\.txt has \d+ tokens, expected at least 64"):
        Calibration.read(file, 2, 64).token_sequences(tokenizer, None, 0)
