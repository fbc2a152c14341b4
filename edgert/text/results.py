"""Results of a generation."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled"]


class Usage(msgspec.Struct, frozen=True):
    """Token counts. cached_tokens: part of the prompt that was still in the state."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Seconds, and tokens per second (0 where nothing was measured).

    load_s: opening the model. prompt_s: reading the uncached prompt, up to the first logits.
    first_token_s: from the request to the first token. generation_s: from there to the end.
    """

    load_s: float = 0.0
    prompt_s: float = 0.0
    first_token_s: float = 0.0
    generation_s: float = 0.0
    prompt_tps: float = 0.0
    generation_tps: float = 0.0


class DraftStats(msgspec.Struct, frozen=True):
    """What drafts did for an answer.

    steps: steps of the model that gave tokens, drafted_steps of them with drafts. tokens: what came
    of them; the first token, which the prompt's step gives, does not count. proposed, accepted:
    drafted tokens. reached, right: of each place in a draft, how often it was checked and how often
    it was right. draft_s: seconds that drafting took. predicted_speed: in plain decoding's, what
    the present drafts should give by what was measured; 0 where nothing adapts.
    """

    steps: int = 0
    drafted_steps: int = 0
    tokens: int = 0
    proposed: int = 0
    accepted: int = 0
    reached: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    draft_s: float = 0.0
    predicted_speed: float = 0.0

    @property
    def tau(self) -> float:
        """Tokens a step, drafts or none."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted of the drafted tokens that were checked."""
        checked = sum(self.reached)
        return self.accepted / checked if checked else 0.0


class RelayStats(msgspec.Struct, frozen=True):
    """Who wrote an answer of two models: tokens of each, and how often the turn changed. A token
    that ends the answer, and a mark that closes thinking whose budget is used up, are nobody's.
    refused: tokens of the small model that a guard threw away."""

    large: int = 0
    small: int = 0
    switches: int = 0
    refused: int = 0

    @property
    def large_share(self) -> float:
        """Of the tokens, what the large model wrote."""
        return self.large / max(1, self.large + self.small)


class TopLogprob(msgspec.Struct, frozen=True):
    """A token and its log-probability (natural, of the model's own distribution: before bias,
    penalties, temperature and truncation). text: as in the middle of a text, special tokens shown,
    U+FFFD for a part of a character; bytes: its UTF-8 bytes, also of such a part."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float


class TokenLogprob(TopLogprob, frozen=True):
    """A token of an answer. top: the likeliest tokens at its position, falling."""

    top: tuple[TopLogprob, ...] = ()


class Generation(msgspec.Struct, frozen=True):
    """An answer.

    token_ids: everything generated, the end token included. finish_reason: "stop" (end token, stop
    id or stop text), "length" (max_tokens or a full context), "cancelled". seed: what it was drawn
    with. text: without special tokens, cut before a stop text; what `generate` continues and its
    text together are what all token ids decode to. logprobs: one for each of token_ids, where the
    request asked for them. drafting: what drafts did, where any were asked for. relay: who wrote
    how much, where a small model wrote a part.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    drafting: DraftStats | None = None
    relay: RelayStats | None = None

    @property
    def message(self) -> dict[str, str]:
        """The answer as a chat message."""
        return {"role": "assistant", "content": self.text}
