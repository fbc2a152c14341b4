"""Guesses of a smaller model with the same tokenizer.

The small model reads the same text with a state of its own and goes on from it, a token a step. Its
tokens are picked by the numbers that the large model's are picked by ("coupled": both then agree
more often than chance would have it), or drawn by others and handed on with what they were drawn
from ("rejection").

Several requests guess in common steps. A state holds what was fed: the text and some guesses. When
the text went on differently it is taken back to where both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...errors import RequestError, ResourceError
from ...kernels.states import RecurrentState
from ...session.base import Feed, Session, State, StepResult
from ...session.costs import clock_for
from ..params import Resolved
from ..ranking import F32
from ..sampling import Sampler, draw
from ..tokenizer import Tokenizer
from .controller import Controller
from .cycle import Ask
from .proposer import Draft, Law
from .verify import DRAFT, Verify, seed_for

USUAL = 3  # rows of a feed while guessing: the newest token, and what the model added before it
CHUNK = 256  # tokens that a state catches up at a time; until it has, there are no guesses


class SmallModel:
    """A session that guesses for the requests of another model, whose tokenizer it shares.

    close: called by `close`, for whoever owns the session. Raises RequestError for another
    tokenizer.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        target: Tokenizer,
        *,
        name: str = "",
        close: Callable[[], None] | None = None,
    ) -> None:
        check_same(tokenizer, target, name)
        self.session, self.name, self._close = session, name, close
        self.tokenizer, self._clock = target, clock_for(session.device)

    @property
    def one_way(self) -> bool:
        """Whether its states do not go back to any length: then a copy guesses."""
        return any(isinstance(s, RecurrentState) for s in self.session.graph.states.values())

    def proposer(
        self, params: Resolved, *, verify: Verify, controller: Controller | None
    ) -> SmallProposer:
        """The guesses of one request."""
        return SmallProposer(self, params, verify, controller)

    def make(self, asks: Sequence[Ask]) -> None:
        """Fill the drafts of wishes; where memory is short they stay empty."""
        clock, each = self._clock, [_Work(ask) for ask in asks]
        start = clock()
        live = [work for work in each if work.begin()]
        last, steps, guesses = start, 0.0, 0
        while live:
            feeds = [(work, work.feed()) for work in live]
            fed = self._step(feeds)
            live = [work for work, result in fed if work.take(result)]
            now = clock()
            if all(feed.rows <= USUAL for _, feed in feeds):  # else a text is caught up with
                steps, guesses = steps + now - last, guesses + len(fed)
            last = now
        for work in each:
            work.end()
        for ask in asks:
            ask.seconds = (last - start) / len(asks)
            ask.each = steps / guesses if guesses else 0.0

    def _step(self, fed: Sequence[tuple[_Work, Feed]]) -> list[tuple[_Work, StepResult]]:
        """Common steps of as many feeds as fit; works whose memory was not there drop out."""
        done: list[tuple[_Work, StepResult]] = []
        while fed:
            rows = np.cumsum([feed.rows for _, feed in fed])
            count = max(1, int((rows <= self.session.max_rows).sum()))
            try:
                results = self.session.step([feed for _, feed in fed[:count]])
            except ResourceError:
                for work, _ in fed[:count]:
                    work.proposer.close()
            else:
                pairs = zip(fed[:count], results, strict=True)
                done += [(work, result) for (work, _), result in pairs]
            fed = fed[count:]
        return done

    def close(self) -> None:
        if self._close is not None:
            self._close()


class SmallProposer:
    """One request's guesses by a small model. It is asked through its maker, see `cycle.Shared`."""

    key = "model"

    def __init__(
        self, maker: SmallModel, params: Resolved, verify: Verify, controller: Controller | None
    ) -> None:
        self.maker, self.controller, self.verify = maker, controller, verify
        self.sampler = Sampler.of(params, maker.tokenizer)
        self.ends = frozenset(maker.tokenizer.eos_token_ids) | frozenset(params.stop_token_ids)
        self.state: State | None = None
        self.held: list[int] = []  # what the state holds
        self.known = 0  # tokens of it that are the text's

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        ask = Ask(self, tokens, limit, len(tokens))
        self.maker.make([ask])
        return ask.draft

    def observe(self, proposed: int, accepted: int) -> None:
        """The next text tells."""

    def close(self) -> None:
        """Give the state back; the next wish begins anew."""
        if self.state is not None:
            self.state.close()
        self.state, self.held, self.known = None, [], 0

    def settle(self, tokens: Sequence[int]) -> State:
        """The state, taken back to what it shares with the text, one token of which is left."""
        if self.state is None:
            self.state = self.maker.session.new_state(len(tokens))
        state, held = self.state, self.held
        end = len(tokens) - 1
        same = min(self.known, end)
        if held[:same] != tokens[:same]:
            same = 0
        while same < min(len(held), end) and held[same] == tokens[same]:
            same += 1
        if state.length > same:
            state.rewind(same)
        del held[state.length :]
        self.known = state.length
        return state


