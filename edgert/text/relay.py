"""RelayGen: a small model writes what is easy of a large model's thinking (`Relay`, `RelayRun`).

While the large model thinks, certain words begin sentences that a small one can finish (as
"Therefore"): at such a cue the small model goes on until the sentence ends, and the large one comes
back. The answer behind the thinking is the small model's. The method of RelayGen, with these
differences: cues begin at a word's beginning, a point ends a sentence only if white space follows,
tokens are handed on by id, and the large model may end its text within its first five tokens.

Not lossless: the text is neither model's own. Drafts may speed up what the large model writes; the
text then is the one without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import RequestError
from ..session.base import Feed
from .generate import Run
from .speculative.options import Source
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

    cues: texts at which the small model takes over; none: never, in the thinking. least: tokens of
    the large model between two of its turns. answer: who writes behind the thinking. close: the
    text that ends thinking. budget: tokens of thinking, after which it is closed; None: no limit.
    start: who begins. ends: texts that end the small model's turn; none: nothing does.
    """

    small: Source
    cues: tuple[str, ...] = CUES
    least: int = LEAST
    answer: Writer = "small"
    close: str = CLOSE
    budget: int | None = None
    start: Writer = "large"
    ends: tuple[str, ...] = ENDS


class Relay:
    """Whose turn it is, from the text so far: the automaton.

    writer: whose turn it is. written: tokens by writer.
    """

    def __init__(self, options: RelayOptions) -> None:
        self.options = options
        self.writer: Writer = options.start
        self.thinking = True
        self.written: dict[Writer, int] = {"large": 0, "small": 0}
        self.switches = 0
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
            if self._burst >= self.options.least and self._cue():
                return self._turn("small")
        elif self._sentence_ends(before, piece):
            return self._turn("large")
        return True

    def closed(self) -> None:
        """The thinking was closed from outside."""
        self.thinking = False
        self._turn(self.options.answer)

    def _turn(self, writer: Writer) -> bool:
        """Hand over; whether it is the same one's turn still."""
        same = writer == self.writer
        self.writer, self._burst, self._ended = writer, 0, False
        self.switches += not same
        return same

    def _cue(self) -> bool:
        return any(ends_with(self._text, cue) for cue in self.options.cues)

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


class RelayRun(Run):
    """A request to the large model of which a small one writes a part.

    small: the small model's side; it picks by the request's own parameters and seed.
    """

    def __init__(self, *args: Any, relay: Relay, small: SmallProposer, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.params.logprobs is not None:
            raise RequestError(
                "log-probabilities of a relay, which two models write",
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
            context = self._small.maker.session.context
            if len(self.tokens) >= context:
                raise RequestError(
                    f"the text has {len(self.tokens)} tokens, the small model's context holds "
                    f"{context}",
                    code="context",
                    hint="ask for fewer tokens, or load the small model with a larger ctx_size",
                )
            made = self._small.propose(self.tokens, 1).tokens
            if made:
                self._cut(made)
            if self._reason is not None or self.relay.writer == "large":
                return

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

    def release(self) -> None:
        super().release()
        self._small.close()

    def end(self, error: BaseException | None) -> None:
        self._small.close()
        super().end(error)
