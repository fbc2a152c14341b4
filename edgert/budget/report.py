"""Verdicts and how they are told: a table, one JSON object, JUnit XML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import msgspec

from ..errors import RequestError, printable
from ..storage.typed import Reader
from .limits import LARGEST, Limit
from .statistics import Band

Outcome = Literal["pass", "fail", "undecided"]
SCHEMA = 1
SAMPLES = 200  # of a limit, at most
SMALLEST = 1e-12  # of a sample


class Verdict(msgspec.Struct, frozen=True):
    """A limit and what was found. value, low, high: in the limit's unit; None where nothing was
    found or the samples do not bound it. how: "measured" or "predicted". samples: the value of each
    burst, for comparing with a later run. why: what else is to be said."""

    name: str
    limit: float
    unit: str
    outcome: Outcome
    how: Literal["measured", "predicted"]
    tokens: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0
    samples: tuple[float, ...] = ()
    why: str = ""

    @property
    def label(self) -> str:
        return self.name if self.tokens is None else f"{self.name} at {self.tokens}"


class Report(msgspec.Struct, frozen=True):
    """What a run of tests found. conditions: provider, kv_bits (0: the model's own), what was
    emulated, how many cores others used."""

    schema: int
    bundle: str
    device: str
    verdicts: tuple[Verdict, ...]
    seconds: float
    conditions: dict[str, Any] = {}

    @property
    def outcome(self) -> Outcome:
        """fail where a limit is broken, undecided where none is but some is not decided."""
        found = {verdict.outcome for verdict in self.verdicts}
        return "fail" if "fail" in found else "undecided" if "undecided" in found else "pass"

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "outcome": self.outcome}


REPORT = Reader(Report)


def decide(limit: Limit, band: Band) -> Outcome:
    """pass where the whole interval keeps the limit, fail where none of it does."""
    low, high = limit.kept(band.low), limit.kept(band.high)
    return "pass" if low and high else "undecided" if low or high else "fail"


def verdict(
    limit: Limit, band: Band, how: Literal["measured", "predicted"], *, count: int = 0,
    samples: Sequence[float] = (), why: str = "", outcome: Outcome | None = None,
) -> Verdict:  # fmt: skip
    """The verdict on a limit from a value with its interval."""

    def known(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return Verdict(
        limit.name, limit.value, limit.metric.unit, outcome or decide(limit, band), how,
        limit.tokens, known(band.value), known(band.low), known(band.high), count,
        tuple(float(f"{x:.6g}") for x in samples), why,
    )  # fmt: skip


def missing(
    limit: Limit, how: Literal["measured", "predicted"], why: str, outcome: Outcome = "undecided"
) -> Verdict:
    """A limit whose value is not known."""
    return Verdict(limit.name, limit.value, limit.metric.unit, outcome, how, limit.tokens, why=why)


def lines(report: Report) -> list[str]:
    """The table that a person reads."""
    out = [f"{'limit':24} {'verdict':9} {'found':>10} {'interval':>22} {'allowed':>14}"]
    for found in report.verdicts:
        sign = "≥" if _least(found) else "≤"
        band = f"{_short(found.low)} to {_short(found.high)}"
        out.append(
            f"{found.label:24} {found.outcome:9} {_short(found.value):>10} {band:>22} "
            f"{f'{sign} {found.limit:g} {found.unit}':>14}"
            + (f"  {_line(found.why)}" if found.why else "")
        )
    how = "predicted" if any(v.how == "predicted" for v in report.verdicts) else "measured"
    mode = report.conditions.get("power_mode")
    in_mode = f", power mode {_line(str(mode))}" if mode else ""
    model, device = _line(report.bundle), _line(report.device)
    return [*out, f"{report.outcome}: {model} on {device}, {how}{in_mode}"]


def _line(text: str) -> str:
    """Text that a terminal shows in one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _least(found: Verdict) -> bool:
    from .limits import METRICS

    return found.name in METRICS and METRICS[found.name].least


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def junit(report: Report) -> bytes:
    """The report as JUnit XML, one case a limit; what is undecided is skipped, with the reason."""
    counts = {o: sum(v.outcome == o for v in report.verdicts) for o in ("fail", "undecided")}
    suite = ElementTree.Element(
        "testsuite", name=f"edgert test {printable(report.bundle)}",
        tests=str(len(report.verdicts)), failures=str(counts["fail"]),
        skipped=str(counts["undecided"]), errors="0",
        time=f"{report.seconds:.3f}",
    )  # fmt: skip
    if report.conditions:
        held = ElementTree.SubElement(suite, "properties")
        for name, value in report.conditions.items():
            told = {"name": printable(name), "value": printable(str(value))}
            ElementTree.SubElement(held, "property", told)
    for found in report.verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"edgert.{printable(report.device)}", name=found.label
        )
        said = (
            f"{found.how}: {_short(found.value)} ({_short(found.low)} to {_short(found.high)}) "
            f"{found.unit}, limit {found.limit:g}. {printable(found.why)}"
        )
        if found.outcome == "fail":
            ElementTree.SubElement(case, "failure", message=said)
        elif found.outcome == "undecided":
            ElementTree.SubElement(case, "skipped", message=said)
        ElementTree.SubElement(case, "system-out").text = said
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    out: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return out


def read_report(path: Path) -> Report:
    """A report that was written before; RequestError for anything else."""
    from .. import limits

    try:
        with path.open("rb") as file:
            data = file.read(limits.PROFILE_BYTES + 1)
        if len(data) > limits.PROFILE_BYTES:
            raise ValueError(f"more than {limits.PROFILE_BYTES} bytes")
        found = REPORT.decode(data)
        if found.schema != SCHEMA:
            raise ValueError(f"schema {found.schema}, expected {SCHEMA}")
        for verdict in found.verdicts:
            _check_samples(verdict)
        return found
    except OSError as error:
        said = str(error.strerror or error)
    except (ValueError, RecursionError) as error:
        said = str(error)[:200]
    raise RequestError(
        f"{path}: {said}, expected a report of `edgert test --json`",
        code="baseline",
        hint="write one with: edgert test BUNDLE --budget FILE --save --json > baseline.json",
    )


def _check_samples(found: Verdict) -> None:
    """ValueError for samples whose ratios are none."""
    if len(found.samples) > SAMPLES:
        raise ValueError(f"{len(found.samples)} samples of {found.label}, at most {SAMPLES}")
    for value in found.samples:
        if not SMALLEST <= value <= LARGEST:
            raise ValueError(f"a sample of {found.label} is {value:g}, a finite number above 0")
