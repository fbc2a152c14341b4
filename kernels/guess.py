"""Guesses of a draft head one behind the other in one program (`edgert/session/chain.py`): the
instruction between two steps of one row, which picks a token and makes the next row ready.

Where guessing ends it has the program left at the barrier that follows, as a cancelled one is.
"""

from __future__ import annotations

from .operands import operands

# z: logits float32 [n]. next: the rows that the step behind goes on from, of which it is the last
# of as many as stand at rows. What the next step reads: hidden float32 [width], token int32, and
# where its row stands (`session.program.StepMemory`).
GUESS = operands(
    "ask", "ctrl", "z", "next", "next_stride", "rows", "hidden", "token", "standing", "axis_stride",
    "visible", "tiles",
)  # fmt: skip

# What is asked: words of one request, which instructions read and write.
# made: guesses up to now, of at most limit, to `tokens`, int64; end: why there are no more.
# position: of the first guess in its text. race: what to draw with (`race.py`), 0 for the largest
# logit; largest: whether of top-k. places int64, by float32 [biased]: logits that something is
# added to; spare: room for them. length: where the next row stands in the head's state.
# needed: float64 [limit], what a guess must be reached and right with; reach: float64, up to now.
# ends: int64 [end_count], behind which nothing is guessed. ids: int64 [n], tokens of logits.
# width: values of a row that steps go on from.
ASK = operands(
    "made", "end", "limit", "position", "race", "largest", "biased", "places", "by", "spare",
    "end_count", "length", "reach", "tokens", "needed", "ends", "ids", "n", "width",
)  # fmt: skip

# why guessing ended: there are as many as asked for, or an end; one was not worth it; the
# reference must pick, from logits that are left as they were
DONE, POOR, UNSURE = 1, 2, 3
