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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import FORMAT, Golden, Manifest, Part
from ..bundle.writer import BundleWriter
from ..errors import ConvertError, ResourceError
from ..storage.aside import FULL
from ..system_memory import peak_resident
from .calibrate import Calibration
from .golden import own_version, provenance
from .report import ConvertReport, WeightReport
from .sources.base import Source
from .stages.base import Context, PartInProgress, Stage
from .stages.cache import StageCache, allocated, disk_full, key_of
from .stages.emit import Emit, part_files
from .stages.quantize import Quantize
from .stages.read import Reading, read
from .stages.verify import Verify
from .stages.weight_cache import WeightCache
from .weights import stored_nbytes

SLACK = 1 << 20  # bytes of manifest, journal and folders


@dataclass(frozen=True)
class Options:
    """What was asked for; see `convert`. out: absolute. quant, embed_quant: canonical."""

    out: Path
    name: str
    quant: str
    embed_quant: str
    progress: bool = True
    resume: bool = True
    golden: bool = True
    threads: int | None = None
    calibration: Calibration | None = None


def stages_for(options: Options) -> tuple[Stage, ...]:
    """The stages after reading, in order: one row each."""
    return (
        Quantize(options.quant, options.embed_quant, options.calibration),
        Emit(),
        Verify(golden=options.golden),
    )


class Pipeline:
    """One conversion of an open source."""

    def __init__(
        self, source: Source, options: Options, stages: Sequence[Stage] | None = None
    ) -> None:
        self.source, self.options = source, options
        self.stages = stages_for(options) if stages is None else tuple(stages)
        self.seconds = dict.fromkeys(["read", *(stage.name for stage in self.stages)], 0.0)
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
            self.reading: Reading = read(self.source)
            self.parts = list(self.reading.parts)
            self.sources = {part.name: part for part in self.parts}
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
            return after.reported(stage.name, **result.report)
        context = Context(
            part.name, stage.name, self.sources[part.name], caches, writer,
            preview=lambda: writer.preview(self.manifest()),
            tokenizer=self.reading.tokenizer,
            threads=self.options.threads or min(4, os.cpu_count() or 1),
            progress=self.options.progress,
        )  # fmt: skip
        after = stage.run(part, context)
        if set(after.weights) != set(after.graph.weights):
            raise ValueError(f"stage {stage.name!r}: weights are not those of the graph")
        if context.opened is not None:
            keep(stage, part, after, context.opened)
        return after

    def bytes_needed(self) -> int:
        """What the whole conversion takes on disk, nearly."""
        stages = sum(stage.nbytes(part) for stage in self.stages for part in self.reading.parts)
        files = sum(len(data) for part in self.reading.parts for data in part.files.values())
        return stages + files + SLACK

    def open_caches(self) -> StageCache:
        """The stage cache beside the output, after a look at the disk."""
        out = self.options.out
        root = out.with_name(f"{out.name}.stage")
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
                graph=part.graph.to_json().decode(),
            )  # fmt: skip
            for stage in self.stages:
                key = key_of(before=key, stage=stage.name, options=dict(stage.key()))
                found[part.name, stage.name] = key
        return found

    def manifest(self) -> Manifest:
        """The manifest of the parts as they stand; the one place that knows its fields."""
        text = self.reading.text
        if text is None:
            raise ConvertError(
                f"{self.source.label} has no text part, expected one",
                code="source-parts",
                hint="this edgert writes bundles of language models",
            )
        golden: list[Golden] = []
        for part in self.parts:
            golden += part.reports.get("verify", {}).get("golden", ())
        return Manifest(
            format=FORMAT,
            kind="text",
            name=self.options.name,
            parts={part.name: Part(*part_files(part.name), role=part.role) for part in self.parts},
            text=text.spec,
            provenance=provenance(self.command(), self.reading.hashes),
            golden=tuple(golden),
            report=self.manifest_report(),
        )

    def manifest_report(self) -> dict[str, Any]:
        """What was asked for, what each weight lost, and what other stages say by part."""
        notes = self.weight_reports()
        errors = {note.name: float(f"{note.error:.4g}") for note in notes if note.error}
        report: dict[str, Any] = {
            "quant": self.options.quant,
            "embed_quant": self.options.embed_quant,
            **({"gptq": calibration.key()} if (calibration := self.options.calibration) else {}),
            "relative_rms": errors,
        }
        others: dict[str, dict[str, Mapping[str, Any]]] = {}
        for part in self.parts:
            for stage, found in part.reports.items():
                if stage not in ("quantize", "verify"):
                    others.setdefault(stage, {})[part.name] = found
        if others:
            report["stages"] = others
        if self.reading.text and self.reading.text.left_out:
            report["tokens_left_out"] = list(self.reading.text.left_out)
        return report

    def command(self) -> str:
        """The command line that repeats this, without places of this machine."""
        asked = self.options
        options = ["--quant", asked.quant, "--embed-quant", asked.embed_quant]
        if asked.calibration is not None:
            options += ["--method", "gptq", "--calibration", "TEXT"]
            options += ["--sequences", str(asked.calibration.sequences)]
        if asked.name != self.source.name:
            options += ["--name", asked.name]
        options += self.source.options
        return shlex.join(["edgert", "convert", self.source.label, "-o", asked.out.name, *options])

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
            quant=asked.quant,
            embed_quant=asked.embed_quant,
            parameters=sum(math.prod(note.shape) for note in notes),
            source_bytes=self.source.nbytes,
            bundle_bytes=sum(f.stat().st_size for f in asked.out.rglob("*") if f.is_file()),
            seconds=time.perf_counter() - self.start,
            stages=self.seconds,
            peak_rss=peak_resident(),
            weights=tuple(notes),
            resumed=resumed,
            golden=devices[0] if devices else "no text part",
            left_out=self.reading.text.left_out if self.reading.text else (),
        )


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