class _Work:
    """One wish while it is fulfilled."""

    def __init__(self, ask: Ask) -> None:
        proposer = ask.proposer
        if not isinstance(proposer, SmallProposer):
            raise TypeError(f"a wish of {type(proposer).__name__}, expected a SmallProposer's")
        self.ask, self.proposer = ask, proposer
        self.tokens: list[int] = []
        self.laws: list[Law] = []
        self.reach = 1.0
        self.text = list(ask.tokens)  # with the guesses
        self.spare: State | None = None  # guesses of states that cannot take them back

    def begin(self) -> bool:
        """Whether guesses are to be made now."""
        proposer, count = self.proposer, len(self.text)
        context = proposer.maker.session.context
        if count + self.ask.limit > context:
            return False
        try:
            state = proposer.settle(self.text)
            behind = count - state.length
            limit = min(CHUNK, proposer.maker.session.max_rows)
            if behind > limit:
                self._catch_up(state, limit)
                return False
            if proposer.maker.one_way:
                if behind > 1:
                    self._catch_up(state, behind - 1)
                self.spare = state.fork()
        except ResourceError:
            proposer.close()
            return False
        return True

    def _catch_up(self, state: State, count: int) -> None:
        piece = self.text[state.length : state.length + count]
        self.proposer.maker.session.step([Feed(state, np.asarray(piece, np.int32), "none")])
        state.commit(count)
        self.proposer.held += piece
        self.proposer.known = state.length

    def feed(self) -> Feed:
        state = self._state()
        return Feed(state, np.asarray(self.text[state.length :], np.int32))

    def _state(self) -> State:
        state = self.spare or self.proposer.state
        if state is None:
            raise RuntimeError("a wish is fulfilled without a state")
        return state

    def take(self, result: StepResult) -> bool:
        """Pick a guess; whether another one is to follow."""
        self.ask.tried = True
        state, proposer = self._state(), self.proposer
        if self.spare is None:
            proposer.held += self.text[state.length :]
            proposer.known = max(proposer.known, len(self.ask.tokens))
        state.commit(len(self.text) - state.length)
        row = result.logits[0]
        if proposer.verify == "rejection":
            law = proposer.sampler.law(row, self.text)
            if not self._worth(lambda: float(law[1].max())):
                return False
            seed = seed_for(proposer.sampler.params.seed, self.ask.cycle, DRAFT)
            token = draw(law[0], law[1], seed, len(self.text))
            self.laws.append(law)
        else:
            if not self._worth(lambda: likeliest_share(row)):
                return False
            token = proposer.sampler.pick(row, self.text)
        self.tokens.append(token)
        self.text.append(token)
        return len(self.tokens) < self.ask.limit and token not in proposer.ends

    def _worth(self, share: Callable[[], float]) -> bool:
        """Whether to make this guess, by the law and the guesses before, not by what it will be."""
        controller = self.proposer.controller
        if controller is None:
            return True
        self.reach *= share()
        return controller.worth(self.proposer.key, len(self.tokens), self.reach)

    def end(self) -> None:
        if self.spare is not None:
            self.spare.close()
        laws = self.laws if self.proposer.verify == "rejection" else None
        self.ask.draft = Draft(self.tokens, laws, self.proposer.key)


def likeliest_share(row: F32) -> float:
    """The largest probability of softmax(row)."""
    return float(1.0 / np.exp(row - row.max()).sum())


def check_same(tokenizer: Tokenizer, target: Tokenizer, name: str) -> None:
    """RequestError unless both tokenizers give the same ids the same meaning."""
    mine, theirs = tokenizer.vocabulary, target.vocabulary
    size = min(tokenizer.size, target.size)
    unlike = [i for i in range(size) if tokenizer.piece_of(i) != target.piece_of(i)]
    if not unlike and (tokenizer.size, mine.holes) == (target.size, theirs.holes):
        return
    found = f"{tokenizer.size} tokens, expected {target.size}"
    if unlike:
        at = unlike[0]
        found = (
            f"{len(unlike)} tokens that differ, the first is {at}: "
            f"{tokenizer.piece_of(at)[:40]!r}, expected {target.piece_of(at)[:40]!r}"
        )
    raise RequestError(
        f"the draft model {name or ''} has another tokenizer: {found}",
        code="draft-tokenizer",
        hint="draft with a model of the same family, or with ngram",
    )
