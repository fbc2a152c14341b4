"""Tables of scores as CSV files: a row a model.

    model_id,base_id,released,params,pretrain_tokens,post_trained,gpqa,musr
    a-chat,a,2024-08-01,7e9,2e12,true,0.31,0.42

Every other column is a task: scores in [0, 1], or in percent, where all of a column that is above 1
is at most 100. Rows without parameters, tokens or a score are left out for that task and counted.
A line has as many fields as there are columns: of a decimal comma one would be left over.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import limits
from ..errors import RequestError
from .loss import F64

COLUMNS = ("model_id", "base_id", "released", "params", "pretrain_tokens", "post_trained")
# P1 to P4 of arXiv 2602.15327: the first day that is no more of a period
PERIODS = {"P1": "2024-07-01", "P2": "2024-10-01", "P3": "2025-01-01", "P4": "2025-04-01"}
LAST = PERIODS["P4"]
Lines = list[tuple[int, dict[str, str]]]  # of a file: the number of each, and its fields


class Row(msgspec.Struct, frozen=True):
    """A model. flops: 6 N D of its base. scores: by task, those that are known."""

    model: str
    base: str
    released: date
    flops: float | None
    post_trained: bool
    scores: dict[str, float]


class Table(msgspec.Struct, frozen=True):
    """Rows, tasks, and how many rows each task lacks."""

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    dropped: dict[str, int]

    def points(self, task: str, *, post_trained: bool | None = True) -> tuple[F64, F64, F64]:
        """z = log10 FLOPs, scores, and base numbers of the rows that have all; post_trained: of
        those alone, of base models alone, None for all."""
        bases = {row.base: i for i, row in enumerate(self.rows)}
        found = [
            (math.log10(row.flops), row.scores[task], bases[row.base])
            for row in self.rows
            if row.flops and task in row.scores
            and (post_trained is None or row.post_trained == post_trained)
        ]  # fmt: skip
        array = np.array(found, np.float64).reshape(-1, 3)
        return array[:, 0], array[:, 1], array[:, 2]

    def periods(self) -> dict[str, dict[str, tuple[F64, F64, F64]]]:
        """Points of each task by period of release, in order of time; `later` rows are in none."""
        ends = [(name, date.fromisoformat(day)) for name, day in PERIODS.items()]
        out = {}
        for index, (name, end) in enumerate(ends):
            start = ends[index - 1][1] if index else date.min
            rows = tuple(r for r in self.rows if start <= r.released < end)
            part = msgspec.structs.replace(self, rows=rows)
            out[name] = {task: part.points(task) for task in self.tasks}
        return out

    def later(self) -> int:
        """Rows that were released after the last period."""
        end = date.fromisoformat(LAST)
        return sum(1 for row in self.rows if row.released >= end)


def read_table(path: Path) -> Table:
    """The table in a CSV file. RequestError with what is wrong and in which line."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.TABLE_BYTES + 1)
    except OSError as error:
        raise _wrong(path, f"{error.strerror or error}, expected a CSV file") from None
    if len(data) > limits.TABLE_BYTES:
        raise _wrong(path, f"more than {limits.TABLE_BYTES} bytes")
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        names = [name or "" for name in reader.fieldnames or ()]
        lines: Lines = [(reader.line_num, line) for line in reader]
    except (ValueError, csv.Error) as error:
        raise _wrong(path, f"no CSV in UTF-8: {str(error)[:120]}") from None
    lacking = [name for name in COLUMNS if name not in names]
    tasks = tuple(name for name in names if name not in COLUMNS)
    if lacking or not tasks or len(set(names)) != len(names):
        raise _wrong(
            path, f"columns {names[:12]}, expected {list(COLUMNS)} and one or more tasks, each once"
        )
    _check_lengths(path, lines, len(names))
    scales = {task: _scale(path, task, lines) for task in tasks}
    rows = tuple(_row(path, number, line, scales) for number, line in lines)
    dropped = {
        task: sum(1 for row in rows if row.flops is None or task not in row.scores)
        for task in tasks
    }
    return Table(rows, tasks, dropped)


def _check_lengths(path: Path, lines: Lines, count: int) -> None:
    """Every line has a field a column; csv.DictReader keeps what is left over under None."""
    for number, line in lines:
        over: Any = line.get(None, ())  # type: ignore[call-overload]
        found = sum(1 for k, v in line.items() if k is not None and v is not None) + len(over)
        if found != count:
            raise _wrong(
                path,
                f"line {number} has {found} fields, expected {count}: decimals have a point, a "
                "text with a comma stands in quotes",
            )


def _scale(path: Path, task: str, lines: Lines) -> float:
    """What a task's scores are divided by."""
    most = max((v for _, v in _values(path, task, lines)), default=0.0)
    return 100.0 if most > 1 else 1.0


def _values(path: Path, name: str, lines: Lines) -> Iterator[tuple[int, float]]:
    for number, line in lines:
        value = _number(path, number, line, name)
        if value is not None:
            if not 0 <= value <= 100:
                raise _wrong(path, f"line {number}: {name} is {value:g}, expected 0 to 1 or to 100")
            yield number, value


def _row(path: Path, number: int, line: dict[str, str], scales: dict[str, float]) -> Row:
    params, tokens = (_number(path, number, line, n) for n in ("params", "pretrain_tokens"))
    for name, value in (("params", params), ("pretrain_tokens", tokens)):
        if value is not None and value <= 0:
            raise _wrong(path, f"line {number}: {name} is {value:g}, expected more than 0")
    try:
        released = date.fromisoformat((line["released"] or "").strip())
    except ValueError:
        raise _wrong(
            path, f"line {number}: released is {line['released']!r}, expected YYYY-MM-DD"
        ) from None
    truth = (line["post_trained"] or "").strip().lower()
    if truth not in ("true", "false", "1", "0", "yes", "no"):
        raise _wrong(path, f"line {number}: post_trained is {truth!r}, expected true or false")
    scores = {}
    for task, scale in scales.items():
        value = _number(path, number, line, task)
        if value is not None:
            scores[task] = value / scale
    return Row(
        (line["model_id"] or "").strip(), (line["base_id"] or "").strip(), released,
        6 * params * tokens if params and tokens else None, truth in ("true", "1", "yes"), scores,
    )  # fmt: skip


def _number(path: Path, number: int, line: dict[str, str], name: str) -> float | None:
    text = (line.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(path, f"line {number}: {name} is {text[:40]!r}, expected a number")
    return value


def _wrong(path: Path, what: str) -> RequestError:
    return RequestError(
        f"{path}: {what}", code="score-table",
        hint="columns: " + ", ".join(COLUMNS) + ", then one a task",
    )  # fmt: skip
