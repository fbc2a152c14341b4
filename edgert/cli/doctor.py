"""`edgert doctor`: what is installed, what this machine can do, what is wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from .settings import Settings, emit_json, json_option, megabytes, say

if TYPE_CHECKING:
    from ..machine.doctor import Findings


@click.command("doctor")
@click.option("--warm", is_flag=True, help="Compile all kernels now, so that first loads are fast.")
@json_option
@click.pass_obj
def command(settings: Settings, warm: bool, as_json: bool) -> int:
    """Say what is installed, which instructions this CPU has, and the state of the caches.

    Exits with 1 when something is wrong.
    """
    from ..machine.doctor import examine

    seconds = _warm() if warm else None
    found = examine()
    config = str(settings.config.path) if settings.config and settings.config.values else None
    if as_json:
        emit_json({"schema": 1, **found.to_dict(), "config": config, "warm_s": seconds})
    else:
        for name, text in {**_lines(found), "config": config or "no file"}.items():
            click.echo(f"{name:13} {text}")
        for problem in found.problems:
            click.echo(f"PROBLEM       {problem.message}\n              hint: {problem.hint}")
        click.echo("all well" if not found.problems else f"{len(found.problems)} problems")
    return 1 if found.problems else 0


def _warm() -> float:
    """Compile kernels into the cache, saying so; returns the seconds it took."""
    from ..session import warm

    start = time.perf_counter()
    count = warm(lambda name, done, total: say(f"  {done + 1:3} of {total}  {name}"))
    seconds = time.perf_counter() - start
    if count:
        say(f"edgert: {count} kernels ready after {seconds:.1f} s; this happens once")
    else:
        say("edgert: the kernels for this machine came with the package, nothing to compile")
    return seconds


def _lines(found: Findings) -> dict[str, str]:
    cpu, memory, cache, demo = found.cpu, found.memory, found.cache, found.demo
    limit = f", limited to {megabytes(memory['limit'])}" if memory["limit"] else ""
    board = found.jetson
    jetson = f"{board['model']}, JetPack {board['jetpack']}, {board['power_mode']}" if board else ""
    lines = {
        "edgert": f"{found.edgert}, Python {found.python}",
        "system": found.system,
        "packages": _versions(found.packages),
        "optional": _versions(found.optional),
        "cpu": f"{cpu['model']}, {cpu['available']} of {cpu['logical']} logical cores",
        "instructions": f"{cpu['instruction_set']} (usable: {', '.join(cpu['usable'])}; "
        f"features: {' '.join(cpu['features'])})",
        "memory": f"{megabytes(memory['available'] or 0)} free of "
        f"{megabytes(memory['total'] or 0)}{limit}",
        "cache": f"{cache['path']}, {'writable' if cache['writable'] else 'NOT writable'}, "
        f"{megabytes(cache['bytes'])}",
        "kernels": _kernels(found.kernels),
        "providers": ", ".join(found.providers) or "none",
        "demo model": f"{demo['name']}, {demo['bundle'] or 'missing'}",
    }
    return {**lines, "jetson": jetson} if board else lines


def _kernels(found: dict[str, Any]) -> str:
    if found["from"] == "library":
        return f"shipped, {found['path']}"
    if found["from"] == "none":
        return "none"
    if found["files"]:
        return f"compiled here, in {found['path']}"
    return "none compiled yet; `edgert doctor --warm` does it"


def _versions(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
