"""Text cut into segments, some of which must not become control tokens.

The chat template makes them, the tokenizer encodes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Unicode noncharacters: no text has them, and no tokenizer or template gives them a meaning.
START, END = "\ufdd0", "\ufdd1"
MARKS = re.compile(f"[{START}{END}]")


class Segment(NamedTuple):
    """A stretch of text; `plain` text must not become special tokens."""

    text: str
    plain: bool


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, longest first; never matches when there are none."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def mark(text: str, control: re.Pattern[str]) -> str:
    """The text with each control token between START and END; marks it already held are removed."""
    return control.sub(f"{START}\\g<0>{END}", MARKS.sub("", text))


def split_marked(text: str, control: re.Pattern[str]) -> list[Segment]:
    """Cut text at its marks; marked control tokens become plain segments.

    Marks count in their escaped form too, in which a template's `tojson` or `string` may print
    them. Marks that a template separated are dropped, but the text on either side is still encoded
    apart, so that it cannot join into a token.
    """
    start, end = (rf"(?:{mark}|\\u{ord(mark):04x})" for mark in (START, END))
    pieces = re.split(f"{start}({control.pattern}){end}|[{START}{END}]", text)
    return [Segment(piece, bool(i % 2)) for i, piece in enumerate(pieces) if piece]


def split_control(text: str, control: re.Pattern[str]) -> list[Segment]:
    """Cut unmarked text around its control tokens, which become plain segments."""
    pieces, start = [], 0
    for match in control.finditer(text):
        pieces += [Segment(text[start : match.start()], False), Segment(match.group(), True)]
        start = match.end()
    return [*pieces, Segment(text[start:], False)]
