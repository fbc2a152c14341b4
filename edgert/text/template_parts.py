"""Which parts of messages a chat template reads, for messages whose content is no text.

The chat is rendered once more with a mark behind every text in a part: what shows its mark was
read. What does not, or cannot be marked, is left out, one after the other: it was read if the chat
then is another one, or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import RequestError
from .segments import Segment

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages], "list[Segment]"]

_TRIED = 64  # pieces, one by one
_GONE: Any = object()
_MARK = re.compile("\ufdd2\\d+\ufdd3")


class Piece(NamedTuple):
    """What a part says. part: its number, None where it is the whole content. key: None where it is
    the whole part."""

    message: int
    part: int | None
    key: str | None
    value: Any

    def __str__(self) -> str:
        place = f"messages[{self.message}].content"
        place += "" if self.part is None else f"[{self.part}]"
        return place if self.key is None else f"{place}.{self.key}"


def says_nothing(value: Any) -> bool:
    """Whether nothing is lost with a value."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is False or (hasattr(value, "__len__") and len(value) == 0)


def unread(messages: Messages, render: Render, whole: list[Segment], quiet: Collection[str],
           kinds: Collection[str]) -> list[Piece]:  # fmt: skip
    """Pieces without which the chat reads the same. render: the chat of other messages; whole: of
    these. quiet: keys that may be lost; kinds: of parts that may be."""
    pieces = list(_pieces(messages, quiet, kinds))
    if pieces:
        pieces = _unmarked(pieces, messages, render)
    if len(pieces) > _TRIED and _same(messages, pieces, render, whole):
        return pieces
    return [piece for piece in pieces[:_TRIED] if _same(messages, [piece], render, whole)]


def _pieces(messages: Messages, quiet: Collection[str], kinds: Collection[str]) -> Iterator[Piece]:
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, Mapping):
            yield from _pieces_of(index, None, content, quiet, kinds)
        elif isinstance(content, (list, tuple)):
            for number, part in enumerate(content):
                yield from _pieces_of(index, number, part, quiet, kinds)


def _pieces_of(
    message: int, number: int | None, part: Any, quiet: Collection[str], kinds: Collection[str]
) -> Iterator[Piece]:
    if not isinstance(part, Mapping):
        if not says_nothing(part):
            yield Piece(message, number, None, part)
        return
    kind = part.get("type")
    if isinstance(kind, str) and kind in kinds:
        return
    telling = [key for key in part if key not in quiet and not says_nothing(part[key])]
    for key in telling:
        yield Piece(message, number, key, part[key])
    if not telling and "text" not in part and kind not in (None, "", "text"):
        yield Piece(message, number, None, part)


def _unmarked(pieces: list[Piece], messages: Messages, render: Render) -> list[Piece]:
    """Those that show no mark of their own."""
    marks = [
        f"\ufdd2{number}\ufdd3" for number in range(len(pieces))
    ]  # no text has such characters
    marked = [
        (piece, piece.value + mark)
        for piece, mark in zip(pieces, marks, strict=True)
        if isinstance(piece.value, str)
    ]
    try:
        text = "".join(segment.text for segment in render(_changed(messages, marked)))
    except RequestError:
        return pieces
    shown = set(_MARK.findall(text))
    return [piece for piece, mark in zip(pieces, marks, strict=True) if mark not in shown]


def _same(messages: Messages, pieces: list[Piece], render: Render, whole: list[Segment]) -> bool:
    """Whether the chat reads the same without some pieces."""
    try:
        return render(_changed(messages, [(piece, _GONE) for piece in pieces])) == whole
    except RequestError:
        return False


def _changed(messages: Messages, values: Iterable[tuple[Piece, Any]]) -> list[Mapping[str, Any]]:
    """The messages with other values for some pieces, _GONE for none."""
    contents: dict[int, Any] = {}
    for (message, part, key, _), value in values:
        if message not in contents:
            contents[message] = _copy(messages[message]["content"])
        content = contents[message]
        if key is None and part is None:
            content.clear()
        elif key is None:
            content[part] = value
        else:
            (content if part is None else content[part])[key] = value
    found = list(messages)
    for index, content in contents.items():
        kind = type(messages[index]["content"])
        found[index] = {**messages[index], "content": kind(_left(content))}
    return found


def _copy(content: Any) -> Any:
    if isinstance(content, Mapping):
        return dict(content)
    return [dict(part) if isinstance(part, Mapping) else part for part in content]


def _left(content: Any) -> Any:
    """A changed content without what is gone."""
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if value is not _GONE}
    return [
        _left(part) if isinstance(part, dict) else part for part in content if part is not _GONE
    ]
