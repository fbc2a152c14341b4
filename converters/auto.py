"""auto: several conversions of one model, measured on text that none was fitted to; one stays.

Candidates are what `recipes.py` lists: whole encodings that fit the budget, the largest two of
them, and those that fill it. Each is made as a bundle beside the output. Nats a token are measured
over sequences of the calibration text that were held back, and the decoding speed on this machine.
The one with the fewest nats becomes the output; a smaller one with equally many goes before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..bundle.reader import Bundle
from ..bundle.writer import BundleWriter
from ..errors import ConvertError
from ..storage.replace import remove_folder
from .calibrate import Calibration
from .pipeline import Options, Pipeline, other_bytes
from .quality import held_sequences, of_bundle
from .recipes import MB, Asked, Plan, candidates, resolve
from .report import Candidate, ConvertReport, megabytes
from .sources.base import Source
from .stages.quantize import encoded
from .stages.read import Reading, read
from .weights import stored_nbytes

WHOLE = 2  # whole encodings that are tried


def best(source: Source, options: Options, asked: Asked) -> ConvertReport:
    """Make the candidates and keep the best. Raises ConvertError where none fits the budget."""
    start, reading = time.perf_counter(), read(source)
    calibration = asked.calibration or Calibration.sample()
    asked = replace(asked, calibration=calibration)
    budget = round((asked.budget_mb or 0) * MB) or _plain_bytes(reading, options.plan)
    asked = replace(asked, budget_mb=budget / MB)
    held = held_sequences(reading, calibration)
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
            row = Candidate(plan.title, made.bundle_bytes, *of_bundle(out, reading.tokenizer, held))
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
