"""The pipeline: stages over every part of a source, then a bundle.

The bundle is written aside, verified and renamed; what a stage keeps lies in the stage cache until
the bundle stands. A stage is added as one file in `stages/` and one row in `stages_for`.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..bundle.draft import ROLE as DRAFT
from ..bundle.manifest import FORMAT, Golden, Manifest, Part
from ..bundle.writer import BundleWriter
from ..errors import ConvertError, ResourceError
from ..storage.aside import FULL
from ..storage.replace import remove_folder
from ..system_memory import peak_resident
from .golden import own_version, provenance
from .heal import HealOptions
from .kept import ANEW
from .recipes import Plan
from .report import ConvertReport, WeightReport
from .sources.base import Source
from .stages.base import Context, NativeDraft, PartInProgress, Stage
from .stages.cache import StageCache, allocated, disk_full, key_of
from .stages.compot import Compot
from .stages.draft import Draft, stored
from .stages.emit import Emit, part_files
from .stages.heal import Heal
from .stages.kv_share import ShareKV
from .stages.linearize import Linearize
from .stages.mixed import Mixed
from .stages.quantize import Quantize, encoded
from .stages.read import Reading, read
from .stages.verify import Verify
from .stages.weight_cache import WeightCache
from .weights import stored_nbytes
from .workers import open_workers

SLACK = 1 << 20  # bytes of manifest, journal and folders


@dataclass(frozen=True)
class Options:
    """What was asked for; see `convert`. out: absolute. label: what it is called in the command
    that the bundle tells, default: its name."""

    out: Path
    name: str
    plan: Plan
    progress: bool = True
    resume: bool = True
    golden: bool = True
    threads: int | None = None
    workers: int = 1
    cluster: str | None = None
    label: str = ""


def stages_for(
    options: Options, files: int = 0, draft: NativeDraft | None = None
) -> tuple[Stage, ...]:
    """The stages after reading, in order: one row each. files: bytes of the bundle besides the
    text part's weights. draft: what the source brings for guesses."""
    plan, found = options.plan, list[Stage]()
    room = plan.budget - files
    if plan.linearize is not None and plan.calibration is not None:
        found.append(Linearize(plan.linearize, plan.calibration))
    if plan.kv_share and plan.calibration is not None:
        found.append(ShareKV(plan.kv_share, plan.calibration))
    if plan.budget and room <= 0:
        raise ConvertError(
            f"a budget of {plan.budget} bytes, of which tokenizer and graph take {files}",
            code="budget",
            hint="allow more bytes",
        )
    if plan.factoring is not None and plan.calibration is not None:
        factoring = replace(plan.factoring, budget=room if plan.budget else 0)
        rest = partial(encoded, quant=plan.quant, embed_quant=plan.embed_quant)
        found.append(Compot(factoring, plan.calibration, rest))
    if plan.mixed and plan.calibration is not None:
        found.append(Mixed(room, plan.calibration))
    quantize = Quantize(plan.quant, plan.embed_quant, plan.calibration, plan.method)
    found.append(quantize)
    if plan.heal and plan.calibration is not None:
        found.append(Heal(HealOptions(plan.heal), plan.calibration, quantize))
    if draft is not None:
        found.append(Draft(draft, draft_quant(plan)))
    return (*found, Emit(), Verify(golden=options.golden))


def draft_quant(plan: Plan) -> str:
    """How the matrices of a draft part are stored: as embeddings are."""
    return ANEW if plan.kept else plan.embed_quant


