"""DRY's sequence breakers as tokens: which tokens begin or hold one, and what must follow them."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from .penalties import Breakers
from .token_texts import token_texts
from .tokenizer import Tokenizer

_FOUND: WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], Breakers]] = WeakKeyDictionary()


def breakers_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Breakers:
    """For each token that a breaker may start with: the tokens that must follow, () where the
    token holds all of the breaker. The first call reads the whole vocabulary; answers are kept."""
    known = _FOUND.setdefault(tokenizer, {})
    key = tuple(texts)
    if key not in known:
        known[key] = _find(tokenizer, key)
    return known[key]


def _find(tokenizer: Tokenizer, texts: Sequence[str]) -> Breakers:
    found: dict[int, set[tuple[int, ...]]] = {}
    vocabulary = token_texts(tokenizer).all().items()
    for text in texts:
        tails = [(text[:cut], _in_the_middle(tokenizer, text[cut:])) for cut in range(1, len(text))]
        for token, word in vocabulary:
            if text in word:
                found.setdefault(token, set()).add(())
            elif tails:
                for head, tail in tails:
                    if word.endswith(head):
                        found.setdefault(token, set()).add(tail)
    return {token: tuple(sorted(rest)) for token, rest in found.items()}


def _in_the_middle(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a text that goes on from something: without a space put in front."""
    newline, ids = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    cut = len(newline)
    return tuple(ids[cut:] if ids[:cut] == newline else tokenizer.encode(text))
