"""JSON from files: one reading of it, in bounded memory, or an error with words."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import BundleError
from edgert.storage import strict_json
from tests.hostile.box import forget_peak, peak_rss

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)  # fmt: skip


def parse(data: bytes) -> Any:
    return strict_json.parse(data, where="here", code="thing")


@given(VALUES)
def test_reads_what_json_reads(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b'{"a": 1, "a": 1}', "thing-duplicate", "key 'a' stands twice, expected once"),
        (b'[{"b": {"a": 1, "\\u0061": 2}}]', "thing-duplicate", "key 'a' stands twice"),
        (b"", "thing", "not JSON"),
        (b"{} {}", "thing", "Extra data"),
        (b"\xef\xbb\xbf{}", "thing", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "thing", "'utf-8' codec"),
        (b"[NaN]", "thing", "NaN is no JSON number"),
        (b"[-Infinity]", "thing", "-Infinity is no JSON number"),
        (b"[" * 100_000, "thing", "recursion"),
        (b"9" * 5000, "thing", "Exceeds the limit"),
        (b'"\\ud800"', "thing", "lone surrogate, '\\ud800'"),
        (b'[[{"a": ["b", "x\\uDFFF"]}]]', "thing", "lone surrogate, '\\udfff'"),
        (b'{"a": {"b\\udc00": 1}}', "thing", "lone surrogate, '\\udc00'"),
        (b'["\\ude00\\ud83d"]', "thing", "lone surrogate"),
        (b'["\xed\xa0\x80"]', "thing", "'utf-8' codec"),
    ],
)
def test_refuses(data: bytes, code: str, text: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(data)
    error = caught.value
    assert error.code == code
    assert error.message.startswith("here: ")
    assert text in error.message
    assert "expected" in error.message
    assert error.hint


def test_reads_escaped_pairs_of_surrogates() -> None:
    assert parse(b'{"\\ud83d\\ude00": ["\\uD83D\\uDE00"]}') == {"\U0001f600": ["\U0001f600"]}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("unit", [b'{"":0},', b"{},", b"[],", b'{"":{}},'])
def test_memory_is_a_multiple_of_the_input(unit: bytes) -> None:
    data = b"[" + unit * (1_000_000 // len(unit)) + b"0]"
    before = forget_peak()
    parse(data)
    assert peak_rss() - before < 40 * len(data)