class Pipeline:
    """One conversion of an open source."""

    def __init__(
        self, source: Source, options: Options, stages: Sequence[Stage] | None = None
    ) -> None:
        self.source, self.options = source, options
        self.given = stages
        self.seconds = {"read": 0.0}
        self.turned: dict[str, PartInProgress] = {}
        self.start = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def run(self) -> ConvertReport:
        """Convert. Raises ConvertError, ResourceError, and OSError of the output's disk."""
        out = self.options.out
        with self.timed("read"):
            plan = self.options.plan
            self.reading: Reading = read(self.source, kept=plan.kept, ends=plan.ends)
            self.parts = list(self.reading.parts)
            files = other_bytes(self.reading, draft_quant(plan))
            self.stages = self.given or stages_for(self.options, files, self.reading.draft)
            for stage in self.stages:
                if isinstance(stage, Heal | Linearize):
                    stage.check(self.reading)
            self.manifest()  # what no manifest can describe is refused before the work
        with BundleWriter(out) as writer:
            caches = self.open_caches()
            try:
                self.write(writer, caches)
            except BaseException as error:
                caches.leave(full := is_full(error))
                if full:
                    raise disk_full(out.parent, self.bytes_needed()) from error
                raise
            caches.remove()
            remove_folder(candidates_folder(out))  # of an `auto` that was stopped
        return self.report(caches.taken)

    def write(self, writer: BundleWriter, caches: StageCache) -> None:
        """All stages over all parts, then the manifest."""
        for stage in self.stages:
            with self.timed(stage.name):
                self.parts = [self.advance(stage, part, writer, caches) for part in self.parts]
        with self.timed("verify"):
            writer.finish(self.manifest())

    def advance(
        self, stage: Stage, part: PartInProgress, writer: BundleWriter, caches: StageCache
    ) -> PartInProgress:
        """A part after a stage, taken from the cache where an earlier run finished it."""
        found = caches.finished(part.name, stage.name)
        if found is not None:
            result, cache = found
            weights = {
                name: cache.reader(name) if name in cache.weights else part.weights[name]
                for name in result.graph.weights
            }
            after = part.replace(graph=result.graph, weights=weights)
            return self.noted(stage, after.reported(stage.name, **result.report))
        threads = self.options.threads or min(4, os.cpu_count() or 1)
        context = Context(
            part.name,
            stage.name,
            next(read for read in self.reading.parts if read.name == part.name),
            caches,
            writer,
            preview=lambda: writer.preview(self.manifest()),
            tokenizer=self.reading.tokenizer,
            template=self.reading.template,
            workers=lambda: open_workers(self.options.workers, self.options.cluster, local=threads),
            threads=threads,
            progress=self.options.progress,
            turned=self.turned.get(part.name),
        )  # fmt: skip
        after = stage.run(part, context)
        if set(after.weights) != set(after.graph.weights):
            raise ValueError(f"stage {stage.name!r}: weights are not those of the graph")
        if context.opened is not None:
            keep(stage, part, after, context.opened)
        return self.noted(stage, after)

    def noted(self, stage: Stage, after: PartInProgress) -> PartInProgress:
        """A part after a stage, remembered where that made another model of it."""
        if isinstance(stage, Linearize | ShareKV):
            self.turned[after.name] = after
        return after

    def bytes_needed(self) -> int:
        """What the whole conversion takes on disk, nearly."""
        stages = sum(stage.nbytes(part) for stage in self.stages for part in self.reading.parts)
        files = sum(len(data) for part in self.reading.parts for data in part.files.values())
        return stages + files + SLACK

    def open_caches(self) -> StageCache:
        """The stage cache beside the output, after a look at the disk."""
        out = self.options.out
        root = stage_folder(out)
        needed = self.bytes_needed()
        if shutil.disk_usage(out.parent).free + allocated(root) < needed:
            raise disk_full(out.parent, needed)
        return StageCache(root, self.keys(), resume=self.options.resume)

    def keys(self) -> dict[tuple[str, str], str]:
        """By part and stage: a hash of the source, and of all stages up to that one."""
        found = {}
        for part in self.reading.parts:
            key = key_of(
                sources=self.reading.hashes, format=FORMAT, edgert=own_version(),
                graph=part.graph.to_json().decode(), read=dict(part.reports.get("read", {})),
            )  # fmt: skip
            for stage in self.stages:
                key = key_of(before=key, stage=stage.name, options=dict(stage.key()))
                found[part.name, stage.name] = key
        return found

    def manifest(self) -> Manifest:
        """The manifest of the parts as they stand; the one place that knows its fields."""
        text, image = self.reading.text, self.reading.image
        if (text is None) == (image is None):
            raise ConvertError(
                f"{self.source.label} has no text part and makes no pictures, expected one of them",
                code="source-parts",
                hint="this edgert writes bundles of language models and of picture pipelines",
            )
        golden: list[Golden] = []
        parts, draft = {part.name: part.role for part in self.parts}, self.reading.draft
        parts |= {DRAFT: DRAFT} if draft is not None else {}
        for part in self.parts:
            golden += part.reports.get("verify", {}).get("golden", ())
        return Manifest(
            format=FORMAT,
            kind="text" if text is not None else "image",
            name=self.options.name,
            parts={name: Part(*part_files(name), role=role) for name, role in parts.items()},
            text=text.spec if text is not None else None,
            image=image.spec if image is not None else None,
            draft=draft.spec if draft is not None else None,
            provenance=provenance(self.command(), self.reading.hashes),
            golden=tuple(golden),
            report=self.manifest_report(),
        )

    def manifest_report(self) -> dict[str, Any]:
        """What was asked for, what each weight lost, and what other stages say by part."""
        notes = self.weight_reports()
        errors = {note.name: float(f"{note.error:.4g}") for note in notes if note.error}
        plan = self.options.plan
        report: dict[str, Any] = {
            "quant": plan.told[0],
            "embed_quant": plan.told[1],
            "method": plan.method,
            **({"calibration": plan.calibration.key()} if plan.calibration else {}),
            "relative_rms": errors,
        }
        others: dict[str, dict[str, Mapping[str, Any]]] = {}
        for part in self.parts:
            for stage, found in part.reports.items():
                if stage not in ("read", "quantize", "verify"):
                    found = {key: value for key, value in found.items() if key != "stored"}
                    others.setdefault(stage, {})[part.name] = found
        if others:
            report["stages"] = others
        if self.reading.text and self.reading.text.left_out:
            report["tokens_left_out"] = list(self.reading.text.left_out)
        return report

    def details(self) -> dict[str, Any]:
        """What stages report, of the first part that they did something for."""
        found: dict[str, Any] = {}
        for part in reversed(self.parts):
            for stage, report in part.reports.items():
                kept = {k: v for k, v in report.items() if k not in ("stored", "golden")}
                found |= {stage: kept} if stage not in ("read", "verify") else {}
        return found

    def command(self) -> str:
        """The command line that repeats this, without places of this machine."""
        asked = self.options
        options = asked.plan.options()
        if asked.name != self.source.name:
            options += ["--name", asked.name]
        options += self.source.options
        out = asked.label or asked.out.name
        return shlex.join(["edgert", "convert", self.source.label, "-o", out, *options])

    def weight_reports(self) -> list[WeightReport]:
        """Every weight as it is stored; with its part's name where there are several parts."""
        out = []
        for part in self.parts:
            errors = part.reports.get("quantize", {}).get("relative_rms", {})
            prefix = f"{part.name}/" if len(self.parts) > 1 else ""
            for name, weight in part.graph.weights.items():
                size, error = stored_nbytes({name: weight}), float(errors.get(name, 0.0))
                out.append(WeightReport(prefix + name, weight.shape, weight.encoding, size, error))
        return out

    def report(self, resumed: int) -> ConvertReport:
        asked, notes = self.options, self.weight_reports()
        devices = [
            part.reports["verify"]["device"] for part in self.parts if "verify" in part.reports
        ]
        return ConvertReport(
            path=str(asked.out),
            name=asked.name,
            family=self.source.family,
            quant=asked.plan.told[0],
            embed_quant=asked.plan.told[1],
            parameters=sum(math.prod(note.shape) for note in notes),
            source_bytes=self.source.nbytes,
            bundle_bytes=sum(f.stat().st_size for f in asked.out.rglob("*") if f.is_file()),
            seconds=time.perf_counter() - self.start,
            stages=self.seconds,
            peak_rss=peak_resident(),
            weights=tuple(notes),
            resumed=resumed,
            golden=devices[0] if devices else "none: pictures have none",
            left_out=self.reading.text.left_out if self.reading.text else (),
            details=self.details(),
        )


