"""`edgert rm`: take models out of the store."""

from __future__ import annotations

import sys

import click

from .settings import emit_json, json_option, megabytes


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def command(names: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Remove the models NAME from the store, and what a stopped pull left of them.

    Asks first; without a terminal --yes is needed. What the hub's own cache holds stays.
    """
    from ..bundle.store import entry, remove

    found = {kept.path: kept for kept in map(entry, names)}
    if not yes:
        listed = ", ".join(f"{kept.name} ({megabytes(kept.nbytes)})" for kept in found.values())
        if as_json or not sys.stdin.isatty():
            raise click.UsageError(f"nobody to ask whether to remove {listed}, expected --yes")
        if not click.confirm(f"Remove {listed}?", err=True):
            return 2
    for kept in found.values():
        remove(kept)
        if not as_json:
            click.echo(f"removed {kept.name}")
    if as_json:
        emit_json({"schema": 1, "removed": [kept.name for kept in found.values()]})
    return 0
