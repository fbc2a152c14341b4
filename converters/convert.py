"""From a Hugging Face checkpoint to a bundle: read -> quantize -> emit -> verify.

    report = convert("path/to/checkpoint", "model.edge", quant="int4-g32")

Tensors stream: a few chunks of rows are in memory at a time. The bundle is written aside, verified
and renamed; a conversion that is killed leaves the old bundle, or none, and goes on where it was
when it is started again. Needs no torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.check import tensors_of
from ..bundle.manifest import FORMAT, Golden, Manifest, Part
from ..bundle.writer import BundleWriter
from ..errors import BundleError, ConvertError, ResourceError
from ..graph import Graph, Weight
from ..kernels.encodings import DEFAULT, ENCODINGS, EXACT, asked
from ..roles import vocab_size
from ..storage.safetensors import aligned_order, nbytes_of
from . import families
from .families.config import refused
from .golden import golden_answers, own_version, provenance
from .match import match_tensors
from .quantize.rtn import encode_weight
from .report import ConvertReport, WeightReport, peak_rss, relative
from .sources.hf import HfSource
from .sources.hf_text import Text, read_text
from .stage import FULL, Stage, disk_full, key_of

GRAPH_FILE, WEIGHTS_FILE = "model.graph.json", "weights.safetensors"
SLACK = 1 << 20  # bytes of manifest, journal and folders


def convert(
    source: str | Path,
    out: str | os.PathLike[str],
    *,
    quant: str = DEFAULT,
    embed_quant: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: bool = True,
    resume: bool = True,
    golden: bool = True,
    ignore_remote_code: bool = False,
    threads: int | None = None,
) -> ConvertReport:
    """Convert a checkpoint directory or hub id into the bundle `out`.

    quant: f32, f16, int8(-g32) or int4(-g32) for matrices. embed_quant: for the embedding and the
    head (default: int8-g32 where `quant` is int8 or int4, else `quant`). force: replace an existing
    bundle. resume: go on from an earlier run's stage cache. golden: store answers to two prompts.
    Raises ConvertError for checkpoints that cannot be converted (one error lists all faults),
    ResourceError for a full disk or a bundle that another process is writing.
    """
    quant, embed_quant = encodings_asked(quant, embed_quant)
    if threads is not None and threads < 1:
        raise ConvertError(f"threads is {threads}, expected 1 or more", code="threads")
    out = Path(os.path.abspath(out))
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConvertError(
            f"{out} exists, expected a new name",
            code="output-exists",
            hint="choose another name, or replace it with --force (force=True)",
        )
    with HfSource(source, ignore_remote_code=ignore_remote_code) as checkpoint:
        job = _Job(checkpoint, out, quant, embed_quant, name or checkpoint.name)
        with _told(out):
            return job.run(progress=progress, resume=resume, golden=golden, threads=threads)


def encodings_asked(quant: str, embed_quant: str | None) -> tuple[str, str]:
    """Canonical encodings of matrices and of embedding and head."""
    known = asked()
    for name in (quant, embed_quant):
        if name is not None and name not in known:
            raise ConvertError(
                f"quantization {name!r} is unknown, expected one of {sorted(known)}",
                code="quant",
                hint=f"{DEFAULT} is the default",
            )
    quant = known[quant]
    return quant, ENCODINGS[quant].ends or quant if embed_quant is None else known[embed_quant]


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Errors of the file system, in our words."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{out} could not be written: {error.strerror or error}, expected a writable place "
            f"with enough room ({error.filename or out.parent})",
            code="disk-full" if error.errno in FULL else "write",
            hint="free some space, or write to another disk or folder; the old bundle, if any, is "
            "untouched",
        ) from error


def encoded(graph: Graph, quant: str, embed_quant: str) -> Graph:
    """The graph with its weights as wanted, f32 where that encoding is not for their rank."""
    ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    ends.add([n for n in graph.nodes if n.op == "linear"][-1].weights["weight"])
    weights = {}
    for name, w in graph.weights.items():
        wanted = embed_quant if name in ends else quant
        fits = len(w.shape) in ENCODINGS[wanted].ranks
        weights[name] = Weight(w.shape, wanted if fits else EXACT)
    return graph.replace(weights=weights)


class _Job:
    """One conversion: what is read, what is written, and the clock."""

    def __init__(
        self, source: HfSource, out: Path, quant: str, embed_quant: str, name: str
    ) -> None:
        self.source, self.out, self.name = source, out, name
        self.quant, self.embed_quant = quant, embed_quant
        self.stages: dict[str, float] = {}
        self.start = time.perf_counter()
        self.resumed = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - start

    def run(
        self, *, progress: bool, resume: bool, golden: bool, threads: int | None
    ) -> ConvertReport:
        with self.stage("read"):
            self.read()
        with BundleWriter(self.out) as writer:
            cache = self.open_stage(resume=resume)
            try:
                with self.stage("quantize"):
                    notes = self.quantize(cache, progress=progress, threads=threads)
                with self.stage("emit"):
                    self.emit(writer, cache)
                with self.stage("verify"):
                    answers, device = self.verify(writer, golden=golden)
                    self.finish(writer, notes, answers)
            except OSError as error:
                cache.close()
                if error.errno in FULL:
                    cache.remove()
                    raise disk_full(self.out.parent, self.bytes_needed()) from error
                raise
            except BaseException:
                cache.close()
                raise
            cache.remove()
        return self.report(notes, device)

    def read(self) -> None:
        """Graph, tensors and text; one error for everything that does not fit."""
        source = self.source
        faults = list(source.faults)
        self.model = families.plan(source.config, faults)
        text = read_text(source, vocab_size(self.model.graph), faults)
        faults += source.check_index() + match_tensors(self.model, source.tensors)
        if faults or text is None:
            raise refused(faults)
        self.text: Text = text
        self.check_tokenizer()
        self.model.graph.shapes()
        self.graph = encoded(self.model.graph, self.quant, self.embed_quant)
        self.specs = aligned_order(
            {t: s for name, w in self.graph.weights.items() for t, s in tensors_of(name, w).items()}
        )
        self.hashes = source.hashes()

    def check_tokenizer(self) -> None:
        """Build the tokenizer once, as loading will, before any work is done."""
        from ..text.tokenizer import Tokenizer

        spec = self.text.spec
        path = self.source.path / spec.tokenizer
        try:
            self.tokenizer = Tokenizer(
                self.text.files[spec.tokenizer],
                vocab_size=spec.vocab_size,
                eos_token_ids=spec.eos_token_ids,
                bos_token_id=spec.bos_token_id,
                add_bos=spec.add_bos,
                special=spec.special.values(),
                where=str(path),
            )
        except BundleError as error:
            raise ConvertError(
                error.message,
                code=error.code,
                hint="take the tokenizer files that belong to these weights",
            ) from None

    def bytes_needed(self) -> int:
        """Size of the bundle, nearly."""
        weights = sum(nbytes_of(dtype, shape) for dtype, shape in self.specs.values())
        return weights + sum(map(len, self.text.files.values())) + SLACK

    def open_stage(self, *, resume: bool) -> Stage:
        """The stage cache beside the output, after a look at the disk."""
        folder = self.out.with_name(f"{self.out.name}.stage")
        key = key_of(
            sources=self.hashes, quant=self.quant, embed=self.embed_quant, format=FORMAT,
            edgert=own_version(), graph=self.graph.to_json().decode(),
        )  # fmt: skip
        reusable = sum(f.stat().st_blocks * 512 for f in folder.glob("*")) if _blocks else 0
        if shutil.disk_usage(self.out.parent).free + reusable < self.bytes_needed():
            raise disk_full(self.out.parent, self.bytes_needed())
        return Stage(folder, key, self.specs, resume=resume)

    def quantize(self, cache: Stage, *, progress: bool, threads: int | None) -> list[WeightReport]:
        """All weights into the stage cache."""
        from tqdm import tqdm

        workers = threads or min(4, os.cpu_count() or 1)
        total = sum(nbytes_of(*spec) for spec in self.specs.values())
        bar = tqdm(
            total=total, unit="B", unit_scale=True, desc="quantize",
            disable=None if progress else True,
        )  # fmt: skip
        with bar, ThreadPoolExecutor(workers, "edgert-convert") as pool:
            return [self.weight(name, cache, pool, workers + 2, bar) for name in self.graph.weights]

    def weight(
        self, name: str, cache: Stage, pool: ThreadPoolExecutor, ahead: int, bar: Any
    ) -> WeightReport:
        """One weight, or its record where an earlier run finished it."""
        declared = self.graph.weights[name]
        specs = tensors_of(name, declared)
        nbytes = sum(nbytes_of(*spec) for spec in specs.values())
        record = cache.done(name, list(specs))
        if record is None:
            lost = power = 0.0
            pieces = encode_weight(
                name, self.model.tensors[name], declared.encoding, self.source.tensors, pool,
                ahead=ahead,
            )  # fmt: skip
            for piece in pieces:
                for suffix, array in piece.arrays.items():
                    cache.write(name + suffix, array)
                    bar.update(array.nbytes)
                lost, power = lost + piece.lost, power + piece.power
            note = {"error": relative(lost, power)}
            cache.finish(name, list(specs), note)
        else:
            self.resumed += 1
            note = record.note
            bar.update(nbytes)
        return WeightReport(
            name, declared.shape, declared.encoding, nbytes, float(note.get("error", 0.0))
        )

    def emit(self, writer: BundleWriter, cache: Stage) -> None:
        """Every file of the bundle but the manifest."""
        writer.file(GRAPH_FILE).write_bytes(self.graph.to_json())
        for file, data in (self.text.files | self.source.papers).items():
            writer.file(file).write_bytes(data)
        cache.deliver(writer.file(WEIGHTS_FILE))

    def manifest(self) -> Manifest:
        return Manifest(
            format=FORMAT,
            kind="text",
            name=self.name,
            parts={"model": Part(GRAPH_FILE, WEIGHTS_FILE)},
            text=self.text.spec,
            provenance=provenance(self.command(), self.hashes),
        )

    def command(self) -> str:
        """The command line that repeats this, without places of this machine."""
        options = ["--quant", self.quant, "--embed-quant", self.embed_quant]
        if self.name != self.source.name:
            options += ["--name", self.name]
        if self.source.ignored_code:
            options.append("--ignore-remote-code")
        return shlex.join(["edgert", "convert", self.source.label, "-o", self.out.name, *options])

    def verify(self, writer: BundleWriter, *, golden: bool) -> tuple[tuple[Golden, ...], str]:
        """Open what was written, answer the golden prompts."""
        with writer.preview(self.manifest()) as bundle:
            if not golden:
                return (), "not asked for"
            return golden_answers(bundle, self.tokenizer)

    def finish(
        self, writer: BundleWriter, notes: list[WeightReport], answers: tuple[Golden, ...]
    ) -> None:
        """The final manifest; verified once more and put in place."""
        report: dict[str, Any]
        errors = {note.name: float(f"{note.error:.4g}") for note in notes if note.error}
        report = {"quant": self.quant, "embed_quant": self.embed_quant, "relative_rms": errors}
        if self.text.left_out:
            report["tokens_left_out"] = list(self.text.left_out)
        writer.finish(self.manifest().replace(golden=answers, report=report))

    def report(self, notes: list[WeightReport], device: str) -> ConvertReport:
        files = [shard.path for shard in self.source.checkpoint.shards]
        return ConvertReport(
            path=str(self.out),
            name=self.name,
            family=str(self.source.config["model_type"]),
            quant=self.quant,
            embed_quant=self.embed_quant,
            parameters=sum(int(np.prod(note.shape)) for note in notes),
            source_bytes=sum(file.stat().st_size for file in files),
            bundle_bytes=sum(f.stat().st_size for f in self.out.rglob("*") if f.is_file()),
            seconds=time.perf_counter() - self.start,
            stages=self.stages,
            peak_rss=peak_rss(),
            weights=tuple(notes),
            resumed=self.resumed,
            golden=device,
            left_out=self.text.left_out,
        )


_blocks = hasattr(os.stat_result, "st_blocks")
