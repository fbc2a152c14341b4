"""What a conversion did: times, sizes, and what each weight lost."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class WeightReport(msgspec.Struct, frozen=True):
    """One weight: shape, encoding, stored bytes, and RMS of its error over RMS of its values."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    error: float


class ConvertReport(msgspec.Struct, frozen=True):
    """Result of `convert`. Times in seconds, memory and sizes in bytes.

    resumed: weights taken over from an earlier run that was stopped. golden: the device that
    answered the golden prompts, or why none did. left_out: added tokens of the tokenizer that have
    no logits, and that nothing names.
    """

    path: str
    name: str
    family: str
    quant: str
    embed_quant: str
    parameters: int
    source_bytes: int
    bundle_bytes: int
    seconds: float
    stages: dict[str, float]
    peak_rss: int
    weights: tuple[WeightReport, ...]
    resumed: int
    golden: str
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.name}: {self.parameters / 1e6:.1f} M parameters, "
            f"{megabytes(self.source_bytes)} -> {megabytes(self.bundle_bytes)} "
            f"({self.quant}, embeddings and head {self.embed_quant})",
            "  ".join(f"{stage} {spent:.1f} s" for stage, spent in self.stages.items())
            + f"  total {self.seconds:.1f} s, peak memory {megabytes(self.peak_rss)}",
        ]
        for encoding, worst in sorted(self._worst().items()):
            lines.append(
                f"{encoding}: largest error of a weight {worst.error:.2%} RMS ({worst.name})"
            )
        if self.resumed:
            lines.append(f"{self.resumed} weights were taken over from an earlier run")
        if self.left_out:
            names = ", ".join(map(repr, self.left_out[:4])) + ", ..." * (len(self.left_out) > 4)
            lines.append(f"{len(self.left_out)} added tokens past the logits left out: {names}")
        lines.append(f"golden prompts: {self.golden}")
        return "\n".join(lines)

    def _worst(self) -> dict[str, WeightReport]:
        worst: dict[str, WeightReport] = {}
        for weight in self.weights:
            if weight.error and weight.error >= worst.get(weight.encoding, weight).error:
                worst[weight.encoding] = weight
        return worst


def relative(lost: float, power: float) -> float:
    """Relative RMS error from sums of squares."""
    return math.sqrt(lost / power) if power > 0 else 0.0


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.1f} MB"
