"""From a checkpoint to a bundle: read -> quantize -> emit -> verify.

    report = convert("path/to/checkpoint", "model.edge", quant="int4-g32")

Tensors stream: a few chunks of rows are in memory at a time. The bundle is written aside, verified
and renamed; a conversion that is killed leaves the old bundle, or none, and goes on where it was
when it is started again. Needs no torch.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import limits, system_memory
from ..bundle.reader import Bundle
from ..bundle.writer import check_place
from ..errors import ConvertError, EdgertError, ResourceError
from ..extras import require
from ..notices import NOTICE, notice
from ..storage.aside import FULL
from .auto import best
from .calibrate import Calibration
from .linearize import LinearizeOptions
from .pipeline import Options, Pipeline, work_folders
from .quality import held_sequences, of_bundle, of_source
from .recipes import (
    Asked,
    Plan,
    check_types,
    for_pictures,
    is_auto,
    is_kept,
    resolve,
    taken_over,
)
from .report import ConvertReport
from .report_page import check_target, write_report
from .sources.base import Source, open_source
from .stages.read import read
from .weights import stored_nbytes
from .workers import check as check_workers


def convert(
    source: str | Path,
    out: str | os.PathLike[str],
    *,
    quant: str | None = None,
    embed_quant: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: bool = True,
    resume: bool = True,
    golden: bool = True,
    ignore_remote_code: bool = False,
    adapters: Sequence[str | os.PathLike[str]] = (),
    threads: int | None = None,
    recipe: str | None = None,
    method: str | None = None,
    calibration: Calibration | None = None,
    compot: float | None = None,
    budget_mb: float | None = None,
    heal: int = 0,
    linearize: LinearizeOptions | None = None,
    kv_share: int = 0,
    workers: int = 1,
    cluster: str | None = None,
    report: str | os.PathLike[str] | None = None,
) -> ConvertReport:
    """Convert a language model or diffusers' pipeline (a directory or hub id) into a bundle, `out`.

    quant: f32, f16, or int2 to int8 for matrices, or "mixed" (default int4-g32; codes of a source
    stay). embed_quant: for embedding and head (default: int8-g32 beside codes). recipe: see
    `recipes.py`. method: "rtn", "hqq", or "gptq", which chooses codes by what products read on
    `calibration` (default: a sample). compot: a ratio. heal: tokens of distillation. linearize,
    kv_share: see there. budget_mb: megabytes. adapters: folders of LoRA adapters, merged. workers,
    cluster: processes, or a dask scheduler. force: replace a bundle. golden: store two answers.
    Under torchrun all ranks call it, nothing is resumed. Raises ConvertError that lists all faults,
    ResourceError for a full or busy disk.
    """
    asked = Asked(
        recipe, quant, embed_quant, method, compot, budget_mb, heal, calibration, linearize,
        kv_share,
    )  # fmt: skip
    wanted, plan = _planned(asked)
    _check(threads, workers, name, cluster, report)
    out = free_place(out, force=force)
    ranks, follows = _ranks() if heal or linearize else (1, False)
    opened = open_source(source, ignore_remote_code=ignore_remote_code, adapters=adapters)
    with opened, place(out, aside=follows) as out:
        if opened.kind == "image":
            wanted, plan = None, _picture_plan(asked, report)
        elif _is_kept(opened, asked):
            plan = taken_over(asked)
        options = Options(
            out, name or opened.name, plan,
            progress=progress and not follows, resume=resume and ranks == 1, golden=golden,
            threads=threads, workers=workers, cluster=cluster,
        )  # fmt: skip
        with told_where_work_stays(*work_folders(out)), translated_os_errors(out):
            if report is None or follows:
                return made(opened, options, wanted)
            return reported(opened, options, wanted, Path(report))


def _ranks() -> tuple[int, bool]:
    """How many processes torchrun started, and whether this one follows the first."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return count, count > 1 and int(os.environ.get("RANK", "0")) > 0


def _planned(asked: Asked) -> tuple[Asked | None, Plan]:
    """What `auto` tries, if it is asked for, and the plan of a conversion without it."""
    wanted = asked if is_auto(asked) else None
    plain = replace(asked, recipe=None, budget_mb=None, calibration=None)
    return wanted, resolve(plain if wanted else asked)


def _is_kept(source: Source, asked: Asked) -> bool:
    """Whether what a source has in codes is taken over."""
    return bool(getattr(source, "taken_over", False)) and is_kept(asked)


def _picture_plan(asked: Asked, report: Any) -> Plan:
    """The plan of a picture pipeline. Raises ConvertError for options that need a text."""
    if report is not None:
        raise ConvertError(
            f"--report {report} for a picture pipeline, expected a language model",
            code="picture-option",
            hint="its page compares answers to text; convert without it",
        )
    return resolve(for_pictures(asked))


