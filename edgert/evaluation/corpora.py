"""Validation texts by name, cut into the documents that bits per byte are quoted on.

wikipedia        300 articles, `text-wikipedia-plain/valid.txt.xz`, an empty line between two
wikitext2        WikiText-2 validation, `text-wikitext2/valid.txt.gz`, an article each, as
                 distributed (`<unk>` marks, spaces around punctuation)
wikitext2-test   its test part, `test.txt.gz`
novels           the three novels that the demo model was not trained on, of
                 `text-novels/train.txt.xz`, in pieces of about 16,000 characters cut at spaces
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import RequestError
from .perplexity import read_text

HELD_OUT_NOVELS = ("Chesterton_Thursday_1908", "Doyle_Hound_1902", "Trollope_Warden_1855")
PIECE = 16_000  # characters


class Text(NamedTuple):
    """folder and file (without `.gz` or `.xz`) below the data folder; how it becomes documents."""

    folder: str
    file: str
    cut: Callable[[str], Iterator[str]]


def _articles(text: str) -> Iterator[str]:
    yield from (piece.strip() for piece in text.split("\n\n") if piece.strip())


def _headed(text: str) -> Iterator[str]:
    pieces = re.split(r"(?m)^(?= = [^=].* = \n)", text)
    yield from (piece for piece in pieces if piece.strip())


def _novels(text: str) -> Iterator[str]:
    pieces = re.split(r"(?m)^= (\S+_\d{4}) =$", text)
    for name, novel in zip(pieces[1::2], pieces[2::2], strict=False):
        if name in HELD_OUT_NOVELS:
            yield from pieces_of(novel.strip())


def pieces_of(text: str) -> Iterator[str]:
    """Pieces that end at the first space after `PIECE` characters; together the whole text."""
    begin = 0
    while begin < len(text):
        end = text.find(" ", begin + PIECE) + 1 or len(text)
        yield text[begin:end]
        begin = end


TEXTS: Mapping[str, Text] = {
    "wikipedia": Text("text-wikipedia-plain", "valid.txt", _articles),
    "wikitext2": Text("text-wikitext2", "valid.txt", _headed),
    "wikitext2-test": Text("text-wikitext2", "test.txt", _headed),
    "novels": Text("text-novels", "train.txt", _novels),
}


def load_text(name: str, data: Path) -> list[str]:
    """Documents of a text in `data`/its folder, or in `data` itself. Raises RequestError."""
    if name not in TEXTS:
        raise RequestError(
            f"text {name!r} is unknown, expected one of {sorted(TEXTS)}", code="task"
        )
    text = TEXTS[name]
    for folder in (data / text.folder, data):
        for suffix in (".xz", ".gz", ""):
            path = folder / f"{text.file}{suffix}"
            if path.is_file():
                return _documents(name, path)
    raise RequestError(
        f"no {text.file}, {text.file}.gz or {text.file}.xz in {data / text.folder} or {data}",
        code="task-data",
        hint=f"name the folder that holds {text.folder} with --data",
    )


def _documents(name: str, path: Path) -> list[str]:
    found = list(TEXTS[name].cut(read_text(path)))
    if not found:
        raise RequestError(
            f"{path}: holds no document of {name!r}, expected some, marked as in "
            "`edgert.evaluation.corpora`",
            code="task-data",
        )
    return found
