"""What single tokens read as, in the middle of a text: for log-probabilities and DRY's breakers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary, proxy

from .tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """Texts and bytes of one tokenizer's tokens, worked out when they are first asked for. It does
    not keep the tokenizer alive."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Tokenizer = proxy(tokenizer)
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}

    def text(self, token: int) -> str:
        """The text, special tokens shown, U+FFFD for a part of a character."""
        if token not in self._texts:
            self._read([token])
        return self._texts[token]

    def bytes(self, token: int) -> bytes:
        """The UTF-8 bytes: also of a token that is part of a character."""
        if token not in self._bytes:
            text = self.text(token)
            whole = "\ufffd" not in text
            self._bytes[token] = (
                text.encode() if whole else _raw(self._tokenizer.piece_of(token), text)
            )
        return self._bytes[token]

    def all(self) -> dict[int, str]:
        """Texts of all tokens that exist, by id."""
        holes = set(self._tokenizer.holes)
        if len(self._texts) < self._tokenizer.size - len(holes):
            self._read([t for t in range(self._tokenizer.size) if t not in holes])
        return self._texts

    def _read(self, tokens: Sequence[int]) -> None:
        """Decode tokens once and twice: the second of two equal tokens keeps the space in front
        that many tokenizers drop where a text begins."""
        once = self._tokenizer.decode_each([[token] for token in tokens])
        twice = self._tokenizer.decode_each([[token, token] for token in tokens])
        for token, alone, double in zip(tokens, once, twice, strict=True):
            middle = double.startswith(alone) and "\ufffd" not in alone
            self._texts[token] = double[len(alone) :] if middle else alone


_KNOWN: WeakKeyDictionary[Tokenizer, TokenTexts] = WeakKeyDictionary()


def token_texts(tokenizer: Tokenizer) -> TokenTexts:
    """The texts of a tokenizer; the same object every time."""
    found = _KNOWN.get(tokenizer)
    if found is None:
        found = _KNOWN[tokenizer] = TokenTexts(tokenizer)
    return found


def _raw(piece: str, text: str) -> bytes:
    """Bytes behind a token's name: byte fallback, a byte-level alphabet, or its text."""
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    if piece and all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return text.encode()


def _byte_level() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _byte_level()
