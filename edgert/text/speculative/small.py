"""Guesses of a smaller model with the same tokenizer.

The small model reads the same text with a state of its own and goes on from it (`guesses`). A state
holds what was fed: the text and some guesses. When the text went on differently it is taken back to
where both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...errors import RequestError, ResourceError
from ...kernels.states import RecurrentState
from ...session.base import Feed, Session, State, StepResult
from ..params import Resolved
from ..sampling import Sampler
from ..tokenizer import Tokenizer
from .controller import Controller
from .cycle import Ask
from .guesses import GuessingModel, Work
from .proposer import Draft
from .verify import Verify

CHUNK = 256  # tokens that a state catches up at a time; until it has, there are no guesses


class SmallModel(GuessingModel):
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
        super().__init__(session)
        self.name, self._close, self.tokenizer = name, close, target

    @property
    def one_way(self) -> bool:
        """Whether its states do not go back to any length: then a copy guesses."""
        return any(isinstance(s, RecurrentState) for s in self.session.graph.states.values())

    def proposer(
        self, params: Resolved, *, verify: Verify, controller: Controller | None
    ) -> SmallProposer:
        """The guesses of one request."""
        return SmallProposer(self, params, verify, controller)

    def work(self, ask: Ask) -> Work:
        if not isinstance(ask.proposer, SmallProposer):
            raise TypeError(f"a wish of {type(ask.proposer).__name__}, expected a SmallProposer's")
        return _Work(ask, ask.proposer)

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


class _Work(Work):
    """One wish while it is fulfilled."""

    def __init__(self, ask: Ask, proposer: SmallProposer) -> None:
        super().__init__(ask, proposer)
        self.proposer = proposer
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
        state, proposer = self._state(), self.proposer
        if self.spare is None:
            proposer.held += self.text[state.length :]
            proposer.known = max(proposer.known, len(self.ask.tokens))
        state.commit(len(self.text) - state.length)
        return self.guess(result.logits[0])

    def end(self) -> None:
        if self.spare is not None:
            self.spare.close()
        super().end()


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
        f"the smaller model {name or ''} has another tokenizer: {found}",
        code="draft-tokenizer",
        hint="take a model of the same family, or draft with ngram",
    )
