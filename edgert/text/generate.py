"""One request as a lane of the engine: one cycle is one row of a step, with or without drafts.

    feed [anchor, drafts...] -> rows of logits -> pick a token a row while it equals the draft ->
    commit anchor and accepted drafts -> the last picked token is the next anchor

The anchor is the newest token: part of the text, not yet fed. Plain decoding is the same cycle with
no drafts. Every pick is keyed by (seed, position, token), so neither drafts nor other lanes change
the text, only the speed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import RequestError
from ..session.base import Feed, Session, State, StepResult
from ..session.lanes import Lane
from ..session.prefixes import WORTH, PrefixCache
from ..session.sequence import CpuState
from .logprobs import token_logprob
from .params import Resolved
from .results import FinishReason, Generation, Timings, TokenLogprob, Usage
from .sampling import Sampler
from .speculative.cycle import Ask, Speculation, together
from .stopping import StopText
from .tokenizer import Tokenizer

PROMPT_CHUNK = 512  # prompt tokens of one feed at most: between two calls of progress
AHEAD = 64  # pieces that an answer may be ahead of its reader
SINKS = 4  # tokens at the beginning that a context shift keeps (StreamingLLM, arXiv 2309.17453)

Progress = Callable[[int, int], None]


class Run(Lane):
    """One request.

    tokens: prompt, then everything generated. The state may begin with a prefix of the prompt
    (`state.length` tokens, fewer than the prompt has). `pieces` fills with text; afterwards
    `result` is set, unless `error` is. However it ends, the state holds committed tokens only, all
    of them `sequence[: state.length]`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: Resolved,
        *,
        context: int,
        start: Callable[[Run], State],
        keep: Callable[[Run, State | None], None] | None = None,
        speculation: Speculation | None = None,
        prefixes: PrefixCache | None = None,
        progress: Progress | None = None,
        load_s: float = 0.0,
        joined: bool = False,
        shift: bool = False,
    ) -> None:
        """context: tokens that the state may hold. start(run): gives the state. keep: is given the
        state at the end (None if its memory was needed elsewhere), else it is closed; not called
        where the request never began. speculation: guesses the next tokens, None for none.
        prefixes: beginnings that requests share. joined: the text goes on where the prompt's ended,
        with the space that may lie between; otherwise it begins anew, as an answer does. shift:
        when the context is full, forget the older half of it but for the first tokens. Raises
        RequestError for prompts that are empty or leave no room (`check_room`)."""
        super().__init__()
        tokenizer.check_ids(prompt)
        check_room(len(prompt), None if shift else params.max_tokens, context)
        self.tokenizer, self.context, self.shift = tokenizer, context, shift
        self.tokens, self.prompt_tokens = [int(token) for token in prompt], len(prompt)
        self.sequence = self.tokens  # what the model sees: another list after a shift
        self.params, self.speculation, self.progress = params, speculation, progress
        self.load_s, self.cached = load_s, 0
        self.pieces: deque[str] = deque()
        self.ahead = AHEAD
        self.result: Generation | None = None
        self._start, self._keep = start, keep
        sees_all = speculation is not None and speculation.sees_all
        self._prefixes = None if sees_all else prefixes  # rows of taps are not kept with them
        self._room: float = float("inf") if shift else context - len(prompt)
        if params.max_tokens is not None:
            self._room = min(self._room, params.max_tokens)
        self._sampler = Sampler.of(params, tokenizer)
        self._logprobs: list[TokenLogprob] = []
        self._ends = {*tokenizer.eos_token_ids, *params.stop_token_ids}
        self._decoder = tokenizer.stream(self.tokens if joined else ())
        self._stop = StopText(params.stop)
        self._text: list[str] = []
        self._reason: FinishReason | None = None
        self._drafted: Sequence[int] = ()
        self._opened = False
        self.on_piece: Callable[[], None] | None = None
        self.on_end: list[Callable[[], None]] = []
        self._started = self._first = self._prompt_end = 0.0

    # --- what the engine calls ------------------------------------------------------------------

    def begin(self) -> None:
        """The time from which it is waited for."""
        self._started = time.perf_counter()

    def notify(self) -> None:
        tell = self.on_piece  # a reader takes it away at any time
        if tell is not None and (self.pieces or self.done):
            tell()
        if self.done:
            for tell in list(self.on_end):
                tell()

    @property
    def drafting(self) -> bool:  # type: ignore[override]
        return self.speculation is not None and self.speculation.awake(len(self.tokens))

    @property
    def _taps(self) -> tuple[str, ...]:
        return () if self.speculation is None else self.speculation.reads(len(self.tokens))

    @property
    def guess_s(self) -> float:  # type: ignore[override]
        return 0.0 if self.speculation is None else self.speculation.guess_s

    @property
    def paused(self) -> bool:
        return len(self.pieces) >= self.ahead

    def open(self, session: Session) -> None:
        self.state = self._begun(session, self._start(self))
        if not self._opened:  # else it comes back after its memory was needed elsewhere
            self._opened, self.cached = True, self.state.length

    def _begun(self, session: Session, state: State) -> State:
        """The state, or one that begins with more of the prompt."""
        cache, prompt = self._prefixes, self.sequence[:-1]
        if cache is None or not isinstance(state, CpuState):
            return state
        adapter, long_rope = state.adapter, state.long_rope
        cache.fetch(prompt, state.length, long_rope=long_rope, adapter=adapter)
        known = cache.known(prompt, long_rope=long_rope, adapter=adapter)
        if known < state.length + WORTH:
            return state
        if state.length:
            state.close()
            state = session.new_state(self.prompt_tokens)
            session.choose(state, adapter)
        if isinstance(state, CpuState):
            cache.resume(state, prompt)
        return state

    @property
    def _split(self) -> bool:
        """Whether the last token of a prompt is fed by itself: recurrent states only go on from
        where they were kept, and a prompt that comes again is known up to that token."""
        state = self.state
        return self._prefixes is not None and isinstance(state, CpuState) and bool(state.slots)

    def _remember(self, *, whole: bool = False) -> None:
        """Share what the state holds with whoever begins the same way."""
        state = self.state
        if self._prefixes is not None and isinstance(state, CpuState) and state.length:
            self._prefixes.keep(state, self.sequence[: state.length], whole=whole)

    def feed(self, rows: int, logits: int) -> Feed | None:
        state = self.state
        if state is None or self.paused:
            return None
        if self.shift and len(self.sequence) > self.context:
            self._forget(state)
        pending = len(self.sequence) - state.length
        self._drafted = ()
        apart = pending > 1 and not self.generating and self._split
        count = min(rows, PROMPT_CHUNK, pending - apart)
        if count < pending:
            piece = self.sequence[state.length : state.length + count]
            return Feed(state, np.asarray(piece, np.int32), "none", taps=self._taps)
        if pending == 1 and self.speculation is not None and self.drafting:
            self._drafted = self._drafts(self.speculation, self._limit(rows, logits))
        tokens = [*self.sequence[state.length :], *self._drafted]
        wanted = "all" if self._drafted else "last"
        return Feed(state, np.asarray(tokens, np.int32), wanted, taps=self._taps)

    def prepare(self, lanes: Sequence[Lane], rows: int, logits: int) -> None:
        asked: list[tuple[Speculation, Ask]] = []
        for lane in lanes:
            if isinstance(lane, Run) and lane.speculation is not None and lane._decoding:
                ask = lane.speculation.ask(lane.tokens, lane._limit(rows, logits))
                if ask is not None:
                    asked.append((lane.speculation, ask))
        together(asked)

    def take(self, feed: Feed, result: StepResult) -> None:
        state = feed.state
        if feed.logits == "none":
            self._commit(feed, result, feed.rows)
            self._remember()
            if self.progress is not None and not self._prompt_end:
                self.progress(state.length, self.prompt_tokens)
            return
        self._prompt_end = self._prompt_end or time.perf_counter()
        drafts, first = self._drafted, not self.generating
        self.generating = True
        picked = self._accept(result.logits)
        kept = self._cut(picked)
        self._commit(feed, result, feed.rows - len(drafts) + kept - 1)
        if first and not self._split:  # else it was, a token ago
            self._remember()
        if self.speculation is not None and not first:
            self.speculation.took(kept, len(picked) - 1)
        self.finished = self._reason is not None

    def release(self) -> None:
        super().release()
        self.generating = False
        if self.speculation is not None:
            self.speculation.release()

    def end(self, error: BaseException | None) -> None:
        if self.speculation is not None:
            self.speculation.release()
        if self.state is not None:
            self.state.discard()  # what was fed and not committed
            if error is None:
                self._remember(whole=True)
        state, self.state = self.state, None
        if error is None:
            self._show(self._rest())
            self.result = self._finish(self._reason or "cancelled")
        elif getattr(error, "code", "") == "closed":
            self.pieces.clear()
        if self._opened and self._keep is not None:
            self._keep(self, state)
        elif state is not None:
            state.close()

    # --- a cycle --------------------------------------------------------------------------------

    def _forget(self, state: State) -> None:
        """Make room in a full context: keep its first tokens and the newer half of the others,
        which are fed again at their new positions."""
        kept = (self.context - SINKS) // 2
        self.sequence = [*self.sequence[:SINKS], *self.sequence[-max(1, kept) :]]
        state.rewind(min(SINKS, len(self.sequence) - 1, state.length))
        self.generating = False

    def _limit(self, rows: int, logits: int) -> int:
        """Drafts that fit the room (one cycle gives a token more than it has drafts) and a step of
        so many rows."""
        left = min(self._room, self.context - len(self.sequence))
        return int(min(rows, logits, left)) - 1

    @property
    def _decoding(self) -> bool:
        """Whether the next feed is one token, and drafts."""
        state = self.state
        return state is not None and len(self.sequence) - state.length == 1 and not self.paused

    def _drafts(self, speculation: Speculation, limit: int) -> Sequence[int]:
        """Drafts, cut before what can only be wrong: nothing follows an end token."""
        if limit < 1:
            return ()
        drafts = speculation.draft(self.tokens, limit)
        for index, token in enumerate(drafts):
            if token in self._ends or not 0 <= token < self.tokenizer.size:
                count = index + (token in self._ends)
                speculation.cut(count)
                return drafts[:count]
        return drafts

    def _accept(self, rows: np.ndarray) -> list[int]:
        """Tokens of this cycle: the accepted drafts and the one that follows them."""
        if self._drafted and self.speculation is not None:
            picked = self.speculation.accept(rows, self._sampler, self.tokens)
        else:
            picked = [self._sampler.pick(rows[0], self.tokens)]
        if (count := self.params.logprobs) is not None:
            for row, token in zip(rows, picked, strict=False):
                self._logprobs.append(token_logprob(row, token, count, self.tokenizer))
        return picked

    def _commit(self, feed: Feed, result: StepResult, count: int) -> None:
        """Keep the first rows of a step."""
        state, start = feed.state, feed.state.length
        state.commit(count)
        if feed.taps and self.speculation is not None:
            rows = result.taps
            if count < feed.rows:
                rows = {name: tap[:count] for name, tap in rows.items()}
            self.speculation.see(start, rows)

    def _cut(self, picked: Sequence[int]) -> int:
        """Append tokens up to the first that ends the answer, and their text: how many."""
        for count, token in enumerate(picked, 1):
            self.tokens.append(token)
            if self.sequence is not self.tokens:
                self.sequence.append(token)
            self._first = self._first or time.perf_counter()
            self._room -= 1
            if token in self._ends:
                self._reason = "stop"
            else:
                self._show(self._stop.push(self._decoder.push(token)))
                if self._stop.hit:
                    self._reason = "stop"
                elif self._room == 0:
                    self._reason = "length"
            if self._reason is not None:
                return count
        return len(picked)

    def _show(self, text: str) -> None:
        if text:
            self._text.append(text)
            self.pieces.append(text)

    def _rest(self) -> str:
        """Text held back for a stop string or an unfinished character."""
        text = self._stop.push(self._decoder.flush())
        return text if self._stop.hit else text + self._stop.flush()

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
        logprobs = None if self.params.logprobs is None else tuple(self._logprobs[: len(made)])
        text = "".join(self._text)
        drafting = None if self.speculation is None else self.speculation.stats
        return Generation(text, made, reason, usage, timings, self.params.seed, logprobs, drafting)


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
