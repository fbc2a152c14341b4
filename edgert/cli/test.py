"""`edgert test`: does a bundle meet its budget on a device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .settings import check_outputs, emit_json, json_option, kv_bits_option, say, size_option

UNDECIDED = 3  # exit code where no limit is broken and some is not decided


@click.command("test")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--device", default="here", show_default=True, metavar="NAME",
    help="A device profile, by name or file; here: whatever this machine is.",
)  # fmt: skip
@click.option("--budget", type=click.Path(path_type=Path), help="Limits, in a TOML file.")
@click.option("--limit", "more", multiple=True, metavar="NAME=VALUE",
              help="One limit, such as p90_token_ms=40 or p90_token_ms@4096=60; goes before the "
              "file's.")  # fmt: skip
@click.option("--predict", is_flag=True, help="Run nothing: say what to expect on the device.")
@click.option("-t", "--threads", type=click.IntRange(1), metavar="N",
              help="As on a machine of so many cores: threads are kept on them.")  # fmt: skip
@size_option("--limit-memory", help="As on a machine of so much memory: processes that load and "
             "start the model get no more.")  # fmt: skip
@click.option("--seconds", default=120.0, show_default=True, type=click.FloatRange(1, 86400),
              help="The longest that measuring may take.")  # fmt: skip
@click.option("--baseline", type=click.Path(path_type=Path),
              help="An earlier report (--json): fail where something is slower now.")  # fmt: skip
@click.option("--save", is_flag=True, help="Measure enough to be a baseline.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here.")
@click.option("--provider", default="cpu", show_default=True,
              help="Where to compute, as --device of other verbs.")  # fmt: skip
@kv_bits_option
@json_option
def command(
    bundle: Path,
    device: str,
    budget: Path | None,
    more: tuple[str, ...],
    junit: Path | None,
    baseline: Path | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Test BUNDLE against a budget: times, memory, watts.

    Every limit passes, fails or stays undecided, by an interval that is measured until it
    decides or the time is over. Exit codes: 0 all limits are kept, 1 one is broken, 2 nothing could
    be tested, 3 some are undecided: with the reason.
    """
    from ..budget import report as reports
    from ..budget.limits import budget_of, joined, read_budget
    from ..budget.run import Ask, run
    from ..storage.aside import write_output

    limits = joined(read_budget(budget) if budget else (), budget_of(_pairs(more)) if more else ())
    if not limits:
        raise click.UsageError("nothing to test: give --budget FILE or --limit NAME=VALUE")
    check_outputs({"--junit": junit}, device, budget, baseline)
    asked["compute"] = asked.pop("provider")
    before = reports.read_report(baseline) if baseline else None
    ask = Ask(device=device, baseline=before, **asked)
    found = run(bundle, limits, ask, _progress())
    if junit is not None:
        write_output(junit, reports.junit(found))
    if as_json:
        emit_json(found.to_dict())
    else:
        for line in reports.lines(found):
            click.echo(line)
    return {"pass": 0, "fail": 1, "undecided": UNDECIDED}[found.outcome]


def _pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE and NAME@TOKENS=VALUE as a budget file would hold them."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, at, tokens = name.strip().partition("@")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise click.UsageError(f"--limit {text[:60]!r}, expected NAME=VALUE")
        if at:
            table = found.setdefault(name, {})
            if not isinstance(table, dict):
                raise click.UsageError(f"--limit {name} is given with and without @TOKENS")
            if tokens in table:
                raise click.UsageError(f"--limit {name}@{tokens} is given twice")
            table[tokens] = number
        elif name in found:
            raise click.UsageError(f"--limit {name} is given twice")
        else:
            found[name] = number
    return found


def _progress() -> Callable[[str], None]:
    """What is being measured, where a person looks at it."""
    return (lambda what: say(f"… {what}")) if sys.stderr.isatty() else (lambda what: None)
