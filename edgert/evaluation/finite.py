"""Scores of damaged models are refused: NaN and infinity average to nothing that means anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import DeviceError
from .scoring import Score


def finite(scores: Sequence[Score]) -> Sequence[Score]:
    """The scores themselves; DeviceError where a log-likelihood is NaN or infinite."""
    bad = [score.logprob for score in scores if not math.isfinite(score.logprob)]
    if bad:
        raise DeviceError(
            f"{len(bad)} of {len(scores)} continuations have a log-likelihood of {bad[0]}, "
            "expected finite numbers",
            code="logits",
            hint="run `edgert verify --values` on the bundle; its weights may be damaged",
        )
    return scores
