"""auto: several conversions of one model, measured on text that none was fitted to; one stays.

Candidates are what `recipes.py` lists: whole encodings that fit the budget, the largest two of
them, and those that fill it. Each is made as a bundle beside the output. Nats a token are measured
over sequences of the calibration text that were held back, and the decoding speed on this machine.
The one with the fewest nats becomes the output; a smaller one with equally many goes before.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.reader import Bundle
from ..bundle.writer import BundleWriter
from ..errors import ConvertError
from ..session import SessionOptions, open_session
from ..session.base import Feed, Session
from ..storage.replace import remove_folder
from ..text.tokenizer import Tokenizer
from .calibrate import Calibration
from .pipeline import Options, Pipeline, other_bytes
from .recipes import MB, Asked, Plan, candidates, resolve
from .report import Candidate, ConvertReport, megabytes
from .sources.base import Source
from .stages.quantize import encoded
from .stages.read import Reading, read
from .weights import stored_nbytes

HELD = 8  # sequences that candidates are measured on
WHOLE = 2  # whole encodings that are tried
STEPS, ROUNDS = 16, 3  # tokens decoded for the speed, and how often


def best(source: Source, options: Options, asked: Asked) -> ConvertReport:
    """Make the candidates and keep the best. Raises ConvertError where none fits the budget."""
    start, reading = time.perf_counter(), read(source)
    asked = replace(asked, calibration=asked.calibration or Calibration.sample())
    budget = round((asked.budget_mb or 0) * MB) or _plain_bytes(reading, options.plan)
    asked = replace(asked, budget_mb=budget / MB)
    held = _held(reading, asked)
    folder = options.out.with_name(f"{options.out.name}.candidates")
    rows, reports, failed = list[Candidate](), dict[str, ConvertReport](), list[str]()
    with BundleWriter(options.out) as writer, _removed(folder):
        for plan in _plans(reading, asked, budget):
            out = folder / f"{len(reports)}.edge"
            label = options.label or options.out.name
            try:
                made = Pipeline(source, replace(options, out=out, plan=plan, label=label)).run()
            except ConvertError as error:
                if error.code not in ("budget", "compot-quant"):
                    raise
                failed.append(f"{plan.title}: {error.message}")
                continue
            row = _measured(out, plan, held, reading, made.bundle_bytes)
            if row.nbytes <= budget:
                rows.append(row)
                reports[plan.title] = made
        if not rows:
            raise ConvertError(
                f"nothing fits {megabytes(budget)}: {'; '.join(failed) or 'all are larger'}",
                code="budget",
                hint="allow more bytes",
            )
        chosen = min(rows, key=lambda row: (round(row.nats, 4), row.nbytes))
        made = reports[chosen.name]
        _move(Path(made.path), writer)
    return made.replaced(
        path=str(options.out),
        seconds=time.perf_counter() - start,
        candidates=tuple(row.replaced(chosen=row is chosen) for row in rows),
    )


def _plans(reading: Reading, asked: Asked, budget: int) -> Iterator[Plan]:
    """Plans of the candidates, without whole encodings that do not fit or are not the largest."""
    whole = 0
    for want in candidates(asked):
        plan = resolve(want)
        if not plan.budget:
            if whole == WHOLE or _plain_bytes(reading, plan) > budget:
                continue
            whole += 1
        yield plan


def _plain_bytes(reading: Reading, plan: Plan) -> int:
    """Of a bundle in whole encodings, nearly."""
    graphs = [encoded(part.graph, plan.quant, plan.embed_quant) for part in reading.parts]
    return other_bytes(reading) + sum(stored_nbytes(graph.weights) for graph in graphs)


def _held(reading: Reading, asked: Asked) -> list[NDArray[np.int32]]:
    """Sequences to measure on, other ones than those that are fitted to where there are such."""
    calibration = asked.calibration
    if calibration is None or reading.text is None:
        raise ConvertError("this model has no text, expected one to measure", code="auto")
    template = reading.template() if calibration.chats else None
    context = min(part.graph.context for part in reading.parts)
    sequences = calibration.token_sequences(reading.tokenizer, template, context)
    used = {ids.tobytes() for ids in sequences}
    others = calibration.every_sequence(reading.tokenizer, template, context)
    fresh = [ids for ids in others if ids.tobytes() not in used]
    return (fresh or sequences)[:: max(1, len(fresh or sequences) // HELD)][:HELD]


def _measured(
    out: Path, plan: Plan, held: Sequence[NDArray[np.int32]], reading: Reading, nbytes: int
) -> Candidate:
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions(device="cpu"))
        try:
            nats = nats_a_token(session, held)
            speed = tokens_a_second(session)
        finally:
            session.close()
    size = _text_bytes(reading.tokenizer, held) / sum(len(ids) - 1 for ids in held)
    return Candidate(plan.title, nbytes, nats, nats / math.log(2) / size, speed)


def _text_bytes(tokenizer: Tokenizer | None, held: Sequence[NDArray[np.int32]]) -> int:
    if tokenizer is None:
        return 1
    return sum(len(tokenizer.decode(ids[1:].tolist()).encode("utf-8")) for ids in held)


def nats_a_token(session: Session, sequences: Sequence[NDArray[np.int32]]) -> float:
    """Mean negative log-likelihood of all tokens but the first of each sequence."""
    total = count = 0.0
    for ids in sequences:
        state = session.new_state(len(ids))
        try:
            for start in range(0, len(ids) - 1, session.max_rows):
                piece = ids[start : min(start + session.max_rows, len(ids) - 1)]
                logits = session.step([Feed(state, piece, "all")])[0].logits
                state.commit(len(piece))
                wanted = ids[start + 1 : start + 1 + len(piece)]
                peak = logits.max(-1)
                total += float(np.log(np.exp(logits - peak[:, None]).sum(-1)).sum() + peak.sum())
                total -= float(logits[np.arange(len(piece)), wanted].sum())
                count += len(piece)
        finally:
            state.close()
    if not math.isfinite(total):
        raise ConvertError(
            "a candidate computes values that are not finite, expected numbers",
            code="auto",
            hint="the checkpoint is damaged, or needs wider encodings",
        )
    return total / count


def tokens_a_second(session: Session) -> float:
    """Of one sequence, a token at a time: the median of some steps, of the best round."""
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


def _move(made: Path, writer: BundleWriter) -> None:
    """A bundle becomes the output."""
    with Bundle.open(made) as bundle:
        manifest = bundle.manifest
    for path in sorted(made.rglob("*")):
        name = path.relative_to(made).as_posix()
        if path.is_file() and name != "manifest.json":
            os.replace(path, writer.file(name))
    writer.finish(manifest)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    remove_folder(folder)
    folder.mkdir()
    try:
        yield
    finally:
        remove_folder(folder)
