"""What the kinds of word problem share: names and things, and a working that carries a number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from .grammar import say

GIRLS = tuple(
    "Lily Mia Anna Rosa Emma Zoe Ada Ella Nora Lucy Ruby Maya Ivy Clara Amina Sofia Grace Hana"
    .split()
)  # fmt: skip
BOYS = tuple(
    "Tom Ben Sam Leo Max Jack Omar Finn Noah Hugo Peter Luca Adam Kofi Felix Oscar Ravi Theo"
    .split()
)  # fmt: skip
NAMES = GIRLS + BOYS
THINGS = tuple(
    "apples shells coins marbles stickers pencils stamps buttons cards books eggs plums beads "
    "stones nuts flowers candles toys".split()
)


class Answer(NamedTuple):
    """text: a sentence, which may hold choices of the grammar. value, choices: see Problem."""

    text: str
    value: int | str
    choices: tuple[str, ...] = ()


@dataclass
class Working:
    """What was told and thought so far, and the number that is carried from step to step."""

    rng: random.Random
    told: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    n: int = 0

    def tell(self, template: str, **slots: object) -> None:
        """One sentence of the question."""
        self.told.append(say(self.rng, template, **slots))

    def think(self, clause: str) -> None:
        """One clause of the working."""
        self.thought.append(clause)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def plus(self, k: int) -> str:
        """Carry n + k on; returns the sum as it is written."""
        line, self.n = f"{self.n} + {k} = {self.n + k}", self.n + k
        return line

    def minus(self, k: int) -> str:
        line, self.n = f"{self.n} - {k} = {self.n - k}", self.n - k
        return line

    def times(self, k: int) -> str:
        line, self.n = f"{self.n} x {k} = {self.n * k}", self.n * k
        return line

    def over(self, k: int) -> str:
        line, self.n = f"{self.n} / {k} = {self.n // k}", self.n // k
        return line


def many(n: int, noun: str) -> str:
    """A number of things.

    >>> many(1, "shells"), many(2, "shells")
    ('1 shell', '2 shells')
    """
    return f"{n} {noun[:-1] if n == 1 else noun}"


def pronouns(name: str) -> dict[str, str]:
    """Slots for someone: who, she, her (whose) and him (whom)."""
    she, her, him = ("she", "her", "her") if name in GIRLS else ("he", "his", "him")
    return {"who": name, "she": she, "her": her, "him": him}
