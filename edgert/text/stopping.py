"""Stop strings: text is held back while it may still become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ..errors import RequestError
from .segments import pattern_of

if TYPE_CHECKING:
    from .params import SamplingParams
    from .tokenizer import Tokenizer


def with_stop_tokens(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """Parameters whose stop strings can fire.

    An answer's text shows no special tokens, so a stop string that is one (spaces around it do not
    matter) also becomes a stop token. Raises RequestError for one with a special token in the
    middle of other text: nothing could ever be compared with it.
    """
    hidden, ids = frozenset(tokenizer.vocabulary.special), list(params.stop_token_ids)
    if not hidden or not params.stop:
        return params
    pattern = pattern_of(hidden)
    for stop in params.stop:
        token = tokenizer.id_of(stop.strip()) if stop.strip() in hidden else None
        if token is not None and token not in ids:
            ids.append(token)
        elif token is None and (found := pattern.search(stop)):
            raise RequestError(
                f"stop string {stop!r} holds the special token {found[0]!r}, which an answer's "
                "text never shows, expected that token alone or text without it",
                code="stop-special",
                hint=f"give {found[0]!r} as a stop string of its own",
                field="stop",
            )
    return msgspec.structs.replace(params, stop_token_ids=tuple(ids))


class StopText:
    """Feeds on text pieces; gives out what certainly precedes every stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Text that may be shown; after a stop string is complete `hit` is set and nothing more
        comes out. The stop string itself is never given."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.hit = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, short of the whole."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - size :]):
            return size
    return 0
