"""How good and how fast what was made is: nats a token on held-out text, tokens a second here.

Sequences are pieces of the calibration text that nothing was fitted to, where there are such. The
original is measured in float16 (matrices), by the same session as the bundle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle.reader import Bundle
from ..errors import ConvertError
from ..evaluation.scoring import token_logprobs
from ..kernels.encodings import EXACT, quantize
from ..kernels.quant import HALF_MAX, Matrix
from ..session import SessionOptions, open_session
from ..session.base import Feed, Session
from ..text.tokenizer import Tokenizer
from .calibrate import Calibration
from .running import session_of
from .stages.base import PartInProgress
from .stages.part_encodings import matrices
from .stages.read import Reading
from .weights import whole

STEPS, ROUNDS = 16, 3  # tokens decoded for the speed, and how often
Sequences = list[NDArray[np.int32]]


class Quality(NamedTuple):
    """nats: a token. bits_per_byte: of the text. tokens_per_second: of one sequence."""

    nats: float
    bits_per_byte: float
    tokens_per_second: float


def held_sequences(reading: Reading, calibration: Calibration) -> Sequences:
    """Sequences to measure on. Raises ConvertError for models without text."""
    if reading.text is None:
        raise ConvertError(
            "this model has no text part, expected one to measure",
            code="quality",
            hint="convert it without --report and --recipe auto",
        )
    template = reading.template() if calibration.chats else None
    context = min(part.graph.context for part in reading.parts)
    return calibration.held(reading.tokenizer, template, context)


def of_bundle(
    path: Path, tokenizer: Tokenizer | None, held: Sequences, threads: int | None = None
) -> Quality:
    """Of a bundle, on the CPU."""
    with Bundle.open(path) as bundle:
        session = open_session(bundle, SessionOptions(device="cpu", threads=threads))
        try:
            nats, speed = nats_a_token(session, held), tokens_a_second(session)
        finally:
            session.close()
    return Quality(nats, nats / math.log(2) / bytes_a_token(tokenizer, held), speed)


def of_source(part: PartInProgress, held: Sequences, threads: int | None = None) -> float:
    """Nats a token of a part as it was read, matrices in float16."""
    weights, free = dict[str, Matrix](), matrices(part.graph)
    for name, reader in part.weights.items():
        array = whole(reader)
        fits = name in free and float(np.abs(array).max(initial=0.0)) < HALF_MAX
        weights[name] = quantize(array, "f16" if fits else EXACT)
    session = session_of(part.graph, weights, threads=threads, context=max(map(len, held)))
    try:
        return nats_a_token(session, held)
    finally:
        session.close()


def bytes_a_token(tokenizer: Tokenizer | None, held: Sequences) -> float:
    """Of the text that the sequences' predicted tokens are."""
    if tokenizer is None:
        return 1.0
    size = sum(len(tokenizer.decode(ids[1:].tolist()).encode("utf-8")) for ids in held)
    return max(size, 1) / sum(len(ids) - 1 for ids in held)


def nats_a_token(session: Session, sequences: Sequence[NDArray[np.int32]]) -> float:
    """Mean negative log-likelihood of all tokens but the first of each sequence."""
    total, count = 0.0, 0
    for ids in sequences:
        state = session.new_state(len(ids))
        try:
            for start in range(0, len(ids) - 1, session.max_rows):
                piece = ids[start : min(start + session.max_rows, len(ids) - 1)]
                logits = session.step([Feed(state, piece, "all")])[0].logits
                state.commit(len(piece))
                wanted = ids[start + 1 : start + 1 + len(piece)]
                total -= float(token_logprobs(logits, wanted.tolist())[0].sum())
                count += len(piece)
        finally:
            state.close()
    if not count or not math.isfinite(total):
        raise ConvertError(
            "the model computes values that are not finite, expected numbers",
            code="quality",
            hint="the checkpoint is damaged, or needs wider encodings",
        )
    return total / count


def tokens_a_second(session: Session) -> float:
    """Of one sequence, a token at a time: by the median of some steps, of the best round."""
    return max(_decoding(session) for _ in range(ROUNDS))


def _decoding(session: Session) -> float:
    state, spent = session.new_state(STEPS + 1), []
    try:
        for _ in range(min(STEPS, session.context)):
            start = time.perf_counter()
            session.step([Feed(state, np.zeros(1, np.int32))])
            state.commit(1)
            spent.append(time.perf_counter() - start)
    finally:
        state.close()
    return 1 / max(float(np.median(spent)), 1e-9)
