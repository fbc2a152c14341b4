"""The generation loop: one cycle is one step of the session, with or without drafts.

    feed [anchor, drafts...] -> rows of logits -> pick a token a row while it equals the draft ->
    commit anchor and accepted drafts -> the last picked token is the next anchor

The anchor is the newest token: part of the text, not yet fed. Plain decoding is the same cycle with
no drafts. Every pick is keyed by (seed, position, token), so drafts change speed and never text
(`specs/speculative_decoding.md` 1.1, 1.3 "coupled", 1.5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import numpy as np

from ..errors import RequestError
from ..session.base import Feed, Session, State
from .params import Resolved
from .results import FinishReason, Generation, Timings, Usage
from .sampling import Sampler
from .stopping import StopText
from .tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens between two checks of cancel and calls of progress

Progress = Callable[[int, int], None]


class Proposer(Protocol):
    """Guesses the next tokens, deterministically. Wrong guesses cost time and nothing else."""

    def propose(self, tokens: Sequence[int], limit: int) -> Sequence[int]:
        """Up to `limit` ids that may follow `tokens`."""

    def observe(self, proposed: int, accepted: int) -> None:
        """What became of the last proposal."""


class Run:
    """One request on one state.

    tokens: prompt, then everything generated. The state may already hold a prefix of the prompt
    (`state.length` tokens, fewer than the prompt has). Iterating gives text pieces; afterwards
    `result` is set. However it ends, the state holds committed tokens only, all of them
    `tokens[: state.length]`.
    """

    def __init__(
        self,
        session: Session,
        state: State,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: Resolved,
        *,
        proposer: Proposer | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        load_s: float = 0.0,
        joined: bool = False,
    ) -> None:
        """joined: the text goes on where the prompt's ended, with the space that may lie between;
        otherwise it begins anew, as an answer does. Raises RequestError for prompts that are empty
        or leave no room (`check_room`)."""
        tokenizer.check_ids(prompt)
        check_room(len(prompt), params.max_tokens, state.context)
        self.session, self.state, self.tokenizer = session, state, tokenizer
        self.tokens, self.prompt_tokens = [int(token) for token in prompt], len(prompt)
        self.params, self.proposer = params, proposer
        self.cancelled, self.progress, self.load_s = cancelled, progress, load_s
        self.cached = state.length
        self.result: Generation | None = None
        self._room = state.context - len(prompt)
        if params.max_tokens is not None:
            self._room = min(self._room, params.max_tokens)
        self._sampler = Sampler(params, allowed=tokenizer.size, holes=tokenizer.holes)
        self._ends = {*tokenizer.eos_token_ids, *params.stop_token_ids}
        self._decoder = tokenizer.stream(self.tokens if joined else ())
        self._stop = StopText(params.stop)
        self._text: list[str] = []
        self._reason: FinishReason | None = None
        self._started = self._first = self._prompt_end = 0.0

    def __iter__(self) -> Generator[str, None, None]:
        """Generate. Closing the iterator early counts as cancelling."""
        self._started = time.perf_counter()
        try:
            self._prefill()
            while self._reason is None:
                yield from self._cycle()
            if rest := self._rest():
                yield rest
        except GeneratorExit:
            self._reason = self._reason or "cancelled"
            raise
        finally:
            self.state.discard()  # what was fed and not committed
            if self._reason is not None:
                self.result = self._finish(self._reason)

    def _prefill(self) -> None:
        """Feed the prompt but for its last chunk, which the first cycle feeds for its logits."""
        chunk = min(PREFILL_CHUNK, self.session.max_rows)
        while len(self.tokens) - self.state.length > chunk:
            if self._reason is not None or self._stopped_from_outside():
                return
            done = self.state.length
            self._step(self.tokens[done : done + chunk], "none")
            self.state.commit(chunk)
            if self.progress is not None:
                self.progress(self.state.length, self.prompt_tokens)

    def _stopped_from_outside(self) -> bool:
        if self.cancelled():
            self._reason = "cancelled"
        return self._reason is not None

    def _step(self, tokens: Sequence[int], logits: str) -> np.ndarray:
        feed = Feed(self.state, np.asarray(tokens, np.int32), logits)
        return self.session.step([feed])[0].logits

    def _cycle(self) -> list[str]:
        """One step; returns the text pieces it made certain."""
        if self._stopped_from_outside():
            return []
        pending = self.tokens[self.state.length :]
        drafts = self._drafts() if len(pending) == 1 else []
        rows = self._step([*pending, *drafts], "all" if drafts else "last")
        if not self._prompt_end:
            self._prompt_end = time.perf_counter()
        picked = self._accept(rows, drafts)
        kept, pieces = self._cut(picked)
        self.state.commit(len(pending) + kept - 1)
        if drafts and self.proposer is not None:
            self.proposer.observe(len(drafts), len(picked) - 1)
        return [piece for piece in pieces if piece]

    def _drafts(self) -> list[int]:
        """Drafts that fit the room (one cycle gives a token more than it has drafts) and the step,
        cut before what can only be wrong: nothing follows an end token."""
        limit = min(self._room - 1, self.session.max_rows - 1)
        if self.proposer is None or limit < 1:
            return []
        drafts = [int(token) for token in self.proposer.propose(self.tokens, limit)][:limit]
        for index, token in enumerate(drafts):
            if not 0 <= token < self.tokenizer.size:
                return drafts[:index]
            if token in self._ends:
                return drafts[: index + 1]
        return drafts

    def _accept(self, rows: np.ndarray, drafts: Sequence[int]) -> list[int]:
        """Tokens of this cycle: the accepted drafts and the one that follows them."""
        history, picked = list(self.tokens), []
        for index in range(len(drafts) + 1):
            token = self._sampler.pick(rows[index], history)
            picked.append(token)
            if index == len(drafts) or token != drafts[index]:
                break
            history.append(token)
        return picked

    def _cut(self, picked: Sequence[int]) -> tuple[int, list[str]]:
        """Append tokens up to the first that ends the answer: how many, and their text."""
        pieces: list[str] = []
        for count, token in enumerate(picked, 1):
            self.tokens.append(token)
            self._first = self._first or time.perf_counter()
            self._room -= 1
            if token in self._ends:
                self._reason = "stop"
            else:
                pieces.append(self._show(self._stop.push(self._decoder.push(token))))
                if self._stop.hit:
                    self._reason = "stop"
                elif self._room == 0:
                    self._reason = "length"
            if self._reason is not None:
                return count, pieces
        return len(picked), pieces

    def _show(self, text: str) -> str:
        if text:
            self._text.append(text)
        return text

    def _rest(self) -> str:
        """Text held back for a stop string or an unfinished character."""
        text = self._stop.push(self._decoder.flush())
        return self._show(text if self._stop.hit else text + self._stop.flush())

    def _finish(self, reason: FinishReason) -> Generation:
        now = time.perf_counter()
        made = tuple(self.tokens[self.prompt_tokens :])
        prompt_s = (self._prompt_end or now) - self._started
        generation_s = now - self._first if self._first else 0.0
        fed = max(0, self.prompt_tokens - self.cached)
        timings = Timings(
            load_s=self.load_s,
            prompt_s=prompt_s,
            first_token_s=self._first - self._started if self._first else 0.0,
            generation_s=generation_s,
            prompt_tps=fed / prompt_s if self._prompt_end and prompt_s > 0 else 0.0,
            generation_tps=(len(made) - 1) / generation_s if len(made) > 1 else 0.0,
        )
        usage = Usage(self.prompt_tokens, self.cached, len(made))
        return Generation("".join(self._text), made, reason, usage, timings, self.params.seed)


def expected_length(prompt: int, max_tokens: int | None, context: int) -> int:
    """Tokens of a sequence before its answer, which choose its rotary factors (`longrope`)."""
    return min(context, prompt)


def check_room(prompt: int, max_tokens: int | None, context: int) -> None:
    """Raises RequestError unless a prompt of so many tokens and its answer fit the context."""
    if prompt == 0:
        raise RequestError(
            "the prompt has 0 tokens, expected 1 or more",
            code="prompt-empty",
            hint="give some text, or a model that puts a beginning token in front",
        )
    if prompt >= context:
        raise RequestError(
            f"the prompt has {prompt} tokens, the context holds {context} with room for an answer",
            code="context",
            hint="shorten the prompt, or load with a larger ctx_size if the model allows it",
        )
    if max_tokens is not None and prompt + max_tokens > context:
        raise RequestError(
            f"the prompt of {prompt} tokens and max_tokens {max_tokens} make "
            f"{prompt + max_tokens}, the context holds {context}",
            code="context",
            hint=f"ask for max_tokens {context - prompt} or fewer, or leave it out",
        )
