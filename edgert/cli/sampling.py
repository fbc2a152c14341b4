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

from .drafts import drafts_line, relay_line

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
    click.option("--typical", "--typical-p", "typical_p", type=float,
                 help="Keep the tokens of typical surprise that hold this probability; 1 is off."),
    click.option("--xtc-probability", type=float, help="How often XTC acts; 0 is off."),
    click.option("--xtc-threshold", type=float,
                 help="XTC drops all tokens this likely but the least likely of them."),
    click.option("--dynatemp-range", type=float,
                 help="Move the temperature by up to this with the entropy; 0 is off."),
    click.option("--dynatemp-exp", "dynatemp_exponent", type=float,
                 help="Power of the entropy in that."),
    click.option("--temp-last/--temp-first", "temperature_last", default=None,
                 help="Temperature behind top-k and the others, or in front (the default)."),
    click.option("--repeat-penalty", type=float, help="Above 1 discourages tokens already seen."),
    click.option("--presence-penalty", type=float, help="-2 to 2, once a token seen."),
    click.option("--frequency-penalty", type=float, help="-2 to 2, for each time it was seen."),
    click.option("--dry-multiplier", type=float,
                 help="Strength of DRY, which discourages repeated sequences; 0 is off."),
    click.option("--dry-base", type=float, help="DRY grows by this with each token repeated."),
    click.option("--dry-allowed-length", type=int, help="Repeated tokens that DRY starts at."),
    click.option("--dry-penalty-last-n", type=int, help="Tokens DRY looks back at; -1 is all."),
    click.option("--dry-sequence-breaker", "dry_sequence_breakers", multiple=True, metavar="TEXT",
                 help="Where a repetition ends, for DRY; \\n is a new line, none means nowhere."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit."),
    click.option("--logprobs", type=int, metavar="N",
                 help="With --json: log-probabilities of each token and of the N likeliest."),
    click.option("-s", "--seed", type=int, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
    click.option("--stop-token-id", "stop_token_ids", multiple=True, type=int, metavar="ID",
                 help="End the answer with this token."),
)  # fmt: skip
NAMES = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability",
    "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "temperature_last", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "logit_bias", "logprobs", "seed", "stop",
    "stop_token_ids",
)  # fmt: skip


def sampling_options(function: F) -> F:
    """All flags of `edgert.text.params.SamplingParams`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def sampling_params(options: Mapping[str, Any], *, as_json: bool) -> dict[str, Any]:
    """Of a verb's options, the sampler's that were given. as_json: the verb prints an object."""
    given = {name: options[name] for name in NAMES if options[name] not in (None, ())}
    if "logit_bias" in given:
        given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
    if "dry_sequence_breakers" in given:
        texts = given["dry_sequence_breakers"]
        given["dry_sequence_breakers"] = () if texts == ("none",) else tuple(map(_escapes, texts))
    if "logprobs" in given and not as_json:
        raise click.UsageError("--logprobs shows in JSON only, expected --json beside it")
    return given


def _escapes(text: str) -> str:
    """\\n and \\t as llama.cpp reads them."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


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
        f"{answer.finish_reason}{drafts_line(answer.drafting)}{relay_line(answer.relay)}"
    )
