"""`edgert generate`: continue a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .drafts import draft_options
from .inputs import is_piped, read_file, read_stdin, stdin_waits
from .sampling import read_answer, sampling_options, sampling_params, stats_line
from .settings import (
    Loader,
    adapter_option,
    bundle_or_demo,
    context_shift_option,
    emit_json,
    json_option,
    prompt_cache_options,
    say,
    session_options,
    show,
)

if TYPE_CHECKING:
    from ..text.results import DraftStats, TokenLogprob, TopLogprob
    from ..text.speculative.options import DraftOptions


@click.command("generate")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.argument("dash", required=False, metavar="[-]", type=click.Choice(["-"]))
@click.option("-p", "--prompt", help="The text to continue; - reads standard input.")
@click.option(
    "-f",
    "--file",
    "source",
    type=click.Path(readable=False, allow_dash=True),
    help="A file with the text; - reads standard input.",
)
@sampling_options
@prompt_cache_options
@session_options
@draft_options
@context_shift_option
@adapter_option
@click.option("--stats", is_flag=True, help="Say on stderr what it cost.")
@json_option
def command(
    bundle: Path | None,
    dash: str | None,
    prompt: str | None,
    source: str | None,
    loader: Loader,
    draft: DraftOptions,
    context_shift: bool,
    adapter: Path | None,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Continue a prompt with BUNDLE, or with the model in this package.

    The prompt goes in as it is, without a chat template; `edgert chat -p` asks a question.
    The prompt comes from -p, -f, or standard input, when it is a pipe or - asks for it. A newline
    at the end of a file or pipe is not part of it, nor is a byte order mark. Without sampling flags
    the bundle's advice holds. Ctrl-C ends the answer, keeps its text, and exits with 130.
    """
    if str(bundle) == "-":  # `edgert generate -`: the demo model continues standard input
        bundle, dash = None, "-"
    if dash and (prompt, source) != (None, None):
        raise click.UsageError("- and -p or -f name two prompts, expected one")
    text = prompt_text(prompt, source or dash)

    params = sampling_params(options, as_json=as_json)

    path = bundle_or_demo(bundle)
    with loader.load(path, draft) as model:
        stream = model.stream(text, context_shift=context_shift, adapter=adapter, **params)
        answer, cut = read_answer(model, stream, (lambda piece: None) if as_json else show)
        if as_json:
            emit_json(answer_object(path, answer))
        else:
            show("\n")
        if stats:
            say(stats_line(answer))
    return 130 if cut else 0


def answer_object(path: Path, answer: Any) -> dict[str, Any]:
    """The `--json` form of a Generation."""
    return {
        "schema": 1,
        "bundle": str(path),
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "cached_tokens": answer.usage.cached_tokens,
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "logprobs": logprobs_object(answer.logprobs),
        "timings": msgspec.to_builtins(answer.timings),
        "drafting": drafting_object(answer.drafting),
        "relay": None if answer.relay is None else msgspec.to_builtins(answer.relay),
    }


def drafting_object(stats: DraftStats | None) -> dict[str, Any] | None:
    """The `--json` form of what drafts did; null where none were asked for."""
    if stats is None:
        return None
    return {**msgspec.to_builtins(stats), "tau": stats.tau, "acceptance": stats.acceptance}


def logprobs_object(found: Sequence[TokenLogprob] | None) -> list[dict[str, Any]] | None:
    """The `--json` form of log-probabilities; null where none were asked for."""
    if found is None:
        return None
    return [_plain(item) | {"top": [_plain(other) for other in item.top]} for item in found]


def _plain(item: TopLogprob) -> dict[str, Any]:
    return {
        "token_id": item.token_id,
        "text": item.text,
        "bytes": list(item.bytes),
        "logprob": item.logprob,
    }


def prompt_text(prompt: str | None, source: str | None) -> str:
    """The prompt, from exactly one of -p, -f and a pipe."""
    if prompt is not None and source is not None:
        raise click.UsageError("-p and -f name two prompts, expected one")
    if prompt == "-":
        prompt, source = None, "-"
    if prompt is None and source is None:
        if not is_piped():
            raise click.UsageError("no prompt: give -p TEXT, -f FILE, or pipe some text in")
        source = "-"
    if source == "-":
        return read_stdin()
    if stdin_waits():
        raise click.UsageError(
            "standard input holds text besides the prompt of -p or -f, expected one prompt; "
            "- instead of it reads standard input, `< /dev/null` leaves that alone"
        )
    return read_file(source) if source is not None else prompt or ""
