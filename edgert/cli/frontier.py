"""`edgert frontier`: attainable scores by compute, from a table of scores."""

from __future__ import annotations

from pathlib import Path

import click

from .settings import emit_json, json_option


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
    """Fit the attainable score of each task in TABLE, a CSV file with a row a model."""
    import msgspec

    from ..errors import RequestError
    from ..scaling.evaluate import evaluate_frontier
    from ..scaling.frontier import fit_frontier
    from ..scaling.table import read_table

    read = read_table(table)
    if odd := [task for task in tasks if task not in read.tasks]:
        raise RequestError(f"{table} has no task {odd[0][:60]!r}, expected some of {read.tasks}",
                           code="score-table")  # fmt: skip
    fits = {}
    for task in tasks or read.tasks:
        z, y, groups = read.points(task)
        fits[task] = fit_frontier(
            z, y, groups, tau=tau, preset=preset, bootstrap=bootstrap, fast=fast
        )
    found = {"schema": 1, "table": str(table), "dropped": read.dropped,
             "fits": {task: msgspec.to_builtins(one) for task, one in fits.items()}}  # fmt: skip
    rolls = evaluate_frontier(read.periods(), preset=preset, fast=fast) if evaluate else None
    if rolls is not None:
        found["evaluation"] = msgspec.to_builtins(rolls)
    if output is not None:
        output.write_bytes(msgspec.json.encode(found))
    if as_json:
        emit_json(found)
        return 0
    for task, one in fits.items():
        places = [round(one.z_range[0] + share * (one.z_range[1] - one.z_range[0]), 2)
                  for share in (0.0, 0.5, 1.0)]  # fmt: skip
        scores = ", ".join(f"{one.at(place):.3f} at 1e{place:g}" for place in places)
        click.echo(f"{task:16} {scores} FLOPs ({one.count} models, {read.dropped[task]} without)")
    for roll in rolls.rolls if rolls else ():
        if roll.kind == "sigmoid":
            error = f"{roll.outside.signed:+.3f}" if roll.outside else "?"
            click.echo(f"{roll.task:16} {roll.train} to {roll.test}: {roll.status} ({error})")
    if rolls and rolls.refit:
        click.echo(f"fit again: {', '.join(rolls.refit)}")
    return 0
