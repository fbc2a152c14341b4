"""What the command line shows of the logger `edgert`: lines on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..notices import logger
from .settings import Settings

LEVELS = ("debug", "info", "warning", "error")


class _Handler(logging.Handler):
    """Writes to the stderr of the moment, and gives up quietly where that is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(f"edgert: {record.getMessage()}", file=sys.stderr)
        except (OSError, ValueError):
            pass


_handler = _Handler()


@contextmanager
def shown(settings: Settings) -> Iterator[None]:
    """Inside, show messages from the level on that the flags ask for, else notices and warnings."""
    level = logger.level
    logger.addHandler(_handler)
    logger.setLevel(settings.log_level)
    try:
        yield
    finally:
        logger.removeHandler(_handler)
        logger.setLevel(level)


def _note_level(ctx: click.Context, param: click.Parameter, value: str | int | None) -> None:
    """-v and --log, before the verb or behind it: the one that says more counts."""
    if value and isinstance(ctx.obj, Settings):
        if isinstance(value, int):
            level = (logging.INFO, logging.DEBUG)[min(value, 2) - 1]
        else:
            level = getattr(logging, value.upper())
        known = ctx.obj.log_level if ctx.obj.log_asked else level
        ctx.obj.log_level, ctx.obj.log_asked = min(level, known), True
        logger.setLevel(ctx.obj.log_level)


def log_options() -> list[click.Option]:
    """-v and --log, new ones for each command."""
    return [
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_note_level,
                     help="Say on stderr what is done; -vv says more."),
        click.Option(["--log"], type=click.Choice(LEVELS), expose_value=False,
                     callback=_note_level, help="Least level of messages on stderr."),
    ]  # fmt: skip
