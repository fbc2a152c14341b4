"""What linearizing is asked for, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...errors import ConvertError
from ...graph import Graph
from ...kernels.ops_linear import CHUNKS
from ...kernels.quant import Matrix

Ids = NDArray[np.int32]
MODES = ("shifted", "square")
ALIGNED = 0.2  # of the tokens, for stage 1
NEW_ONLY = 0.3  # of stage 1, in which the teacher's own weights stay
RATES = {50_000_000: 3e-4, 500_000_000: 1e-4}  # of stage 2, up to so many parameters
MOST = {
    "tokens": limits.TRAINING_TOKENS, "batch": limits.TRAINING_BATCH,
    "micro_batch": limits.TRAINING_BATCH,
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Tokens to train on and to measure on, int32 [n] each. passkeys: by their share of the
    context, prompts int32 [m] and answers as tokens. end: token that ends a document, so that what
    follows it in a training sequence is a text of its own; None: sequences are one text each."""

    train: Ids
    held: Ids
    passkeys: Mapping[float, tuple[tuple[Ids, Ids], ...]] = field(default_factory=dict)
    end: int | None = None


@dataclass(frozen=True)
class LinearizeOptions:
    """How to linearize.

    layers: "all", "auto", or how many become linear. tokens: of training, a fifth of them for
    stage 1; each hybrid is distilled for all of stage 2's. features: r, None for the head's size up
    to 64 and 32 above. window: softmax over the newest `chunk` to 2 `chunk` tokens, None for heads
    of 64 and more. seconds: (stage 1, stage 2) end by the clock where it is earlier than by
    tokens. rate: of stage 2's attention, None by the model's size. batch: tokens of a step over all
    ranks; micro_batch: tokens that are computed at a time on one rank. next_token: weight of the
    next token's own loss beside KL. lengths: tokens of a sequence in stage 1, in stage 2, and in
    its last tenth; no more than the model's context. serve: tokens of context that it is for, 0 for
    the model's own; anyway: even where states are then larger than keys and values. progress:
    whether that is told as a table.
    """

    layers: str | int = "all"
    tokens: int = 5_000_000
    mode: str = "shifted"
    features: int | None = None
    chunk: int = 64
    window: bool | None = None
    seconds: tuple[float, float] = (math.inf, math.inf)
    rate: float | None = None
    batch: int = 16384
    micro_batch: int = 16384
    lengths: tuple[int, int, int] = (512, 1024, 4096)
    next_token: float = 0.1
    seed: int = 42
    device: str | None = None
    serve: int = 0
    anyway: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        wrong = {
            "layers": self.layers not in ("all", "auto") and not is_count(self.layers),
            "mode": self.mode not in MODES,
            "chunk": self.chunk not in CHUNKS,
            "features": self.features is not None and not 0 < self.features <= 256,
            "serve": self.serve != 0
            and not (is_count(self.serve) and self.serve <= limits.MAX_TOKENS),
            "rate": self.rate is not None and not 0 < self.rate < 1,
            "next_token": not 0 <= self.next_token <= 10,
            **{
                name: not is_count(getattr(self, name)) or getattr(self, name) > most
                for name, most in MOST.items()
            },
        }
        for name, bad in wrong.items():
            if bad:
                raise ConvertError(
                    f"linearizing's {name} is {str(getattr(self, name))[:80]!r}, expected "
                    + EXPECTED.get(name, "a number of 1 or more"),
                    code="linearize-options",
                )

    def key(self) -> dict[str, Any]:
        """What a result depends on (JSON-ready)."""
        names = (
            "layers", "tokens", "mode", "features", "chunk", "window", "rate", "batch", "lengths",
            "next_token", "seed",
        )  # fmt: skip
        clock = [None if math.isinf(s) else s for s in self.seconds]
        return {**{name: getattr(self, name) for name in names}, "seconds": clock}

    def rate_for(self, parameters: int) -> float:
        """The peak rate of stage 2."""
        if self.rate is not None:
            return self.rate
        return next((rate for size, rate in RATES.items() if parameters <= size), 5e-5)


def window_fields(tokens: int | None) -> dict[str, Any]:
    """The fields of a window of at least so many tokens: 0 for none, None for the default."""
    if tokens is None:
        return {}
    return {"chunk": tokens, "window": True} if tokens else {"window": False}


EXPECTED = {
    "layers": "'all', 'auto' or a number of layers of 1 or more",
    "mode": f"one of {list(MODES)}",
    "chunk": f"{CHUNKS[0]} to {CHUNKS[-1]}",
    "features": "1 to 256",
    "rate": "more than 0 and less than 1",
    "next_token": "0 to 10",
    "serve": f"0 to {limits.MAX_TOKENS}",
    **{name: f"1 to {most}" for name, most in MOST.items()},
}


def is_count(value: Any) -> bool:
    """Whether something is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Verdict:
    """What was measured of a turned model against its teacher, and what the gate says.

    kl: nats a token. nats, teacher_nats: own losses. agreement: share of a greedy continuation that
    both choose alike. linear_share: of the weights in turned layers, what lies behind the tail.
    passkeys: by share of the context (this model's, the teacher's) shares found. failed: the
    gate's criteria that do not hold, in words; empty where it passes.
    """

    kl: float
    nats: float
    teacher_nats: float
    agreement: float
    linear_share: float
    passkeys: Mapping[float, tuple[float, float]]
    failed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kl": round(self.kl, 6), "nats": round(self.nats, 6),
            "nats_teacher": round(self.teacher_nats, 6), "agreement": round(self.agreement, 4),
            "linear_share": round(self.linear_share, 4),
            "passkeys": {f"{share:g}": list(found) for share, found in self.passkeys.items()},
            "failed": list(self.failed),
        }  # fmt: skip


@dataclass(frozen=True)
class Linearized:
    """The turned model. turned: layers that are linear now. order: layers by what restoring their
    softmax gains, most first; empty where that was not measured. aligned: by layer, the error of
    stage 1 on held text, as a share of the teacher's mean square. tried: by the number of kept
    layers, the verdict. stage 2 ran for `steps` steps of the last attempt."""

    graph: Graph
    weights: Mapping[str, Matrix]
    turned: tuple[int, ...]
    verdict: Verdict
    order: tuple[int, ...]
    aligned: Mapping[int, float]
    tried: Mapping[int, Verdict]
    steps: int
    seconds: float