def stage_folder(out: Path) -> Path:
    """Where stages keep what they have done, beside the output."""
    return out.with_name(f"{out.name}.stage")


def candidates_folder(out: Path) -> Path:
    """Where `auto` makes its candidates."""
    return out.with_name(f"{out.name}.candidates")


def work_folders(out: Path) -> tuple[Path, ...]:
    """Both of them."""
    return stage_folder(out), candidates_folder(out)


def other_bytes(reading: Reading, draft: str = ANEW) -> int:
    """Bytes of a bundle besides the text part's weights, nearly: two times the graphs' leave room
    for factors and the manifest. draft: how a draft part is stored."""
    files = sum(len(data) for part in reading.parts for data in part.files.values())
    if reading.draft is not None:
        files += stored_nbytes(stored(reading.draft, draft).weights)
    return files + sum(2 * len(part.graph.to_json()) for part in reading.parts) + (1 << 16)


def is_full(error: BaseException) -> bool:
    """Whether a disk took no more."""
    if isinstance(error, ResourceError):
        return error.code == "disk-full"
    return isinstance(error, OSError) and error.errno in FULL


def keep(stage: Stage, before: PartInProgress, after: PartInProgress, cache: WeightCache) -> None:
    """Note a stage as done, so that the next run need not do it again."""
    foreign = [
        name
        for name, weight in after.weights.items()
        if name not in cache.weights and weight is not before.weights.get(name)
    ]
    if foreign:
        raise ValueError(f"stage {stage.name!r}: weights {foreign[:8]} are not in its cache")
    cache.complete(after.graph, after.reports.get(stage.name, {}))
