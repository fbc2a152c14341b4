"""A two-rule text grammar: `(a|b|c)` picks one way to say it, `{slot}` fills in a word."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")


def say(rng: random.Random, template: str, **slots: object) -> str:
    """Expand innermost choices first, then slots, then tidy spaces and capitals.

    >>> say(random.Random(0), "(one|one) {what}.", what="cat")
    'One cat.'
    """
    while match := CHOICE.search(template):
        choice = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + choice + template[match.end() :]
    text = re.sub(r" {2,}", " ", template.format(**slots)).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    return re.sub(r"(^|[.!?] |\n|^\")([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item, uniformly."""
    return items[rng.randrange(len(items))]


def a(noun: str) -> str:
    """The noun with its indefinite article.

    >>> a("owl"), a("red hat")
    ('an owl', 'a red hat')
    """
    return ("an " if noun[:1].lower() in "aeiou" else "a ") + noun


def listing(items: Sequence[str], *, last: str = "and") -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {last} {items[-1]}"
