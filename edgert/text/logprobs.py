"""Log-probabilities of tokens under the model's own distribution, for results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ranking import F32, F64, Ids, largest
from .results import TokenLogprob, TopLogprob
from .token_texts import token_texts
from .tokenizer import Tokenizer


def token_logprob(row: F32, token: int, count: int, tokenizer: Tokenizer) -> TokenLogprob:
    """What a result says of one position.

    row: float32 [V], logits as the model gave them: before bias, penalties, temperature and
    truncation. token: the one that was picked. count: how many of the likeliest are listed (fewer
    where fewer exist), equal ones by lower id.
    """
    texts = token_texts(tokenizer)
    ids = likeliest(row, count, tokenizer.size, tokenizer.holes)
    scores = log_softmax(row, np.append(ids, token))
    *top, picked = (
        TopLogprob(int(i), texts.text(int(i)), texts.bytes(int(i)), float(score))
        for i, score in zip([*ids, token], scores, strict=True)
    )
    return TokenLogprob(picked.token_id, picked.text, picked.bytes, picked.logprob, tuple(top))


def log_softmax(row: F32, ids: Ids) -> F64:
    """Log-probabilities float64 [n] of ids among all logits float32 [V]."""
    peak = row.max()
    with np.errstate(over="ignore"):  # what lies so far below counts for nothing
        shares = np.exp(row - peak)
    log_total = float(peak) + float(np.log(shares.sum(dtype=np.float64)))
    return row[ids].astype(np.float64) - log_total


def likeliest(row: F32, count: int, allowed: int, holes: Sequence[int]) -> Ids:
    """The `count` largest logits' possible ids, falling, equal ones by lower id."""
    ids = largest(row[:allowed], min(count + len(holes), allowed)) if count else np.zeros(0, int)
    if len(holes):
        ids = ids[~np.isin(ids, holes)]
    return ids[row[ids] > -np.inf][:count]
