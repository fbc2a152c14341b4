"""What the training of a draft head is asked for, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...errors import ConvertError
from .losses import ETA, LOSSES, Loss
from .shape import HeadShape

F32 = NDArray[np.float32]
MARK = 1 << 30  # added to the ids of tokens whose guesses are trained: answers, not prompts
UNROLLED = 6  # guesses behind each other that are trained
RATE = 1e-3
MOST = {
    "tokens": limits.TRAINING_TOKENS, "batch": limits.TRAINING_BATCH,
    "micro": limits.TRAINING_BATCH, "unrolled": 64, "length": limits.CONTEXT_TOKENS,
}  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """How a head is trained.

    loss: "lambda", "alpha", "tv" or "kl" (`losses`). tokens, seconds: it ends at the earlier of
    them. batch: tokens a step, over all ranks; micro: at a time. length: of a sequence. rate: peak,
    which falls along a cosine. unrolled: guesses behind each other. vocabulary: tokens of the head,
    0 for the usual. seed: of first weights and order. device: None for "cuda" where there is one,
    else "cpu". Raises ConvertError for values that mean nothing.
    """

    loss: Loss = "lambda"
    eta: float = ETA
    tokens: int = 50_000_000
    seconds: float = math.inf
    batch: int = 32768
    micro: int = 16384
    length: int = 512
    rate: float = RATE
    unrolled: int = UNROLLED
    vocabulary: int = 0
    seed: int = 42
    device: str | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise _wrong("loss", repr(self.loss), f"one of {list(LOSSES)}")
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise _wrong(name, getattr(self, name), f"1 to {most}")
        if self.length < self.unrolled + 3:
            raise _wrong("length", self.length, f"{self.unrolled + 3} or more: guesses go beyond")
        for name, value in (("rate", self.rate), ("eta", self.eta), ("seconds", self.seconds)):
            if not value > 0 or (math.isinf(value) and name != "seconds"):
                raise _wrong(name, value, "a number of more than 0")
        if self.vocabulary < 0:
            raise _wrong("vocabulary", self.vocabulary, "0 or more")
        if not 0 <= self.seed < limits.SEED:
            raise _wrong("seed", self.seed, f"0 to {limits.SEED - 1}")

    def key(self) -> dict[str, Any]:
        """What a result depends on."""
        return {
            "loss": self.loss, "eta": self.eta, "tokens": self.tokens, "seconds": self.seconds,
            "batch": self.batch, "length": self.length, "rate": self.rate,
            "unrolled": self.unrolled, "vocabulary": self.vocabulary, "seed": self.seed,
        }  # fmt: skip


def _wrong(name: str, value: object, expected: str) -> ConvertError:
    return ConvertError(
        f"the draft head's {name} is {str(value)[:80]}, expected {expected}", code="draft-options"
    )


@dataclass(frozen=True)
class TrainedHead:
    """A head: its sizes, weights float32 by graph name, and the ids that it can guess, rising.

    told: steps, tokens and seconds of training, the loss, and by place of a guess alpha, the most
    that alpha could be with this vocabulary, and KL, means of the last steps.
    """

    shape: HeadShape
    weights: Mapping[str, F32]
    ids: NDArray[np.int32]
    told: Mapping[str, Any]
