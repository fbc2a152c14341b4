"""Perplexity and bits per byte of a text.

Every token of every document is scored once. The first tokens of a document see everything before
them; later ones sit in windows that move on by `stride` tokens, so that each sees at least
`window - stride` tokens of context. A document begins with the model's BOS token (or, where there
is none, an end token), which is given and not scored.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from .. import limits
from ..errors import RequestError
from ..session.base import Session
from .finite import finite
from .scoring import Progress, Request, Scorer

WINDOW = 1024  # tokens, where the model's context allows it
LARGEST = 700.0  # nats a token whose exponential is still a number


class Encoder(Protocol):
    """What scoring needs of a tokenizer (`edgert.text.tokenizer.Tokenizer`)."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids the model wants in front of any text; often none."""

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids of a text."""


class TextScore(msgspec.Struct, frozen=True):
    """Result of `score_text`. tokens, bytes: what was scored; nll in nats; window, stride in
    tokens."""

    nll_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int
    window: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) over `count` predictions: [begin, end) is fed, [first, end) is scored."""
    done = 0
    while done < count:
        end = min(count, done + (stride if done else window))
        yield max(0, end - window), done, end
        done = end


def window_sizes(context: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Checked (window, stride); defaults: at most 1024 tokens, half a window."""
    length = min(context, WINDOW) if window is None else window
    step = max(1, length // 2) if stride is None else stride
    if not 1 <= length <= context or not 1 <= step <= length:
        raise RequestError(
            f"window {length} and stride {step}, expected 1 <= stride <= window <= {context}, "
            "the context of the model",
            code="window",
            hint="leave both out, or choose smaller ones",
        )
    return length, step


def score_text(
    session: Session,
    tokenizer: Encoder,
    documents: Sequence[str],
    *,
    start: int,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> TextScore:
    """Score documents, each on its own.

    start: id in front of a document when the tokenizer has no prefix of its own. progress: called
    with the number of windows just scored. Raises RequestError when there is nothing to score,
    DeviceError for a model that computes NaN or infinity.
    """
    length, step = window_sizes(session.context, window, stride)
    requests: list[Request] = []
    tokens = size = 0
    for text in documents:
        ids = tokenizer.encode(text)
        front = tokenizer.prefix or (start,)
        line = (*front, *ids)
        skipped = len(front) - 1  # ids of the prefix that a prefix id predicts
        for begin, first, end in windows(len(line) - 1, length, step):
            scored = max(first, skipped)
            if scored < end:
                requests.append(Request(line[begin : scored + 1], line[scored + 1 : end + 1]))
        tokens += len(ids)
        size += len(text.encode("utf-8"))
    if not tokens:
        raise RequestError(
            f"{len(documents)} documents hold no token to score, expected some text",
            code="eval-empty",
            hint="give a file that is not empty",
        )
    scores = finite(Scorer(session).score(requests, progress))
    nll = -sum(score.logprob for score in scores)
    return TextScore(
        nll_per_token=nll / tokens,
        perplexity=math.exp(min(nll / tokens, LARGEST)),
        bits_per_byte=nll / math.log(2) / size,
        tokens=tokens,
        bytes=size,
        documents=len(documents),
        window=length,
        stride=step,
    )


def read_text(path: Path) -> str:
    """Content of a UTF-8 file; `.gz` and `.xz` are unpacked, up to `limits.EVAL_BYTES`."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            data: bytes = file.read(limits.EVAL_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise RequestError(
            f"{path}: cannot be read: {error}", code="eval-file", hint="check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: byte {error.start} is not UTF-8, expected UTF-8 text",
            code="eval-file",
            hint="convert it, for example with iconv",
        ) from None
    if len(data) > limits.EVAL_BYTES:
        raise RequestError(
            f"{path}: more than {limits.EVAL_BYTES} bytes of text",
            code="eval-file",
            hint="score a part of it",
        )
    return text


def read_documents(path: Path, *, split: str | None = None) -> list[str]:
    """Documents of a file: one a line of `.jsonl` (a string, or an object's "text"), else the
    pieces between `split` marks, else the whole file."""
    text = read_text(path)
    if ".jsonl" in path.suffixes:
        return [_document(path, n, line) for n, line in enumerate(text.split("\n"), 1) if line]
    pieces = text.split(split) if split else [text]
    return [piece.strip() if split else piece for piece in pieces if piece.strip()]


def _document(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{path}: line {number} is not JSON: {error}",
            code="eval-file",
            hint="a .jsonl file holds one JSON value a line; name other texts .txt",
        ) from None
    text = found.get("text") if isinstance(found, dict) else found
    if not isinstance(text, str):
        raise RequestError(
            f'{path}: line {number} holds no text, expected a string or an object with "text"',
            code="eval-file",
            hint="put the text under that key",
        )
    return text
