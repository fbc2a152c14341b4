"""Prompts that a model is to answer, from a file: chats up to an answer, or beginnings of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConvertError, RequestError
from ..calibrate import Calibration, lines_of
from .target import Ids

if TYPE_CHECKING:
    from ...text.template import ChatTemplate
    from ...text.tokenizer import Tokenizer

HINT = 'give prompts, one a line as a chat: {"messages": [{"role": "user", "content": ".."}]}'
BEGINNING = 48  # tokens of plain text that are continued


def read_prompts(
    path: Path, tokenizer: Tokenizer, template: ChatTemplate | None, *, longest: int, answer: int
) -> list[Ids]:
    """Prompts of at most `longest` tokens, in the order of the file.

    path: chats or texts in JSON lines (.jsonl), or plain text. Of a chat, every turn of the user is
    a prompt with what stood before it; plain text gives a beginning every `answer` tokens. Raises
    ConvertError for a file that is none of these, or that has no prompt short enough.
    """
    data = Calibration.read(path, wanted=HINT)
    if data.chats:
        found = list(_of_chats(data.chats, tokenizer, template, str(path)))
    else:
        found = _of_text(data.ids(tokenizer, template), answer)
    kept = [ids for ids in found if 1 < len(ids) <= longest]
    if not kept:
        raise ConvertError(
            f"{path} has {len(found)} prompts, none of 2 to {longest} tokens",
            code="draft-text",
            hint=HINT,
        )
    return kept


def _of_chats(
    chats: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: Tokenizer, template: ChatTemplate | None, name: str,
) -> Iterator[Ids]:  # fmt: skip
    for number, chat in enumerate(chats, 1):
        for end, message in enumerate(chat, 1):
            if message.get("role") != "user":
                continue
            try:
                if template is None:
                    yield np.asarray(tokenizer.encode(lines_of(chat[:end]), bos=True), np.int32)
                else:
                    segments = template.render(chat[:end])
                    yield np.asarray(tokenizer.encode_segments(segments), np.int32)
            except RequestError as error:
                raise ConvertError(
                    f"{name}, chat {number}: {error.message}",
                    code="calibration-text",
                    hint="mend the chat or leave it out",
                ) from None


def _of_text(ids: Sequence[int], answer: int) -> list[Ids]:
    step = BEGINNING + answer
    starts = range(0, max(1, len(ids) - BEGINNING + 1), step)
    return [np.asarray(ids[start : start + BEGINNING], np.int32) for start in starts]
