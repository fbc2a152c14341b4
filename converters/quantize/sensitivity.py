"""How much a model's answers change when one of its matrices is rounded: measured, one at a time.

    KL(whole || one matrix rounded), mean over tokens of calibration sequences

The model runs on the CPU session with int8-g32 matrices; the rounded values of one matrix take its
place, in int8-g32 too, and leave it again. For small errors KL grows with the square of the error,
so one measurement tells what other encodings of that matrix will cost:

    loss(encoding) = KL(probe) * error(encoding)^2 / error(probe)^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels.encodings import dequantize, quantize
from ...kernels.quant import F32, Matrix
from ...session.base import Feed, Session
from ..calibration_memory import ROUNDED
from ..layers import rounded as stored
from ..running import session_of
from ..stages.base import PartInProgress
from ..weights import whole

PROBE = "uint3-g64"
LOGITS = 1 << 24  # values that are compared, at most


class Sensitivity(NamedTuple):
    """kl: nats a token when this matrix alone is stored as PROBE. error: its relative RMS then."""

    kl: float
    error: float

    def loss(self, error: float) -> float:
        """Nats a token expected of another relative error."""
        return self.kl * (error / self.error) ** 2 if self.error > 0 else 0.0


def sensitivities(
    part: PartInProgress,
    sequences: Sequence[NDArray[np.int32]],
    names: Sequence[str],
    *,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Sensitivity]:
    """Of the matrices `names` of a text part, over the first tokens of `sequences`."""
    from tqdm import tqdm

    pieces = _shortened(sequences, int(part.graph.outputs[0].shape[-1]))
    found = {}
    with _replaceable(part, threads) as model:
        wanted = [_log_softmax(model.logits(ids)) for ids in pieces]
        for name in tqdm(
            names, desc="sensitivity", unit="matrix", disable=None if progress else True
        ):
            rows = whole(part.weights[name])
            rounded = dequantize(quantize(rows, PROBE))
            power = float(np.square(rows, dtype=np.float64).sum())
            lost = float(np.square(rounded - rows, dtype=np.float64).sum())
            model.put(name, quantize(rounded, ROUNDED))
            kl = _mean_kl(wanted, [_log_softmax(model.logits(ids)) for ids in pieces])
            model.put(name, quantize(rows, ROUNDED))
            found[name] = Sensitivity(kl, float(np.sqrt(lost / power)) if power > 0 else 0.0)
    return found


def _shortened(sequences: Sequence[NDArray[np.int32]], vocab: int) -> list[NDArray[np.int32]]:
    """The first tokens of some sequences, as many as their logits leave room for."""
    rows = max(64, LOGITS // vocab)
    count = min(len(sequences), 4)
    return [ids[: max(16, rows // count)] for ids in sequences[:count]]


def _log_softmax(logits: F32) -> F32:
    shifted = logits - logits.max(-1, keepdims=True)
    out: F32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def _mean_kl(wanted: Sequence[F32], found: Sequence[F32]) -> float:
    total = rows = 0.0
    for p, q in zip(wanted, found, strict=True):
        total += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        rows += len(p)
    return max(total / rows, 0.0)


class _Model:
    """A session whose matrices can be exchanged."""

    def __init__(self, session: Session, weights: dict[str, Any]) -> None:
        self.session, self.weights = session, weights

    def put(self, name: str, matrix: Matrix) -> None:
        self.weights[name] = matrix
        held = getattr(self.session, "packed_weights", None)
        if held is not None:
            held.put(name, matrix)

    def logits(self, ids: NDArray[np.int32]) -> F32:
        """float32 [n, V] of all tokens."""
        session, found = self.session, []
        state = session.new_state(len(ids))
        try:
            for start in range(0, len(ids), session.max_rows):
                piece = ids[start : start + session.max_rows]
                found.append(session.step([Feed(state, piece, "all")])[0].logits.copy())
                state.commit(len(piece))
        finally:
            state.close()
        return np.concatenate(found)


@contextmanager
def _replaceable(part: PartInProgress, threads: int | None) -> Iterator[_Model]:
    weights: dict[str, Any] = {n: stored(n, whole(r)) for n, r in part.weights.items()}
    session = session_of(part.graph, weights, threads=threads)
    try:
        yield _Model(session, weights)
    finally:
        session.close()
