"""auto: several conversions of one model, measured on text that none was fitted to; one stays.

Candidates are what `recipes.py` lists: whole encodings that fit the budget, the largest two of
them, and those that fill it. Each is made as a bundle beside the output. Nats a token are measured
over sequences of the calibration text that were held back, and the decoding speed on this machine.
The one with the fewest nats becomes the output; a smaller one with equally many goes before. A run
that is stopped leaves its candidates in `<out>.candidates`, and the next one takes them over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from ..bundle.reader import Bundle
from ..bundle.writer import BundleWriter
from ..errors import ConvertError, EdgertError
from ..storage.aside import replace_file
from ..storage.replace import remove_folder
from ..storage.typed import Reader
from .calibrate import Calibration
from .golden import own_version
from .pipeline import (
    Options,
    Pipeline,
    candidates_folder,
    draft_quant,
    is_full,
    other_bytes,
    stage_folder,
)
from .quality import Sequences, held_sequences, of_bundle
from .recipes import MB, Asked, Plan, candidates, resolve
from .report import Candidate, ConvertReport, megabytes
from .sources.base import Source
from .stages.cache import key_of
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
    folder = candidates_folder(options.out)
    tried, failed = list[Tried](), list[str]()
    with BundleWriter(options.out) as writer, _kept(folder, resume=options.resume):
        label = options.label or options.out.name
        for number, plan in enumerate(_plans(reading, asked, budget)):
            out = folder / f"{number}.edge"
            each = replace(options, out=out, plan=plan, label=label)
            try:
                found = _tried(source, reading, each, calibration, held)
            except ConvertError as error:
                if error.code not in ("budget", "compot-quant"):
                    raise
                failed.append(f"{plan.title}: {error.message}")
                continue
            if found.row.nbytes <= budget:
                tried.append(found)
        if not tried:
            raise ConvertError(
                f"nothing fits {megabytes(budget)}: {'; '.join(failed) or 'all are larger'}",
                code="budget",
                hint="allow more bytes",
            )
        chosen = min(tried, key=lambda each: (round(each.row.nats, 4), each.row.nbytes))
        _move(Path(chosen.report.path), writer)
        remove_folder(stage_folder(options.out))  # of a conversion without auto that was stopped
    return chosen.report.replaced(
        path=str(options.out),
        seconds=time.perf_counter() - start,
        candidates=tuple(each.row.replaced(chosen=each is chosen) for each in tried),
    )


class Tried(msgspec.Struct, frozen=True):
    """A candidate that was made. key: all that it depends on."""

    key: str
    row: Candidate
    report: ConvertReport


TRIED = Reader(Tried)


def _tried(
    source: Source, reading: Reading, options: Options, text: Calibration, held: Sequences
) -> Tried:
    """A candidate: made and measured, or what an earlier run that was stopped made of it."""
    plan, out = options.plan, options.out
    key = key_of(
        sources=reading.hashes, edgert=own_version(), plan=plan.options(),
        calibration=plan.calibration and plan.calibration.key(), measured=text.key(),
        name=options.name, label=options.label, golden=options.golden, out=str(out),
        threads=options.threads,
    )  # fmt: skip
    told = out.with_suffix(".json")
    try:
        found = TRIED.decode(told.read_bytes())
        if found.key == key:
            Bundle.open(out, verify="full").close()
            return found
    except (OSError, msgspec.DecodeError, EdgertError):
        pass  # none, or a damaged one
    made = Pipeline(source, options).run()
    quality = of_bundle(out, reading.tokenizer, held, options.threads)
    row = Candidate(plan.title, made.bundle_bytes, *quality)
    found = Tried(key, row, made)
    replace_file(told, msgspec.json.encode(found))
    return found


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
    weights = sum(stored_nbytes(graph.weights) for graph in graphs)
    return other_bytes(reading, draft_quant(plan)) + weights


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
def _kept(folder: Path, *, resume: bool) -> Iterator[None]:
    """The candidates' folder. It stays where a run is stopped, for the next one."""
    if not resume:
        remove_folder(folder)
    folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException as error:
        if isinstance(error, ConvertError) or is_full(error) or not any(folder.iterdir()):
            remove_folder(folder)
        raise
    remove_folder(folder)