@contextmanager
def place(out: Path, *, aside: bool) -> Iterator[Path]:
    """Where to write: a folder that is removed again, for ranks that only take part. After an error
    no new empty folders stay."""
    if not aside:
        with without_new_folders(out):
            yield out
        return
    with tempfile.TemporaryDirectory(prefix="edgert-rank-") as folder:
        yield Path(folder) / out.name


def free_place(wanted: str | os.PathLike[str], *, force: bool) -> Path:
    """The output's place. Raises ConvertError where something is there that shall stay, or that is
    no bundle."""
    if not os.fspath(wanted):
        raise ConvertError("the output is an empty path, expected a new folder", code="output")
    out = Path(os.path.abspath(wanted))
    check_place(out)
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConvertError(
            f"{out} exists, expected a new name",
            code="output-exists",
            hint="choose another name, or replace it with --force (force=True)",
        )
    return out


def _check(threads: Any, workers: Any, name: Any, cluster: Any, report: Any) -> None:
    """Raise ConvertError for options of wrong types, and numbers that are none."""
    check_types(
        threads=(threads, int, "a number"), workers=(workers, int, "a number"),
        name=(name, str, "a text"), cluster=(cluster, str, "an address"),
        report=(report, (str, os.PathLike), "a folder"),
    )  # fmt: skip
    for what, count, most in (("threads", threads, limits.THREADS),
                              ("workers", workers, limits.WORKERS)):  # fmt: skip
        if count is not None and not 1 <= count <= most:
            raise ConvertError(f"{what} is {str(count)[:80]}, expected 1 to {most}", code=what)
    if name == "":
        raise ConvertError("name is an empty text, expected the model's name", code="name")
    check_workers(workers, cluster)


def made(source: Source, options: Options, automatic: Asked | None) -> ConvertReport:
    """The bundle."""
    if automatic is not None:
        return best(source, options, automatic)
    return Pipeline(source, options).run()


def reported(
    source: Source, options: Options, automatic: Asked | None, folder: Path
) -> ConvertReport:
    """Convert, measure before and after, and write the page."""
    require("matplotlib", "an HTML report", ConvertError)
    check_target(folder, options.out)
    given = automatic.calibration if automatic else options.plan.calibration
    calibration = given or Calibration.sample()
    found = made(source, options, automatic)
    reading = read(source)
    held = held_sequences(reading, calibration)
    threads = options.threads
    after = of_bundle(Path(found.path), reading.tokenizer, held, threads)
    before = [of_source(part, held, threads) for part in reading.parts if part.role == "text"]
    perplexity = {
        "before": math.exp(before[0]), "after": math.exp(after.nats),
        "tokens": sum(len(ids) - 1 for ids in held), "text": calibration.name,
    }  # fmt: skip
    found = found.replaced(details={**found.details, "perplexity": perplexity})
    with Bundle.open(found.path) as bundle:
        manifest = bundle.manifest
    parts = {name: stored_nbytes(bundle.graph(name).weights) for name in manifest.parts}
    told = manifest.provenance
    data = {
        **found.to_dict(),
        "source": source.label,
        "command": told.command if told else "",
        "bytes_by_part": parts,
        "layers": found.details.get("compot", {}).get("layers", ()),
        "perplexity": perplexity,
    }
    write_report(folder, data)
    return found


@contextmanager
def told_where_work_stays(*folders: Path) -> Iterator[None]:
    """Errors that say which of these folders hold what is done, for the next run to take over."""
    try:
        yield
    except BaseException as error:
        if left := " and ".join(str(folder) for folder in folders if folder.is_dir()):
            said = f"what is done stays in {left}: the same command goes on from there"
            if isinstance(error, EdgertError):
                error.hint = f"{error.hint}; {said}" if error.hint else said
            else:
                notice(said, NOTICE)
        raise


@contextmanager
def without_new_folders(out: Path) -> Iterator[None]:
    """After an error, folders above `out` that were not there before, and hold nothing, are
    removed."""
    new = [folder for folder in out.parents if not folder.exists()]  # the innermost first
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):  # it was never made, or holds something
                folder.rmdir()
        raise


@contextmanager
def translated_os_errors(out: Path) -> Iterator[None]:
    """Errors of the file system, and of memory, as ResourceError."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"out of memory: {error or 'the system gave no more'}; "
            f"{system_memory.free() / 1e9:.2f} GB are available",
            code="memory",
            hint="close other programs, use fewer threads, or convert where there is more memory",
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{out} could not be written: {error.strerror or error}, expected a writable place "
            f"with enough room ({error.filename or out.parent})",
            code="disk-full" if error.errno in FULL else "write",
            hint="free some space, or write to another disk or folder; the old bundle, if any, is "
            "untouched",
        ) from error
