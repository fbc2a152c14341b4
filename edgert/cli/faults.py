"""Errors as a person at a terminal needs them."""

from __future__ import annotations

import os

import click

from ..errors import EdgertError
from .config import Config


def wrong_value(error: Exception, config: Config | None) -> Exception:
    """A value that click refuses as an error of ours, which says where the value came from; other
    errors as they are."""
    if isinstance(error, click.MissingParameter) or not isinstance(
        error, (click.BadParameter, click.BadOptionUsage)
    ):
        return error
    verb = error.ctx.command_path if error.ctx else "edgert VERB"
    message = error.message.strip().removesuffix(".")
    if isinstance(error, click.BadParameter):
        name = _name(error)
        message = f"{name}: {message}" if name else message
        message += _origin(error, config)
    hint = f"{verb} --help lists flags and their values"
    return EdgertError(message, code="usage", hint=hint)


def _name(error: click.BadParameter) -> str:
    """The flag or argument, by its longest name."""
    if error.param is None:
        hint = error.param_hint or ""
        return hint if isinstance(hint, str) else " / ".join(hint)
    if isinstance(error.param, click.Option):
        return max(error.param.opts, key=len)
    return error.param.human_readable_name


def _origin(error: click.BadParameter, config: Config | None) -> str:
    """Where a value came from, unless from the command line."""
    if not error.param or not error.ctx:
        return ""
    source = error.ctx.get_parameter_source(error.param.name or "")
    if source is click.core.ParameterSource.DEFAULT_MAP and config is not None:
        return f" (from {config.path})"
    if source in (click.core.ParameterSource.ENVIRONMENT, None):  # None: it cannot even be split
        names = error.param.envvar
        names = [names] if isinstance(names, str) else names or []
        return f" (from {next((name for name in names if os.environ.get(name)), 'EDGERT_*')})"
    return ""


def for_terminal(error: EdgertError) -> EdgertError:
    """The error, without advice that only a program can follow."""
    if error.code == "text-surrogate":
        error.hint = (
            "what was typed, or a variable, is not UTF-8: type it in a terminal set to UTF-8, "
            "or pipe it in through iconv -t UTF-8"
        )
    return error
