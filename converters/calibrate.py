"""The text that a compression is fitted to, as sequences of tokens, and what is collected on it.

Quantizers and factorisations weigh a weight's errors by `G = X^T X` of what its product reads
(`compress/whiten.py`). `layers.py` runs the model and collects G; here is what it runs over: a text
file, a JSONL file of chats, or the sample that comes along.

The sample: about a megabyte of English, in pieces of a few kilobytes and random order. Encyclopedia
articles (Wikipedia, CC BY-SA 3.0, titles are kept), novels of before 1931 (public domain), written
dialogues (Schema-Guided Dialogue, CC BY-SA 4.0), fairy tales (public domain), Python sources of
edgert, sums.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError, RequestError
from ..graph import Graph
from ..notices import notice
from ..text.template_data import Chat
from .calibration_text import TEXT, check_text, read_text, tokens_of

if TYPE_CHECKING:
    from ..text.template import ChatTemplate
    from ..text.tokenizer import Tokenizer
    from .compress.whiten import Inputs

LENGTH = 1024  # tokens of a sequence, as COMPOT has them (arXiv 2602.15200)
QUICK, FULL = 16, 256  # sequences of the two presets
HELD = 8  # sequences that a result is measured on, at most
SAMPLE = "calibration_sample.txt.xz"
SAMPLE_NAME = "the built-in sample"

Chats = tuple[tuple[dict[str, Any], ...], ...]


@dataclass(frozen=True)
class Calibration:
    """A text, or chats, and how much of it a model is run over: `sequences` pieces of `length`
    tokens. name: what it is called in errors and reports. end: token behind each document, see
    `ending`; None for none."""

    text: str
    sequences: int = 64
    length: int = LENGTH
    chats: Chats = ()
    name: str = "the calibration text"
    end: int | None = None

    @classmethod
    def sample(cls, sequences: int = QUICK, length: int = LENGTH) -> Calibration:
        """The text that comes with edgert."""
        packed = files(__package__).joinpath(SAMPLE).read_bytes()
        return cls(lzma.decompress(packed).decode("utf-8"), sequences, length, name=SAMPLE_NAME)

    @classmethod
    def read(
        cls, path: str | Path, sequences: int = 64, length: int = LENGTH, *, wanted: str = TEXT
    ) -> Calibration:
        """A UTF-8 text file, or where its name ends in `.jsonl` a chat or a text a line. Raises
        ConvertError for one that is none, see `calibration_text.read_text`, also for `wanted`."""
        text = read_text(path, wanted)
        if Path(path).suffix.lower() == ".jsonl":
            return cls("", sequences, length, chats_of(text, str(path)), str(path))
        return cls(text, sequences, length, name=str(path))

    def key(self) -> dict[str, Any]:
        """What a result depends on."""
        told = json.dumps([self.text, self.chats], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()
        return {"text": digest, "sequences": self.sequences, "length": self.length}

    def ids(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
        """All of it as tokens. Chats are written as the model's template has them, without one as
        lines of `role: content`. Raises ConvertError for chats that the template rejects."""
        if not self.chats and self.end is None:
            check_text(self.text, self.name)
            return tokens_of(tokenizer, self.text)
        found: list[int] = []
        for ids in self.documents(tokenizer, template):
            found += ids
            if self.end is not None and ids[-1:] != [self.end]:
                found.append(self.end)
        return found

    def ending(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> int | None:
        """The token that documents can be told apart by: of a text the one of those that end an
        answer whose name the text has in it, of chats the first of them that no chat has before
        its end. None where there is no such token, and for a single document."""
        if not self.chats:
            return next((token for token, name in _marks(tokenizer) if name in self.text), None)
        inside = {i for ids in self.documents(tokenizer, template) for i in ids[:-1]}
        found = [token for token in tokenizer.eos_token_ids if token not in inside]
        return found[0] if found and len(self.chats) > 1 else None

    def documents(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> Iterator[list[int]]:
        """Tokens of each chat, or of what stands between the names of the end in a text, without
        the line breaks around these. Raises as `ids`."""
        if not self.chats:
            check_text(self.text, self.name)
            name = next((name for token, name in _marks(tokenizer) if token == self.end), None)
            pieces = [self.text] if name is None else self.text.split(name)
            texts = pieces if name is None else [piece.strip("\r\n") for piece in pieces]
            yield from (tokens_of(tokenizer, text) for text in texts if text)
        for number, chat in enumerate(self.chats, 1):
            try:
                if template is None:
                    yield tokenizer.encode(lines_of(chat))
                    continue
                yield tokenizer.encode_segments(template.render(chat, add_generation_prompt=False))
            except RequestError as error:
                said = "the model's chat template says this; " if template is not None else ""
                raise ConvertError(
                    f"{self.name}, chat {number}: {error.message}",
                    code="calibration-text",
                    hint=f"{said}mend the chat or leave it out",
                ) from None

    def token_sequences(
        self, tokenizer: Tokenizer | None, template: ChatTemplate | None, context: int
    ) -> list[NDArray[np.int32]]:
        """The pieces for a model of `context` tokens. Raises ConvertError for too little text."""
        ids, length = self._read(tokenizer, template, context)
        found = sequences_of(ids, length, self.sequences, name=self.name)
        if len(found) < self.sequences:
            notice(
                f"{self.name} has {len(ids)} tokens, enough for {len(found)} of {self.sequences} "
                f"sequences of {length}: it is calibrated on these"
            )
        return found

    def every_sequence(
        self, tokenizer: Tokenizer | None, template: ChatTemplate | None, context: int
    ) -> list[NDArray[np.int32]]:
        """All pieces of the text, in order."""
        ids, length = self._read(tokenizer, template, context)
        return sequences_of(ids, length, len(ids), name=self.name)

    def held(
        self, tokenizer: Tokenizer | None, template: ChatTemplate | None, context: int
    ) -> list[NDArray[np.int32]]:
        """Pieces to measure a result on, HELD or an eighth of the text at most: none of
        `token_sequences`, where it has others."""
        used = self.token_sequences(tokenizer, template, context)
        known = {ids.tobytes() for ids in used}
        every = self.every_sequence(tokenizer, template, context)
        found = [ids for ids in every if ids.tobytes() not in known] or used
        count = min(HELD, max(1, len(every) // 8))
        return found[:: max(1, len(found) // count)][:count]

    def for_healing(
        self, tokenizer: Tokenizer | None, template: ChatTemplate | None, context: int
    ) -> list[NDArray[np.int32]]:
        """All pieces but those to measure on that nothing else is fitted to either."""
        used = {ids.tobytes() for ids in self.token_sequences(tokenizer, template, context)}
        kept = {ids.tobytes() for ids in self.held(tokenizer, template, context)} - used
        every = self.every_sequence(tokenizer, template, context)
        return [ids for ids in every if ids.tobytes() not in kept]

    def _read(
        self, tokenizer: Tokenizer | None, template: ChatTemplate | None, context: int
    ) -> tuple[list[int], int]:
        """All tokens, and how many of them make a piece."""
        if tokenizer is None:
            raise ConvertError(
                "this model has no tokenizer, expected one to read the calibration text with",
                code="calibration",
                hint="convert it without calibration: --method rtn or hqq",
            )
        return self.ids(tokenizer, template), min(self.length, context or self.length)


def chats_of(text: str, name: str) -> Chats:
    """Chats of JSON lines: `{"messages": [{"role": ..., "content": ...}, ...]}`, such a list alone,
    `{"text": ...}`, or a string. Empty lines pass. Raises ConvertError naming the line."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what splitlines splits at
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _bad_line(name, number, f"is not JSON: {error}") from None
        if isinstance(row, dict) and "messages" in row:
            row = row["messages"]
            if not isinstance(row, list):
                raise _bad_line(name, number, f"holds no messages but {str(row)[:40]!r}")
        elif isinstance(row, dict) and "text" in row:
            row = row["text"]
        if isinstance(row, str):
            row = [{"role": "user", "content": row}]
        if not (isinstance(row, list) and row and all(isinstance(m, dict) for m in row)):
            raise _bad_line(name, number, "holds no messages")
        found.append(tuple(row))
    if not found:
        raise ConvertError(
            f"{name} holds no chats, expected one a line",
            code="calibration-text",
            hint='a line: {"messages": [{"role": "user", "content": "..."}, ...]}',
        )
    return tuple(found)


