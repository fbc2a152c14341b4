"""Files of cues from strangers: what is no list of words is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgert import limits
from edgert.errors import RequestError
from edgert.text.relay_cues import RelayCues, read_cues, write_cues


def said(path: Path, data: bytes) -> str:
    """The refusal of a file with these bytes, in one line that a terminal can show."""
    path.write_bytes(data)
    with pytest.raises(RequestError) as info:
        read_cues(path)
    error = info.value
    assert error.code in ("relay", "relay-cues")
    assert error.hint
    assert str(path) in error.message
    assert error.message.isprintable()
    assert len(error.message) < len(str(path)) + 400
    return error.message


DATA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected cues of `edgert relay-calibrate`"),
    "no object": (b'["Now"]', "Expected `object`, got `array`"),
    "utf-16": ('{"schema": 1}'.encode("utf-16"), "expected cues"),
    "cut": (b'{"schema": 1, "cues": ["Now', "truncated"),
    "deep": (b'{"cues": ' + b"[" * 100_000, "expected cues"),
    "newer": (b'{"schema": 2, "cues": []}', "schema 2, expected 1"),
    "misspelt": (b'{"schema": 1, "cue": ["Now"]}', "unknown field `cue`"),
    "one text": (b'{"schema": 1, "cues": "Now"}', "Expected `array`, got `str`"),
    "no texts": (b'{"schema": 1, "cues": [1]}', "Expected `str`, got `int`"),
    "no number": (b'{"schema": 1, "margin": NaN}', "malformed"),
    "infinite": (b'{"schema": 1, "margin": 1e999}', "out of range"),
    "half a character": (b'{"schema": 1, "cues": ["\\ud800"]}', "expected cues"),
    "too large": (b" " * (limits.RELAY_BYTES + 1), f"more than {limits.RELAY_BYTES} bytes"),
}


@pytest.mark.parametrize("name", list(DATA))
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    data, expected = DATA[name]
    assert expected in said(tmp_path / "cues.json", data)


CUES: dict[str, tuple[Any, str]] = {
    "at every token": ([""], "is '', expected a text of 1 to 48 characters"),
    "at every word": ([" "], "expected a word or some, in one line"),
    "a space in front": ([" Now"], "expected a word"),
    "two lines": (["Now\nThen"], "expected a word"),
    "steers the terminal": (["\x1b[2J"], "expected a word"),
    "turns the line": (["Now\u202e"], "expected a word"),
    "longer than what is looked at": (["x" * 49], "expected a text of 1 to 48 characters"),
    "twice": (["Now", "So,", "Now"], "is 'Now', expected every cue once"),
    "too many": ([f"x{i}" for i in range(limits.RELAY_CUES + 1)], "expected at most 1024"),
}


@pytest.mark.parametrize("name", list(CUES))
def test_cues_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    cues, expected = CUES[name]
    data = json.dumps({"schema": 1, "cues": cues}).encode()
    assert expected in said(tmp_path / "cues.json", data)


def test_what_a_good_file_holds_comes_back(tmp_path: Path) -> None:
    path, cues = tmp_path / "cues.json", RelayCues(cues=("Now", "So ", "x" * 48, "日本"), large="ä")
    write_cues(path, cues)
    assert read_cues(path) == cues
    path.write_bytes(b'{"cues": []}')
    assert read_cues(path) == RelayCues(), "no cue is a choice, too"
