"""Prompts that state a number early in a long text and ask for it at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .options import Ids

SHARES = (0.5, 1.0)  # of the served context
EACH = 20  # prompts of each length
DIGITS = 5
STATED = " Remember this: the pass key is{}. The pass key is{}."
ASKED = " What is the pass key? The pass key is"


def passkey_prompts(
    held: Ids, encode: Callable[[str], Sequence[int]], context: int, *, seed: int = 42
) -> dict[float, tuple[tuple[Ids, Ids], ...]]:
    """By share of the context, (prompt, answer) as tokens; what the held text is too short for is
    left out. The number is stated in the first half."""
    rng, found = np.random.default_rng(seed), dict[float, tuple[tuple[Ids, Ids], ...]]()
    asked = np.asarray(encode(ASKED), np.int32)
    for share in SHARES:
        made = []
        for _ in range(EACH):
            number = " " + "".join(map(str, rng.integers(0, 10, DIGITS)))
            answer = np.asarray(encode(number), np.int32)
            stated = np.asarray(encode(STATED.format(number, number)), np.int32)
            room = round(share * context) - len(stated) - len(asked) - len(answer)
            if room < 2 or room > len(held):
                continue
            start = int(rng.integers(0, len(held) - room + 1))
            filler, at = held[start : start + room], int(rng.integers(0, room // 2))
            prompt = np.concatenate([filler[:at], stated, filler[at:], asked])
            made.append((prompt.astype(np.int32), answer))
        if made:
            found[share] = tuple(made)
    return found
