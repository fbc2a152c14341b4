"""Flags of the sampler, and reading an answer while Ctrl-C stops it.

A flag that is not given is not passed on: defaults stand in one place, `edgert.text.params`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..text.model import TextModel
    from ..text.results import Generation
    from ..text.stream import Stream

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("-n", "--max-tokens", type=int, help="Longest answer; default: until it ends."),
    click.option("--temp", "--temperature", "temperature", type=float,
                 help="0 takes the likeliest token; default: the model's."),
    click.option("--top-k", type=int, help="Draw from the K likeliest; 0 is off."),
    click.option("--top-p", type=float, help="Draw from the likeliest that hold this probability."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--repeat-penalty", type=float, help="Above 1 discourages tokens already seen."),
    click.option("--presence-penalty", type=float, help="-2 to 2, once a token seen."),
    click.option("--frequency-penalty", type=float, help="-2 to 2, for each time it was seen."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit."),
    click.option("-s", "--seed", type=int, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
    click.option("--stop-token-id", "stop_token_ids", multiple=True, type=int, metavar="ID",
                 help="End the answer with this token."),
)  # fmt: skip
NAMES = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids",
)  # fmt: skip


def sampling_options(function: F) -> F:
    """All flags of `edgert.text.params.SamplingParams`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def sampling_params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verb's options, the sampler's that were given."""
    given = {name: options[name] for name in NAMES if options[name] not in (None, ())}
    if "logit_bias" in given:
        given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
    return given


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise click.BadParameter(
            f"found {text!r}, expected ID=BIAS such as 17=-2.5", param_hint="--logit-bias"
        ) from None


@contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[Sequence[bool]]:
    """Inside, the first Ctrl-C calls `stop` and fills the yielded list; the second interrupts."""
    hits: list[bool] = []

    def handler(number: int, frame: Any) -> None:
        if hits:
            raise KeyboardInterrupt
        hits.append(True)
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield hits
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield hits
    finally:
        signal.signal(signal.SIGINT, before)


def read_answer(
    model: TextModel, stream: Stream, write: Callable[[str], None]
) -> tuple[Generation, bool]:
    """Read a stream to its end, or to Ctrl-C: the answer so far, and whether it was cut short."""
    with interrupts(stream.cancel) as hits, stream:
        for piece in stream:
            write(piece)
            if hits:
                break
        stream.close()
        return stream.result, bool(hits)


def stats_line(answer: Generation) -> str:
    """One line about an answer's cost."""
    usage, t = answer.usage, answer.timings
    cached = f", {usage.cached_tokens} of them cached" if usage.cached_tokens else ""
    return (
        f"{usage.prompt_tokens} prompt tokens{cached}, first token after {t.first_token_s:.3f} s; "
        f"{usage.completion_tokens} tokens at {t.generation_tps:.1f} a second; "
        f"{answer.finish_reason}"
    )
