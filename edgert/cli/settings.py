"""What every verb shares: settings, common options, output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import printable

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """debug: tracebacks. json: this call prints one JSON object."""

    debug: bool = False
    json: bool = False


def _note_json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and isinstance(ctx.obj, Settings):
        ctx.obj.json = True
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json,
    help="Print one JSON object, errors included.",
)  # fmt: skip


def session_options(function: F) -> F:
    """--threads, --device, --ctx-size."""
    for option in (
        click.option("-c", "--ctx-size", type=click.IntRange(1), metavar="TOKENS",
                     help="Tokens of prompt and answer together; default: the model's."),
        click.option("--device", default="cpu", show_default=True, help="Where to compute."),
        click.option("-t", "--threads", type=click.IntRange(1), metavar="N",
                     help="Default: one per performance core."),
    ):  # fmt: skip
        function = option(function)
    return function


def emit_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str = "") -> None:
    """A line on stderr: progress, notices, statistics."""
    click.echo(text, err=True)


def show(piece: str) -> None:
    """A piece of a model's text on stdout, at once. What could steer a terminal is escaped there."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def bundle_or_demo(path: Path | None) -> Path:
    """The bundle that was named, or the demo model's, which is converted when first needed."""
    if path is not None:
        return path
    from ..demo import demo_bundle

    return demo_bundle(progress=say)


def megabytes(size: float) -> str:
    """Bytes as MB (10^6), with a digit after the point below 100."""
    value = size / 1e6
    return f"{value:.2f} MB" if value < 10 else f"{value:.1f} MB" if value < 100 else f"{value:.0f} MB"
