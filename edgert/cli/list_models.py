"""`edgert list`: the models in the store."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from .settings import emit_json, json_option, megabytes

if TYPE_CHECKING:
    from ..bundle.store import Stored

SPANS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"),
         (60, "minute"))  # fmt: skip


@click.command("list")
@click.option("--known", is_flag=True, help="The short names that pull takes, and what they mean.")
@json_option
def command(known: bool, as_json: bool) -> int:
    """List the models in the store, the newest first; `edgert pull` puts them there."""
    if known:
        return _known(as_json=as_json)
    from ..bundle.store import store_root, stored

    found = stored()
    if as_json:
        emit_json({"schema": 1, "store": str(store_root()), "models": [_row(x) for x in found]})
        return 0
    if not found:
        click.echo(
            "the store is empty; `edgert pull NAME` fills it, `edgert list --known` names some"
        )
        return 0
    width = max(len("NAME"), *(len(entry.name) for entry in found))
    click.echo(f"{'NAME':{width}}  {'ID':12}  {'SIZE':>10}  MODIFIED")
    for entry in found:
        when = ago(time.time() - entry.modified)
        state = when if entry.finished else f"unfinished, {when}"
        size = megabytes(entry.nbytes)
        click.echo(f"{entry.name:{width}}  {entry.fingerprint[:12]:12}  {size:>10}  {state}")
    return 0


def ago(seconds: float) -> str:
    """How long ago that is, as people say it."""
    for length, name in SPANS:
        if (count := int(seconds // length)) > 0:
            return f"{count} {name}{'s' * (count > 1)} ago"
    return "just now"


def _row(entry: Stored) -> dict[str, object]:
    when = datetime.fromtimestamp(entry.modified, timezone.utc)
    return {
        "name": entry.name, "id": entry.fingerprint, "bytes": entry.nbytes,
        "modified": when.isoformat(timespec="seconds"), "path": str(entry.path),
        "finished": entry.finished,
    }  # fmt: skip


def _known(*, as_json: bool) -> int:
    from ..bundle.known_models import KNOWN

    rows = [(f"{name}:{size}", hub) for name, sizes in KNOWN.items() for size, hub in sizes.items()]
    if as_json:
        emit_json({"schema": 1, "known": [{"name": name, "source": hub} for name, hub in rows]})
        return 0
    for name, hub in rows:
        click.echo(f"{name:22} {hub}")
    return 0
