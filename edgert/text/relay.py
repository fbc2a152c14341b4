"""RelayGen: a small model writes what is easy of a large model's thinking (`Relay`, `RelayRun`).

While the large model thinks, certain words begin sentences that a small one can finish (as
"Therefore"): at such a cue the small model goes on until the sentence ends, and the large one comes
back. The answer behind the thinking is the small model's. The method of RelayGen, with these
differences: cues begin at a word's beginning, a point ends a sentence only if white space follows,
tokens are handed on by id, and the large model may end its text within its first five tokens. Which
cues suit a pair of models `edgert relay-calibrate` measures (`relay_calibrate`).

Not lossless: the text is neither model's own. Drafts may speed up what the large model writes; the
text then is the one without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from .. import limits
from ..errors import RequestError
from ..session.base import Feed
from .generate import Run
from .results import FinishReason, Generation, RelayStats
from .speculative.options import Source, is_model
from .speculative.small import SmallProposer

Writer = Literal["large", "small"]

# Cues that were kept for Qwen3-32B with 1.7B; `ends_with` looks for a word's beginning.
CUES = (
    "Again", "Also", "Alternatively", "Hence", "Now", "Other", "Similarly", "Specifically",
    "Therefore", "Thus", "Again,", "Now,", "Oh,", "Similarly,", "So,", "Specifically,",
    "Therefore,", "Thus,", "Wait,", "So ", "hence", "now", "similarly", "alternatively,",
    "another,", "now,", "similarly,", "specifically,",
)  # fmt: skip
ENDS = (".", "!", "?")
PARAGRAPH = "\n\n"
CLOSE = "</think>"
LEAST = 5  # tokens that the large model writes before it may hand over again
CHUNK = 16  # tokens of the small model between two turns of the engine
LOOK_BACK = 64  # characters in which a cue, a tag or an end is looked for


@dataclass(frozen=True)
class RelayOptions:
    """How two models take turns. small: the small one, a bundle's path or a loaded model with the
    same tokenizer.

    Where a text fills the small one's context, the large one writes the rest.

    cues: texts at which the small model takes over; none: never, in the thinking. least: tokens of
    the large model between two of its turns. answer: who writes behind the thinking. close: the
    text that ends thinking. budget: tokens of thinking, after which it is closed; None: no limit.
    start: who begins. ends: characters that end the small model's turn; none: nothing does.
    guard: the large model reads what the small one wrote of the thinking, and writes it anew where
    its mean log-probability of these tokens, natural, is lower; None: it does not.

    Raises RequestError for values that mean nothing.
    """

    small: Source
    cues: tuple[str, ...] = CUES
    least: int = LEAST
    answer: Writer = "small"
    close: str = CLOSE
    budget: int | None = None
    start: Writer = "large"
    ends: tuple[str, ...] = ENDS
    guard: float | None = None

    def __post_init__(self) -> None:
        if not is_model(self.small):
            raise _wrong("relay small", self.small, "a bundle's path or a loaded model that writes")
        check_cues(self.cues, "relay cues")
        object.__setattr__(self, "cues", tuple(self.cues))
        several = isinstance(self.ends, Sequence)
        if not several or not all(isinstance(mark, str) and len(mark) == 1 for mark in self.ends):
            raise _wrong("relay ends", self.ends, "characters")
        object.__setattr__(self, "ends", tuple(self.ends))
        if not isinstance(self.close, str) or not 0 < len(self.close) <= LOOK_BACK:
            raise _wrong("relay close", self.close, f"a text of 1 to {LOOK_BACK} characters")
        for name, least in (("least", 0), ("budget", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (name == "budget" and value is None):
                raise _wrong(f"relay {name}", value, f"a whole number from {least} on")
        number = isinstance(self.guard, int | float) and not isinstance(self.guard, bool)
        if self.guard is not None and not (number and -math.inf < self.guard <= 0):
            raise _wrong("relay guard", self.guard, "a log-probability, such as -3.0")
        for name in ("answer", "start"):
            if getattr(self, name) not in ("large", "small"):
                raise _wrong(f"relay {name}", getattr(self, name), "'large' or 'small'")


def checked(relay: object) -> RelayOptions:
    """What a caller gave as `relay`. Raises RequestError."""
    if isinstance(relay, RelayOptions):
        return relay
    raise _wrong("relay", relay, "an edgert.text.relay.RelayOptions")


def check_cues(cues: Sequence[str], where: str) -> None:
    """Raises RequestError for cues that no text can hold, or that every one does. where: of them,
    for the message."""
    if isinstance(cues, str) or not isinstance(cues, Sequence):
        raise _wrong(where, cues, "a sequence of texts")
    if len(cues) > limits.RELAY_CUES:
        raise _wrong(where, f"{len(cues)} cues", f"at most {limits.RELAY_CUES}")
    for cue in cues:
        longest = limits.RELAY_CUE_CHARACTERS
        if not isinstance(cue, str) or not 0 < len(cue) <= longest:
            raise _wrong(f"a cue of {where}", cue, f"a text of 1 to {longest} characters")
        if not cue.isprintable() or cue[0].isspace():
            raise _wrong(f"a cue of {where}", cue, "a word or some, in one line")
    if len(set(cues)) < len(cues):
        twice = next(cue for at, cue in enumerate(cues) if cue in cues[:at])
        raise _wrong(where, twice, "every cue once, not twice")


def _wrong(name: str, value: object, expected: str) -> RequestError:
    cues = "edgert relay-calibrate writes cues that fit two models"
    return RequestError(
        f"{name} is {str(value)[:80]!r}, expected {expected}",
        code="relay",
        hint=cues
        if "cue" in name
        else "help(edgert.text.relay.RelayOptions) says what each one means",
        field="relay",
    )


class Relay:
    """Whose turn it is, from the text so far: the automaton.

    writer: whose turn it is. written: tokens by writer. refused: tokens that were thrown away.
    """

    def __init__(self, options: RelayOptions) -> None:
        self.options = options
        self.writer: Writer = options.start
        self.thinking = True
        self.written: dict[Writer, int] = {"large": 0, "small": 0}
        self.switches = self.refused = 0
        self.retired = False  # the small model writes no more
        self._burst = 0
        self._text = ""
        self._ended = False  # an end mark was written, and what follows decides

    @property
    def spent(self) -> bool:
        """Whether the thinking has used up its budget."""
        budget = self.options.budget
        return self.thinking and budget is not None and sum(self.written.values()) >= budget

    def wrote(self, piece: str) -> bool:
        """A token with this text was written by whose turn it was; whether the turn goes on."""
        self.written[self.writer] += 1
        self._burst += 1
        before, self._text = self._text, (self._text + piece)[-LOOK_BACK:]
        if not self.thinking:
            return True
        if self._text.endswith(self.options.close) or self.options.close in piece:
            self.thinking = False
            return self._turn(self.options.answer)
        if self.writer == "large":
            if self._burst >= self.options.least and self._cue(before, piece):
                return self._turn("small")
        elif self._sentence_ends(before, piece):
            return self._turn("large")
        return True

    def closed(self) -> None:
        """The thinking was closed from outside."""
        self.thinking = False
        self._turn(self.options.answer)

    def refuse(self, count: int) -> None:
        """So many tokens of the small model were thrown away: the large one goes on."""
        self.refused += count
        self._turn("large")

    def retire(self) -> None:
        """The small model can read no further: the large one writes the rest."""
        self.retired = True
        self._turn("large")

    def _turn(self, writer: Writer) -> bool:
        """Hand over; whether it is the same one's turn still."""
        writer = "large" if self.retired else writer
        same = writer == self.writer
        self.writer, self._burst, self._ended = writer, 0, False
        self.switches += not same
        return same

    @property
    def stats(self) -> RelayStats:
        """Who wrote how much so far."""
        return RelayStats(self.written["large"], self.written["small"], self.switches, self.refused)

    def _cue(self, before: str, piece: str) -> bool:
        return bool(found_cues(before, piece, self.options.cues))

    def _sentence_ends(self, before: str, piece: str) -> bool:
        if not self.options.ends:
            return False
        if self._text.endswith(PARAGRAPH):
            return True
        if self._ended and piece[:1].isspace():
            return True
        inside = any(
            mark in self.options.ends and piece[at + 1 : at + 2].isspace()
            for at, mark in enumerate(piece)
        )
        if piece:
            self._ended = self._text.endswith(self.options.ends)
        return inside


