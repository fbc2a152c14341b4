"""Mixed precision, for `benchmarks.compression`: GPTQ with an encoding for each matrix, so that all
together have a given number of bits.

What a matrix costs is measured on calibration text: the divergence KL(exact || changed) of the
next token, in nats, when it alone is in REFERENCE. For other encodings that is scaled by the
squared error of the matrix's outputs, and costs add up (`converters/quantize/mixed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from edgert.converters.compress.whiten import Gram
from edgert.converters.quantize.base import energy
from edgert.converters.quantize.mixed import Candidate, choose
from edgert.kernels.encodings import dequantize, quantize
from edgert.kernels.quant import F32, Matrix, Quantized

from benchmarks.compression_model import Ids, Model, open_cpu, stored_bits
from benchmarks.compression_quantizers import ENDS, Cost, Outcome, by_gptq, measured
from edgert.session.base import Feed

ENCODINGS = ("uint2-g64", "uint3-g64", "uint4-g64", "int5-g64", "int6-g64")
REFERENCE = "uint3-g64"
BASE = "int8-g32"  # of the other matrices while one is measured, at a third of the time of float32
TOKENS, PIECES = 512, 2


class Mixed:
    """All candidates of a model's matrices; `outcome` chooses among them."""

    def __init__(
        self, model: Model, grams: Mapping[str, Gram], rows: Sequence[Ids], threads: int
    ) -> None:
        self.model = model
        with measured() as self.cost:
            self.stored = {
                (name, encoding): by_gptq(model.weights[name], grams[value], encoding)
                for name, value in model.inputs.items()
                for encoding in ENCODINGS
            }
            self.errors = {
                (name, encoding): _error(w, model.weights[name], grams[model.inputs[name]])
                for (name, encoding), w in self.stored.items()
            }
            self.losses = self._divergences([row[:TOKENS] for row in rows[:PIECES]], threads)

    def _divergences(self, rows: Sequence[Ids], threads: int) -> dict[str, float]:
        base: dict[str, Matrix] = {
            name: quantize(self.model.weights[name], BASE) for name in self.model.inputs
        }
        exact = _logprobs(self.model, base, rows, threads)
        found = {}
        for name in self.model.inputs:
            changed = {**base, name: self.stored[name, REFERENCE]}
            found[name] = _divergence(exact, _logprobs(self.model, changed, rows, threads))
        return found

    def outcome(self, bits: float) -> Outcome:
        """The choice of least loss within `bits` for each weight, on average."""
        with measured() as cost:
            tables = {
                name: [self._candidate(name, encoding) for encoding in ENCODINGS]
                for name in self.model.inputs
            }
            chosen = choose(tables, int(bits * self.model.count / 8))
        found: dict[str, Matrix] = {
            name: self.stored[name, candidate.encoding] for name, candidate in chosen.items()
        }
        counts: dict[str, int] = {}
        for candidate in chosen.values():
            counts[candidate.encoding] = counts.get(candidate.encoding, 0) + 1
        total = Cost(self.cost.seconds + cost.seconds, self.cost.peak)
        note = ", ".join(f"{n} {encoding}" for encoding, n in sorted(counts.items()))
        return Outcome(found, sum(stored_bits(w) for w in found.values()), ENDS, total, note)

    def _candidate(self, name: str, encoding: str) -> Candidate:
        scale = self.errors[name, encoding] / max(self.errors[name, REFERENCE], 1e-300)
        nbytes = stored_bits(self.stored[name, encoding]) // 8
        return Candidate(encoding, nbytes, self.losses[name] * scale)


def _error(stored: Quantized, w: F32, gram: Gram) -> float:
    return energy(dequantize(stored).astype(np.float64) - w, gram.matrix)


def _logprobs(
    model: Model, weights: Mapping[str, Matrix], rows: Sequence[Ids], threads: int
) -> list[F32]:
    session = open_cpu(model, weights, ENDS, threads)
    found = []
    try:
        for ids in rows:
            state = session.new_state(len(ids))
            for start in range(0, len(ids), session.max_rows):
                piece = ids[start : start + session.max_rows]
                logits = session.step([Feed(state, piece, "all")])[0].logits
                state.commit(len(piece))
                logits = logits - logits.max(axis=1, keepdims=True)
                found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            state.close()
    finally:
        session.close()
    return found


def _divergence(exact: Sequence[F32], changed: Sequence[F32]) -> float:
    """Mean KL(exact || changed) of a position."""
    total = sum(float((np.exp(p) * (p - q)).sum()) for p, q in zip(exact, changed, strict=True))
    return max(0.0, total / sum(map(len, exact)))
