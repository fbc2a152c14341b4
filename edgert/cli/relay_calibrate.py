"""`edgert relay-calibrate`: find the cues at which a small model may take over from a large one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .settings import Loader, check_outputs, emit_json, json_option, say, session_options

if TYPE_CHECKING:
    from ..text.relay_calibrate import Trace
    from ..text.relay_cues import RelayCues

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("relay-calibrate")
@click.argument("large", type=click.Path(path_type=Path), metavar="LARGE.edge")
@click.argument("small", type=click.Path(path_type=Path), metavar="SMALL.edge")
@click.option(
    "--problems", type=_FILE, metavar="FILE",
    help="Questions, which the large model answers: chats or texts in JSON lines (.jsonl), or a "
    "question a line.",
)  # fmt: skip
@click.option(
    "--traces", type=_FILE, metavar="FILE",
    help="Answers that the large model wrote before, instead: chats in JSON lines (.jsonl), the "
    "last message of each its answer with the thinking.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    metavar="CUES.json", help="The file to write, for edgert chat --relay-cues.",
)  # fmt: skip
@click.option(
    "--keep-traces", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write the large model's answers here, for --traces.",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), metavar="N", help="Answers a question; 4.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N",
              help="Of an answer; default: as many as the context holds.")  # fmt: skip
@click.option("--temp", "temperature", type=float, metavar="X", help="Of the answers; 0.6.")
@click.option("--seed", type=int, metavar="N", help="Of the first answer to each question; 42.")
@click.option("--least", type=click.IntRange(1), metavar="N",
              help="How often a cue must occur; 5.")  # fmt: skip
@click.option(
    "--errors", type=float, metavar="X",
    help="By how many standard errors the small model must be surer behind a cue; 2.",
)  # fmt: skip
@click.option("--close", metavar="TEXT", help="The text that ends thinking; </think>.")
@session_options
@json_option
def command(
    large: Path, small: Path, problems: Path | None, traces: Path | None, output: Path,
    keep_traces: Path | None, loader: Loader, as_json: bool, **options: Any,
) -> int:  # fmt: skip
    """Find words behind which the model in SMALL.edge is sure of how that in LARGE.edge goes on.

    `edgert chat LARGE --relay SMALL --relay-cues FILE` lets it write on there. The two have one
    tokenizer. Questions should be those of the models' use; a hundred answers are plenty.
    """
    from ..storage.aside import write_output
    from ..text.relay_calibrate import (
        CalibrateOptions,
        calibrate_relay,
        chats_to_lines,
        read_chats,
    )
    from ..text.relay_cues import write_cues

    if (problems is None) == (traces is None):
        raise click.UsageError("give either --problems or --traces")
    check_outputs({"-o": output, "--keep-traces": keep_traces}, problems, traces)
    asked = CalibrateOptions(
        **{name: value for name, value in options.items() if value is not None}
    )
    given = {name: read_chats(path) for name, path in (("problems", problems), ("traces", traces))
             if path is not None}  # fmt: skip

    with loader.load(large, "auto") as one, loader.load(small, "none") as other:

        def keep(found: list[Trace]) -> None:
            if keep_traces is not None:
                write_output(keep_traces, chats_to_lines(one, found).encode("utf-8"))

        found = calibrate_relay(
            one, other, options=asked, keep=keep, progress=_quiet if as_json else _told, **given
        )
    write_cues(output, found)
    if as_json:
        emit_json(_object(found, output))
    else:
        _show(found, output)
    return 0


def _quiet(what: str, done: int, total: int) -> None:
    pass


def _told(what: str, done: int, total: int) -> None:
    """A line now and then: at most twenty a stage."""
    if done == total or done % max(1, total // 20) == 0:
        say(f"{what}: {done} of {total}")


def _object(found: RelayCues, output: Path) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(found), "file": str(output)}


def _show(found: RelayCues, output: Path) -> None:
    click.echo(
        f"{output}: {len(found.cues)} cues of {len(found.scores)} that occurred, {found.traces} "
        f"traces with {found.tokens} tokens of thinking, mean margin {found.margin:.3f}"
    )
    kept = set(found.cues)
    for one in found.scores:
        error = "" if one.error is None else f" +- {one.error:.3f}"
        mark = "kept" if one.cue in kept else "    "
        click.echo(
            f"  {mark} {one.cue!r:18} {one.segments:5} times, margin {one.inside:.3f}, "
            f"{one.delta:+.3f}{error}"
        )
    if not found.cues:
        say("no cue passes: with this file the small model writes nothing but the answers")