def lines_of(chat: Sequence[Mapping[str, Any]]) -> str:
    """A chat as lines of `role: content`. Raises RequestError for messages that are none, and for
    what a line cannot say."""
    lines = []
    for number, message in enumerate(Chat.of(list(chat), None, {}).messages):
        content = message.get("content", "")
        parts = content if isinstance(content, (list, tuple)) else [content]
        found = [part.get("text") if isinstance(part, dict) else part for part in parts]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) < len(found):
            raise RequestError(
                f"message {number} has parts that are no text, and the model has no chat template",
                code="messages",
                hint="turn them into text first",
            )
        lines.append(f"{message['role']}: {''.join(texts)}\n")
    return "".join(lines) + "\n"


def _marks(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """Special tokens that end an answer, with their names."""
    named = [(token, tokenizer.text_of(token)) for token in tokenizer.eos_token_ids]
    return [(token, name) for token, name in named if name and name in tokenizer.control]


def _bad_line(name: str, number: int, what: str) -> ConvertError:
    return ConvertError(
        f"{name}, line {number} {what}, expected a chat as JSON",
        code="calibration-text",
        hint='a line: {"messages": [{"role": "user", "content": "..."}, ...]}, or {"text": "..."}',
    )


def inputs_of(graph: Graph) -> dict[str, str]:
    """Matrices of the graph's products, and the value that each reads: those of every token, not
    the head's, which reads selected rows, nor one that is an embedding table as well."""
    tables = {node.weights["weight"] for node in graph.nodes if node.op == "embed"}
    shapes = graph.shapes()
    made = {node.output for node in graph.nodes}
    return {
        node.weights["weight"]: node.inputs[0]
        for node in graph.nodes
        if node.op == "linear"
        and node.weights["weight"] not in tables
        and node.inputs[0] in made
        and shapes[node.inputs[0]][0] != "R"
    }


def tell_zeros(matrices: Mapping[str, str], found: Mapping[str, Inputs]) -> None:
    """A notice for each matrix that reads nothing but zeros. matrices: the value that each reads.
    found: of those values."""
    for name, value in matrices.items():
        if value in found and not found[value].gram.matrix.any():
            notice(
                f"{name}: all its inputs are 0 on the calibration text, which tells nothing of its "
                "errors"
            )


def sequences_of(
    ids: Sequence[int],
    length: int,
    count: int,
    *,
    seed: int = 42,
    name: str = "the calibration text",
) -> list[NDArray[np.int32]]:
    """`count` pieces of `length` tokens from a text, drawn without repetition; all there are where
    the text is shorter. Raises ConvertError for a text shorter than one piece."""
    whole = len(ids) // length if length > 0 else 0
    if whole < 1 or count < 1:
        raise ConvertError(
            f"{name} has {len(ids)} tokens, expected at least {max(1, length)} for each of {count} "
            "sequences",
            code="calibration-text",
            hint="give a longer text",
        )
    rows = np.asarray(ids[: whole * length], np.int32).reshape(whole, length)
    chosen = np.sort(np.random.default_rng(seed).permutation(whole)[:count])
    return list(rows[chosen])
