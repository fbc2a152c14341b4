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


class Candidate(msgspec.Struct, frozen=True):
    """One way to store the model that was tried: bytes of its bundle, nats a token and bits a byte
    on held-out text, tokens a second on this machine, whether it was taken."""

    name: str
    nbytes: int
    nats: float
    bits_per_byte: float
    tokens_per_second: float
    chosen: bool = False

    def replaced(self, **changes: Any) -> Candidate:
        return msgspec.structs.replace(self, **changes)


class ConvertReport(msgspec.Struct, frozen=True):
    """Result of `convert`. Times in seconds, memory and sizes in bytes.

    resumed: weights taken over from an earlier run that was stopped. golden: the device that
    answered the golden prompts, or why none did. left_out: added tokens of the tokenizer that have
    no logits, and that nothing names. details: what stages report, by stage. candidates: of `auto`.
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
    details: dict[str, Any] = {}
    candidates: tuple[Candidate, ...] = ()

    def replaced(self, **changes: Any) -> ConvertReport:
        """A copy with fields exchanged."""
        return msgspec.structs.replace(self, **changes)

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
        if layers := self.details.get("compot", {}).get("layers"):
            count = sum(row["form"] != "dense" for row in layers)
            lines.append(
                f"COMPOT: {count} of {len(layers)} matrices factored, ratio "
                f"{self.details['compot']['ratio']:.2f}"
            )
        if healed := self.details.get("heal"):
            lines.append(
                f"healed with {healed['tokens']} tokens: KL {healed['kl_before']:.4f} -> "
                f"{healed['kl_after']:.4f} nats a token"
                + ("" if healed["improved"] else ", not better: left as it was")
            )
        for row in self.candidates:
            lines.append(
                f"{'->' if row.chosen else '  '} {row.name:24} {megabytes(row.nbytes):>10}  "
                f"{row.bits_per_byte:.4f} bits a byte  {row.tokens_per_second:.0f} tokens/s"
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
            kind = weight.encoding.partition("-s")[0]  # sparse codes, whatever their number
            if weight.error and weight.error >= worst.get(kind, weight).error:
                worst[kind] = weight
        return worst


def relative(lost: float, power: float) -> float:
    """Relative RMS error from sums of squares."""
    return math.sqrt(lost / power) if power > 0 else 0.0


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.1f} MB"
