"""Flags of speculative decoding, as one argument `draft`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..text.results import DraftStats, RelayStats

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--draft", "sources", multiple=True, metavar="MODEL|ngram|head|none",
                 help="Guess tokens and check them together, which gives the same text sooner: by "
                 "a small bundle of the same tokenizer, by ngram (from the text itself), by "
                 "the bundle's own draft head (head), by several, or not at all (none); default on "
                 "the cpu: ngram, and head where there is one."),
    click.option("--draft-max", type=click.IntRange(1, 16), metavar="N",
                 help="Tokens guessed at a time at most; default: 7."),
    click.option("--draft-verify", type=click.Choice(("coupled", "rejection")),
                 help="coupled: the text of the seed, whatever is guessed (the default); "
                 "rejection: texts of the same law."),
    click.option("--draft-fixed", is_flag=True,
                 help="Guess as many as that always; default: as many as pay, by measuring."),
)  # fmt: skip


def draft_options(function: F) -> Any:
    """--draft, --draft-max, --draft-verify and --draft-fixed."""

    @wraps(function)
    def call(
        *,
        sources: tuple[str, ...],
        draft_max: int | None,
        draft_verify: str | None,
        draft_fixed: bool,
        **given: Any,
    ) -> Any:
        from ..text.speculative.options import DraftOptions

        asked: dict[str, Any] = {"max_tokens": draft_max, "verify": draft_verify}
        asked = {name: value for name, value in asked.items() if value is not None}
        if sources:
            asked["source"] = sources if len(sources) > 1 else sources[0]
        return function(draft=DraftOptions(adapt=not draft_fixed, **asked), **given)

    decorated: Any = call
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def drafts_line(stats: DraftStats | None) -> str:
    """What drafts did, for the line about an answer's cost; "" where there were none."""
    if stats is None or not stats.proposed:
        return ""
    line = (
        f"; drafts: {stats.accepted} of {stats.proposed} tokens stood, "
        f"{stats.tau:.2f} tokens a step"
    )
    return line + (f", {stats.draft_s:.3f} s drafting" if stats.draft_s >= 0.001 else "")


def relay_line(stats: RelayStats | None) -> str:
    """Who wrote how much, for the same line; "" where one model wrote all."""
    if stats is None:
        return ""
    total = stats.large + stats.small
    line = f"; relay: {stats.large} of {total} tokens by the large model, {stats.switches} turns"
    return line + (f", {stats.refused} tokens written anew" if stats.refused else "")
