"""How a token is drawn from a row of logits outside of programs (`cpu/race.py`): the numbers, the
words that it is asked with, and when it leaves a draw to the reference.

Bits are mixed by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from .operands import operands

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step, and the rounds of its finaliser
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
LEAST = 64  # logits of a row
MOST = 64  # largest ones that top-k keeps
BLOCK = 256  # ids that share a bound
# Share of a score or of a sum of weights: NumPy's exponentials are within 3 units of 2 ** -23, its
# float32 sums of CHUNK weights, pairwise, and those here within 25 halves of one.
MARGIN = 2.0**-17

# What a draw is asked with. seed: one word. scale: what logits are multiplied by, float32; cut: the
# same for top-p and min-p. ids: address of int64 [n], 0 for 0 to n - 1. room: see below.
RACE = operands("seed", "scale", "ids", "top_k", "cut", "top_p", "min_p", "room")

# Room: a vector, then of the largest values themselves, places and weights, then a bound a block.
VALUES = 64
PLACES = VALUES + 4 * MOST
WEIGHTS = PLACES + 8 * MOST
BOUNDS = WEIGHTS + 8 * MOST
