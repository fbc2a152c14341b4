"""DRY's sequence breakers as tokens: which tokens begin or hold one, and what must follow them."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from .penalties import Breakers
from .token_texts import token_texts
from .tokenizer import Tokenizer

KEPT = 64  # breakers of one tokenizer
_FOUND: WeakKeyDictionary[Tokenizer, dict[str, dict[int, set[tuple[int, ...]]]]] = (
    WeakKeyDictionary()
)


def breakers_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Breakers:
    """For each token that a breaker may start with: the tokens that must follow, () where the
    token holds all of the breaker. The first call reads the whole vocabulary; answers are kept."""
    known = _FOUND.setdefault(tokenizer, {})
    found: dict[int, set[tuple[int, ...]]] = {}
    for text in dict.fromkeys(texts):
        one = known.get(text)
        if one is None:
            if len(known) >= KEPT:
                known.clear()
            one = known[text] = _find(tokenizer, text)
        for token, tails in one.items():
            found.setdefault(token, set()).update(tails)
    return {token: tuple(sorted(tails)) for token, tails in found.items()}


def _find(tokenizer: Tokenizer, text: str) -> dict[int, set[tuple[int, ...]]]:
    """The same for one breaker."""
    found: dict[int, set[tuple[int, ...]]] = {}
    tails: dict[int, tuple[int, ...]] = {}  # of what follows the first so many characters
    inner = set(text[:-1])
    for token, word in token_texts(tokenizer).all().items():
        if text in word:
            found[token] = {()}
        elif word[-1:] in inner:
            for cut in range(1, min(len(word) + 1, len(text))):
                if word.endswith(text[:cut]):
                    if cut not in tails:
                        tails[cut] = _in_the_middle(tokenizer, text[cut:])
                    found.setdefault(token, set()).add(tails[cut])
    return found


def _in_the_middle(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a text that goes on from something: without a space put in front."""
    newline, ids = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    cut = len(newline)
    return tuple(ids[cut:] if ids[:cut] == newline else tokenizer.encode(text))
