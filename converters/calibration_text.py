"""Reading a calibration text: what is no text, or has too little of it, is refused with its place.

Nothing is repaired: a model calibrated on half of a text, or on bytes read as another encoding
would have them, would only be a little worse, and nobody would know why.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING

from .. import limits
from ..errors import ConvertError, RequestError, ResourceError

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

CODE = "calibration-text"
_WIDE = {  # longest marks first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
TEXT = "give a text like those that the model will see, of some 100 kB or more"
_WIDE_HINT = "convert it: iconv -f {} -t UTF-8"


def read_text(path: str | Path, wanted: str = TEXT) -> str:
    """The text of a UTF-8 file, without a byte order mark. wanted: the hint where it has nothing.

    Raises ConvertError, which names the line, its column and the byte, for another encoding, bytes
    that are no text, a line longer than `limits.CALIBRATION_LINE`, nothing but whitespace, a file
    that cannot be read, and one larger than `limits.CALIBRATION_BYTES`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limits.CALIBRATION_BYTES + 1)
    except OSError as error:
        raise _refused(
            f"{path} cannot be read: {error.strerror or error}, expected a text file",
            "give the path of a plain text file",
        ) from None
    if len(data) > limits.CALIBRATION_BYTES:
        raise _refused(
            f"{path} has more than {limits.CALIBRATION_BYTES} bytes",
            "a few megabytes of text are plenty",
        )
    text = _decoded(data, path)
    check_text(text, str(path), wanted)
    return text


def check_text(text: str, where: str, wanted: str = TEXT) -> None:
    """Raise ConvertError for what cannot be calibrated on; where: of the text, for the message;
    wanted: what to give in place of nothing."""
    if not text.strip():
        held = f"nothing but {len(text)} characters of whitespace" if text else "nothing"
        raise _refused(
            f"{where} holds {held}, expected text",
            wanted,
        )
    at = text.find("\0")
    if at >= 0:
        line, column = _place(text, at)
        raise _refused(
            f"{where} is no text: a NUL character at line {line}, column {column}",
            "give a plain text file; if it is UTF-16, " + _WIDE_HINT.format("UTF-16"),
        )
    if len(text) > limits.CALIBRATION_LINE:
        _check_lines(text, where)


def _check_lines(text: str, where: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > limits.CALIBRATION_LINE:
            raise _refused(
                f"{where}: line {number} has {len(line)} characters, expected at most "
                f"{limits.CALIBRATION_LINE} in a line",
                "give running text; if it is, break it into a line for each paragraph",
            )


def _decoded(data: bytes, path: str | Path) -> str:
    for mark, name in _WIDE.items():
        if data.startswith(mark):
            raise _refused(f"{path} is {name}, expected UTF-8 text", _WIDE_HINT.format(name))
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8"), error.start)
        raise _refused(
            f"{path} is not UTF-8 text: byte {data[error.start]:#04x} at line {line}, column "
            f"{column} (byte {error.start}): {error.reason}",
            "give a plain text file; an older encoding can be converted: iconv -f LATIN1 -t UTF-8",
        ) from None


def _place(text: str, at: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at an offset."""
    before = text[:at]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's tokens. Raises ConvertError, which names the longest line, where the tokenizer
    fails or takes too long."""
    try:
        return tokenizer.encode(text)
    except (RequestError, ResourceError) as error:
        lines = text.splitlines()
        longest = max(range(len(lines)), key=lambda i: len(lines[i]), default=0)
        raise _refused(
            f"the calibration text cannot be tokenized: {error.message}; its longest line is line "
            f"{longest + 1} with {len(lines[longest]) if lines else 0} characters",
            "give less text, or text with shorter lines",
        ) from None


def _refused(message: str, hint: str) -> ConvertError:
    return ConvertError(message, code=CODE, hint=hint)
