"""Reading what `edgert frontier fit -o` writes: a frontier a task, in a JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .. import limits
from ..errors import RequestError
from .frontier import B_HIGH, B_LOW, FRONTIER, Frontier, Theta

SCHEMA = 1
UNIT = "flops"  # of compute, whose log10 is z: the only unit that scores are asked in
WIDEST = 60.0  # log10 of any compute
SLACK = 1e-6  # of bounds that a fit may end at


def read_fit(path: Path, task: str | None = None) -> Frontier:
    """The frontier of a task in a file of fits, of the first one for None. RequestError with what
    is wrong."""
    fits = _fits(path)
    if task is not None and task not in fits:
        raise _wrong(path, f"no task {task[:60]!r} among {[*fits][:12]}")
    name = task if task is not None else next(iter(fits))
    try:
        found = FRONTIER.convert(fits[name])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _wrong(path, f"{name[:60]!r}: {str(error)[:200]}") from None
    if faults := list(_faults(found)):
        raise _wrong(path, f"{name[:60]!r}: {'; '.join(faults[:6])}")
    return found


def _fits(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.TABLE_BYTES + 1)
    except OSError as error:
        raise _wrong(path, str(error.strerror or error)) from None
    if len(data) > limits.TABLE_BYTES:
        raise _wrong(path, f"more than {limits.TABLE_BYTES} bytes")
    try:
        found = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"no JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict) or not isinstance(fits := found.get("fits"), dict) or not fits:
        raise _wrong(path, "it holds none")
    if (schema := found.get("schema", SCHEMA)) != SCHEMA:
        raise _wrong(path, f"its schema is {str(schema)[:40]}, and {SCHEMA} is known here")
    return fits


def _faults(found: Frontier) -> Iterator[str]:
    """What is wrong with a frontier whose keys and types are right."""
    if found.z_unit != UNIT:
        yield f"z_unit is {found.z_unit[:40]!r}, expected {UNIT!r}"
    low, high = found.z_range
    if not -WIDEST <= low < high <= WIDEST:
        yield f"z_range is {low:g} to {high:g}, expected two values of log10 compute, rising"
    for at, theta in (("theta", found.theta), *(("a draw", draw) for draw in found.draws)):
        if said := _wrong_theta(theta, low, high):
            yield f"{at} has {said}"
            break
    if not 0 < found.tau < 1:
        yield f"tau is {found.tau:g}, expected more than 0 and less than 1"
    if not -1 <= found.shift <= 1:
        yield f"shift is {found.shift:g}, expected -1 to 1"
    for name in ("kappa", "penalty"):
        if not 0 <= (value := getattr(found, name)) <= 1e9:
            yield f"{name} is {value:g}, expected 0 or more"
    if found.count < 0:
        yield f"count is {found.count}, expected 0 or more"


def _wrong_theta(theta: Theta, low: float, high: float) -> str:
    """What of y0, L, z*, ln b is out of the bounds of a fit, "" for nothing."""
    y0, height, middle, slope = theta
    if not -SLACK <= y0 <= 1 + SLACK:
        return f"y0 {y0:g}, expected 0 to 1"
    if not -SLACK <= height <= 1 - y0 + SLACK:
        return f"L {height:g}, expected 0 to 1 - y0"
    if not low - SLACK <= middle <= high + SLACK:
        return f"z* {middle:g}, expected it within z_range"
    if not math.log(B_LOW) - SLACK <= slope <= math.log(B_HIGH) + SLACK:
        return f"ln b {slope:g}, expected {math.log(B_LOW):.3g} to {math.log(B_HIGH):.3g}"
    return ""


def _wrong(path: Path, what: str) -> RequestError:
    return RequestError(
        f"{path}: {what}; expected fits of `edgert frontier fit -o`",
        code="plan-frontier", hint="edgert frontier fit TABLE.csv -o FILE",
    )  # fmt: skip
