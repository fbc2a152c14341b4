"""`edgert frontier`: attainable scores by compute, from a table of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable
from .settings import check_outputs, emit_json, json_option, say

if TYPE_CHECKING:
    from ..scaling.frontier import Frontier
    from ..scaling.table import Table


@click.group("frontier")
def command() -> None:
    """Fit frontiers of scores over training compute."""


@command.command("fit")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--task", "tasks", multiple=True, help="Column to fit; default: all; may be repeated."
)
@click.option("--tau", default=0.98, show_default=True, type=click.FloatRange(0.5, 0.999))
@click.option("--preset", default="edgert", show_default=True,
              type=click.Choice(("edgert", "paper")), help="Smoothing and penalty.")  # fmt: skip
@click.option("--bootstrap", default=0, show_default=True, type=click.IntRange(0, 2000),
              help="Resamples of base models, for bands.")  # fmt: skip
@click.option("--evaluate", is_flag=True, help="Also fit each period of release and test the next.")
@click.option("--fast", is_flag=True, help="Fewer starts.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the fits as JSON.")
@json_option
def fit(
    table: Path,
    tasks: tuple[str, ...],
    tau: float,
    preset: str,
    bootstrap: int,
    evaluate: bool,
    fast: bool,
    output: Path | None,
    as_json: bool,
) -> int:
    """Fit the attainable score of each task in TABLE, a CSV file with a row a model.

    Base models (post_trained false) are left out, and tasks with too few others.
    """
    import msgspec

    from ..errors import RequestError
    from ..scaling.evaluate import evaluate_frontier
    from ..scaling.table import read_table
    from ..storage.aside import write_output

    check_outputs({"-o": output}, table)
    read = read_table(table)
    if odd := [task for task in tasks if task not in read.tasks]:
        raise RequestError(f"{table} has no task {odd[0][:60]!r}, expected some of {read.tasks}",
                           code="score-table")  # fmt: skip
    fits, skipped = _fits(
        table, read, tasks or read.tasks, tau=tau, preset=preset, bootstrap=bootstrap, fast=fast
    )
    found = {"schema": 1, "table": str(table), "dropped": read.dropped, "skipped": skipped,
             "fits": {task: msgspec.to_builtins(one) for task, one in fits.items()}}  # fmt: skip
    rolls = evaluate_frontier(read.periods(), preset=preset, fast=fast) if evaluate else None
    if rolls is not None:
        found["evaluation"] = {**msgspec.to_builtins(rolls), "later": read.later()}
        _tell_later(read)
    if output is not None:
        write_output(output, msgspec.json.encode(found))
    if as_json:
        emit_json(found)
        return 0
    for task, one in fits.items():
        places = [round(one.z_range[0] + share * (one.z_range[1] - one.z_range[0]), 2)
                  for share in (0.0, 0.5, 1.0)]  # fmt: skip
        scores = ", ".join(f"{one.at(place):.3f} at 1e{place:g}" for place in places)
        without = f"({one.count} models, {read.dropped[task]} without)"
        click.echo(f"{printable(task):16} {scores} FLOPs {without}")
    for roll in rolls.rolls if rolls else ():
        if roll.kind == "sigmoid":
            error = f"{roll.outside.signed:+.3f}" if roll.outside else "?"
            click.echo(
                f"{printable(roll.task):16} {roll.train} to {roll.test}: {roll.status} ({error})"
            )
    if rolls and rolls.refit:
        click.echo(printable(f"fit again: {', '.join(rolls.refit)}"))
    return 0


def _fits(
    path: Path, table: Table, tasks: Sequence[str], **how: Any
) -> tuple[dict[str, Frontier], dict[str, str]]:
    """Fits by task, and why other tasks have none. RequestError where no task has."""
    from ..errors import RequestError
    from ..scaling.frontier import LEAST, fit_frontier

    fits, skipped = {}, {}
    for task in dict.fromkeys(tasks):
        z, y, groups = table.points(task)
        count, values = len(z), len(set(z.tolist()))
        if count >= LEAST[0] and values >= LEAST[1]:
            fits[task] = fit_frontier(z, y, groups, **how)
            continue
        base = len(table.points(task, post_trained=False)[0])
        skipped[task] = (
            f"{count} post-trained models with all numbers, at {values} values of compute, "
            f"expected {LEAST[0]} and {LEAST[1]} at least ({base} base models and "
            f"{table.dropped[task]} rows without parameters, tokens or a score are left out)"
        )
    if not fits:
        said = "; ".join(f"{task[:60]}: {why}" for task, why in [*skipped.items()][:4])
        raise RequestError(
            f"{path}: no task can be fitted: {said}", code="frontier-data",
            hint="add models with post_trained true and other compute",
        )  # fmt: skip
    for task, why in skipped.items():
        say(printable(f"{task[:60]} is left out: {why}"))
    return fits, skipped


def _tell_later(table: Table) -> None:
    from ..scaling.table import LAST

    if later := table.later():
        say(f"{later} of {len(table.rows)} rows were released on {LAST} or later, behind the last "
            "period: they are in no evaluation")  # fmt: skip
