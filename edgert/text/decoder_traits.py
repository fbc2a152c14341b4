"""What later tokens may still do to the text of earlier ones, by the steps of the decoder.

Streaming shows only text that no later token changes:

- Bytes joined by `ByteLevel`: an unfinished character at the end is one U+FFFD until it is clear.
- `ByteFallback`: a run of byte tokens is text if all of it is UTF-8, else one U+FFFD a byte, so it
  is certain when the run has ended.
- A step that rewrites joined text, such as `Replace` after `Fuse`: nothing is certain before the
  end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Steps that look at one token, or at the beginning of a text.
_LOCAL = {"ByteFallback", "Metaspace", "WordPiece", "BPEDecoder", "CTC", "Strip", "Fuse", "Replace"}
_JOINING = {"Fuse", "ByteLevel"}
_AFTER_JOINING = {"Fuse", "Strip"}
_BYTE = re.compile("<0x(?:[0-9A-Fa-f]{2}|\\+[0-9A-Fa-f])>")


class Traits(NamedTuple):
    """byte_level, byte_fallback: steps of that name. rewrites: nothing is certain before the
    end."""

    byte_level: bool
    byte_fallback: bool
    rewrites: bool


def traits_of(decoder: Any) -> Traits:
    """The traits of a `tokenizers` decoder (None: tokens are joined by spaces)."""
    steps = list(_steps(json.loads(decoder.__getstate__()))) if decoder is not None else []
    joined = rewrites = False
    for step in steps:
        rewrites |= step not in ({*_LOCAL, "ByteLevel"} if not joined else _AFTER_JOINING)
        joined |= step in _JOINING
    return Traits("ByteLevel" in steps, "ByteFallback" in steps, rewrites)


def is_byte(token: str | None) -> bool:
    """Whether `ByteFallback` takes a token's text for a byte."""
    return token is not None and _BYTE.fullmatch(token) is not None


def _steps(part: dict[str, Any]) -> Iterator[str]:
    if part.get("type") == "Sequence":
        for inner in part["decoders"]:
            yield from _steps(inner)
    else:
        yield str(part.get("type"))