def ends_with(text: str, cue: str) -> bool:
    """Whether a text ends with a cue that begins a word there."""
    if not text.endswith(cue):
        return False
    before = text[-len(cue) - 1 : -len(cue)]
    return not (before.isalnum() or before == "_")


def found_cues(before: str, piece: str, cues: tuple[str, ...]) -> list[str]:
    """Cues that a token completes, whose text follows `before`. One that ends in a space is
    complete with the token behind the word, which begins with that space."""
    text, spaced = before + piece, before + piece[:1]
    if not piece or not (text.endswith(cues) or spaced.endswith(cues)):
        return []
    return [
        cue for cue in cues
        if ends_with(text, cue) or (cue.endswith(" ") and ends_with(spaced, cue))
    ]  # fmt: skip


class RelayRun(Run):
    """A request to the large model of which a small one writes a part.

    small: the small model's side; it picks by the request's own parameters and seed.
    """

    def __init__(self, *args: Any, relay: Relay, small: SmallProposer, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.params.logprobs is not None:
            raise RequestError(
                "a relay has no log-probabilities: two models write its text",
                code="relay",
                hint="leave logprobs out",
                field="logprobs",
            )
        self.relay, self._small = relay, small
        self._pieces = self.tokenizer.stream()
        self._closing = self.tokenizer.encode(f"\n{relay.options.close}", special=True)

    def feed(self, rows: int, logits: int) -> Feed | None:
        self.advanced = False
        if self.relay.writer == "small" and not self.paused:
            self._write_small()
            self.advanced = True
            self.finished = self._reason is not None
            self.notify()
            if self.finished or self.relay.writer == "small":
                return None
        return super().feed(rows, logits)

    def _write_small(self) -> None:
        """Some tokens of the small model: until its turn ends, or others have waited enough."""
        for _ in range(CHUNK):
            if self._full(len(self.tokens)):
                self.relay.retire()
                return
            self._cut(self._guessed(self.tokens))
            if self._reason is not None or self.relay.writer == "large":
                return

    def _full(self, count: int) -> bool:
        """Whether a text of so many tokens fills the small model's context."""
        return count >= self._small.maker.session.context

    def _guessed(self, tokens: Sequence[int]) -> Sequence[int]:
        """The small model's next token; none while it still reads."""
        return self._small.propose(tokens, 1).tokens

    @property
    def _decoding(self) -> bool:
        return self.relay.writer == "large" and super()._decoding  # else drafts would be in vain

    def _cut(self, picked: Sequence[int]) -> int:
        """Append tokens up to the first that ends the answer or the turn."""
        for count, token in enumerate(picked, 1):
            super()._cut((token,))
            if self._reason is not None:
                return count
            goes_on = self.relay.wrote(self._pieces.push(token))
            if self.relay.spent:
                self._close()
                return count
            if not goes_on:
                return count
        return len(picked)

    def _close(self) -> None:
        """End the thinking, whose budget is used up."""
        for token in self._closing:
            if self._reason is None:
                super()._cut((token,))
                self._pieces.push(token)
        self.relay.closed()

    def _finish(self, reason: FinishReason) -> Generation:
        return msgspec.structs.replace(super()._finish(reason), relay=self.relay.stats)

    def release(self) -> None:
        super().release()
        self._small.close()

    def end(self, error: BaseException | None) -> None:
        self._small.close()
        super().end(error)
