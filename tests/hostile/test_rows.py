"""Every row of the catalogue of bad inputs that touches what exists has a test named after it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.hostile.make_corpus import CORPUS

# Bundle and weights, conversion, tokenizer and template, requests, run time and device.
ROWS = (*range(1, 13), *range(14, 20), *range(21, 26), 27, 28, 35, 36, 37)


def test_every_row_has_a_test_that_names_it() -> None:
    named = {mutation.row for mutation in CORPUS}
    for file in Path(__file__).parent.glob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        named |= {name.upper() for name in re.findall(r"^def test_(h\d\d)_", text, re.MULTILINE)}
    assert sorted({f"H{number:02d}" for number in ROWS} - named) == []
