"""What healing is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import limits
from ...errors import ConvertError
from ...kernels.quant import Matrix

METHODS = ("scales", "straight-through")
OPTIMIZERS = ("adamw", "dash")
# By method: in steps of a grid for codes, in parts of itself for a scale, in parts of the tensor's
# RMS for what is stored plainly. Chosen by measurement (benchmarks/NOTES.md).
RATES = {"scales": 5e-3, "straight-through": 5e-3}


@dataclass(frozen=True)
class HealOptions:
    """How to heal. tokens: of training; sequences repeat where the text is shorter.

    method: "scales" trains scales of codes and whatever is stored plainly (norms, biases, a
    dictionary in f16); "straight-through" may change the codes too. optimizer: "adamw" or "dash".
    rate: peak rate, None for the method's own (`RATES`). batch: sequences a step, over all ranks.
    seed: of the sequences' order. device: None for "cuda" where there is one, else "cpu".
    micro_batch: sequences that are computed at a time on one rank, None for all. held_out: at most
    so many of the last sequences, and at most a quarter, are measured and not trained on.
    """

    tokens: int
    method: str = "scales"
    optimizer: str = "adamw"
    rate: float | None = None
    batch: int = 8
    seed: int = 42
    device: str | None = None
    micro_batch: int | None = None
    held_out: int = 8

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ConvertError(
                    f"healing's {name} is {getattr(self, name)!r}, expected one of {list(allowed)}",
                    code="heal-options",
                )
        counts = {name: getattr(self, name) for name in ("tokens", "batch", "held_out")}
        if self.micro_batch is not None:
            counts["micro_batch"] = self.micro_batch
        for name, value in counts.items():
            most = limits.TRAINING_TOKENS if name == "tokens" else limits.TRAINING_BATCH
            if not 1 <= value <= most:
                raise ConvertError(
                    f"healing's {name} is {str(value)[:80]}, expected 1 to {most}",
                    code="heal-options",
                )
        if not 0 < self.peak < 1:
            raise ConvertError(
                f"healing's rate is {self.peak:g}, expected more than 0 and less than 1",
                code="heal-options",
                hint=f"{RATES[self.method]:g} is the default of {self.method!r}",
            )

    @property
    def peak(self) -> float:
        """The peak rate."""
        return RATES[self.method] if self.rate is None else self.rate

    def key(self) -> dict[str, Any]:
        """What a result depends on."""
        return {
            "tokens": self.tokens, "method": self.method, "optimizer": self.optimizer,
            "rate": self.peak, "batch": self.batch, "seed": self.seed, "held_out": self.held_out,
        }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Of a model on text, nats a token. kl: KL(original || model). nats: its own loss."""

    kl: float
    nats: float


@dataclass(frozen=True)
class Healed:
    """weights: stored as those that were given. improved: whether held-out KL fell; where it did
    not, `weights` are those that were given.

    start, end: measured on held-out text before and after the training; where it did not improve,
    `end` is what was thrown away. source: loss of the original there, nats a token. kept: names of
    weights that no training touches. tokens, steps, seconds: of training.
    """

    weights: Mapping[str, Matrix]
    improved: bool
    start: Measured
    end: Measured
    source: float
    tokens: int
    steps: int
    seconds: float
    kept: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """Held-out KL of the weights that were given, nats a token."""
        return self.start.kl

    @property
    def after(self) -> float:
        """Held-out KL of `weights`, nats a token."""
        return self.end.kl if self.improved else self.start.kl
