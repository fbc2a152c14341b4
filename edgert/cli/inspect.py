"""`edgert inspect`: what a checkpoint or bundle holds and needs."""

from __future__ import annotations

import click

from .settings import emit_json, json_option, megabytes


@click.command("inspect")
@click.argument("source")
@json_option
def command(source: str, as_json: bool) -> int:
    """Say what SOURCE, a bundle, a checkpoint directory or a hub id, holds and what it takes."""
    from ..inspection import inspect

    found = inspect(source)
    if as_json:
        emit_json({"schema": 1, **found.to_dict()})
        return 0
    held = ", ".join(f"{name} {megabytes(size)}" for name, size in found.encodings.items())
    lines = {
        found.kind: f"{found.name} ({found.path})",
        "layers": str(found.layers),
        "parameters": f"{found.parameters:,}",
        "vocabulary": f"{found.vocabulary:,}",
        "context": f"{found.context:,} tokens",
        "weights": f"{megabytes(found.weights)}: {held}",
        "cache": f"{found.cache_per_token:,} bytes a token at 16 bits, "
        f"{megabytes(found.cache_per_token * found.context)} for a full context",
    }
    if found.converted:
        lines["converted"] = ", ".join(f"{k} {megabytes(v)}" for k, v in found.converted.items())
    else:
        lines["memory"] = f"about {megabytes(found.memory)} with a full context"
        lines["made by"] = str(found.provenance.get("command", ""))
    for name, text in lines.items():
        click.echo(f"{name:11} {text}")
    return 0
